"""Configurations: what is refused, derived sizes, fingerprints."""

import hashlib
import json
from dataclasses import fields, replace

import pytest

from lutra_golden.core.config import (
    CONFIGS,
    ENGINES,
    NANO,
    NANO_WIDE,
    RTL_VERSION,
    AcceleratorConfig,
    with_engine,
)

FEATURES = ("qkv_bias", "qk_norm")
NUMBERS = [f.name for f in fields(AcceleratorConfig) if f.name not in ("name", "engine", *FEATURES)]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_positive_integers(name: str) -> None:
    for value in (0, -8):
        with pytest.raises(ValueError, match=f"^{name} must be positive, not {value}$"):
            replace(NANO, **{name: value})
    for value in (8.0, "8", None):
        with pytest.raises(TypeError, match=f"^{name} must be an integer, not {value!r}$"):
            replace(NANO, **{name: value})


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_bools(name: str) -> None:
    assert getattr(replace(NANO, **{name: True}), name) is True
    for value in (1, "yes", None):
        with pytest.raises(TypeError, match=f"^{name} must be a bool, not {value!r}$"):
            replace(NANO, **{name: value})


def test_the_largest_head_with_norm() -> None:
    wide = replace(NANO, head_dim=256, data_axi_width=2048, qk_norm=True)
    assert replace(wide, head_dim=512, data_axi_width=4096, qk_norm=False).head_dim == 512
    with pytest.raises(ValueError, match=r"^head_dim must be at most 256 with qk_norm, not 512$"):
        replace(wide, head_dim=512, data_axi_width=4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_axi_width": 1000}, "weight_axi_width must be a power of two, not 1000"),
        ({"data_axi_width": 511}, "data_axi_width must be a power of two, not 511"),
        ({"max_context": 300}, "max_context must be a power of two, not 300"),
        ({"param_words": 500}, "param_words must be a power of two, not 500"),
        ({"engine": "dsp"}, "engine must be one of ternary, lut, mixpe, mac, not 'dsp'"),
        ({"engine": "lut"}, "w_width of the lut engine must be 1, not 2"),
        ({"step_tokens": 3}, "step_tokens must be a power of two, not 3"),
        ({"step_rows": 12}, "step_rows must be a power of two from 8 on, not 12"),
        (
            {"depth_tile": 100},
            r"depth_tile \(the group\) must be a multiple of step_depth, not 100 of 72",
        ),
        ({"a_width": 12}, "a_width must be 8 or 16, not 12"),
        ({"lanes": 16}, "lanes must be 8, not 16"),
        (
            {"pass_tokens": 65},
            "pass_tokens must be at most 64, the tokens that registers hold, not 65",
        ),
        ({"hidden_max": 260}, "hidden_max must be a multiple of 8 lanes, not 260"),
        ({"n_heads": 5}, "n_heads must be a multiple of n_kv_heads, not 5 of 2"),
        (
            {"step_depth": 96, "depth_tile": 96},
            "weight_axi_width must hold a weight word of 1280 bits, not 1024",
        ),
        ({"head_dim": 128}, r"head_dim must be 64 \(one beat of the data port\), not 128"),
        ({"n_heads": 16, "n_kv_heads": 16}, "n_kv_heads must fit one scale record, not 16"),
        ({"row_blocks_max": 191}, r"acc_blocks must be a multiple of 2 \(.*\), not 191"),
        (
            {"weight_buffer_words": 500},
            "weight_buffer_words must be a power of two from 2 on, not 500",
        ),
        ({"kv_width": 6}, "kv_width must be 8 or 4, not 6"),
        (
            {"kv_width": 4, "max_context": 1},
            "max_context must be 2 or more with kv_width 4, not 1",
        ),
        ({"gate_width": 22}, "gate_width must be in 2..21, not 22"),
    ],
)
def test_illegal_values_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(NANO, **changes)


def test_sizes_of_nano() -> None:
    assert NANO.weight_word_bytes == 128
    assert NANO.data_bytes == 64
    assert NANO.matmul.depth_tile == 72
    assert NANO.matmul.word_bits == 960
    assert NANO.matmul.macs_per_step == 576
    assert NANO.kv_head_bytes == 256 * 64
    assert NANO.kv_v_offset == 2 * 256 * 64
    assert NANO.kv_s_offset == 4 * 256 * 64
    assert NANO.kv_scale_bytes == 16
    assert NANO.kv_layer_bytes == 4 * 256 * 64 + 256 * 16


def test_sizes_of_a_cache_of_four_bits() -> None:
    config = replace(NANO, kv_width=4)
    assert (NANO.kv_row_bytes, config.kv_row_bytes) == (64, 32)
    assert config.kv_head_bytes == 256 * 32
    assert config.kv_s_offset == 4 * 256 * 32
    assert config.kv_layer_bytes == 4 * 256 * 32 + 256 * 16
    assert config.attention.dot_width == NANO.attention.dot_width - 4
    assert config.attention.acc_width == NANO.attention.acc_width - 4


@pytest.mark.parametrize(("n_kv_heads", "n_bytes"), [(1, 8), (2, 16), (3, 32), (5, 64), (8, 64)])
def test_scale_records_are_powers_of_two(n_kv_heads: int, n_bytes: int) -> None:
    config = replace(NANO, n_heads=n_kv_heads, n_kv_heads=n_kv_heads)
    assert config.kv_scale_bytes == n_bytes >= 8 * n_kv_heads


def test_parts_take_their_sizes_from_the_configuration() -> None:
    config = replace(
        NANO,
        name="x",
        pass_tokens=3,
        step_depth=48,
        depth_tile=48,
        act_tiles=7,
        row_blocks_max=20,
        acc_width=28,
        sum_width=30,
    )
    assert (config.matmul.pass_tokens, config.matmul.step_depth) == (3, 48)
    assert config.matmul.sum_width == 30
    assert (config.matmul.act_tiles, config.matmul.acc_blocks) == (7, 20)
    assert config.matmul.acc_width == 28
    assert (config.attention.pass_tokens, config.attention.max_context) == (3, 256)
    assert config.norm.gate_width == NANO.gate_width


def test_fingerprint_is_of_everything_but_name_and_clock() -> None:
    assert replace(NANO, name="other", clock_hz=1).fingerprint == NANO.fingerprint
    others = [
        replace(NANO, **change)
        for change in (
            {"step_depth": 48, "depth_tile": 48},
            {"pass_tokens": 4},
            {"acc_width": 23},
            {"sum_width": 25},
            {"engine": "lut", "step_depth": 24, "w_width": 1},
            {"engine": "lut", "step_depth": 24, "w_width": 1, "scale_width": 16},
            {"gate_width": 19},
            {"row_blocks_max": 194},
            {"act_tiles": 12},
            {"weight_buffer_words": 1024},
            {"hidden_max": 512},
            {"param_words": 1024},
            {"n_heads": 8},
            {"n_kv_heads": 4},
            {"max_context": 512},
            {"kv_width": 4},
            {"weight_axi_width": 2048},
            {"max_outstanding": 4},
            {"burst_bytes": 512},
            {"qkv_bias": True},
            {"qk_norm": True},
        )
    ]
    prints = {config.fingerprint for config in (NANO, NANO_WIDE, *others)}
    assert len(prints) == len(others) + 2
    assert max(prints) < 1 << 64


def test_fingerprint_can_be_computed_by_hand() -> None:
    content = {f.name: getattr(NANO, f.name) for f in fields(NANO)} | {"rtl": RTL_VERSION}
    del content["name"], content["clock_hz"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    assert NANO.fingerprint == int.from_bytes(digest[:8], "little")


def test_named_configurations() -> None:
    assert CONFIGS["nano"] is NANO
    assert all(name == config.name for name, config in CONFIGS.items())
    assert replace(NANO_WIDE, name="nano", pass_tokens=NANO.pass_tokens) == NANO


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("a_width", [8, 16])
def test_an_engine_takes_the_place_of_another(engine: str, a_width: int) -> None:
    if engine == "ternary" and a_width == 16:
        with pytest.raises(ValueError, match="a_width of the ternary engine must be 8, not 16"):
            with_engine(NANO, engine, a_width=a_width)
        return
    config = with_engine(NANO, engine, a_width=a_width)
    assert (config.engine, config.matmul.kind, config.matmul.a_width) == (engine, engine, a_width)
    assert config.matmul.word_bits <= NANO.weight_axi_width
    others = {f.name for f in fields(config) if getattr(config, f.name) != getattr(NANO, f.name)}
    shape = {
        "step_depth",
        "depth_tile",
        "a_width",
        "w_width",
        "acc_width",
        "sum_width",
        "act_tiles",
    }
    assert others <= {"name", "engine", *shape}


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
    assert m.word_bits <= NANO.weight_axi_width
    wide = "" if scale_width == 8 else f"-s{scale_width}"
    assert config.name == f"nano-{engine}{wide}" + ("" if depth_tile == 64 else f"-k{depth_tile}")
    same = (scale_width, depth_tile) == (8, 64)
    assert (config.fingerprint == usual.fingerprint) == same


@pytest.mark.parametrize(
    ("engine", "values", "message"),
    [
        ("ternary", {"scale_width": 16}, "scale_width of the ternary engine must be 8, not 16"),
        ("ternary", {"depth_tile": 32}, "depth_tile of the ternary engine must be 64, not 32"),
        ("lut", {"depth_tile": 48}, "depth_tile must be one of 16, 32, 64, not 48"),
        ("mac", {"scale_width": 17}, "scale_width must be in 8..16, not 17"),
    ],
)
def test_other_groups_and_scales_that_are_refused(
    engine: str, values: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        with_engine(NANO, engine, **values)
    assert str(error.value) == message


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"engine must be one of .*, not 'dsp'"):
        with_engine(NANO, "dsp")
    with pytest.raises(ValueError, match="config must have the ternary engine, not 'lut'"):
        with_engine(with_engine(NANO, "lut"), "ternary")
