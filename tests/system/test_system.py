"""The whole column: every logit of the Verilated accelerator equals the golden model's.

The same bodies run in the instruction interpreter and on the RTL, with every matmul engine, on both
shipped models and every format. Tests compare with the golden device, the integer decoder.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.tiles import (
    Compiled,
    Tiles,
    assert_a_story_moves,
    driver,
    golden,
    on_transport,
    with_code,
)

from lutra import LLM, SamplingParams
from lutra.compile.compiler import compile_model
from lutra.compile.program import Program, SegmentKind
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device, DeviceError, Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.llm import Mismatch
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra.text.tokenizer import Tokenizer
from lutra_golden.control.isa import INSTRUCTION_BYTES, Opcode, decode, encode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.memory import IDEAL_MEMORY, NANO_MEMORY, MemoryTiming, random_timing

PROMPT = (
    "Once upon a time there lived in a small house at the edge of the forest an old woman who had "
    "a grey cat, a golden ring, and three sons, and the youngest of them was"
)
TILE = NANO.pass_tokens


@dataclass(frozen=True)
class Case:
    """A shipped model in a format, on an engine."""

    model: str
    engine: str
    format: str

    def __str__(self) -> str:
        return f"{self.model}-{self.engine}-{self.format}"

    @property
    def config(self) -> AcceleratorConfig:
        return with_engine(NANO, self.engine, a_width=Format.parse(self.format).a_bits)

    @property
    def packed(self) -> PackedModel:
        return _packed(self.model, self.format)

    @property
    def compiled(self) -> Compiled:
        return Compiled(self.packed, _program(self))


@cache
def _packed(model: str, format: str) -> PackedModel:
    return pack_model(load_model(find_model(model)), Format.parse(format))


@cache
def _program(case: Case) -> Program:
    return compile_model(_packed(case.model, case.format), case.config)


TERNARY = Case("tales", "ternary", "W1.58A8")
GROUPED = ("lut", "mixpe", "mac")
FORMATS = ("W1A8", "W2A8", "W3A8", "W4A8", "W8A8", "W4A16")
CASES = [
    *(Case("tales", engine, "W1.58A8") for engine in ("ternary", *GROUPED)),
    *(Case("tales-llama", engine, format) for engine in GROUPED for format in FORMATS),
]
FIRST = [Case("tales-llama", engine, "W4A8") for engine in GROUPED]
"""One case per grouped engine, for tests too slow to run on every case."""
TIMINGS: dict[str, MemoryTiming] = {
    "rtl": NANO_MEMORY,
    "rtl-ideal": IDEAL_MEMORY,
    "rtl-stalling": random_timing(1),
}


@dataclass(frozen=True)
class Column:
    """A sequence on a device with its program, and on the golden device to compare it with."""

    device: Tiles
    program: Program
    golden: Tiles


def on(kind: str, case: Case, *values: object, slow: bool = False) -> object:
    """Parameters of a test: a column, and what else it takes."""
    marks = [pytest.mark.rtl] if kind in TIMINGS else []
    marks += [pytest.mark.slow] if slow else []
    return pytest.param((kind, case), *values, id=f"{kind}-{case}", marks=marks)


@pytest.fixture
def column(request: pytest.FixtureRequest) -> Iterator[Column]:
    parameter: tuple[str, Case] = request.param
    kind, case = parameter
    transport = RtlTransport(timing=TIMINGS[kind]) if kind in TIMINGS else None
    device = on_transport(case.compiled, transport)
    yield Column(device, case.compiled.program, golden(case.packed))
    device.close()


@pytest.fixture(scope="module")
def ternary() -> Compiled:
    return TERNARY.compiled


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    """Both models have the same tokenizer."""
    tokens, others = (
        Tokenizer(find_model(name), 0).encode(PROMPT) for name in ("tales", "tales-llama")
    )
    assert tokens == others
    assert len(tokens) >= 32
    return tokens


def assert_equal(actual: StepResult, expected: StepResult) -> None:
    np.testing.assert_array_equal(actual.logits, expected.logits)
    np.testing.assert_array_equal(actual.scale, expected.scale)
    np.testing.assert_array_equal(actual.argmax, expected.argmax)
    assert actual.saturated == expected.saturated


def run_both(
    device: Tiles, golden: Tiles, tokens: Sequence[int], position: int = 0, *, first: int = 0
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


@pytest.mark.parametrize(
    ("column", "n_prompt", "n_decode"),
    [
        *(on("interpreted", case, 16, 3) for case in CASES),
        on("rtl-ideal", TERNARY, 32, 32),
        on("rtl-stalling", TERNARY, 32, 32),
        *(on("rtl", case, 10, 1, slow=case.engine != "mac") for case in FIRST),
        *(on("rtl-stalling", case, 10, 2, slow=True) for case in CASES if case != TERNARY),
    ],
    indirect=["column"],
)
def test_all_logits_equal(column: Column, n_prompt: int, n_decode: int, prompt: list[int]) -> None:
    """A prompt in tiles, then generated tokens; all logits of all positions."""
    tokens = prompt[:n_prompt]
    logits = run_both(column.device, column.golden, tokens)
    seen = set()
    for position in range(n_prompt, n_prompt + n_decode):
        token = int(logits.argmax())
        seen.add(token)
        logits = run_both(column.device, column.golden, [token], position)
    assert len(seen) > n_decode // 8  # a story, not one token over and over


@pytest.mark.parametrize(
    "column",
    [
        on("interpreted", TERNARY),
        on("rtl", TERNARY),
        *(on("interpreted", case) for case in FIRST),
        *(on("rtl", case, slow=True) for case in FIRST),
    ],
    indirect=True,
)
def test_tiles_of_every_size(column: Column, prompt: list[int]) -> None:
    """The bits agree however a prompt is cut into tiles, whichever logits are requested."""
    device, golden = column.device, column.golden
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


@pytest.mark.parametrize(
    "column",
    [on("interpreted", TERNARY), on("rtl", TERNARY), on("interpreted", FIRST[0])],
    indirect=True,
)
@pytest.mark.usefixtures("no_coverage")
def test_context_filled_to_the_last_position(column: Column, prompt: list[int]) -> None:
    program = column.program
    rng = np.random.default_rng(1)
    n = program.context
    tokens = [*prompt[:32], *map(int, rng.integers(2, program.vocab_size, n - 32 - 3))]
    run_both(column.device, column.golden, tokens, first=TILE)
    for position in range(n - 3, n):
        token = int(rng.integers(2, program.vocab_size))
        run_both(column.device, column.golden, [token], position)
    with pytest.raises(LutraError, match=rf"exceed the context of {n}"):
        column.device.run_tile([2], n, 0)


@pytest.mark.parametrize(
    "column",
    [
        on("interpreted", TERNARY),
        on("rtl-stalling", TERNARY),
        *(on("interpreted", case) for case in FIRST),
        *(on("rtl-stalling", case, slow=True) for case in FIRST),
    ],
    indirect=True,
)
def test_two_runs_without_reset(column: Column, prompt: list[int]) -> None:
    """A second story on the same device is not touched by the first."""
    device = column.device
    first = device.run_tile(prompt[:TILE], 0, 0)
    device.run_tile([int(first.argmax[-1])], TILE, 0)
    expected = column.golden.run_tile(prompt[TILE : 2 * TILE], 0, 0)
    assert_equal(device.run_tile(prompt[TILE : 2 * TILE], 0, 0), expected)
    assert_equal(device.run_tile(prompt[:TILE], 0, 0), first)


@pytest.mark.parametrize(
    "column",
    [
        on("interpreted", TERNARY),
        on("rtl", TERNARY),
        *(on("interpreted", case) for case in FIRST),
        *(on("rtl", case, slow=True) for case in FIRST),
    ],
    indirect=True,
)
def test_one_flipped_weight_bit_is_seen(column: Column, prompt: list[int]) -> None:
    device, program = column.device, column.program
    expected = column.golden.run_tile(prompt[:2], 0, 0)
    assert_equal(device.run_tile(prompt[:2], 0, 0), expected)
    code = np.frombuffer(b"".join(s.data for s in program.of(SegmentKind.WEIGHTS)), np.uint8)
    offset, bit = _first_matmul(program), 0
    if not program.config.matmul.grouped:
        # the sign of one code of the first layer's first weight word that is not zero
        bits = np.unpackbits(code[offset : offset + 120], bitorder="little").reshape(-1, 5)
        bit = 5 * int(np.argmax(bits[:, :4].any(axis=1))) + 4
    flipped = bytes([code[offset + bit // 8] ^ (1 << bit % 8)])
    below = driver(device)
    below.transport.write(below.addresses["WEIGHT_BASE"] + offset + bit // 8, flipped)
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
def test_check_reports_a_mismatch() -> None:
    llm = LLM("tales", "rtl", check=True)
    device = llm.device
    assert isinstance(device, AcceleratorDevice)
    address = device.addresses["WEIGHT_BASE"] + _first_matmul(device.program)
    device.transport.write(address, bytes(120))
    with pytest.raises(Mismatch, match=r"differs from the golden model in \d+ of 2048 logits"):
        llm.generate("Once upon a time", 2)
    assert llm.stats.bit_exact is False
    llm.close()


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("model", "n", "kv_bits"),
    [
        ("tales", 12, 8),
        pytest.param("tales", 12, 4, marks=pytest.mark.slow),
        pytest.param("tales-llama", 4, 8, marks=pytest.mark.slow),
        pytest.param("tales-llama", 4, 4, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("no_coverage")
def test_story_is_the_same_on_both_devices(model: str, n: int, kv_bits: int) -> None:
    sampling = SamplingParams(temperature=0.8, seed=3)
    rtl = LLM(model, "rtl", check=True, kv_bits=kv_bits)
    story = rtl.generate("The king said", n, sampling)
    rtl.close()
    golden = LLM(model, "golden", kv_bits=kv_bits)
    same = golden.generate("The king said", n, sampling)
    assert story.tokens == same.tokens
    assert story.text == same.text
    assert story.stats.bit_exact is True
    assert story.stats.decode_cycles_per_token is not None


class Built(RtlTransport):
    """An accelerator that is built already, from ``nano``."""

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        super().open(NANO, n_bytes)


@pytest.mark.rtl
def test_program_of_another_configuration_is_refused(ternary: Compiled) -> None:
    other = NANO.with_(name="other", param_words=1024)
    found = Compiled(ternary.model, replace(ternary.program, config=other))
    with pytest.raises(DeviceError, match=rf"{NANO.fingerprint:016x}.*{other.fingerprint:016x}"):
        on_transport(found, Built())


@pytest.mark.rtl
def test_program_that_hangs_names_what_waits(ternary: Compiled) -> None:
    """A wait that nothing can meet becomes an error that names the unit; the next run is right."""
    code = ternary.program.code
    words = [code[i : i + INSTRUCTION_BYTES] for i in range(0, len(code), INSTRUCTION_BYTES)]
    instructions = [decode(word) for word in words]
    index = next(i for i, x in enumerate(instructions) if x.opcode is Opcode.ATTEND)
    instructions[index] = replace(instructions[index], waits=(0, 0, 60000, 0))
    device = on_transport(with_code(ternary, b"".join(map(encode, instructions))), RtlTransport())
    with pytest.raises(DeviceError, match=r"attention"):
        device.run_tile([2, 3], 0, 1)
    below = driver(device)
    below.transport.write(below.addresses["PROGRAM_BASE"], code)
    assert_equal(device.run_tile([2, 3], 0, 1), golden(ternary.model).run_tile([2, 3], 0, 1))
    device.close()


@pytest.mark.rtl
def test_sessions_of_the_rtl(ternary: Compiled, prompt: list[int]) -> None:
    """Interleaved sessions, and a sequence that moves to golden and back in the middle."""
    device, expected = on_transport(ternary, RtlTransport()), golden(ternary.model)
    other = Tiles(device.device)
    assert_equal(device.run_tile(prompt[:5], 0, 0), expected.run_tile(prompt[:5], 0, 0))
    away = golden(ternary.model)
    assert_equal(other.run_tile(prompt[9:12], 0, 1), away.run_tile(prompt[9:12], 0, 1))
    assert_equal(device.run_tile(prompt[5:7], 5, 0), expected.run_tile(prompt[5:7], 5, 0))
    assert device.session.export().to_bytes() == expected.session.export().to_bytes()
    other.session.restore(expected.session.export())
    assert_equal(other.run_tile(prompt[7:8], 7, 0), expected.run_tile(prompt[7:8], 7, 0))
    fork = device.device.session()
    fork.restore(away.session.export())
    assert fork.length == 3
    device.close()


@pytest.mark.rtl
def test_the_rtl_among_devices(ternary: Compiled, prompt: list[int]) -> None:
    """A story moves to and from it at every position; eight threads have a session each."""
    rtl = on_transport(ternary, RtlTransport()).device
    others = golden(ternary.model).device, CpuDevice(2)
    others[1].load(ternary.model)
    for other in others:
        assert_a_story_moves(rtl, other, prompt[:6])
        assert_a_story_moves(other, rtl, prompt[:6])
    texts = [prompt[i : i + 3] for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(by_token, rtl), texts))
    for text, results in zip(texts, found, strict=True):
        for actual, expected in zip(results, by_token(others[0], text), strict=True):
            assert_equal(actual, expected)
    for device in (rtl, *others):
        device.close()


def by_token(device: Device, text: Sequence[int]) -> list[StepResult]:
    """The tokens of ``text`` one by one, in a session of their own."""
    session = device.session()
    return [device.run([Step(session=session, tokens=[token])])[0] for token in text]


@pytest.mark.rtl
@pytest.mark.slow
@pytest.mark.usefixtures("no_coverage")
def test_waveform_of_a_cycle_window(tmp_path: Path) -> None:
    wave = tmp_path / "wave.vcd"
    llm = LLM("tales", "rtl", wave=wave, wave_cycles=(0, 500))
    llm.generate("A", 1)
    llm.close()
    text = wave.read_text(encoding="ascii", errors="replace")
    assert "$enddefinitions" in text
    assert "#0" in text
