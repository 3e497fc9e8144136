"""An interpreter with a fault, as a transport."""

from collections.abc import Callable

from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import Instruction, Opcode
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["FAULTS", "Fault", "FaultyTransport"]

Fault = Callable[[Interpreter, Instruction], None]


def _accumulator(interpreter: Interpreter, i: Instruction) -> None:
    if i.opcode is Opcode.LMMA:
        interpreter.acc[0, i.args["acc_base"] + 1, 3] += 1000


def _activation(interpreter: Interpreter, i: Instruction) -> None:
    if i.opcode is Opcode.NORMQ:
        interpreter.activations[:, 5] ^= 0x7F


def _residual(interpreter: Interpreter, i: Instruction) -> None:
    if i.opcode is Opcode.RESADD:
        interpreter.residual[1, 7] += 1 << 20


def _attention(interpreter: Interpreter, i: Instruction) -> None:
    if i.opcode is Opcode.ATTEND:
        interpreter.attention += 1 << 12


def _embedding(interpreter: Interpreter, i: Instruction) -> None:
    if i.opcode is Opcode.EMBED:
        interpreter.residual[0, 2] += 1 << 18


FAULTS: dict[str, Fault] = {
    "matmul": _accumulator,
    "norm": _activation,
    "residual": _residual,
    "attention": _attention,
    "load": _embedding,
}
"""Faults of units, which change what an instruction leaves."""


class FaultyTransport(InterpretedTransport):
    """The interpreter, and behind every instruction ``fault``."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self._fault = fault

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        super().open(config, n_bytes)
        interpreter, fault = self.interpreter, self._fault
        interpreter.on_instruction = lambda i: fault(interpreter, i)
