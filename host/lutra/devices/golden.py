"""The golden interpreter as a device."""

from collections.abc import Mapping, Sequence

import numpy as np

from lutra.compile.program import Program
from lutra.devices.base import DeviceError, Limits, TileResult, check_tile
from lutra_golden.arith.scale import Scale, scale_to_float
from lutra_golden.control.interpreter import Interpreter, ProgramError
from lutra_golden.control.memory import Memory, MemoryFault
from lutra_golden.errors import LutraError

__all__ = ["GoldenDevice"]


class GoldenDevice:
    """Runs programs in NumPy, exactly as specified."""

    name = "golden"

    def __init__(self) -> None:
        self._program: Program | None = None
        self._interpreter: Interpreter | None = None

    @property
    def interpreter(self) -> Interpreter:
        """The interpreter, to look into while it runs."""
        if self._interpreter is None:
            raise LutraError("no program is loaded: call load(program) first")
        return self._interpreter

    @property
    def memory(self) -> Memory:
        """The device's memory; fault injection and tests write into it."""
        return self.interpreter.memory

    def load(self, program: Program) -> None:
        """Take a program; the KV cache starts empty."""
        memory, layout = Memory(program.memory.n_bytes), program.memory
        memory.write(layout.program, program.code)
        memory.write(layout.weights, program.weights)
        for address, n_bytes in program.zeros:
            memory.write(address, bytes(n_bytes))
        interpreter = Interpreter(program.config, memory)
        interpreter.registers |= {
            "PROGRAM_BASE": layout.program,
            "PROGRAM_BYTES": len(program.code),
            "WEIGHT_BASE": layout.weights,
            "KV_BASE": layout.kv,
            "LOGITS_BASE": layout.logits,
            "LOGITS_STRIDE": layout.logits_stride,
        }
        self._program, self._interpreter = program, interpreter

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        """Process ``tokens`` from ``position``; see :class:`~lutra.devices.base.Device`."""
        program, interpreter = self._program, self._interpreter
        if program is None or interpreter is None:
            raise LutraError("no program is loaded: call load(program) first")
        check_tile(Limits.of(program), tokens, position, logits_from)
        n = len(tokens)
        interpreter.registers |= {"POSITION": position, "N_TOKENS": n, "LOGITS_FROM": logits_from}
        interpreter.tokens[:n] = tokens
        try:
            interpreter.run()
        except (MemoryFault, ProgramError) as error:
            raise DeviceError(f"the golden device stops at a broken program: {error}") from error
        layout, wanted = program.memory, range(logits_from, n)
        rows = [
            interpreter.memory.read(
                layout.logits + m * layout.logits_stride, 4 * program.vocab_size
            )
            .view("<i4")
            .astype(np.int64)
            for m in wanted
        ]
        tail = slice(logits_from, n)
        scale = Scale(interpreter.scale.m[tail], interpreter.scale.e[tail])
        return TileResult(
            logits=np.array(rows, np.int64).reshape(len(rows), program.vocab_size),
            scale=scale_to_float(scale) * program.head_scale,
            argmax=interpreter.argmax[tail].copy(),
            cycles=None,
            saturated=interpreter.saturated,
        )

    def counters(self) -> Mapping[str, int]:
        """The golden device has no clock and no counters."""
        return {}

    def close(self) -> None:
        """Nothing to release."""
