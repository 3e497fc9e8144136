"""The AXI4-Lite register map: 32-bit registers, byte addresses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from lutra_golden.control.chunks import PAGE_WIDTH, POSITION_WIDTH, TOKENS_WIDTH
from lutra_golden.core.ports import ADDRESS_WIDTH

__all__ = [
    "CONTEXT",
    "CONTROL_ABORT",
    "CONTROL_START",
    "COUNTERS",
    "COUNTER_WIDTH",
    "ERRORS",
    "ERROR_FIELDS",
    "IDENT",
    "REGISTERS",
    "STATUS_BUSY",
    "STATUS_DONE",
    "STATUS_DRAINING",
    "STATUS_ERROR",
    "STATUS_REFUSED",
    "STATUS_SATURATED",
    "TILE_ARRAYS",
    "VERSION",
    "ErrorCode",
    "Register",
    "UnitState",
]

IDENT = 0x4152544C  # "LTRA"

CONTROL_START, CONTROL_ABORT = 1, 2
STATUS_BUSY, STATUS_DONE, STATUS_ERROR, STATUS_SATURATED = 1, 2, 4, 8
STATUS_REFUSED, STATUS_DRAINING = 16, 32


class UnitState(IntEnum):
    """State of a unit, 4 bits each in UNIT_STATE; the watchdog prints the name."""

    IDLE = 0
    RUNNING = 1
    WAIT_DEPENDENCY = 2
    WAIT_READ = 3
    WAIT_WRITE = 4
    WAIT_WEIGHTS = 5


class ErrorCode(IntEnum):
    """Reason for which a run was refused, or ended, in ERROR."""

    NONE = 0
    N_TOKENS = 1
    LOGITS_FROM = 2
    CHUNK = 3
    PROGRAM = 4
    WEIGHT_BASE = 5
    LOGITS = 6
    BUS = 7
    OPCODE = 8
    NO_END = 9
    ABORT = 10
    WATCHDOG = 11
    DESCRIPTOR = 12
    FINGERPRINT = 13


ERRORS: Mapping[ErrorCode, str] = {
    ErrorCode.N_TOKENS: "`N_TOKENS` is not in 1 to `pass_tokens`; nothing was done",
    ErrorCode.LOGITS_FROM: "`LOGITS_FROM` is above `N_TOKENS`; nothing was done",
    ErrorCode.CHUNK: "a chunk's position plus its tokens is above `max_context`; nothing was done",
    ErrorCode.PROGRAM: "`PROGRAM_BASE` is not aligned, or `PROGRAM_BYTES` are not 1 to 2^24 - 1 "
    "data words; nothing was done",
    ErrorCode.WEIGHT_BASE: "`WEIGHT_BASE` is not aligned; nothing was done",
    ErrorCode.LOGITS: "`LOGITS_BASE` or `LOGITS_STRIDE` is not aligned; nothing was done",
    ErrorCode.BUS: "the memory answered a transfer with an error",
    ErrorCode.OPCODE: "an instruction has an unknown opcode",
    ErrorCode.NO_END: "the program has no END",
    ErrorCode.ABORT: "the host wrote a one to bit 1 of `CONTROL`",
    ErrorCode.WATCHDOG: "nothing moved for `WATCHDOG` cycles",
    ErrorCode.DESCRIPTOR: "there is no descriptor of this version, or a part of it does not fit; "
    "nothing was done",
    ErrorCode.FINGERPRINT: "the descriptor is for another configuration; nothing was done",
}
"""Meaning of each code, for the reference."""

ERROR_FIELDS: Mapping[str, tuple[int, int, str]] = {
    "code": (0, 4, "code, see below"),
    "purpose": (4, 3, "code BUS: 0 fetch, 1 load, 2 attention, 3 weights, 4 write"),
    "response": (8, 2, "code BUS: the memory's answer, 2 SLVERR or 3 DECERR"),
    "instruction": (16, 16, "instructions that had been executed, see above"),
}
"""First bit, width and meaning of each part of ERROR."""


@dataclass(frozen=True)
class Register:
    """A register or an array of ``count`` at ``address``, ``address + 4``, ...

    ``width`` are the bits that are kept of it, of all words together if it is one number in
    several, of an element if it is an array; the others read as zero.
    """

    address: int
    access: str  # "ro", "rw", "wo", "w1c", or "w1t"
    doc: str
    count: int = 1
    width: int = 32


COUNTERS: Sequence[str] = (
    "cycles",
    "load_busy",
    "load_stall",
    "matmul_busy",
    "matmul_stall",
    "vector_busy",
    "vector_stall",
    "attention_busy",
    "attention_stall",
    "weight_read_beats",
    "data_read_beats",
    "data_write_beats",
)
"""Performance counters of a run; two registers each, low word first."""
COUNTER_WIDTH = 40
"""Bits of a counter: cycles of 91 minutes at 200 MHz."""

REGISTERS: dict[str, Register] = {
    "IDENT": Register(0x000, "ro", "0x4152544C, 'LTRA'"),
    "VERSION": Register(0x004, "ro", "version of this register map and of the instruction set"),
    "FINGERPRINT": Register(0x008, "ro", "fingerprint of the configuration, low word first", 2, 64),
    "CONTROL": Register(
        0x010, "wo", "bit 0: start; refused while busy. Bit 1: abort the run", width=2
    ),
    "STATUS": Register(
        0x014,
        "ro",
        "bit 0 busy, 1 done, 2 failed: see ERROR, 3 saturated, 4 refused, 5 memory owes answers",
        width=6,
    ),
    "IRQ_ENABLE": Register(0x018, "rw", "bit 0: raise the interrupt when done", width=1),
    "IRQ_STATUS": Register(0x01C, "w1c", "bit 0: done since last cleared", width=1),
    "PROGRAM_BASE": Register(
        0x020, "rw", "byte address of the program, low word first", 2, ADDRESS_WIDTH
    ),
    "WEIGHT_BASE": Register(0x028, "rw", "byte address of weights and tables", 2, ADDRESS_WIDTH),
    "DOORBELL": Register(0x030, "wo", "queues a descriptor: its address in units of 256 bytes"),
    "PENDING": Register(0x034, "ro", "descriptors that are not over", width=3),
    "LOGITS_BASE": Register(0x038, "rw", "byte address of the logits", 2, ADDRESS_WIDTH),
    "LOGITS_STRIDE": Register(0x040, "rw", "bytes from one token's logits to the next's"),
    "N_TOKENS": Register(0x048, "rw", "tokens in this tile, 1 to pass_tokens", width=TOKENS_WIDTH),
    "LOGITS_FROM": Register(
        0x04C, "rw", "first token of the tile whose logits are wanted", width=TOKENS_WIDTH
    ),
    "UNIT_STATE": Register(0x050, "ro", "UnitState of load, matmul, vector, attention, fetch"),
    "PROGRAM_BYTES": Register(0x054, "rw", "length of the program in bytes, whole data words"),
    "ERROR": Register(0x058, "ro", "what ended the last run before its end, 0 if nothing"),
    "WATCHDOG": Register(0x05C, "rw", "cycles without progress that end a run, 0 is never"),
    "ERROR_ADDRESS": Register(
        0x060, "ro", "address of the burst that failed, low word first", 2, ADDRESS_WIDTH
    ),
    "TOKEN": Register(0x100, "rw", "token ids of the tile", 64),
    "ARGMAX": Register(0x200, "ro", "row of the largest logit, per token", 64),
    "SCALE": Register(0x300, "ro", "packed activation scale of the logits, per token", 64),
    "COUNTER": Register(0x400, "ro", "performance counters", 2 * len(COUNTERS)),
    "CHUNK": Register(
        0x500,
        "rw",
        "chunk of the tile: position of its first token in 15:0, tokens in 23:16 (0: all left)",
        64,
        POSITION_WIDTH + TOKENS_WIDTH,
    ),
    "CHUNK_KV": Register(
        0x600, "rw", "page of 4 KB where the chunk's keys and values begin", 64, PAGE_WIDTH
    ),
}

TILE_ARRAYS: Sequence[str] = ("TOKEN", "CHUNK", "CHUNK_KV")
"""Arrays of a tile that the host writes; ``width`` is that of an element."""

CONTEXT: Sequence[str] = tuple(
    name
    for name, register in REGISTERS.items()
    if register.access == "rw" and name not in ("IRQ_ENABLE", "WATCHDOG", *TILE_ARRAYS)
)
"""Other registers that shape a run; these and the arrays are written only while nothing runs."""

VERSION = 4
