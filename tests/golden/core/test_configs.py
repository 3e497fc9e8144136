"""Named configurations, and those made from others."""

from dataclasses import asdict
from typing import Any

import pytest

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import CONFIGS, NANO, with_engine


def test_named_configurations() -> None:
    assert CONFIGS["nano"] is NANO
    assert all(name == config.name for name, config in CONFIGS.items())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("a_width", [8, 16])
def test_an_engine_takes_the_place_of_another(engine: str, a_width: int) -> None:
    if engine in ("ternary", "lookup") and a_width == 16:
        with pytest.raises(ValueError, match=f"a_width of the {engine} engine must be 8, not 16"):
            with_engine(NANO, engine, a_width=a_width)
        return
    config = with_engine(NANO, engine, a_width=a_width)
    assert (config.engine, config.matmul.kind, config.matmul.a_width) == (engine, engine, a_width)
    assert config.matmul.word_bits <= 1024
    assert config.with_(name=NANO.name, matmul=NANO.matmul) == NANO
    before, after = asdict(NANO.matmul), asdict(config.matmul)
    others = {name for name in before if before[name] != after[name]}
    shape = {"step_depth", "depth_tile", "a_width", "acc_width", "sum_width", "act_tiles"}
    if engine == "lookup":
        shape |= {"step_tokens", "step_rows"}
        assert after["fabric"] == "generic"
    assert others <= {*shape, "w_width", "max_planes"}


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
@pytest.mark.parametrize("scale_width", [8, 12, 16])
@pytest.mark.parametrize("depth_tile", [16, 32, 64])
def test_an_engine_with_other_groups_and_scales(
    engine: str, scale_width: int, depth_tile: int
) -> None:
    config = with_engine(NANO, engine, scale_width=scale_width, depth_tile=depth_tile)
    usual = with_engine(NANO, engine)
    m = config.matmul
    assert (m.scale_width, m.depth_tile, m.sum_width) == (scale_width, depth_tile, 28 + scale_width)
    assert m.act_tiles * m.depth_tile == usual.matmul.act_tiles * 64  # as deep
    assert m.step_depth == min(usual.matmul.step_depth, depth_tile)
    # a word of 32 rows, 16 deep, would be too wide
    assert m.step_rows == (16 if engine == "lut" and depth_tile < 64 else 8)
    assert m.word_bits <= 1024
    wide = "" if scale_width == 8 else f"-s{scale_width}"
    assert config.name == f"nano-{engine}{wide}" + ("" if depth_tile == 64 else f"-k{depth_tile}")
    same = (scale_width, depth_tile) == (8, 64)
    assert (config.fingerprint == usual.fingerprint) == same


@pytest.mark.parametrize(
    ("engine", "offset_width", "tile"),
    [
        ("lut", 0, (16, 32)),
        ("lut", 18, (16, 32)),
        ("lut", 27, (8, 32)),  # a word of 16 rows would be too wide
        ("mixpe", 27, (8, 16)),
        ("mac", 18, (8, 16)),
    ],
)
def test_an_engine_with_groups_of_activations(
    engine: str, offset_width: int, tile: tuple[int, int]
) -> None:
    groups = ActivationGroups(size=32)
    scale_width = 16 if offset_width == 27 else 8
    config = with_engine(
        NANO,
        engine,
        scale_width=scale_width,
        depth_tile=32,
        a_groups=groups,
        offset_width=offset_width,
    )
    m = config.matmul
    assert (m.a_groups, m.offset_width, m.sum_width) == (groups, offset_width, 35 + scale_width)
    assert (m.step_rows, m.step_depth) == tile
    assert m.word_bits <= 1024
    parts = ("-s16" if scale_width == 16 else "", "-k32", f"-o{offset_width}" * bool(offset_width))
    assert config.name == f"nano-{engine}{''.join(parts)}-g32"


@pytest.mark.parametrize(
    ("engine", "values", "message"),
    [
        ("ternary", {"offset_width": 18}, "offset_width of the ternary engine must be 0, not 18"),
        ("ternary", {"scale_width": 16}, "scale_width of the ternary engine must be 8, not 16"),
        ("ternary", {"depth_tile": 32}, "depth_tile of the ternary engine must be 64, not 32"),
        ("lookup", {"offset_width": 18}, "offset_width of the lookup engine must be 0, not 18"),
        ("lut", {"depth_tile": 48}, "depth_tile must be one of 16, 32, 64, not 48"),
        ("mac", {"scale_width": 17}, "scale_width must be in 8..16, not 17"),
    ],
)
def test_other_groups_and_scales_that_are_refused(
    engine: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        with_engine(NANO, engine, **values)
    assert str(error.value) == message


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine must be one of .*, not 'dsp'"):
        with_engine(NANO, "dsp")
    with pytest.raises(ValueError, match="config must have the ternary engine, not 'lut'"):
        with_engine(with_engine(NANO, "lut"), "ternary")


def test_an_engine_with_another_tile() -> None:
    ternary = with_engine(NANO, "ternary", tile=(2, 16, 24)).matmul
    assert (ternary.step_tokens, ternary.step_rows, ternary.step_depth) == (2, 16, 24)
    assert ternary.depth_tile == 24
    mac = with_engine(NANO, "mac", tile=(1, 8, 8)).matmul
    assert (mac.step_depth, mac.depth_tile) == (8, 64)
