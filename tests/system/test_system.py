"""The whole column: every logit of the Verilated accelerator equals the golden interpreter's.

The same bodies run on the golden device and on the RTL; what a test compares with is always a
golden device of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lutra.host import LLM, SamplingParams
from lutra.host.compiler import compile_model
from lutra.host.devices.base import Device, DeviceError, TileResult
from lutra.host.devices.golden import GoldenDevice
from lutra.host.devices.rtl import RtlDevice
from lutra.host.engine import Mismatch
from lutra.host.errors import LutraError
from lutra.host.models import find_model
from lutra.host.models.bitnet import load_bitnet
from lutra.host.packing import pack_bitnet
from lutra.host.program import Program
from lutra.host.tokenizer import Tokenizer
from lutra.sim.golden.control.isa import INSTRUCTION_BYTES, Opcode, decode, encode
from lutra.sim.golden.core.config import NANO
from lutra.sim.rtl.timing import IDEAL, random_timing

PROMPT = (
    "Once upon a time there lived in a small house at the edge of the forest an old woman who had "
    "a grey cat, a golden ring, and three sons, and the youngest of them was"
)
TILE = NANO.m_tile


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_model(pack_bitnet(load_bitnet(find_model("tales"))), NANO)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    tokens = Tokenizer(find_model("tales"), 0).encode(PROMPT)
    assert len(tokens) >= 32
    return tokens


def _golden() -> Device:
    return GoldenDevice()


def _rtl() -> Device:
    return RtlDevice(NANO)


def _rtl_ideal() -> Device:
    return RtlDevice(NANO, timing=IDEAL)


def _rtl_stalling() -> Device:
    return RtlDevice(NANO, timing=random_timing(1))


GOLDEN = pytest.param(_golden, id="golden")
RTL = pytest.param(_rtl, id="rtl", marks=pytest.mark.rtl)
RTL_IDEAL = pytest.param(_rtl_ideal, id="rtl-ideal", marks=pytest.mark.rtl)
RTL_STALLING = pytest.param(_rtl_stalling, id="rtl-stalling", marks=pytest.mark.rtl)


@pytest.fixture
def device(request: pytest.FixtureRequest, program: Program) -> Iterator[Device]:
    make: Callable[[], Device] = request.param
    device = make()
    device.load(program)
    yield device
    device.close()


def assert_equal(actual: TileResult, expected: TileResult) -> None:
    np.testing.assert_array_equal(actual.logits, expected.logits)
    np.testing.assert_array_equal(actual.scale, expected.scale)
    np.testing.assert_array_equal(actual.argmax, expected.argmax)
    assert actual.saturated == expected.saturated


def run_both(
    device: Device, golden: Device, tokens: Sequence[int], position: int = 0, *, first: int = 0
) -> NDArray[np.int64]:
    """Run ``tokens`` in full tiles on both, compare the logits; return the last ones."""
    logits = np.empty(0, np.int64)
    for i in range(0, len(tokens), TILE):
        chunk = tokens[i : i + TILE]
        wanted = min(first, len(chunk))
        result = device.run_tile(chunk, position + i, wanted)
        assert_equal(result, golden.run_tile(chunk, position + i, wanted))
        logits = result.logits[-1] if len(result.logits) else logits
    return logits


def new_golden(program: Program) -> GoldenDevice:
    golden = GoldenDevice()
    golden.load(program)
    return golden


@pytest.mark.parametrize("device", [GOLDEN, RTL_IDEAL, RTL_STALLING], indirect=True)
def test_all_logits_equal(device: Device, program: Program, prompt: list[int]) -> None:
    """32 prompt tokens in tiles, then 32 generated ones; all logits of all positions."""
    golden, tokens = new_golden(program), prompt[:32]
    logits = run_both(device, golden, tokens)
    seen = set()
    for position in range(32, 64):
        token = int(logits.argmax())
        seen.add(token)
        logits = run_both(device, golden, [token], position)
    assert len(seen) > 4  # a story, not one token over and over


@pytest.mark.parametrize("device", [GOLDEN, RTL], indirect=True)
def test_tiles_of_every_size(device: Device, program: Program, prompt: list[int]) -> None:
    """However a prompt is cut into tiles, and whichever logits are asked for, the bits agree."""
    golden = new_golden(program)
    expected = [golden.run_tile([t], i, 0) for i, t in enumerate(prompt[:28])]
    position = 0
    for size in (1, 2, 3, 4, 5, 6, 7):
        first = size // 2
        result = device.run_tile(prompt[position : position + size], position, first)
        for m in range(first, size):
            np.testing.assert_array_equal(
                result.logits[m - first], expected[position + m].logits[0]
            )
            assert result.scale[m - first] == expected[position + m].scale[0]
            assert result.argmax[m - first] == expected[position + m].argmax[0]
        position += size
    # a tile without logits does not fetch the head and still fills the KV cache
    device.run_tile(prompt[:8], 0, 8)
    result = device.run_tile(prompt[8:9], 8, 0)
    np.testing.assert_array_equal(result.logits, expected[8].logits)


@pytest.mark.parametrize("device", [GOLDEN, RTL], indirect=True)
def test_context_filled_to_the_last_position(
    device: Device, program: Program, prompt: list[int]
) -> None:
    golden = new_golden(program)
    rng = np.random.default_rng(1)
    n = program.context
    tokens = [*prompt[:32], *map(int, rng.integers(2, program.vocab_size, n - 32 - 3))]
    run_both(device, golden, tokens, first=TILE)
    for position in range(n - 3, n):
        run_both(device, golden, [int(rng.integers(2, program.vocab_size))], position)
    with pytest.raises(LutraError, match=rf"exceed the context of {n}"):
        device.run_tile([2], n, 0)


@pytest.mark.parametrize("device", [GOLDEN, RTL_STALLING], indirect=True)
def test_two_runs_without_reset(device: Device, program: Program, prompt: list[int]) -> None:
    """A second story on the same device is not touched by the first."""
    first = device.run_tile(prompt[:TILE], 0, 0)
    device.run_tile([int(first.argmax[-1])], TILE, 0)
    expected = new_golden(program).run_tile(prompt[TILE : 2 * TILE], 0, 0)
    assert_equal(device.run_tile(prompt[TILE : 2 * TILE], 0, 0), expected)
    assert_equal(device.run_tile(prompt[:TILE], 0, 0), first)


@pytest.mark.parametrize("device", [GOLDEN, RTL], indirect=True)
def test_one_flipped_weight_bit_is_seen(
    device: Device, program: Program, prompt: list[int]
) -> None:
    golden = new_golden(program)
    expected = golden.run_tile(prompt[:2], 0, 0)
    assert_equal(device.run_tile(prompt[:2], 0, 0), expected)
    # the sign of one code of the first layer's first weight word that is not zero
    code = np.frombuffer(program.weights, np.uint8)
    offset = _first_matmul(program)
    bits = np.unpackbits(code[offset : offset + 120], bitorder="little").reshape(-1, 5)
    lane = int(np.argmax(bits[:, :4].any(axis=1)))
    bit = 5 * lane + 4
    flipped = bytes([code[offset + bit // 8] ^ (1 << bit % 8)])
    address = program.memory.weights + offset + bit // 8
    if isinstance(device, RtlDevice):
        device.write_memory(address, flipped)
    else:
        assert isinstance(device, GoldenDevice)
        device.memory.write(address, flipped)
    broken = device.run_tile(prompt[:2], 0, 0)
    assert not np.array_equal(broken.logits, expected.logits)
    with pytest.raises(AssertionError):
        assert_equal(broken, expected)


def _first_matmul(program: Program) -> int:
    for i in range(0, len(program.code), INSTRUCTION_BYTES):
        instruction = decode(program.code[i : i + INSTRUCTION_BYTES])
        if instruction.opcode is Opcode.LMMA:
            return instruction.args["address"]
    raise AssertionError("the program has no LMMA")


@pytest.mark.rtl
def test_check_reports_a_mismatch(program: Program) -> None:
    llm = LLM("tales", _rtl(), check=True)
    llm.load()
    assert isinstance(llm.device, RtlDevice)
    offset = _first_matmul(llm.program)
    address = llm.program.memory.weights + offset
    llm.device.write_memory(address, bytes(120))
    with pytest.raises(Mismatch, match=r"differs from the golden model in \d+ of 2048 logits"):
        llm.generate("Once upon a time", 2)
    assert llm.stats.bit_exact is False
    llm.close()


@pytest.mark.rtl
def test_story_is_the_same_on_both_devices() -> None:
    sampling = SamplingParams(temperature=0.8, seed=3)
    rtl = LLM("tales", _rtl(), check=True)
    told = rtl.generate("The king said", 12, sampling)
    rtl.close()
    same = LLM("tales", "golden").generate("The king said", 12, sampling)
    assert told.tokens == same.tokens
    assert told.text == same.text
    assert told.stats.bit_exact is True
    assert told.stats.decode_cycles_per_token is not None


@pytest.mark.rtl
def test_program_of_another_configuration_is_refused(program: Program) -> None:
    other = replace(NANO, name="other", param_words=1024)
    device = RtlDevice(NANO)
    with pytest.raises(LutraError, match=rf"{other.fingerprint:016x}.*{NANO.fingerprint:016x}"):
        device.load(replace(program, config=other))


@pytest.mark.rtl
def test_program_that_hangs_names_what_waits(program: Program) -> None:
    """A wait that nothing can meet becomes an error that names the unit."""
    code = program.code
    words = [code[i : i + INSTRUCTION_BYTES] for i in range(0, len(code), INSTRUCTION_BYTES)]
    instructions = [decode(word) for word in words]
    index = next(i for i, x in enumerate(instructions) if x.opcode is Opcode.ATTEND)
    instructions[index] = replace(instructions[index], waits=(0, 0, 60000, 0))
    broken = replace(program, code=b"".join(map(encode, instructions)))
    device = RtlDevice(NANO)
    device.load(broken)
    with pytest.raises(DeviceError, match=r"attention"):
        device.run_tile([2, 3], 0, 1)
    device.close()


@pytest.mark.rtl
def test_waveform_of_a_cycle_window(tmp_path: Path) -> None:
    wave = tmp_path / "wave.vcd"
    llm = LLM("tales", "rtl", wave=wave, wave_cycles=(0, 500))
    llm.generate("A", 1)
    llm.close()
    text = wave.read_text(encoding="ascii", errors="replace")
    assert "$enddefinitions" in text
    assert "#0" in text
