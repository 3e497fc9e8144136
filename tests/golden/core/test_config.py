"""Configurations: what is refused, what follows from their parts, fingerprints."""

import hashlib
import json
import re
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import RTL_VERSION
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import PortParams, Purpose, striped_ports, two_ports
from lutra_golden.matmul.mixpe import MixpeParams

PARTS = ("matmul", "attention", "vector")
FEATURES = ("qkv_bias", "qk_norm")
OPTIONS = ("a_groups", "offset_width")
NUMBERS = [
    field.name
    for part in PARTS
    for field in fields(getattr(NANO, part))
    if field.name not in (*FEATURES, *OPTIONS)
] + ["clock_hz"]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_positive_integers(name: str) -> None:
    for value in (0, -8):
        with pytest.raises(ValueError, match=f"^{name} must be positive, not {value}$"):
            NANO.with_(**{name: value})
    for value in (8.0, "8", None, True):
        with pytest.raises(TypeError, match=f"^{name} must be an integer, not {value!r}$"):
            NANO.with_(**{name: value})


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_bools(name: str) -> None:
    assert getattr(NANO.with_(**{name: True}).vector, name) is True
    for value in (1, "yes", None):
        with pytest.raises(TypeError, match=f"^{name} must be a bool, not {value!r}$"):
            NANO.with_(**{name: value})


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_of_their_kind(name: str) -> None:
    kind = {"matmul": "EngineParams", "attention": "AttentionParams", "vector": "VectorParams"}
    with pytest.raises(TypeError, match=rf"^{name} must be {kind[name]}, not 'small'$"):
        replace(NANO, **{name: "small"})


def test_the_largest_head_with_norm() -> None:
    wide = NANO.with_(head_dim=256, qk_norm=True)
    assert wide.with_(head_dim=512, qk_norm=False).head_dim == 512
    with pytest.raises(ValueError, match=r"^head_dim must be at most 256 with qk_norm, not 512$"):
        wide.with_(head_dim=512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_context": 300}, "max_context must be a power of two, not 300"),
        ({"param_words": 500}, "param_words must be a power of two, not 500"),
        ({"engine": "dsp"}, "engine must be one of ternary, lut, mixpe, mac, lookup, not 'dsp'"),
        ({"engine": "lut", "w_width": 2}, "w_width of the lut engine must be 1, not 2"),
        ({"step_tokens": 3}, "step_tokens must be a power of two, not 3"),
        ({"step_rows": 12}, "step_rows must be a power of two from 8 on, not 12"),
        (
            {"depth_tile": 100},
            "depth_tile (the group) must be a multiple of step_depth, not 100 of 72",
        ),
        ({"a_width": 12}, "a_width must be 8 or 16, not 12"),
        (
            {
                "engine": "mac",
                "step_depth": 16,
                "depth_tile": 128,
                "sum_width": 43,
                "a_groups": ActivationGroups(size=128),
            },
            "head_dim must be a multiple of depth_tile (128) with a_groups, not 64",
        ),
        (
            {"pass_tokens": 65},
            "pass_tokens must be at most 64, the tokens that registers hold, not 65",
        ),
        (
            {"attention": replace(NANO.attention, pass_tokens=4)},
            "pass_tokens of attention must be those of matmul (8), not 4",
        ),
        ({"hidden_max": 260}, "hidden_max must be a multiple of 8 lanes, not 260"),
        ({"n_heads": 5}, "n_heads must be a multiple of n_kv_heads, not 5 of 2"),
        (
            {"acc_blocks": 191},
            "acc_blocks must be a multiple of 2 (pairs of blocks, step_rows / 8), not 191",
        ),
        (
            {"weight_buffer_words": 500},
            "weight_buffer_words must be a power of two from 2 on, not 500",
        ),
        ({"key_width": 6, "value_width": 6}, "key_width must be 8 or 4, not 6"),
        ({"value_width": 2}, "value_width must be 8 or 4, not 2"),
        (
            {"value_width": 4},
            "key_width and value_width must be equal, not 8 and 4: build with 8 and 8, or 4 and 4",
        ),
        (
            {"key_width": 4, "value_width": 4, "max_context": 1},
            "max_context must be at least 2 (keys of a word of 64 bytes), not 1",
        ),
        (
            {"head_dim": 16, "max_context": 2, "n_heads": 16, "n_kv_heads": 16},
            "max_context must be at least 8 (keys of a word of 128 bytes), not 2",
        ),
        (
            {"acc_blocks": 2},
            (
                "acc_blocks must be at least 4 (two halves, each with a word of 64 bytes of "
                "logits), not 2"
            ),
        ),
        (
            {"head_dim": 128, "acc_blocks": 6},
            (
                "acc_blocks must be at least 8 (two halves, each with a word of 128 bytes of "
                "logits), not 6"
            ),
        ),
        ({"gate_width": 22}, "gate_width must be in 2..21, not 22"),
        ({"ports": ()}, "ports must have one for fetch, not 0"),
        ({"ports": NANO.ports[:1]}, "ports must have one for fetch, not 0"),
        ({"ports": NANO.ports[1:]}, "ports must have one for weights, not 0"),
        ({"ports": NANO.ports + NANO.ports[1:]}, "ports must have one for fetch, not 2"),
    ],
)
def test_illegal_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NANO.with_(**changes)


def test_numbers_that_no_part_has_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^no part of a configuration has lanes, tile$"):
        NANO.with_(tile=3, head_dim=32, lanes=4)


def test_sizes_of_nano() -> None:
    assert NANO.weight_word_bytes == 128
    assert NANO.word_bytes == NANO.load_word_bytes == 64
    assert NANO.matmul.depth_tile == 72
    assert NANO.matmul.word_bits == 960
    assert NANO.matmul.macs_per_step == 576
    assert NANO.kv_head_bytes == 256 * 64
    assert NANO.kv_v_offset == 2 * 256 * 64
    assert NANO.kv_s_offset == 4 * 256 * 64
    assert NANO.kv_scale_bytes == 16
    assert NANO.kv_layer_bytes == 4 * 256 * 64 + 256 * 16


def test_sizes_of_a_cache_of_four_bits() -> None:
    config = NANO.with_(key_width=4, value_width=4)
    assert (NANO.kv_row_bytes, config.kv_row_bytes) == (64, 32)
    assert config.kv_head_bytes == 256 * 32
    assert config.kv_s_offset == 4 * 256 * 32
    assert config.kv_layer_bytes == 4 * 256 * 32 + 256 * 16
    assert config.attention.dot_width == NANO.attention.dot_width - 4
    assert config.attention.acc_width == NANO.attention.acc_width - 4


@pytest.mark.parametrize(("n_kv_heads", "n_bytes"), [(1, 8), (2, 16), (3, 32), (5, 64), (9, 128)])
def test_scale_records_are_powers_of_two(n_kv_heads: int, n_bytes: int) -> None:
    config = NANO.with_(n_heads=n_kv_heads, n_kv_heads=n_kv_heads)
    assert config.kv_scale_bytes == n_bytes >= 8 * n_kv_heads


@pytest.mark.parametrize(
    ("changes", "word", "load"),
    [
        ({"head_dim": 16}, 32, 32),  # an instruction
        ({"head_dim": 32}, 32, 32),
        ({"head_dim": 128}, 128, 64),  # a key; a row of embeddings is 64 bytes
        ({"head_dim": 16, "n_heads": 12, "n_kv_heads": 12}, 128, 32),  # scales; a row of rotations
    ],
)
def test_words_hold_what_is_moved_at_once(changes: dict[str, int], word: int, load: int) -> None:
    config = NANO.with_(**changes)
    assert (config.word_bytes, config.word_width, config.load_word_bytes) == (word, 8 * word, load)


@pytest.mark.parametrize(
    ("width", "n_bytes"),
    [(32, 120), (64, 120), (128, 120), (256, 120), (512, 120), (1024, 128)],
)
def test_weight_words_have_gaps_in_wider_beats_alone(width: int, n_bytes: int) -> None:
    assert NANO.with_(ports=two_ports(weights=width, data=512)).weight_word_bytes == n_bytes


def test_small_weight_words_share_a_beat() -> None:
    config = NANO.with_(step_depth=15, depth_tile=15)  # 200 bits
    assert config.matmul.word_bits == 200
    assert config.weight_word_bytes == 32
    assert config.alignment(Purpose.WEIGHTS) == 128


@pytest.mark.parametrize(
    ("lanes", "width", "n_bytes", "align"),
    [(2, 64, 120, 16), (4, 128, 120, 64), (2, 32, 120, 8), (4, 1024, 128, 512)],
)
def test_striped_words_in_the_beats_of_all_ports(
    lanes: int, width: int, n_bytes: int, align: int
) -> None:
    config = NANO.with_(ports=striped_ports(lanes, width))
    assert config.ports_of(Purpose.WEIGHTS) == tuple(range(lanes))
    assert config.ports_of(Purpose.WRITE) == (lanes - 1,)
    assert config.weight_word_bytes == n_bytes
    assert config.alignment(Purpose.WEIGHTS) == align
    words = np.random.default_rng(1).integers(0, 256, (5, 120), np.uint8)
    image = config.weight_image(words)
    assert len(image) == config.weight_image_bytes(5) == -(-5 * n_bytes // align) * align
    # the first lane has the first part of the first word
    assert bytes(image[: min(width // 8, 120)]) == bytes(words[0, : width // 8])
    assert np.array_equal(config.weight_words(image, 5)[:, :120], words)
    assert not config.weight_words(image, 5)[:, 120:].any()


def test_memory_is_aligned_to_words_and_beats() -> None:
    assert [NANO.alignment(purpose) for purpose in Purpose] == [64, 64, 64, 128, 64]
    assert NANO.align_bytes == 128
    narrow = NANO.with_(ports=two_ports(weights=32, data=32))
    assert [narrow.alignment(purpose) for purpose in Purpose] == [64, 64, 64, 4, 64]
    wide = NANO.with_(ports=two_ports(weights=64, data=1024), head_dim=32, max_context=16)
    assert [wide.alignment(purpose) for purpose in Purpose] == [128, 128, 128, 8, 128]
    assert wide.kv_layer_bytes % 128 == 0


def test_what_is_read_before_it_is_written() -> None:
    assert NANO.kv_zeroed_from == NANO.kv_s_offset
    assert NANO.with_(key_width=4, value_width=4).kv_zeroed_from == 0
    assert NANO.with_(ports=two_ports(weights=1024, data=1024)).kv_zeroed_from == 0
    assert NANO.with_(n_heads=12, n_kv_heads=12).kv_zeroed_from == 0


def test_numbers_go_to_the_parts_that_have_them() -> None:
    config = NANO.with_(
        name="x",
        pass_tokens=3,
        step_depth=48,
        depth_tile=48,
        act_tiles=7,
        acc_blocks=20,
        acc_width=28,
        sum_width=30,
    )
    assert config.name == "x"
    assert (config.matmul.pass_tokens, config.matmul.step_depth) == (3, 48)
    assert (config.matmul.act_tiles, config.matmul.acc_blocks) == (7, 20)
    assert (config.matmul.acc_width, config.matmul.sum_width) == (28, 30)
    assert (config.attention.pass_tokens, config.attention.max_context) == (3, 256)
    assert config.norm.gate_width == NANO.vector.gate_width
    assert config.norm.acc_width == 28


def test_another_engine_has_the_sizes_of_this_one() -> None:
    config = NANO.with_(engine="mixpe", step_depth=8, depth_tile=16, w_width=8, acc_blocks=20)
    assert isinstance(config.matmul, MixpeParams)
    assert (config.matmul.acc_blocks, config.matmul.act_tiles) == (20, NANO.matmul.act_tiles)
    assert (config.matmul.w_width, config.matmul.max_planes) == (8, 1)
    assert config.with_(matmul=NANO.matmul) == NANO


def test_fingerprint_is_of_everything_but_name_and_clock() -> None:
    assert NANO.with_(name="other", clock_hz=1).fingerprint == NANO.fingerprint
    lut = {"engine": "lut", "step_depth": 24}
    grouped = {"step_depth": 16, "depth_tile": 16, "sum_width": 43}
    others = [
        NANO.with_(**change)
        for change in (
            {"step_depth": 48, "depth_tile": 48},
            {"pass_tokens": 4},
            {"acc_width": 23},
            {"sum_width": 25},
            lut,
            lut | {"scale_width": 16},
            {"gate_width": 19},
            {"acc_blocks": 194},
            {"act_tiles": 12},
            {"weight_buffer_words": 1024},
            {"hidden_max": 512},
            {"param_words": 1024},
            {"n_heads": 8},
            {"n_kv_heads": 4},
            {"max_context": 512},
            {"key_width": 4, "value_width": 4},
            {"ports": two_ports(weights=512, data=512)},
            {"ports": two_ports(weights=1024, data=512, max_outstanding=4)},
            {"ports": two_ports(weights=1024, data=512, burst_bytes=512)},
            {"ports": (PortParams(width=1024, purposes=tuple(Purpose)),)},
            {"qkv_bias": True},
            {"qk_norm": True},
            {"pair_cycles": 2},
            {"pair_cycles": 4},
            lut | grouped,
            lut | grouped | {"a_groups": ActivationGroups(size=64)},
            lut | grouped | {"a_groups": ActivationGroups(size=64, shift_max=3)},
            lut | grouped | {"offset_width": 18},
        )
    ]
    prints = {config.fingerprint for config in (NANO, *others)}
    assert len(prints) == len(others) + 1
    assert max(prints) < 1 << 64


def test_engines_of_the_same_sizes_differ() -> None:
    sizes = {"step_depth": 16, "depth_tile": 16, "w_width": 4, "adders": 2}
    mac, mixpe = (NANO.with_(engine=engine, **sizes) for engine in ("mac", "mixpe"))
    assert asdict(mac.matmul) == asdict(mixpe.matmul)
    assert mac.fingerprint != mixpe.fingerprint


def test_fingerprint_can_be_computed_by_hand() -> None:
    content = {part: asdict(getattr(NANO, part)) for part in PARTS}
    # of one cycle, a pair is what it was before there was a choice
    assert content["attention"].pop("pair_cycles") == 1
    # as is an engine without groups of activations and offsets
    assert content["matmul"].pop("a_groups") is None
    assert content["matmul"].pop("offset_width") == 0
    content |= {"ports": [asdict(port) for port in NANO.ports], "engine": "ternary"}
    content |= {"rtl": RTL_VERSION}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    assert NANO.fingerprint == int.from_bytes(digest[:8], "little")
