"""Every architecture and kind of checkpoint: the RTL gives the golden device's logits, and those
are near the packed model's in floating point, as they are not with a part in the wrong place."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("gguf")

from tests.host.packed_models import loud_models
from tests.host.tiles import assert_a_story_moves, compiled, golden, on_transport, run_tiles
from tests.system.small_architectures import MAKERS, config_of_engine, is_ternary, make
from tests.system.test_ports import THREE_PORTS

from lutra.compile.configure import configure
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.quantize.reference import reference
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel, PackedNorm
from lutra_golden.timing.memory import IDEAL_MEMORY, MemoryTiming, random_timing
from lutra_golden.vector.rope import rope_table

pytestmark = pytest.mark.usefixtures("no_coverage")

Float = NDArray[np.float64]
Packed = Callable[[str], PackedModel]
N_PROMPT, N_DECODE = 20, 3
SIZES = (4, 3, 1, 2, 4, 4, 2)
"""Tiles of the prompt."""
BOUND = 0.045
"""Limit on the root mean square error, in standard deviations of the logits: eight bits of
activations, keys, values and head leave 0.015 to 0.03."""
BOUND_KV4 = 0.07
"""The same limit with a cache of four bits, which leaves 0.02 to 0.05, in float as well."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return make(tmp_path_factory.mktemp("models"))


def tokens_for(model: PackedModel) -> list[int]:
    return np.random.default_rng(1).integers(0, model.vocab_size, N_PROMPT).tolist()


def program_logits(model: PackedModel, config: AcceleratorConfig) -> Float:
    """Logits of the prompt in the interpreter, for what they are worth."""
    found = run_tiles(on_transport(compiled(model, config)), tokens_for(model), SIZES)
    return found.logits * found.scale[:, None]


def error(actual: Float, expected: Float) -> float:
    return float(np.sqrt(((actual - expected) ** 2).mean()) / expected.std())


def expected_logits(model: PackedModel) -> Float:
    return reference(model).forward(np.array(tokens_for(model)))


# -- the RTL


def assert_the_rtl_gives_the_same(
    model: PackedModel, config: AcceleratorConfig, timing: MemoryTiming
) -> None:
    """Tiles of several sizes, then tokens one by one: logits, scales and arg-max."""
    device = on_transport(compiled(model, config), RtlTransport(timing=timing))
    expected_of = golden(model)
    tokens, position, seen = tokens_for(model), 0, set[int]()

    def step(tile: Sequence[int]) -> int:
        expected = expected_of.run_tile(tile, position, 0)
        actual = device.run_tile(tile, position, 0)
        np.testing.assert_array_equal(actual.logits, expected.logits)
        np.testing.assert_array_equal(actual.scale, expected.scale)
        np.testing.assert_array_equal(actual.argmax, expected.argmax)
        assert actual.saturated == expected.saturated
        seen.update(expected.argmax.tolist())
        return int(expected.argmax[-1])

    token = 0
    for size in SIZES:
        token = step(tokens[position : position + size])
        position += size
    for _ in range(N_DECODE):
        token = step([token])
        position += 1
    device.close()
    assert len(seen) > N_PROMPT // 4


def engines_of(name: str) -> Iterator[str]:
    """Engines of a model; the first is always tested, and two simulators cover all models."""
    if is_ternary(name):
        yield "ternary"
    yield from ("lut", "mixpe", "mac")
    if is_ternary(name):
        yield "lookup"


def rtl_cases() -> Iterator[object]:
    for name in MAKERS:
        for i, engine in enumerate(engines_of(name)):
            marks = [pytest.mark.rtl] + [pytest.mark.slow] * (i > 0)
            yield pytest.param(name, engine, marks=marks, id=f"{name}-{engine}")


@pytest.mark.parametrize(("name", "engine"), [*rtl_cases()])
def test_the_rtl_gives_the_logits_of_the_golden_device(
    name: str, engine: str, packed: Packed
) -> None:
    # an odd model sees a memory that stalls
    timing = random_timing(2) if list(MAKERS).index(name) % 2 else IDEAL_MEMORY
    assert_the_rtl_gives_the_same(packed(name), config_of_engine(engine), timing)


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("mistral-window", "lut"),
        *(
            pytest.param(name, next(engines_of(name)), marks=pytest.mark.slow)
            for name in ("qwen2-narrow", "qwen2-window", "qwen-both", "bitnet", "bitnet-large-odd")
        ),
        pytest.param("llama-untied", "mixpe", marks=pytest.mark.slow),
    ],
)
def test_the_rtl_with_a_cache_of_four_bits(name: str, engine: str, packed: Packed) -> None:
    """Windows that begin at odd positions, tiles that end at them, padded heads."""
    model = replace(packed(name), key_bits=4, value_bits=4)
    timing = random_timing(2) if name in ("mistral-window", "bitnet") else IDEAL_MEMORY
    config = config_of_engine(engine, key_width=4, value_width=4)
    if name == "mistral-window":
        # a simulator less to build
        config = THREE_PORTS
    assert_the_rtl_gives_the_same(model, config, timing)
    rtl, other = on_transport(compiled(model, config), RtlTransport()), golden(model)
    assert_a_story_moves(rtl.device, other.device, tokens_for(model)[:7])
    assert_a_story_moves(other.device, rtl.device, tokens_for(model)[:7])
    rtl.close()


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama-untied", "gptq", "bitnet"])
def test_the_rtl_of_a_configuration_made_to_measure(name: str, packed: Packed) -> None:
    """Only the hardware that the model needs: biases or norms of heads alone, or neither."""
    model = packed(name)
    config = configure(model)
    assert config.name.startswith("nano-fit")
    assert (config.vector.qkv_bias, config.vector.qk_norm) == (model.biased, model.head_normed)
    assert_the_rtl_gives_the_same(model, config, random_timing(3))


# -- saturation


@pytest.mark.parametrize("transport", ["interpreted", pytest.param("rtl", marks=pytest.mark.rtl)])
def test_every_place_that_saturates_sets_the_flag(transport: str, packed: Packed) -> None:
    """Scores, attention, heads in fixed point, SiLU and the residual stream, one after another."""
    model, config = packed("llama-untied"), config_of_engine("lut")
    for name, each in {"none": model, **loud_models(model)}.items():
        rtl = RtlTransport(timing=IDEAL_MEMORY) if transport == "rtl" else None
        device, tokens = on_transport(compiled(each, config), rtl), tokens_for(model)[:4]
        actual, expected = (tiles.run_tile(tokens, 0, 0) for tiles in (device, golden(each)))
        np.testing.assert_array_equal(actual.logits, expected.logits)
        assert actual.saturated == expected.saturated == (name != "none"), name
        device.close()


# -- floating point


@pytest.mark.parametrize("name", MAKERS)
def test_a_cache_of_four_bits_is_near_floating_point(name: str, packed: Packed) -> None:
    model = replace(packed(name), key_bits=4, value_bits=4)
    config = config_of_engine(next(engines_of(name)), key_width=4, value_width=4)
    actual = program_logits(model, config)
    near = error(actual, expected_logits(model))
    assert near < BOUND_KV4
    # what four bits cost is there, and is nearly all
    assert error(actual, expected_logits(packed(name))) > 2 * near


@pytest.mark.parametrize("name", MAKERS)
def test_logits_are_near_those_of_the_packed_model_in_float(name: str, packed: Packed) -> None:
    model = packed(name)
    config = config_of_engine(next(engines_of(name)))
    assert error(program_logits(model, config), expected_logits(model)) < BOUND


@pytest.mark.parametrize("name", ["qwen-both", "two-groups", "gptq", "bitnet"])
def test_every_engine_gives_the_same(name: str, packed: Packed) -> None:
    model = packed(name)
    first, *others = (program_logits(model, config_of_engine(e)) for e in engines_of(name))
    assert others
    for logits in others:
        np.testing.assert_array_equal(logits, first)


@pytest.mark.parametrize("name", ["qwen2", "qwen2-narrow"])
def test_centres_of_keys_are_in_their_places(name: str, packed: Packed) -> None:
    """Which no softmax shows, so that the logits are compared bit for bit."""
    model, rng = packed(name), np.random.default_rng(3)

    def far_away(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
        assert layer.bias is not None
        assert layer.bias.centre is not None
        centre = rng.integers(-32000, 32000, len(layer.bias.centre)).astype(np.int16)
        return replace(layer, bias=replace(layer.bias, centre=centre))

    model = in_layers(far_away)(model)
    device = on_transport(compiled(model, config_of_engine("lut")))
    found, expected = (run_tiles(x, tokens_for(model), SIZES) for x in (device, golden(model)))
    np.testing.assert_array_equal(found.logits, expected.logits)


# -- faults

Fault = Callable[[PackedModel], PackedModel]


def in_layers(change: Callable[[PackedModel, PackedLayer], PackedLayer]) -> Fault:
    return lambda model: replace(model, layers=[change(model, layer) for layer in model.layers])


def with_bias(order: Callable[[PackedModel], NDArray[np.int64]]) -> Fault:
    def changed(model: PackedModel, layer: PackedLayer) -> PackedLayer:
        assert layer.bias is not None
        return replace(layer, bias=replace(layer.bias, values=layer.bias.values[order(model)]))

    return in_layers(changed)


def keys_before_values(model: PackedModel) -> NDArray[np.int64]:
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    parts = np.split(np.arange(q + 2 * kv), [q, q + kv])
    return np.concatenate([parts[0], parts[2], parts[1]])


def halves_of_heads(model: PackedModel) -> NDArray[np.int64]:
    n = model.n_heads + 2 * model.n_kv_heads
    return np.arange(n * model.head_dim).reshape(n, 2, -1)[:, ::-1].reshape(-1)


def neighbours_apart(model: PackedModel) -> NDArray[np.int64]:
    """Permutation that would be right if rotated pairs were neighbours."""
    n = model.n_heads + 2 * model.n_kv_heads
    return np.arange(n * model.head_dim).reshape(n, -1, 2).transpose(0, 2, 1).reshape(-1)


def fewer_fraction_bits(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    assert layer.bias is not None
    return replace(layer, bias=replace(layer.bias, frac=layer.bias.frac - 1))


def norms_exchanged(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    norms = layer.head_norms
    assert norms is not None
    return replace(layer, head_norms=replace(norms, query=norms.key, key=norms.query))


def norms_reversed(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    norms = layer.head_norms
    assert norms is not None
    turned = replace(norms, query=norms.query[::-1], key=norms.key[::-1])
    return replace(layer, head_norms=turned)


def no_head_norms(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, head_norms=None)


def no_bias(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, bias=None)


def window_of(change: int) -> Fault:
    return in_layers(lambda _, layer: replace(layer, window=layer.window + change))


def no_window(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, window=0)


def no_scaling(model: PackedModel) -> PackedModel:
    table = rope_table(model.context, model.head_dim, 100.0)
    assert not np.array_equal(table, model.rope)
    return replace(model, rope=table.astype(np.int16))


def rolled(norm: PackedNorm | None) -> PackedNorm:
    assert norm is not None
    return replace(norm, gamma=np.roll(norm.gamma, 1))


def sub_norm_rolled(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, attention_norm=rolled(layer.attention_norm))


def ffn_norm_rolled(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, ffn_norm=rolled(layer.ffn_norm))


def input_norm_rolled(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, input_norm=rolled(layer.input_norm))


def keys_and_values(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, k_proj=layer.v_proj, v_proj=layer.k_proj)


def gate_and_up(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
    return replace(layer, gate_proj=layer.up_proj, up_proj=layer.gate_proj)


def groups_rolled(name: str) -> Fault:
    def changed(_model: PackedModel, layer: PackedLayer) -> PackedLayer:
        weights = layer.linear(name).weights
        moved = replace(
            weights, scale=np.roll(weights.scale, 1, 1), zero=np.roll(weights.zero, 1, 1)
        )
        linear = PackedLinear(moved, layer.linear(name).scale, layer.linear(name).shift)
        return replace(layer, **{name: linear})

    return in_layers(changed)


def head_rolled(model: PackedModel) -> PackedModel:
    return replace(model, head_rows=np.roll(model.head_rows, 1))


FAULTS: dict[str, dict[str, Fault]] = {
    "qwen2": {
        "keys and values exchanged": with_bias(keys_before_values),
        "halves of heads exchanged": with_bias(halves_of_heads),
        "neighbours for halves": with_bias(neighbours_apart),
        "a binary point off": in_layers(fewer_fraction_bits),
        "none": in_layers(no_bias),
    },
    "qwen2-narrow": {"halves of heads exchanged": with_bias(halves_of_heads)},
    "qwen2-window": {
        "one less": window_of(-1),
        "one more": window_of(1),
        "none": in_layers(no_window),
    },
    "qwen3": {
        "queries and keys exchanged": in_layers(norms_exchanged),
        "reversed": in_layers(norms_reversed),
        "none": in_layers(no_head_norms),
        "keys and values": in_layers(keys_and_values),
    },
    "qwen3-narrow": {"reversed": in_layers(norms_reversed)},
    "qwen-both": {
        "keys and values exchanged": with_bias(keys_before_values),
        "norms exchanged": in_layers(norms_exchanged),
        "no norms": in_layers(no_head_norms),
        "no bias": in_layers(no_bias),
    },
    "mistral-window": {"one less": window_of(-1), "one more": window_of(1)},
    "llama-linear": {"none": no_scaling},
    "llama-dynamic": {"none": no_scaling},
    "llama-yarn": {"none": no_scaling},
    "llama-llama3": {"none": no_scaling},
    "llama-untied": {
        "gamma rolled": in_layers(input_norm_rolled),
        "rows of the head": head_rolled,
    },
    "mixed": {"no bias": in_layers(no_bias), "groups": groups_rolled("v_proj")},
    "two-groups": {"fine groups": groups_rolled("v_proj"), "groups": groups_rolled("o_proj")},
    "gptq": {"groups": groups_rolled("o_proj")},
    "gguf-q4_0": {"gate and up": in_layers(gate_and_up)},
    "bitnet": {
        "attention's gamma": in_layers(sub_norm_rolled),
        "feed-forward's gamma": in_layers(ffn_norm_rolled),
    },
    "bitnet-large": {
        "attention's gamma": in_layers(sub_norm_rolled),
        "feed-forward's gamma": in_layers(ffn_norm_rolled),
    },
    "bitnet-large-odd": {
        "attention's gamma": in_layers(sub_norm_rolled),
        "keys and values": in_layers(keys_and_values),
    },
    "falcon3": {"gamma rolled": in_layers(input_norm_rolled), "keys": in_layers(keys_and_values)},
}
"""Possible misplacements, by model."""


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_a_fault_is_seen(name: str, fault: str, packed: Packed) -> None:
    """The bound is one that a right model keeps and this one does not."""
    model = packed(name)
    config = config_of_engine(next(engines_of(name)))
    broken = program_logits(FAULTS[name][fault](model), config)
    assert error(broken, expected_logits(model)) > 1.5 * BOUND
