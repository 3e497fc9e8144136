"""The golden device: tiles of any size agree, the float model is near, and every refusal."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.random_model import GROUP, LLAMAS, SHAPES, config_for, load

from lutra.checkpoints.weights import Dense, Ternary, Weight
from lutra.compile.compiler import compile_model
from lutra.compile.fit import engines_for
from lutra.compile.program import Program
from lutra.devices.base import DeviceError, TileResult
from lutra.devices.golden import GoldenDevice
from lutra.models import find_model, load_model
from lutra.models.decoder import Decoder
from lutra.quantize import quantize_decoder
from lutra.quantize.pack import pack_model
from lutra.quantize.reference import reference
from lutra_golden.control.isa import Instruction, Opcode, encode
from lutra_golden.core.config import ENGINES, NANO, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import W_BITS, Format
from lutra_golden.model.packed import PackedModel

Float = NDArray[np.float64]


def run(
    program: Program, tokens: Sequence[int] | NDArray[np.int64], sizes: Sequence[int] = ()
) -> TileResult:
    """All logits of ``tokens`` in tiles of ``sizes``, then of the configuration's."""
    device, position, parts = GoldenDevice(), 0, []
    device.load(program)
    sizes = [*sizes, *[program.config.pass_tokens] * len(tokens)]
    for size in sizes:
        chunk = tokens[position : position + size]
        if len(chunk):
            parts.append(device.run_tile(list(map(int, chunk)), position, 0))
        position += len(chunk)
    return TileResult(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.argmax for part in parts]),
        None,
    )


def real(result: TileResult) -> Float:
    return result.logits * result.scale[:, None]


def assert_same(a: TileResult, b: TileResult) -> None:
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.scale, b.scale)
    np.testing.assert_array_equal(a.argmax, b.argmax)


def tokens_for(program: Program, seed: int = 1) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, program.vocab_size, program.context)


# -- tiles


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sizes", [[1] * 99, [3] * 99, [2, 1, 4, 3, 1, 1, 2]])
def test_tiles_of_any_size_agree(
    name: str, sizes: list[int], program: Callable[[str], Program]
) -> None:
    """To the last position of the context."""
    tokens = tokens_for(program(name))
    assert_same(run(program(name), tokens, sizes), run(program(name), tokens))


def test_a_wide_tile_agrees(
    checkpoint: Callable[[str], Decoder], program: Callable[[str], Program]
) -> None:
    wide = replace(config_for(SHAPES["odd"]), pass_tokens=64)
    tokens = tokens_for(program("odd"))
    whole = run(compile_model(pack_model(checkpoint("odd")), wide), tokens)
    assert_same(whole, run(program("odd"), tokens))


def test_tiles_of_the_shipped_model_agree() -> None:
    program = compile_model(pack_model(load(find_model("tales"))), NANO)
    tokens = tokens_for(program)[:27]
    expected = run(program, tokens, [1] * 27)
    assert_same(run(program, tokens), expected)
    assert_same(run(program, tokens, [5, 8, 1, 7]), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_only_the_logits_that_are_asked_for(name: str, program: Callable[[str], Program]) -> None:
    """The others change neither them nor what comes after."""
    found = program(name)
    tokens = [int(t) for t in tokens_for(found)[:9]]
    expected = run(found, tokens)
    for first in range(5):
        device = GoldenDevice()
        device.load(found)
        device.run_tile(tokens[:4], 0, 4)
        result = device.run_tile(tokens[4:8], 4, first)
        for actual, whole in (
            (result.logits, expected.logits),
            (result.scale, expected.scale),
            (result.argmax, expected.argmax),
        ):
            np.testing.assert_array_equal(actual, whole[4 + first : 8])
        last = device.run_tile(tokens[8:], 8, 0)
        np.testing.assert_array_equal(last.logits, expected.logits[8:])


def test_argmax_is_the_first_largest_logit(program: Callable[[str], Program]) -> None:
    result = run(program("grouped"), tokens_for(program("grouped")))
    np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))


def test_a_second_story_does_not_see_the_first(program: Callable[[str], Program]) -> None:
    found = program("least")
    device = GoldenDevice()
    device.load(found)
    device.run_tile([1, 2, 3, 4], 0, 0)
    device.run_tile([9], 4, 0)
    again = device.run_tile([7, 8], 0, 0)
    assert_same(again, run(found, [7, 8]))
    device.load(found)
    assert_same(device.run_tile([7, 8], 0, 0), again)


def test_rows_that_fill_up_the_vocabulary_never_win(
    checkpoint: Callable[[str], Decoder], program: Callable[[str], Program]
) -> None:
    """Even where all logits are negative, or where the last row is the largest."""
    source = checkpoint("odd")
    assert source.config.vocab_size % 16
    result = run(program("odd"), tokens_for(program("odd")))
    assert result.logits.shape[1] == source.config.vocab_size
    np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))
    last = source.embed_tokens.dequantized().copy()
    last[-1] = 40 * last[result.argmax[-1]]
    model = pack_model(replace(source, embed_tokens=Dense(last)))
    found = compile_model(model, config_for(SHAPES["odd"]))
    result = run(found, tokens_for(found))
    np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))


# -- accuracy


def forward_quantized(model: Decoder, tokens: NDArray[np.int64]) -> Float:
    """The model in float64 with exactly the roundings that the integer path declares to be coarse.

    int8 activations, queries, keys and values, and a head of five trits with int16 row scales.
    """
    c = model.config
    n, half = len(tokens), c.head_dim // 2
    angles = np.outer(np.arange(n), c.rope.theta ** (-np.arange(half) / half))

    def quantize(x: Float) -> Float:
        step = np.abs(x).max(axis=-1, keepdims=True) / 127
        return np.rint(x / step) * step

    def norm(x: Float, gamma: NDArray[np.float32]) -> Float:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c.rms_norm_eps) * gamma

    def sub_norm(x: Float, gamma: NDArray[np.float32] | None) -> Float:
        assert gamma is not None
        return norm(x, gamma)

    def linear(x: Float, w: Weight) -> Float:
        assert isinstance(w, Ternary)
        return quantize(x) @ w.codes.T.astype(np.float64) * w.scale

    def heads(x: Float) -> Float:
        return x.reshape(n, -1, c.head_dim).swapaxes(0, 1)

    def rotate(x: Float) -> Float:
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    embedding = model.embed_tokens.dequantized()
    x = embedding[tokens].astype(np.float64)
    for layer in model.layers:
        h = norm(x, layer.input_layernorm)
        q = quantize(rotate(heads(linear(h, layer.q_proj))))
        k = quantize(rotate(heads(linear(h, layer.k_proj))))
        v = quantize(heads(linear(h, layer.v_proj)))
        out = np.zeros_like(q)
        for head in range(len(q)):
            g = head * len(k) // len(q)
            for t in range(n):
                p = np.exp(k[g, : t + 1] @ q[head, t] / np.sqrt(c.head_dim))
                out[head, t] = p @ v[g, : t + 1] / p.sum()
        h = sub_norm(out.swapaxes(0, 1).reshape(n, -1), layer.attn_sub_norm)
        x = x + linear(h, layer.o_proj)
        h = norm(x, layer.post_attention_layernorm)
        h = np.maximum(linear(h, layer.gate_proj), 0) ** 2 * linear(h, layer.up_proj)
        x = x + linear(sub_norm(h, layer.ffn_sub_norm), layer.down_proj)
    row = np.abs(embedding).max(axis=1, keepdims=True) / 121
    row = np.rint(row / row.max() * 32767) * row.max() / 32767
    head = np.clip(np.rint(embedding / row), -121, 121) * row
    return quantize(norm(x, model.norm)) @ head.T.astype(np.float64)


def relative_error(actual: Float, expected: Float) -> Float:
    """Root mean square error of each position, in standard deviations of the logits."""
    return np.sqrt(((actual - expected) ** 2).mean(axis=1)) / expected.std()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_the_quantized_model_in_float(
    name: str, checkpoint: Callable[[str], Decoder], program: Callable[[str], Program]
) -> None:
    """A few activations fall to the other side of a rounding to int8, and all that follows moves.

    Untrained weights pass that on undamped. Where none does, the logits agree to four digits.
    """
    tokens = tokens_for(program(name))
    error = relative_error(
        real(run(program(name), tokens)), forward_quantized(checkpoint(name), tokens)
    )
    assert np.median(error) < 0.04
    if name == "least":
        assert np.count_nonzero(error < 1e-4) >= 4


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_near_those_of_the_float_model(
    name: str, checkpoint: Callable[[str], Decoder], program: Callable[[str], Program]
) -> None:
    tokens = tokens_for(program(name))
    error = relative_error(real(run(program(name), tokens)), checkpoint(name).forward(tokens))
    assert np.sqrt((error**2).mean()) < 0.05


def test_logits_of_the_shipped_model_are_near_float() -> None:
    """On random tokens, the worst case: the median error was 0.7 % when the model was shipped."""
    model = load(find_model("tales"))
    program = compile_model(pack_model(model), NANO)
    tokens = np.append(0, tokens_for(program)[:63])
    logits = real(run(program, tokens))
    error = relative_error(logits, forward_quantized(model, tokens))
    assert np.median(error) < 0.01
    assert error.max() < 0.04
    error = relative_error(logits, model.forward(tokens))
    assert np.sqrt((error**2).mean()) < 0.05


# -- engines and formats

# steps that divide a depth tile of 16
_SMALL_STEPS = {"lut": {"step_depth": 16}}
GROUPED = [name for name, params in ENGINES.items() if params.grouped]
LLAMA_FORMATS = [*(f"W{bits}A8" for bits in W_BITS), "W4A16", "W1A16", "W8A16"]


@pytest.mark.parametrize("name", ["least", "grouped"])
def test_every_engine_gives_the_logits_of_the_ternary_one(
    name: str, packed: Callable[[str], PackedModel], program: Callable[[str], Program]
) -> None:
    """With depth tiles of 16, of which all depths here are whole ones."""
    model = packed(name)
    tokens = tokens_for(program(name))
    expected = run(program(name), tokens)
    for engine in GROUPED:
        config = config_for(SHAPES[name], engine, depth_tile=16, **_SMALL_STEPS.get(engine, {}))
        assert_same(run(compile_model(model, config), tokens), expected)


@pytest.mark.parametrize("name", LLAMAS)
@pytest.mark.parametrize("format", LLAMA_FORMATS)
def test_all_engines_give_the_same_logits(
    name: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    """A packed model is integers: what multiplies them can not matter, nor how tokens are cut."""
    model = packed_llama(name, format)
    programs = [
        compile_model(model, config_for(LLAMAS[name], engine, a_width=model.a_bits))
        for engine in GROUPED
    ]
    tokens = tokens_for(programs[0])
    expected = run(programs[0], tokens)
    assert len({tuple(row) for row in expected.logits}) == len(tokens)
    assert_same(run(programs[0], tokens, [1, 3, 2, 4, 1, 1]), expected)
    for other in programs[1:]:
        assert_same(run(other, tokens), expected)


@pytest.mark.parametrize("name", LLAMAS)
@pytest.mark.parametrize("format", LLAMA_FORMATS)
def test_logits_are_near_those_of_the_rounded_model_in_float(
    name: str,
    format: str,
    llama: Callable[[str], Decoder],
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    """The head, queries, keys and values stay in eight bits whatever the format."""
    parsed, model = Format.parse(format), packed_llama(name, format)
    rounded = quantize_decoder(llama(name), parsed, GROUP)
    program = compile_model(model, config_for(LLAMAS[name], "lut", a_width=parsed.a_bits))
    tokens = tokens_for(program)
    error = relative_error(real(run(program, tokens)), rounded.forward(tokens))
    assert np.sqrt((error**2).mean()) < (0.04 if parsed.a_bits == 8 else 0.018)


@pytest.mark.parametrize("format", ["W1A8", "W4A8", "W4A16"])
def test_logits_of_the_shipped_llama_are_near_float(format: str) -> None:
    source, parsed = load_model(find_model("tales-llama")), Format.parse(format)
    config = with_engine(NANO, "lut", a_width=parsed.a_bits)
    program = compile_model(pack_model(source, parsed), config)
    tokens = np.append(0, tokens_for(program)[:63])
    rounded = quantize_decoder(source, parsed, 64)
    error = relative_error(real(run(program, tokens)), rounded.forward(tokens))
    assert np.sqrt((error**2).mean()) < (0.02 if parsed.a_bits == 8 else 0.008)


def test_the_shipped_models_give_the_same_logits_on_every_engine() -> None:
    tokens = [0, 300, 77, 1500, 9, 20, 2047, 3, 41]
    for name, format in (("tales", "W1.58A8"), ("tales-llama", "W3A8"), ("tales-llama", "W4A16")):
        parsed = Format.parse(format)
        model = pack_model(load_model(find_model(name)), parsed)
        results = [
            run(compile_model(model, with_engine(NANO, engine, a_width=parsed.a_bits)), tokens)
            for engine in engines_for(parsed)
        ]
        assert len(results) >= 3
        for result in results[1:]:
            assert_same(result, results[0])


# -- KV cache


@pytest.mark.parametrize("name", SHAPES)
def test_a_cache_of_four_bits(name: str, packed: Callable[[str], PackedModel]) -> None:
    """Tiles of any size agree; logits are near those in float with keys and values rounded, and
    further from those without."""
    model = replace(packed(name), key_bits=4, value_bits=4)
    program = compile_model(model, replace(config_for(SHAPES[name]), kv_width=4))
    tokens = tokens_for(program)
    whole = run(program, tokens)
    for sizes in ([1] * 99, [3] * 99, [2, 1, 4, 3, 1, 1, 2]):
        assert_same(run(program, tokens, sizes), whole)
    error, without = (
        relative_error(real(whole), reference(each).forward(tokens))
        for each in (model, packed(name))
    )
    assert np.median(error) < 0.05
    assert np.median(without) > 1.5 * np.median(error)


# -- refusals


def test_nothing_runs_before_a_program_is_loaded() -> None:
    device = GoldenDevice()
    message = r"^no program is loaded: call load\(program\) first$"
    with pytest.raises(LutraError, match=message):
        device.run_tile([1], 0, 0)
    with pytest.raises(LutraError, match=message):
        _ = device.memory


@pytest.mark.parametrize(
    ("tokens", "position", "first", "message"),
    [
        ([], 0, 0, "a tile has 1 to 4 tokens, not 0"),
        ([1] * 5, 0, 0, "a tile has 1 to 4 tokens, not 5"),
        ([1, 304], 0, 0, "token id 304 is outside the vocabulary of 304"),
        ([-1], 0, 0, "token id -1 is outside the vocabulary of 304"),
        ([1, 2], 31, 0, r"positions 31\.\.32 exceed the context of 32: shorten the prompt or -n"),
        ([1], -1, 0, r"positions -1\.\.-1 exceed the context of 32: shorten the prompt or -n"),
        ([1, 2], 0, 3, r"logits_from must be in 0\.\.2, not 3"),
        ([1, 2], 0, -1, r"logits_from must be in 0\.\.2, not -1"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(
    tokens: list[int], position: int, first: int, message: str, program: Callable[[str], Program]
) -> None:
    device = GoldenDevice()
    device.load(program("least"))
    with pytest.raises(LutraError, match=f"^{message}$"):
        device.run_tile(tokens, position, first)


def test_the_model_may_have_less_context_than_the_configuration(
    program: Callable[[str], Program],
) -> None:
    found = program("odd")
    assert found.context == 19 < found.config.max_context
    device = GoldenDevice()
    device.load(found)
    with pytest.raises(LutraError, match="exceed the context of 19"):
        device.run_tile([1], 19, 0)


def test_a_hole_in_the_cache_is_an_error_of_one_line(program: Callable[[str], Program]) -> None:
    """Keys of a position that no token has written are never read as zeros."""
    device = GoldenDevice()
    device.load(program("least"))
    message = (
        "^the golden device stops at a broken program: "
        "read of byte 0x[0-9a-f]+, which was never written$"
    )
    with pytest.raises(DeviceError, match=message):
        device.run_tile([1], 3, 0)


def test_a_broken_program_is_an_error_of_one_line(program: Callable[[str], Program]) -> None:
    attend = Instruction(Opcode.LDROPE, waits=(0, 1, 0, 0), args={"address": 0})
    device = GoldenDevice()
    device.load(replace(program("least"), code=encode(attend)))
    with pytest.raises(DeviceError, match="LDROPE waits for 1 MATMUL instructions, but only 0"):
        device.run_tile([1], 0, 0)


def test_one_flipped_weight_bit_changes_the_logits(program: Callable[[str], Program]) -> None:
    found = program("least")
    expected = run(found, [1, 2, 3])
    device = GoldenDevice()
    device.load(found)
    # a weight of the last matmul, the head
    address = found.memory.weights + len(found.weights) - 64
    byte = device.memory.read(address, 1).tobytes()[0]
    device.memory.write(address, bytes([byte ^ 16]))
    assert not np.array_equal(device.run_tile([1, 2, 3], 0, 0).logits, expected.logits)


def test_the_golden_device_has_no_clock(program: Callable[[str], Program]) -> None:
    device = GoldenDevice()
    device.load(program("least"))
    assert device.run_tile([1], 0, 0).cycles is None
    assert device.counters() == {}
    device.close()
