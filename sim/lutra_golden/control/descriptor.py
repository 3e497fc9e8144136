"""Descriptors of runs: what the accelerator is to do, in memory, started by one doorbell."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum

from lutra_golden.control.blocks import Word, pack, pack_words, unpack, unpack_words
from lutra_golden.control.check import check_run, fetchable
from lutra_golden.control.chunks import TOKENS_WIDTH, ChunkEntry, chunks
from lutra_golden.control.registers import CONTEXT, ErrorCode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH, Purpose

__all__ = [
    "BODY",
    "DESCRIPTOR_VERSION",
    "DOORBELL_BYTES",
    "ENDS_MAX",
    "HEADER",
    "HEADER_BYTES",
    "MAGIC",
    "QUEUE_DEPTH",
    "Descriptor",
    "Kind",
    "body_bytes",
    "check_descriptor",
    "check_header",
    "line_bytes",
]

MAGIC, DESCRIPTOR_VERSION = 0x4452544C, 2  # "LTRD"
DOORBELL_BYTES = 256
"""A doorbell is the address of a descriptor in these: one register of 32 bits holds it."""
QUEUE_DEPTH = 4
"""Descriptors that wait, beside the one that runs."""
HEADER_BYTES = 128
ENDS_MAX = 8


class Kind(IntEnum):
    """Work that a descriptor asks for."""

    RUN = 0
    """A pass over the weights for a tile of tokens, and more for tokens that it makes."""
    CHECKSUM = 1
    """A checksum of a range of memory."""


HEADER: Mapping[str, Word] = {
    "magic": Word(0, f"{MAGIC:#010x}, 'LTRD'"),
    "version": Word(1, f"version of descriptors and results, {DESCRIPTOR_VERSION}"),
    "fingerprint": Word(2, "fingerprint of the configuration", 64),
    "result_base": Word(4, "address of the result block", ADDRESS_WIDTH),
    "tag": Word(6, "any number; the result block has it, too"),
    "kind": Word(7, "0 RUN, 1 CHECKSUM", 8),
    "program_base": Word(
        8, "as the register `PROGRAM_BASE`; CHECKSUM: address of the range", ADDRESS_WIDTH
    ),
    "weight_base": Word(10, "as `WEIGHT_BASE`", ADDRESS_WIDTH),
    "logits_base": Word(12, "as `LOGITS_BASE`", ADDRESS_WIDTH),
    "program_bytes": Word(14, "as `PROGRAM_BYTES`; CHECKSUM: length of the range"),
    "logits_stride": Word(15, "as `LOGITS_STRIDE`"),
    "n_tokens": Word(16, "as `N_TOKENS`; that many are in the body", TOKENS_WIDTH),
    "logits_from": Word(17, "as `LOGITS_FROM`", TOKENS_WIDTH),
    "n_chunks": Word(18, "entries of the table of chunks", TOKENS_WIDTH),
    "n_ends": Word(19, f"end tokens, 0 to {ENDS_MAX}", TOKENS_WIDTH),
    "n_greedy": Word(20, "tokens to make of each sequence, 0 for none", 16),
    "watchdog": Word(21, "for the register `WATCHDOG`, from here on; 0 leaves it as it is"),
}
"""The first 128 bytes; words that are not listed are zero, as are bits beyond a width."""

BODY: Mapping[str, str] = {
    "chunks": "of each, as the registers `CHUNK` and `CHUNK_KV`",
    "tokens": "token ids of the tile",
    "ends": "end tokens",
}
"""Parts of a RUN behind the header, in order; the header counts each, as ``n_<name>``."""


def line_bytes(config: AcceleratorConfig) -> int:
    """Bytes that addresses and lengths of descriptors and result blocks are multiples of."""
    return max(DOORBELL_BYTES, config.alignment(Purpose.FETCH), config.alignment(Purpose.WRITE))


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Contents of a descriptor; numbers are named as in :data:`HEADER`."""

    fingerprint: int
    result_base: int
    kind: int = Kind.RUN
    tag: int = 0
    program_base: int = 0
    program_bytes: int = 0
    weight_base: int = 0
    logits_base: int = 0
    logits_stride: int = 0
    logits_from: int = 0
    n_greedy: int = 0
    watchdog: int = 0
    chunks: tuple[ChunkEntry, ...] = ()
    tokens: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def header(self) -> dict[str, int]:
        """Every value of :data:`HEADER`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = {name: len(values.pop(name)) for name in BODY}
        return values | {
            "magic": MAGIC,
            "version": DESCRIPTOR_VERSION,
            **{f"n_{name}": count for name, count in parts.items()},
        }

    def encode(self, line: int) -> bytes:
        """The bytes in memory, whole lines; ValueError names a value that does not fit."""
        entries = [word for entry in self.chunks for word in entry.words]
        data = pack(HEADER, HEADER_BYTES, self.header)
        data += pack_words([*entries, *self.tokens, *self.ends])
        return data + bytes(-len(data) % line)

    @classmethod
    def decode(cls, data: bytes) -> "Descriptor":
        """Inverse of :meth:`encode`, of what :func:`check_header` accepts."""
        header = unpack(HEADER, data[:HEADER_BYTES])
        words = unpack_words(data[HEADER_BYTES : HEADER_BYTES + body_bytes(header)])
        first, last = 2 * header["n_chunks"], 2 * header["n_chunks"] + header["n_tokens"]
        pairs = zip(words[:first:2], words[1:first:2], strict=True)
        names = {field.name for field in fields(cls)} - BODY.keys()
        return cls(
            **{name: header[name] for name in names},
            chunks=tuple(ChunkEntry.from_words(*pair) for pair in pairs),
            tokens=tuple(words[first:last]),
            ends=tuple(words[last:]),
        )

    @property
    def registers(self) -> dict[str, int]:
        """Context of the first pass, by the names of the registers."""
        header = self.header
        return {name: header[name.lower()] for name in CONTEXT}


def body_bytes(header: Mapping[str, int]) -> int:
    """Bytes behind the header that count."""
    return 4 * (2 * header["n_chunks"] + header["n_tokens"] + header["n_ends"])


def check_header(config: AcceleratorConfig, address: int, data: bytes) -> tuple[ErrorCode, bool]:
    """The first rule that a header at ``address`` breaks, and whether it has a result block.

    The body is read only if there is none.
    """
    header, line = unpack(HEADER, data), line_bytes(config)
    of_this_version = (
        header["magic"] == MAGIC
        and header["version"] == DESCRIPTOR_VERSION
        and pack(HEADER, HEADER_BYTES, header) == data
        and address % line == header["result_base"] % line == 0
    )
    is_run = header["kind"] == Kind.RUN
    unfit = (
        header["kind"] not in list(Kind)
        or (is_run and not 1 <= header["n_chunks"] <= config.pass_tokens)
        or header["n_ends"] > ENDS_MAX
    )
    broken = {
        ErrorCode.DESCRIPTOR: not of_this_version or unfit,
        ErrorCode.FINGERPRINT: header["fingerprint"] != config.fingerprint,
        ErrorCode.N_TOKENS: is_run and not 1 <= header["n_tokens"] <= config.pass_tokens,
    }
    code = next((code for code, is_broken in broken.items() if is_broken), ErrorCode.NONE)
    return code, of_this_version


def check_descriptor(config: AcceleratorConfig, descriptor: Descriptor) -> ErrorCode:
    """The first rule that a descriptor breaks whose header is right; NONE if it may begin."""
    if descriptor.kind == Kind.CHECKSUM:
        fits = fetchable(config, descriptor.program_base, descriptor.program_bytes)
        return ErrorCode.NONE if fits else ErrorCode.PROGRAM
    n = len(descriptor.tokens)
    table = list(chunks(descriptor.chunks, n))
    if len(table) != len(descriptor.chunks) or table[-1].tokens.stop != n:
        return ErrorCode.DESCRIPTOR
    return check_run(config, descriptor.registers, descriptor.chunks, descriptor.n_greedy)
