"""The instruction interpreter as a transport: programs run as they are specified."""

from collections.abc import Mapping

import numpy as np

from lutra.devices.accelerator.transport import Heap
from lutra.devices.base import DeviceError
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import QUEUE_DEPTH
from lutra_golden.control.failure import Failure
from lutra_golden.control.interpreter import Interpreter, ProgramError, RunError
from lutra_golden.control.memory import Memory, MemoryFault
from lutra_golden.control.registers import (
    CONTEXT,
    CONTROL_ABORT,
    IDENT,
    REGISTERS,
    STATUS_DONE,
    STATUS_ERROR,
    STATUS_SATURATED,
    TILE_ARRAYS,
    VERSION,
)
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["InterpretedTransport"]


class InterpretedTransport:
    """Runs programs in NumPy, instruction by instruction; the check of programs."""

    name = "interpreted"
    emulated: str | None = None
    verify_load = False

    def __init__(self) -> None:
        self._interpreter: Interpreter | None = None
        self._heap = Heap(0)
        self._started = self._done = False
        self._failure = Failure()

    @property
    def interpreter(self) -> Interpreter:
        """The interpreter, to look into while it runs."""
        if self._interpreter is None:
            raise DeviceError("the interpreter is closed: load a model")
        return self._interpreter

    @property
    def memory(self) -> Memory:
        """The memory behind it."""
        return self.interpreter.memory

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Make an interpreter of ``config``."""
        self._interpreter = Interpreter(config, Memory(n_bytes))
        self._heap = Heap(n_bytes)
        self._started = self._done = False

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of memory; there is one bank."""
        return self._heap.allocate(n_bytes)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._heap.free(address)

    def write(self, address: int, data: bytes) -> None:
        """Write to memory."""
        self.memory.write(address, data)

    def zero(self, address: int, n_bytes: int) -> None:
        """Write zeros to memory."""
        self.memory.store(address, np.zeros(n_bytes, np.uint8))

    def read(self, address: int, n_bytes: int) -> bytes:
        """Read memory."""
        try:
            return self.memory.read(address, n_bytes).tobytes()
        except MemoryFault as error:
            raise DeviceError(f"the host read unwritten memory: {error}") from error

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Write a register."""
        interpreter = self.interpreter
        if name == "TOKEN":
            interpreter.tokens[index] = value
        elif name in ("CHUNK", "CHUNK_KV"):
            words = list(interpreter.chunks[index].words)
            words[name == "CHUNK_KV"] = value
            interpreter.chunks[index] = ChunkEntry.from_words(*words)
        elif name == "CONTROL":
            if value & CONTROL_ABORT:
                self.reset()
        elif name.endswith("_BASE"):
            low, high = interpreter.registers[name] & 0xFFFFFFFF, interpreter.registers[name] >> 32
            words = [low, high]
            words[index] = value
            interpreter.registers[name] = words[0] | words[1] << 32
        else:
            interpreter.registers[name] = value

    def read_register(self, name: str, index: int = 0) -> int:
        """Read a register."""
        interpreter = self.interpreter
        fingerprint = interpreter.config.fingerprint
        if name == "ARGMAX":
            return int(interpreter.argmax[index])
        if name == "SCALE":
            scale = Scale(interpreter.scale.m[index], interpreter.scale.e[index])
            return int(pack_scale(scale))
        if name == "STATUS":
            status = STATUS_DONE * self._done | STATUS_SATURATED * interpreter.saturated
            return status | STATUS_ERROR * bool(self._failure.code)
        if name == "ERROR":
            return self._failure.word
        if name == "ERROR_ADDRESS":
            return self._failure.address >> 32 * index & 0xFFFFFFFF
        if name == "FINGERPRINT":
            return fingerprint >> 32 * index & 0xFFFFFFFF
        if name in TILE_ARRAYS:
            words = interpreter.chunks[index].words
            return int(interpreter.tokens[index]) if name == "TOKEN" else words[name == "CHUNK_KV"]
        if name in (*CONTEXT, "WATCHDOG"):
            value = interpreter.registers.get(name, 0) & (1 << REGISTERS[name].width) - 1
            return value >> 32 * index & 0xFFFFFFFF
        return {"IDENT": IDENT, "VERSION": VERSION}[name]

    def start(self) -> None:
        """Begin a run, which :meth:`wait` executes."""
        self._started = True

    def ring(self, address: int) -> None:
        """Queue a descriptor, which :meth:`wait` executes."""
        if not self.interpreter.ring(address):
            raise DeviceError(f"{QUEUE_DEPTH} descriptors wait already: wait for one of them first")

    def wait(self, timeout_s: float | None) -> int | None:
        """Execute the descriptor that waits, or the program; there is no clock."""
        interpreter, started = self.interpreter, self._started
        if not (interpreter.doorbells or started):
            raise DeviceError("the interpreter waits for a start")
        self._started = self._done = False
        self._failure = Failure()
        try:
            if interpreter.doorbells:
                self._failure = interpreter.run_next().failure
            else:
                interpreter.run()
        except RunError as error:
            self._failure = error.failure
        except (MemoryFault, ProgramError) as error:
            raise DeviceError(f"the program is broken: {error}: load the model again") from error
        self._done = True
        return None

    def reset(self) -> None:
        """Forget a run that was begun, and descriptors that wait."""
        self._started = self._done = False
        self.interpreter.doorbells.clear()

    def counters(self) -> Mapping[str, int]:
        """The interpreter has no counters."""
        return {}

    def close(self) -> None:
        """Release the memory."""
        self._interpreter = None
