"""Descriptors: layout, encoding, and every rule that the accelerator checks."""

from dataclasses import replace

import pytest

from lutra_golden.control.check import check_run
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import (
    BODY,
    DOORBELL_BYTES,
    ENDS_MAX,
    HEADER,
    HEADER_BYTES,
    Descriptor,
    Kind,
    body_bytes,
    check_descriptor,
    check_header,
    line_bytes,
)
from lutra_golden.control.registers import CONTEXT, REGISTERS, ErrorCode
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import ADDRESS_WIDTH, BOUNDARY_BYTES

LINE = line_bytes(NANO)
SOUND = Descriptor(
    fingerprint=NANO.fingerprint,
    result_base=0x1000,
    tag=7,
    program_base=0x40,
    program_bytes=64,
    weight_base=0x2000,
    logits_base=0x80_0000_0000,
    logits_stride=1024,
    logits_from=1,
    n_greedy=5,
    watchdog=0x1234_5678,
    chunks=(ChunkEntry(3, 2, 0x7000), ChunkEntry(9, 1, 0x9000)),
    tokens=(11, 12, 13),
    ends=(1, 2, 3),
)
SUM = Descriptor(
    fingerprint=NANO.fingerprint,
    result_base=0x1000,
    kind=Kind.CHECKSUM,
    program_base=64,
    program_bytes=128,
)


def code_of(descriptor: Descriptor, address: int = 0) -> ErrorCode:
    code, _ = check_header(NANO, address, descriptor.encode(LINE)[:HEADER_BYTES])
    return code or check_descriptor(NANO, descriptor)


def test_a_descriptor_is_read_as_it_was_written() -> None:
    for descriptor in (SOUND, SUM):
        data = descriptor.encode(LINE)
        assert len(data) % LINE == 0
        assert Descriptor.decode(data) == descriptor
        assert code_of(descriptor) is ErrorCode.NONE


def test_whole_lines_are_not_filled_up() -> None:
    for n_tokens, n_lines in ((31, 1), (32, 1), (33, 2)):
        descriptor = replace(SUM, tokens=(0,) * n_tokens)
        assert len(descriptor.encode(256)) == 256 * n_lines


def test_the_layout() -> None:
    """Words of the header do not overlap, and the body follows in order."""
    used = [word.first + i for word in HEADER.values() for i in range(word.count)]
    assert len(used) == len(set(used))
    assert max(used) < HEADER_BYTES // 4
    data = SOUND.encode(LINE)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    assert data[:4] == b"LTRD"
    assert words[1] == 2
    assert words[6:8] == [7, Kind.RUN]
    assert words[12:14] == [0, 0x80]
    assert words[20:23] == [5, 0x1234_5678, 0]
    assert words[32:42] == [3 | 2 << 16, 7, 9 | 1 << 16, 9, 11, 12, 13, 1, 2, 3]
    assert not any(words[42:])
    assert body_bytes(SOUND.header) == 4 * 10
    assert set(BODY) == {"chunks", "tokens", "ends"}


def test_a_doorbell_is_one_register() -> None:
    assert (1 << ADDRESS_WIDTH) // DOORBELL_BYTES == 1 << 32
    assert LINE == DOORBELL_BYTES
    assert BOUNDARY_BYTES % LINE == 0


def test_it_has_all_that_shapes_a_run() -> None:
    assert set(SOUND.registers) == set(CONTEXT)
    for name in CONTEXT:
        assert HEADER[name.lower()].width == REGISTERS[name].width
    assert check_run(NANO, SOUND.registers, SOUND.chunks) is ErrorCode.NONE


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^program_bytes must fit 32 bits, not 4294967296$"):
        replace(SOUND, program_bytes=1 << 32).encode(LINE)
    with pytest.raises(ValueError, match=r"^a word must fit 32 bits, not -1$"):
        replace(SOUND, tokens=(-1,)).encode(LINE)


@pytest.mark.parametrize("bit", [0, 40, 170, 8 * 88, 8 * HEADER_BYTES - 1])
def test_what_is_no_descriptor_of_this_version_has_no_result(bit: int) -> None:
    """Magic, version, bits that mean nothing."""
    data = bytearray(SOUND.encode(LINE)[:HEADER_BYTES])
    data[bit // 8] ^= 1 << bit % 8
    assert check_header(NANO, 0, bytes(data)) == (ErrorCode.DESCRIPTOR, False)


def test_addresses_of_lines() -> None:
    data = SOUND.encode(LINE)[:HEADER_BYTES]
    assert check_header(NANO, LINE // 2, data) == (ErrorCode.DESCRIPTOR, False)
    odd = replace(SOUND, result_base=LINE // 2).encode(LINE)[:HEADER_BYTES]
    assert check_header(NANO, 0, odd) == (ErrorCode.DESCRIPTOR, False)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": 2}, ErrorCode.DESCRIPTOR),
        ({"chunks": ()}, ErrorCode.DESCRIPTOR),
        ({"chunks": (ChunkEntry(0, 1), ChunkEntry(0, 1))}, ErrorCode.DESCRIPTOR),
        ({"chunks": (ChunkEntry(0, 2), ChunkEntry(0, 2))}, ErrorCode.NONE),
        ({"chunks": (ChunkEntry(0, 0), ChunkEntry(0, 2))}, ErrorCode.DESCRIPTOR),
        ({"chunks": (ChunkEntry(0, 2),)}, ErrorCode.DESCRIPTOR),
        ({"chunks": (ChunkEntry(0, 0),)}, ErrorCode.NONE),
        ({"chunks": (ChunkEntry(0, 1),) * 9}, ErrorCode.DESCRIPTOR),
        ({"ends": (1,) * ENDS_MAX}, ErrorCode.NONE),
        ({"ends": (1,) * (ENDS_MAX + 1)}, ErrorCode.DESCRIPTOR),
        ({"fingerprint": 1}, ErrorCode.FINGERPRINT),
        ({"tokens": ()}, ErrorCode.N_TOKENS),
        ({"tokens": (1,) * 9}, ErrorCode.N_TOKENS),
        ({"logits_from": 2}, ErrorCode.LOGITS_FROM),
        ({"logits_from": 3, "n_greedy": 0}, ErrorCode.NONE),
        ({"logits_from": 4, "n_greedy": 0}, ErrorCode.LOGITS_FROM),
        ({"chunks": (ChunkEntry(0, 2), ChunkEntry(251, 1))}, ErrorCode.NONE),
        ({"chunks": (ChunkEntry(0, 2), ChunkEntry(252, 1))}, ErrorCode.CHUNK),
        ({"chunks": (ChunkEntry(253, 3),), "n_greedy": 1}, ErrorCode.NONE),
        ({"chunks": (ChunkEntry(253, 3),), "n_greedy": 0}, ErrorCode.NONE),
        ({"program_bytes": 32}, ErrorCode.PROGRAM),
        ({"weight_base": 64}, ErrorCode.WEIGHT_BASE),
        ({"logits_stride": 32}, ErrorCode.LOGITS),
    ],
)
def test_rules_of_a_run(changes: dict[str, int], code: ErrorCode) -> None:
    assert code_of(replace(SOUND, **changes)) is code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"program_base": 32}, ErrorCode.PROGRAM),
        ({"program_bytes": 8}, ErrorCode.PROGRAM),
        ({"program_bytes": 0}, ErrorCode.PROGRAM),
        ({"program_bytes": 64 * ((1 << 24) - 1)}, ErrorCode.NONE),
        ({"program_bytes": 1 << 30}, ErrorCode.PROGRAM),
        ({"weight_base": 1, "logits_base": 1, "logits_from": 9}, ErrorCode.NONE),
        ({"fingerprint": 1}, ErrorCode.FINGERPRINT),
    ],
)
def test_rules_of_a_checksum(changes: dict[str, int], code: ErrorCode) -> None:
    assert code_of(replace(SUM, **changes)) is code
