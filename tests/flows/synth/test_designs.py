"""Engines built for a format: their tiles, their throughput, and what there cannot be."""

from dataclasses import replace

import pytest

from lutra_flows.synth.compare import PAIRS, PAPER_TILES
from lutra_flows.synth.designs import Groups, Material, Part, design, engine_formats
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES
from lutra_golden.core.fabric import Fabric
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import FORMATS
from lutra_golden.matmul.lookup import LookupParams
from lutra_golden.matmul.lut import LutParams, Tables
from lutra_golden.matmul.mac import Adders, MacParams
from lutra_golden.matmul.mixpe import MixpeParams

EVERY = [(engine, fmt) for engine in ENGINES for fmt in engine_formats(engine)]


@pytest.mark.parametrize(("engine", "fmt"), EVERY)
def test_default_tiles_have_equal_throughput(engine, fmt):
    found = design(engine, fmt).macs_per_cycle
    if engine in ("ternary", "lookup"):
        assert found == {"ternary": 576, "lookup": 6144}[engine]
    elif engine == "lut" and fmt.startswith("W6"):
        # six words for the depth of eight planes
        assert found == pytest.approx(512 * 8 / 6)
    else:
        assert found == 512


@pytest.mark.parametrize(("engine", "fmt", "tile"), PAPER_TILES)
def test_tiles_of_the_paper_have_the_same_throughput(engine, fmt, tile):
    assert design(engine, fmt, tile).macs_per_cycle == 512


@pytest.mark.parametrize(("engine", "fmt"), EVERY)
def test_engines_hold_the_format_and_no_wider_one(engine, fmt):
    found = design(engine, fmt)
    bits = found.format.w_bits
    if engine in ("ternary", "lookup"):
        assert found.params.max_planes == {"ternary": 1, "lookup": 8}[engine]
        assert found.planes == 1
    else:
        assert found.params.a_width == found.format.a_bits
        assert found.params.max_planes == found.planes
        assert found.planes * found.params.w_width >= bits
        assert (found.planes - 1) * found.params.w_width < bits


@pytest.mark.parametrize(("engine", "fmt"), [("ternary", "W1.58A8"), ("lut", "W2A8")])
def test_engines_hold_more_digits_where_it_is_said(engine, fmt):
    """The same throughput of the format, and an engine of more digits, as `nano` has."""
    narrow, wide = design(engine, fmt), design(engine, fmt, max_planes=5)
    assert (wide.params.max_planes, wide.planes) == (5, narrow.planes)
    assert wide.macs_per_cycle == narrow.macs_per_cycle
    assert replace(wide.params, max_planes=narrow.planes) == narrow.params


def test_digits_that_can_not_be():
    with pytest.raises(LutraError, match=r"^--max-planes must be 2 or more for W2A8, not 1$"):
        design("lut", "W2A8", max_planes=1)
    with pytest.raises(LutraError, match=r"^max_planes must give codes of at most 8 bits, not 9$"):
        design("lut", "W2A8", max_planes=9)
    with pytest.raises(LutraError, match=r"^--whole has the digits of nano: leave --max-planes o"):
        design("lut", "W2A8", part=Part.WHOLE, max_planes=2)


def test_groups_of_activations_and_offsets():
    groups = ActivationGroups(size=32)
    plain = design("mixpe", "W4A8")
    for wanted in (
        Groups(activations=groups, offset_width=18),
        Groups(activations=groups, offset_width=18, depth_tile=16),
    ):
        params = design("mixpe", "W4A8", groups=wanted).params
        assert (params.a_groups, params.offset_width) == (groups, 18)
        assert params.depth_tile == (wanted.depth_tile or 32)
        assert params.sum_width == plain.params.sum_width + 7
        whole = design("mixpe", "W4A8", part=Part.WHOLE, groups=wanted).params
        assert (whole.a_groups, whole.offset_width) == (groups, 18)
        assert whole.depth_tile == params.depth_tile
    assert design("mixpe", "W4A8", groups=Groups()) == plain
    assert design("mac", "W4A8", groups=Groups(depth_tile=32)).params.depth_tile == 32
    with pytest.raises(LutraError, match=r"^a_groups and offset_width of the ternary engine, "):
        design("ternary", "W1.58A8", groups=Groups(activations=groups))


def test_formats():
    assert engine_formats("lut") == engine_formats("mac") == FORMATS
    assert engine_formats("ternary") == engine_formats("lookup") == ("W1.58A8",)
    assert {"W4A8", "W4A16", "W8A8"} <= set(engine_formats("mixpe"))
    assert all(fmt in engine_formats(engine) for engine, fmt in PAIRS)


def test_a_plane_is_a_word():
    # 8 rows of 16 products, one weight bit at a time
    assert design("lut", "W4A8", (1, 8, 16)).macs_per_cycle == 8 * 16 / 4
    assert design("mac", "W4A8", (1, 8, 16)).macs_per_cycle == 8 * 16


def test_lanes_have_their_own_accumulators():
    """Of all tokens and rows at once, so that a depth tile may be one step."""
    for fabric in Fabric:
        found = design("lookup", "W1.58A8", (8, 32, 24), fabric=fabric)
        assert found.macs_per_cycle == 8 * 32 * 24
        assert isinstance(found.params, LookupParams)
        assert found.params.fabric == fabric
    lane = design("lookup", "W1.58A8", (8, 32, 24), part=Part.DATAPATH)
    assert lane.macs_per_cycle == 32 * 24


def test_throughput_is_limited_by_the_accumulators():
    # 64 rows of 2 tokens take 16 cycles to the accumulators, their products 2
    assert design("mac", "W8A8", (2, 64, 32)).macs_per_cycle == 2 * 64 * 64 / 16
    alone = design("mac", "W8A8", (2, 64, 32), part=Part.DATAPATH)
    assert alone.macs_per_cycle == 64 * 32


@pytest.mark.parametrize(
    ("material", "tables", "mac", "mixpe"),
    [
        (Material.DSP, Tables.MEMORY, Adders.DSP, Adders.CHAINS),
        (Material.LUTS, Tables.MEMORY, Adders.CHAINS, Adders.CHAINS),
        (Material.CELLS, Tables.LOGIC, Adders.CELLS, Adders.CELLS),
    ],
)
def test_arrays_suit_the_target(material, tables, mac, mixpe):
    found = {
        engine: design(engine, "W4A8", material=material).params
        for engine in ("lut", "mac", "mixpe")
    }
    assert isinstance(found["lut"], LutParams)
    assert found["lut"].tables == tables
    assert isinstance(found["mac"], MacParams)
    assert found["mac"].adders == mac
    assert isinstance(found["mixpe"], MixpeParams)
    assert found["mixpe"].adders == mixpe


def test_a_whole_accelerator_takes_the_tile():
    found = design("mac", "W4A8", (1, 8, 8), part=Part.WHOLE)
    assert found.config is not None
    assert (found.config.engine, found.config.matmul.step_depth) == ("mac", 8)
    assert found.macs_per_cycle == 64


@pytest.mark.parametrize(
    ("engine", "fmt", "tile", "message"),
    [
        (
            "gemm",
            "W2A8",
            None,
            "engine must be one of ternary, lut, mixpe, mac, lookup, not 'gemm'",
        ),
        (
            "lut",
            "W5A8",
            None,
            (
                f"format must be one of {', '.join(FORMATS)}, or with a group of weights as "
                "W1.58g128A8, not 'W5A8'"
            ),
        ),
        ("ternary", "W2A8", None, "format of the ternary engine must be W1.58A8, not W2A8"),
        (
            "mixpe",
            "W2A8",
            None,
            (
                "format of the mixpe engine must be W3A8, W4A8, W6A8, W8A8, W3A16, W4A16, W6A16 "
                "or W8A16, not W2A8"
            ),
        ),
        ("mac", "W8A8", (0, 8, 8), "step_tokens must be positive, not 0"),
        (
            "mac",
            "W8A8",
            (1, 12, 8),
            "step_rows must be a power of two from 8 on, not 12",
        ),
        (
            "lut",
            "W2A8",
            (1, 8, 2),
            "step_depth must be a multiple of 4 (activations of a table), not 2",
        ),
        (
            "mac",
            "W8A8",
            (1, 8, 12),
            "depth_tile (the group) must be a multiple of step_depth, not 64 of 12",
        ),
    ],
)
def test_what_there_can_not_be(engine, fmt, tile, message):
    with pytest.raises(LutraError) as error:
        design(engine, fmt, tile)
    assert str(error.value) == message


def test_a_whole_accelerator_in_standard_cells_is_refused():
    with pytest.raises(LutraError, match=r"^--whole is built for FPGAs"):
        design("ternary", "W1.58A8", part=Part.WHOLE, material=Material.CELLS)
