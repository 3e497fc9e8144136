"""Result blocks of descriptors: how a run ended, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lutra_golden.control.blocks import Word, pack, pack_words, unpack, unpack_words
from lutra_golden.control.checksum import CHECKSUM_WIDTH
from lutra_golden.control.descriptor import DESCRIPTOR_VERSION
from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import COUNTERS, IDENT
from lutra_golden.core.ports import ADDRESS_WIDTH

__all__ = ["RESULT", "RESULT_BYTES", "Result", "result_bytes"]

RESULT_BYTES = 256
"""Bytes in front of the results of tokens."""

_COUNTERS_AT = 24

RESULT: Mapping[str, Word] = {
    "ident": Word(0, f"{IDENT:#010x}, 'LTRA'"),
    "version": Word(1, f"version of descriptors and results, {DESCRIPTOR_VERSION}"),
    "fingerprint": Word(2, "fingerprint of the configuration", 64),
    "status": Word(4, "as the register `STATUS`; bit 1 is set"),
    "tag": Word(5, "that of the descriptor"),
    "error": Word(6, "as `ERROR`"),
    "unit_state": Word(7, "as `UNIT_STATE`, of a run that failed"),
    "error_address": Word(8, "as `ERROR_ADDRESS`", ADDRESS_WIDTH),
    "n_results": Word(10, "tokens of which there are results"),
    "n_made": Word(11, "tokens that were made of each sequence, end tokens among them"),
    "checksum": Word(12, "CHECKSUM: the checksum", CHECKSUM_WIDTH),
    **{
        name: Word(_COUNTERS_AT + 2 * i, "counter of the whole run", 64)
        for i, name in enumerate(COUNTERS)
    },
}
"""The first 256 bytes; behind them are arg-max and packed scale of each token in turn.

What is not listed is written as zero; nothing is written behind the last token's.
"""


def result_bytes(line: int, n_results: int) -> int:
    """Room for a result block, whole lines of :func:`line_bytes`."""
    return -(-(RESULT_BYTES + 8 * n_results) // line) * line


@dataclass(kw_only=True)
class Result:
    """Contents of a result block; numbers are named as in :data:`RESULT`."""

    fingerprint: int
    tag: int = 0
    status: int = 0
    failure: Failure = field(default_factory=Failure)
    unit_state: int = 0
    n_made: int = 0
    checksum: int = 0
    counters: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    argmax: list[int] = field(default_factory=list[int])
    scale: list[int] = field(default_factory=list[int])

    def encode(self) -> bytes:
        """The bytes in memory; ValueError names a value that does not fit."""
        values = {
            "ident": IDENT,
            "version": DESCRIPTOR_VERSION,
            "error": self.failure.word,
            "error_address": self.failure.address,
            "n_results": len(self.argmax),
            **self.counters,
        }
        values |= {name: getattr(self, name) for name in RESULT.keys() - values}
        pairs = zip(self.argmax, self.scale, strict=True)
        return pack(RESULT, RESULT_BYTES, values) + pack_words([x for pair in pairs for x in pair])

    @classmethod
    def decode(cls, data: bytes) -> "Result":
        """Inverse of :meth:`encode`."""
        values = unpack(RESULT, data[:RESULT_BYTES])
        words = unpack_words(data[RESULT_BYTES : RESULT_BYTES + 8 * values["n_results"]])
        same = ("fingerprint", "tag", "status", "unit_state", "n_made", "checksum")
        return cls(
            **{name: values[name] for name in same},
            failure=Failure.of(values["error"], values["error_address"]),
            counters={name: values[name] for name in COUNTERS},
            argmax=words[::2],
            scale=words[1::2],
        )
