"""Programs in the interpreter: tiles of any size agree, the float model is near, refusals."""

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.random_model import GROUP, LLAMAS, SHAPES, config_for, load
from tests.host.tiles import (
    Compiled,
    Tiles,
    compiled,
    driver,
    golden,
    on_transport,
    run_tiles,
    with_code,
)

from lutra.checkpoints.weights import Dense, Ternary, Weight
from lutra.compile.fit import engines_for
from lutra.compile.program import Program, SegmentKind
from lutra.devices.accelerator.device import AcceleratorDevice, AcceleratorSession
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.base import DeviceError, Step, StepResult
from lutra.models import find_model, load_model
from lutra.models.decoder import Decoder
from lutra.quantize import quantize_layer
from lutra.quantize.pack import pack_model
from lutra.quantize.reference import reference
from lutra_golden.control.isa import Instruction, Opcode, encode
from lutra_golden.control.registers import CONTROL_ABORT, STATUS_BUSY
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import W_BITS, Format
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS

Float = NDArray[np.float64]
Packed = Callable[[str], PackedModel]
Find = Callable[[str], Compiled]


@pytest.fixture(scope="session")
def found(packed: Packed, program: Callable[[str], Program]) -> Find:
    """A random model with its program."""
    return cache(lambda name: Compiled(packed(name), program(name)))


def run(
    each: Compiled, tokens: Sequence[int] | NDArray[np.int64], sizes: Sequence[int] = ()
) -> StepResult:
    """All logits of ``tokens`` in tiles of ``sizes``, then of the configuration's."""
    return run_tiles(on_transport(each), list(map(int, tokens)), sizes)


def real(result: StepResult) -> Float:
    return result.logits * result.scale[:, None]


def assert_same(a: StepResult, b: StepResult) -> None:
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.scale, b.scale)
    np.testing.assert_array_equal(a.argmax, b.argmax)


def tokens_for(each: Compiled, seed: int = 1) -> NDArray[np.int64]:
    program = each.program
    return np.random.default_rng(seed).integers(0, program.vocab_size, program.context)


# -- tiles


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sizes", [[1] * 99, [3] * 99, [2, 1, 4, 3, 1, 1, 2]])
def test_tiles_of_any_size_agree(name: str, sizes: list[int], found: Find) -> None:
    """To the last position of the context."""
    tokens = tokens_for(found(name))
    assert_same(run(found(name), tokens, sizes), run(found(name), tokens))


def test_a_wide_tile_agrees(checkpoint: Callable[[str], Decoder], found: Find) -> None:
    wide = config_for(SHAPES["odd"]).with_(pass_tokens=64)
    tokens = tokens_for(found("odd"))
    whole = run(compiled(pack_model(checkpoint("odd")), wide), tokens)
    assert_same(whole, run(found("odd"), tokens))


def test_tiles_of_the_shipped_model_agree() -> None:
    program = compiled(pack_model(load(find_model("tales"))), NANO)
    tokens = tokens_for(program)[:27]
    expected = run(program, tokens, [1] * 27)
    assert_same(run(program, tokens), expected)
    assert_same(run(program, tokens, [5, 8, 1, 7]), expected)


@pytest.mark.parametrize("name", SHAPES)
def test_only_the_logits_that_are_asked_for(name: str, found: Find) -> None:
    """The others change neither them nor what comes after."""
    each = found(name)
    tokens = [int(t) for t in tokens_for(each)[:9]]
    expected = run(each, tokens)
    for first in range(5):
        device = on_transport(each)
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


def test_argmax_is_the_first_largest_logit(found: Find) -> None:
    result = run(found("grouped"), tokens_for(found("grouped")))
    np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))


def test_a_second_story_does_not_see_the_first(found: Find) -> None:
    each = found("least")
    device = on_transport(each)
    device.run_tile([1, 2, 3, 4], 0, 0)
    device.run_tile([9], 4, 0)
    again = device.run_tile([7, 8], 0, 0)
    assert_same(again, run(each, [7, 8]))
    other = Tiles(device.device)
    assert_same(other.run_tile([7, 8], 0, 0), again)


def test_rows_that_fill_up_the_vocabulary_never_win(
    checkpoint: Callable[[str], Decoder], found: Find
) -> None:
    """Even where all logits are negative, or where the last row is the largest."""
    source = checkpoint("odd")
    assert source.config.vocab_size % 16
    result = run(found("odd"), tokens_for(found("odd")))
    assert result.logits.shape[1] == source.config.vocab_size
    np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))
    last = source.embed_tokens.dequantized().copy()
    last[-1] = 40 * last[result.argmax[-1]]
    model = pack_model(replace(source, embed_tokens=Dense(last)))
    each = compiled(model, config_for(SHAPES["odd"]))
    result = run(each, tokens_for(each))
    np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))


@pytest.mark.parametrize("name", SHAPES)
def test_the_program_gives_the_logits_of_the_model(name: str, found: Find) -> None:
    """Logits equal the golden device's, which needs neither a program nor a configuration."""
    each = found(name)
    tokens = tokens_for(each)
    assert_same(run(each, tokens), run_tiles(golden(each.model), list(map(int, tokens))))


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
    name: str, checkpoint: Callable[[str], Decoder], found: Find
) -> None:
    """A few activations fall to the other side of a rounding to int8, and all that follows moves.

    Untrained weights pass that on undamped. Where none does, the logits agree to four digits.
    """
    tokens = tokens_for(found(name))
    error = relative_error(
        real(run(found(name), tokens)), forward_quantized(checkpoint(name), tokens)
    )
    assert np.median(error) < 0.04
    if name == "least":
        assert np.count_nonzero(error < 1e-4) >= 4


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_near_those_of_the_float_model(
    name: str, checkpoint: Callable[[str], Decoder], found: Find
) -> None:
    tokens = tokens_for(found(name))
    error = relative_error(real(run(found(name), tokens)), checkpoint(name).forward(tokens))
    assert np.sqrt((error**2).mean()) < 0.05


def test_logits_of_the_shipped_model_are_near_float() -> None:
    """On random tokens, the worst case: the median error was 0.7 % when the model was shipped."""
    model = load(find_model("tales"))
    program = compiled(pack_model(model), NANO)
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
    name: str, packed: Packed, found: Find
) -> None:
    """With depth tiles of 16, of which all depths here are whole ones."""
    model = packed(name)
    tokens = tokens_for(found(name))
    expected = run(found(name), tokens)
    for engine in GROUPED:
        config = config_for(SHAPES[name], engine, depth_tile=16, **_SMALL_STEPS.get(engine, {}))
        assert_same(run(compiled(model, config), tokens), expected)


@pytest.mark.parametrize("name", LLAMAS)
@pytest.mark.parametrize("format", LLAMA_FORMATS)
def test_all_engines_give_the_same_logits(
    name: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    """A packed model is integers: neither the engine nor the cut into tiles changes the logits."""
    model = packed_llama(name, format)
    programs = [
        compiled(model, config_for(LLAMAS[name], engine, a_width=model.a_bits))
        for engine in GROUPED
    ]
    tokens = tokens_for(programs[0])
    expected = run(programs[0], tokens)
    assert len({tuple(row) for row in expected.logits}) == len(tokens)
    assert_same(run(programs[0], tokens, [1, 3, 2, 4, 1, 1]), expected)
    for other in programs[1:]:
        assert_same(run(other, tokens), expected)


def rounded_decoder(model: Decoder, format: Format, group: int) -> Decoder:
    """A checkpoint with its weights rounded to nearest, in floating point."""
    bits: dict[str, int] = dict.fromkeys(LINEARS, format.w_bits)
    layers = [quantize_layer(layer, bits, group) for layer in model.layers]
    return model.replaced(layers, format.a_bits)


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
    rounded = rounded_decoder(llama(name), parsed, GROUP)
    program = compiled(model, config_for(LLAMAS[name], "lut", a_width=parsed.a_bits))
    tokens = tokens_for(program)
    error = relative_error(real(run(program, tokens)), rounded.forward(tokens))
    assert np.sqrt((error**2).mean()) < (0.04 if parsed.a_bits == 8 else 0.018)


@pytest.mark.parametrize("format", ["W1A8", "W4A8", "W4A16"])
def test_logits_of_the_shipped_llama_are_near_float(format: str) -> None:
    source, parsed = load_model(find_model("tales-llama")), Format.parse(format)
    config = with_engine(NANO, "lut", a_width=parsed.a_bits)
    program = compiled(pack_model(source, parsed), config)
    tokens = np.append(0, tokens_for(program)[:63])
    rounded = rounded_decoder(source, parsed, 64)
    error = relative_error(real(run(program, tokens)), rounded.forward(tokens))
    assert np.sqrt((error**2).mean()) < (0.02 if parsed.a_bits == 8 else 0.008)


def test_the_shipped_models_give_the_same_logits_on_every_engine() -> None:
    tokens = [0, 300, 77, 1500, 9, 20, 2047, 3, 41]
    for name, format in (("tales", "W1.58A8"), ("tales-llama", "W3A8"), ("tales-llama", "W4A16")):
        parsed = Format.parse(format)
        model = pack_model(load_model(find_model(name)), parsed)
        results = [
            run(compiled(model, with_engine(NANO, engine, a_width=parsed.a_bits)), tokens)
            for engine in engines_for(parsed)
        ]
        assert len(results) >= 3
        for result in results[1:]:
            assert_same(result, results[0])


# -- KV cache


@pytest.mark.parametrize("name", SHAPES)
def test_a_cache_of_four_bits(name: str, packed: Packed) -> None:
    """Tiles of any size agree; logits are near those in float with keys and values rounded, and
    further from those without."""
    model = replace(packed(name), key_bits=4, value_bits=4)
    program = compiled(model, config_for(SHAPES[name]).with_(key_width=4, value_width=4))
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


# -- sessions


def test_sessions_side_by_side_and_handed_over(found: Find) -> None:
    """Steps of two sessions in one run; keys and values exported, restored, cut and forked."""
    each = found("odd")
    tiles = on_transport(each)
    device, other = tiles.device, tiles.device.session()
    texts = [3, 1, 4, 1, 5, 9], [2, 6, 5, 3]
    expected = [run(each, text) for text in texts]
    sessions = tiles.session, other
    results = device.run(
        [Step(session=s, tokens=t[:3]) for s, t in zip(sessions, texts, strict=True)]
    )
    for result, whole in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.logits, whole.logits[:3])
    moved = golden(each.model)
    moved.session.restore(SequenceKv.from_bytes(other.export().to_bytes()))
    last = moved.run_tile(texts[1][3:], 3, 0)
    np.testing.assert_array_equal(last.logits, expected[1].logits[3:])
    other.restore(moved.session.export())
    assert other.export().to_bytes() == moved.session.export().to_bytes()
    fork = tiles.session.fork(2)
    (result,) = device.run([Step(session=fork, tokens=texts[0][2:])])
    np.testing.assert_array_equal(result.logits, expected[0].logits[2:])
    assert (fork.length, tiles.session.length, other.length) == (6, 3, 4)


def test_memory_of_sessions_is_counted_and_given_back(found: Find) -> None:
    each = found("least")
    size = -(-each.program.kv_bytes // 4096) * 4096
    device = AcceleratorDevice(InterpretedTransport(), memory_limit=2 * size)
    device.load_program(each.model, each.program)
    first, second = device.session(), device.session()
    message = (
        f"^no memory for another session on device interpreted: {size:,} bytes needed, 0 free: "
    )
    with pytest.raises(LutraError, match=message):
        device.session()
    address = first.address
    first.close()
    assert device.session().address == address
    del second
    assert device.session().length == 0


def test_memory_goes_with_the_device_at_once(found: Find) -> None:
    tiles = on_transport(found("least"))
    tiles.run_tile([1, 2], 0, 0)
    transport = driver(tiles).transport
    assert isinstance(transport, InterpretedTransport)
    memory = weakref.ref(transport.memory)
    gc.disable()  # it is too large to wait for the collector
    try:
        del tiles, transport
        assert memory() is None
    finally:
        gc.enable()


# -- refusals


def test_nothing_runs_before_a_model_is_loaded() -> None:
    device = AcceleratorDevice(InterpretedTransport())
    message = r"^no model is loaded: call load\(model\) first$"
    with pytest.raises(LutraError, match=message):
        device.session()
    with pytest.raises(LutraError, match=message):
        _ = device.program
    with pytest.raises(LutraError, match=message):
        device.run([])


class Impostor(InterpretedTransport):
    """Answers some register with something else."""

    def __init__(self, register: str, value: int) -> None:
        super().__init__()
        self._answer = register, value

    def read_register(self, name: str, index: int = 0) -> int:
        register, value = self._answer
        return value if name == register else super().read_register(name, index)


@pytest.mark.parametrize(
    ("register", "value", "message"),
    [
        ("IDENT", 5, "device interpreted answers with 0x00000005 instead of 0x4152544c: it is no"),
        ("VERSION", 9, "device interpreted has version 9 of the register map, this Lutra drives "),
        ("FINGERPRINT", 7, "device interpreted is built from configuration 0000000700000007, the"),
    ],
)
def test_another_accelerator_is_refused(
    register: str, value: int, message: str, found: Find
) -> None:
    each = found("least")
    with pytest.raises(DeviceError, match=f"^{message}"):
        on_transport(each, Impostor(register, value))


class Twice(InterpretedTransport):
    """The user interrupts a run, and then what ends it; ``obeys`` an abort or does not."""

    def __init__(self, *, obeys: bool) -> None:
        super().__init__()
        self.left, self.calls, self.obeys, self.aborted = 0, list[str](), obeys, False

    def wait(self, timeout_s: float | None) -> int | None:
        self.calls.append("wait")
        if self.left:
            self.left -= 1
            raise KeyboardInterrupt
        return super().wait(timeout_s)

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        if name == "CONTROL":
            assert value == CONTROL_ABORT
            if self.left:
                self.left -= 1
                raise KeyboardInterrupt
            self.calls.append("abort")
            self.aborted = True
        super().write_register(name, value, index)

    def read_register(self, name: str, index: int = 0) -> int:
        hangs = name == "STATUS" and self.aborted and not self.obeys
        return STATUS_BUSY if hangs else super().read_register(name, index)

    def reset(self) -> None:
        if not self.obeys and self.aborted:
            self.calls.append("reset")
            self.aborted = False
        super().reset()


@pytest.mark.parametrize(("obeys", "ends"), [(True, ["abort"]), (False, ["abort", "reset"])])
def test_an_abort_that_was_interrupted_is_done_before_the_next_run(
    obeys: bool, ends: list[str], found: Find
) -> None:
    each, transport = found("least"), Twice(obeys=obeys)
    tiles = on_transport(each, transport)
    transport.left = 2
    with pytest.raises(KeyboardInterrupt):
        tiles.run_tile([1, 2], 0, 0)
    assert_same(tiles.run_tile([1, 2], 0, 0), run(each, [1, 2]))
    tiles.run_tile([3], 2, 0)
    assert transport.calls == ["wait", *ends, "wait", "wait"]


def test_a_session_that_was_interrupted_takes_no_memory(
    found: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = on_transport(found("least"))
    transport = driver(tiles).transport

    def interrupted(address: int, n_bytes: int) -> None:
        raise KeyboardInterrupt

    free = driver(tiles).memory.free_bytes
    with monkeypatch.context() as patch:
        patch.setattr(transport, "zero", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiles.device.session()
    assert driver(tiles).memory.free_bytes == free


class Interrupted(InterpretedTransport):
    """The first run is interrupted in the middle."""

    interrupts = 1

    def wait(self, timeout_s: float | None) -> int | None:
        if self.interrupts:
            self.interrupts = 0
            raise KeyboardInterrupt
        return super().wait(timeout_s)


def test_an_interrupt_leaves_the_device_usable(found: Find) -> None:
    each = found("least")
    tiles = on_transport(each, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tiles.run_tile([1, 2], 0, 0)
    assert tiles.session.length == 0
    assert_same(tiles.run_tile([1, 2], 0, 0), run(each, [1, 2]))


@pytest.mark.parametrize(
    ("tokens", "first", "message"),
    [
        ([], 0, "a step has no tokens: give at least one"),
        ([1, 304], 0, "token id 304 is outside the vocabulary of 304"),
        ([-1], 0, "token id -1 is outside the vocabulary of 304"),
        ([1] * 33, 0, r"positions 0\.\.32 exceed the context of 32: shorten the prompt or "),
        ([1, 2], 3, r"logits_from must be in 0\.\.2, not 3"),
        ([1, 2], -1, r"logits_from must be in 0\.\.2, not -1"),
    ],
)
def test_steps_that_do_not_fit_are_refused(
    tokens: list[int], first: int, message: str, found: Find
) -> None:
    tiles = on_transport(found("least"))
    with pytest.raises(LutraError, match=f"^{message}"):
        tiles.run_tile(tokens, 0, first)
    assert tiles.session.length == 0


def test_the_model_may_have_less_context_than_the_configuration(found: Find) -> None:
    each = found("odd")
    assert each.program.context == 19 < each.program.config.max_context
    tiles = on_transport(each)
    tiles.run_tile([1] * 19, 0, 19)
    with pytest.raises(LutraError, match="exceed the context of 19"):
        tiles.run_tile([1], 19, 0)


def test_a_broken_program_is_an_error_of_one_line(found: Find) -> None:
    load = Instruction(Opcode.LDROPE, waits=(0, 1, 0, 0), args={"address": 0})
    tiles = on_transport(with_code(found("least"), encode(load)))
    message = "^the program is broken: LDROPE waits for 1 MATMUL instructions, but only 0"
    with pytest.raises(DeviceError, match=message):
        tiles.run_tile([1], 0, 0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (bytes([0x80]) * 64, "instruction 0 has an unknown opcode: load the model again"),
        (
            encode(Instruction(Opcode.LDROPE, args={"address": 0})) * 2,
            "the program has no END in 2 ",
        ),
    ],
    ids=["opcode", "end"],
)
def test_a_failed_run_is_an_error_of_one_line(code: bytes, message: str, found: Find) -> None:
    each = found("least")
    tiles = on_transport(with_code(each, code))
    with pytest.raises(DeviceError, match=f"^device interpreted: {message}"):
        tiles.run_tile([1], 0, 0)


def test_what_was_never_written_is_not_read_as_zeros(found: Find) -> None:
    """Keys of a position that no token has written."""
    each = found("least")
    tiles = on_transport(each)
    assert isinstance(tiles.session, AcceleratorSession)
    tiles.session.advance(range(each.program.n_layers), 3)
    message = "^the program is broken: read of byte 0x[0-9a-f]+, which was never written: load "
    with pytest.raises(DeviceError, match=message):
        tiles.run_tile([1], 3, 0)


def test_one_flipped_weight_bit_changes_the_logits(found: Find) -> None:
    each = found("least")
    expected = run(each, [1, 2, 3])
    # a weight of the last matmul, the head
    size = each.program.n_bytes(SegmentKind.WEIGHTS) - 64
    segments = list(each.program.segments)
    (place,) = [
        i
        for i, s in enumerate(segments)
        if s.kind is SegmentKind.WEIGHTS and s.offset <= size < s.offset + len(s.data)
    ]
    data = bytearray(segments[place].data)
    data[size - segments[place].offset] ^= 16
    segments[place] = replace(segments[place], data=bytes(data))
    broken = Compiled(each.model, replace(each.program, segments=segments))
    assert not np.array_equal(run(broken, [1, 2, 3]).logits, expected.logits)


def test_the_interpreter_has_no_clock(found: Find) -> None:
    tiles = on_transport(found("least"))
    assert tiles.run_tile([1], 0, 0).cycles is None
    assert tiles.device.counters() == {}
    tiles.close()
