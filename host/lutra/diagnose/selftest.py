"""Tests of an accelerator over any transport, in seconds: memory, registers, units, one token."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra.compile.compiler import compile_model
from lutra.compile.fit import round_up
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.transport import PAGE, DoorbellTransport, RegisterTransport
from lutra.diagnose.passes import GoldenPasses, first_difference
from lutra.diagnose.prefixes import Prefixes, operations_of
from lutra_golden.control.checksum import checksum
from lutra_golden.control.registers import CONTEXT, REGISTERS, TILE_ARRAYS
from lutra_golden.core.ports import BOUNDARY_BYTES, Purpose
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import LANES
from lutra_golden.model.packed import PackedModel

__all__ = ["Check", "selftest"]

# of the vocabulary, beyond a chunk of the head where that is small; and positions
_ROWS, _CONTEXT = 512, 256
_MEMORY_BYTES = 16 * BOUNDARY_BYTES
_WORDS = (0x00000000, 0xFFFFFFFF, 0xAAAAAAAA, 0x55555555, 0x12345678)
_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Check:
    """Outcome of one test: ``problem`` says what is wrong and names the unit, None if nothing.

    ``left_out`` says why the device could not be tested in this way.
    """

    name: str
    problem: str | None
    seconds: float
    left_out: str | None = None


class _LeftOutError(Exception):
    """The device has no way to a test."""


def selftest(device: AcceleratorDevice, model: PackedModel) -> Iterator[Check]:
    """Test ``device`` with the first layer of ``model``, on random tokens; a check at a time.

    Of the vocabulary a part is enough. Nothing is tested behind the first unit that is wrong. The
    device is closed afterwards.
    """
    small = _part(model)
    try:
        check = _timed("identity and fingerprint", lambda: _load(device, model, small))
        yield check
        if check.problem:
            return
        for name, test in (
            ("registers", lambda: _registers(device)),
            ("memory", lambda: _memory(device)),
            ("memory addresses", lambda: _addresses(device)),
            ("memory, as the accelerator reads it", lambda: _checksum(device)),
            ("units", lambda: _units(device, small)),
            ("one token", lambda: _token(device, small)),
        ):
            check = _timed(name, test)
            yield check
            if check.problem:
                return
    finally:
        device.close()


def _part(model: PackedModel) -> PackedModel:
    """First layer, first tokens and first positions of ``model``."""
    n, context = min(model.vocab_size, _ROWS), min(model.context, _CONTEXT)
    return replace(
        model,
        layers=[model.layers[0]],
        vocab_size=n,
        embedding=model.embedding[:n],
        head=model.head[:n],
        head_rows=model.head_rows[:n],
        vocabulary=None if model.vocabulary is None else model.vocabulary.first(n),
        bos=None,
        eos=(),
        context=context,
        rope=model.rope[:context],
    )


def _load(device: AcceleratorDevice, model: PackedModel, part: PackedModel) -> None:
    """Load ``part`` of ``model``, whose configuration the device has.

    There is memory for all accumulators of a token in the place of its logits.
    """
    config = device.configuration_for(model)
    program = compile_model(part, config)
    stride = round_up(4 * LANES * config.matmul.acc_blocks, config.alignment(Purpose.WRITE))
    stride = max(stride, program.logits_stride)
    device.load_program(part, replace(program, logits_stride=stride))


def _timed(name: str, test: Callable[[], str | None]) -> Check:
    start, problem, left_out = time.perf_counter(), None, None
    try:
        problem = test()
    except _LeftOutError as error:
        left_out = str(error)
    except LutraError as error:
        problem = str(error)
    seconds = time.perf_counter() - start
    return Check(name=name, problem=problem, seconds=seconds, left_out=left_out)


def _registers(device: AcceleratorDevice) -> str | None:
    """Write every register that can be read back, with patterns, and read it."""
    transport = device.transport
    if not isinstance(transport, RegisterTransport):
        raise _LeftOutError(f"device {device.name} gives no access to registers")
    places = [
        (name, index)
        for name in (*CONTEXT, "WATCHDOG", *TILE_ARRAYS)
        for index in range(
            min(REGISTERS[name].count, device.pass_tokens)
            if name in TILE_ARRAYS
            else REGISTERS[name].count
        )
    ]
    try:
        for pattern in _WORDS:
            words = {place: pattern ^ 0x01010101 * (i % 7) for i, place in enumerate(places)}
            for (name, index), word in words.items():
                transport.write_register(name, word, index)
            for (name, index), word in words.items():
                expected = word & _mask(name, index)
                found = transport.read_register(name, index)
                if found != expected:
                    return (
                        f"register {name}[{index}] reads {found:#x} after {expected:#x} was "
                        "written: the registers, or the way to them, are wrong"
                    )
    finally:
        for name, index in places:
            transport.write_register(name, 0, index)
        device.runs.forget()
    return None


def _mask(name: str, index: int) -> int:
    """Bits that a word of a register keeps."""
    register = REGISTERS[name]
    width = register.width if name in TILE_ARRAYS else register.width - 32 * index
    return (1 << min(max(width, 0), 32)) - 1


def _memory(device: AcceleratorDevice) -> str | None:
    """Write patterns to memory of sessions and read them: equal, each its address, random."""
    transport, memory = device.transport, device.memory
    address = memory.allocate(_MEMORY_BYTES)
    rng = np.random.default_rng(_SEED)
    numbers = np.arange(_MEMORY_BYTES // 4, dtype="<u4")
    patterns: dict[str, NDArray[np.generic]] = {
        f"{word:#010x}": np.full(len(numbers), word, "<u4") for word in _WORDS
    }
    patterns["each word its address"] = numbers * 4 + np.uint32(address & 0xFFFFFFFF)
    patterns["random"] = rng.integers(0, 1 << 32, len(numbers), np.uint32)
    try:
        for name, words in patterns.items():
            data = words.tobytes()
            transport.write(address, data)
            found = transport.read(address, len(data))
            if found != data:
                wrong = np.frombuffer(found, np.uint8) != np.frombuffer(data, np.uint8)
                at = int(wrong.argmax())
                return (
                    f"pattern {name}: byte {address + at:#x} reads {found[at]:#04x}, not "
                    f"{data[at]:#04x}, and {int(wrong.sum())} in all: the memory is wrong"
                )
    finally:
        memory.free(address)
    return None


def _addresses(device: AcceleratorDevice) -> str | None:
    """Write its own address at every power of two of the free memory, then read all of them."""
    transport, memory = device.transport, device.memory
    size = memory.free_bytes
    base = memory.allocate(size)
    steps = range(PAGE.bit_length() - 1, (size - 1).bit_length())
    places = [base, *(base + (1 << step) for step in steps)]
    try:
        for at in places:
            transport.write(at, at.to_bytes(8, "little"))
        for at in places:
            found = int.from_bytes(transport.read(at, 8), "little")
            if found != at:
                return (
                    f"the word at {at:#x} reads {found:#x}, not its address: addresses of the "
                    "memory are wrong"
                )
    finally:
        memory.free(base)
    return None


def _checksum(device: AcceleratorDevice) -> str | None:
    """Let the accelerator compute the checksum of random bytes."""
    transport, memory = device.transport, device.memory
    if not isinstance(transport, DoorbellTransport):
        raise _LeftOutError(f"device {device.name} takes no descriptors")
    data = np.random.default_rng(_SEED).integers(0, 256, _MEMORY_BYTES, np.uint8)
    address = memory.allocate(_MEMORY_BYTES)
    try:
        transport.write(address, data.tobytes())
        found = device.checksum(address, _MEMORY_BYTES)
    finally:
        memory.free(address)
    expected = checksum(data)
    if found != expected:
        return (
            f"the checksum of {_MEMORY_BYTES} bytes is {found:016x}, not "
            f"{expected:016x}: the reads of the sequencer (fetch) are wrong"
        )
    return None


def _units(device: AcceleratorDevice, model: PackedModel) -> str | None:
    """Run the program up to each instruction on random tokens, and compare what it leaves."""
    tokens = _tokens(device, model)
    with GoldenPasses(model, tokens, 1, device.pass_tokens) as passes:
        # keys and values of positions before are random, too
        next(iter(passes))
        prefixes = Prefixes(device, passes.kv(len(tokens)), tokens, len(tokens) - 1)
    try:
        found = prefixes.first(by_layers=False)
    finally:
        prefixes.close()
    if found is None:
        return None
    opcode = operations_of(device.program)[found.index].opcode.name
    return f"the {found.unit} is wrong: instruction {found.index} ({opcode}): {found.text}"


def _token(device: AcceleratorDevice, model: PackedModel) -> str | None:
    with GoldenPasses(model, _tokens(device, model), 1, device.pass_tokens) as passes:
        found = first_difference(device, passes)
    return None if found is None else f"position {found.position}: {found.text}"


def _tokens(device: AcceleratorDevice, model: PackedModel) -> list[int]:
    """Random tokens of a pass, as many as leave room for as many again."""
    n = min(device.pass_tokens, model.context // 2)
    return np.random.default_rng(_SEED).integers(0, model.vocab_size, n).tolist()
