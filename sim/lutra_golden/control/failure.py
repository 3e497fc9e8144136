"""Failure of a run: what the error registers hold, and how it is said."""

from collections.abc import Mapping
from dataclasses import dataclass

from lutra_golden.control.check import PROGRAM_WORDS_MAX, alignments
from lutra_golden.control.isa import Unit
from lutra_golden.control.registers import ERROR_FIELDS, ErrorCode, UnitState
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose, Response, port_name

__all__ = ["UNITS", "Failure", "describe_units"]

UNITS: Mapping[Purpose, Unit | None] = {
    Purpose.FETCH: None,
    Purpose.LOAD: Unit.LOAD,
    Purpose.ATTENTION: Unit.ATTENTION,
    Purpose.WEIGHTS: Unit.MATMUL,
    Purpose.WRITE: Unit.VECTOR,
}
"""Unit that each transfer is for; the fetch is the sequencer's own."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Contents of ERROR and ERROR_ADDRESS; see :data:`ERROR_FIELDS`."""

    code: int = ErrorCode.NONE
    purpose: int = 0
    response: int = 0
    instruction: int = 0
    address: int = 0

    @property
    def word(self) -> int:
        """The register ERROR."""
        return sum(getattr(self, name) << first for name, (first, _, _) in ERROR_FIELDS.items())

    @classmethod
    def of(cls, word: int, address: int) -> "Failure":
        """Inverse of :attr:`word`, with the contents of ERROR_ADDRESS."""
        parts = {
            name: word >> first & ((1 << width) - 1)
            for name, (first, width, _) in ERROR_FIELDS.items()
        }
        return cls(**parts, address=address)

    def describe(self, config: AcceleratorConfig) -> str:
        """Say in one line what ended a run of an accelerator of ``config``, and what to do."""
        align, begun = alignments(config), f"after {self.instruction} instructions"
        texts: dict[int, str] = {
            ErrorCode.NONE: "no error",
            ErrorCode.N_TOKENS: f"N_TOKENS must be in 1..{config.pass_tokens}",
            ErrorCode.LOGITS_FROM: "LOGITS_FROM must be at most N_TOKENS",
            ErrorCode.CHUNK: f"the position of a chunk plus its tokens must be at most "
            f"{config.max_context}",
            ErrorCode.PROGRAM: f"PROGRAM_BASE must be a multiple of {align['PROGRAM_BASE']}, and "
            f"PROGRAM_BYTES 1..{PROGRAM_WORDS_MAX} times {align['PROGRAM_BYTES']}",
            ErrorCode.WEIGHT_BASE: f"WEIGHT_BASE must be a multiple of {align['WEIGHT_BASE']}",
            ErrorCode.LOGITS: "LOGITS_BASE and LOGITS_STRIDE must be multiples of "
            f"{align['LOGITS_BASE']}",
            ErrorCode.OPCODE: f"instruction {self.instruction} has an unknown opcode: load the "
            "model again",
            ErrorCode.NO_END: f"the program has no END in {self.instruction} instructions: load "
            "the model again",
            ErrorCode.DESCRIPTOR: "there is no descriptor of this version, or its kind, a "
            "count or an address does not fit: see docs/descriptors.md",
            ErrorCode.FINGERPRINT: "the descriptor is for another configuration than "
            f"{config.fingerprint:016x}: compile the model for this one",
            ErrorCode.ABORT: f"the run was aborted {begun}",
            ErrorCode.WATCHDOG: f"nothing moved for too long {begun}: see that the memory behind "
            "every port answers",
        }
        if self.code == ErrorCode.BUS and self.purpose < len(Purpose):
            return self._transfer(config, list(Purpose)[self.purpose])
        unknown = f"an error of code {self.code}, which this Lutra does not know"
        return texts.get(self.code, unknown)

    def _transfer(self, config: AcceleratorConfig, purpose: Purpose) -> str:
        ports, unit = " or ".join(map(port_name, config.ports_of(purpose))), UNITS[purpose]
        names = {each.value: each.name for each in Response}
        response = names.get(self.response, f"response {self.response}")
        verb = "write" if purpose is Purpose.WRITE else "read"
        kind = "" if unit is None else f"{unit.name.lower()} "
        return (
            f"the memory answered {response} to a {verb} of {ports} ({purpose}) at "
            f"{self.address:#x}, in {kind}instruction {self.instruction}: check that the address "
            "is mapped"
        )


def describe_units(word: int) -> str:
    """State of every unit, from UNIT_STATE: ``load IDLE, matmul WAIT_WEIGHTS, ...``."""
    names = [*(unit.name.lower() for unit in Unit), "fetch"]
    known = {state.value: state.name for state in UnitState}
    codes = [word >> 4 * i & 15 for i in range(len(names))]
    return ", ".join(
        f"{name} {known.get(code, f'state {code}')}"
        for name, code in zip(names, codes, strict=True)
    )
