"""Result blocks: layout and encoding."""

import pytest

from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import COUNTERS, STATUS_DONE, STATUS_ERROR, ErrorCode
from lutra_golden.control.result import RESULT, RESULT_BYTES, Result, result_bytes
from lutra_golden.core.configs import NANO

FULL = Result(
    fingerprint=NANO.fingerprint,
    tag=9,
    status=STATUS_DONE | STATUS_ERROR,
    failure=Failure(code=ErrorCode.BUS, purpose=3, response=2, instruction=77, address=1 << 33),
    unit_state=0x12345,
    n_made=2,
    checksum=1 << 63,
    counters={name: i << 32 | 5 for i, name in enumerate(COUNTERS)},
    argmax=[3, 4, 5],
    scale=[0xFFF0_8000, 0x8000, 0xFFFF],
)


def test_a_result_is_read_as_it_was_written() -> None:
    for result in (FULL, Result(fingerprint=0)):
        data = result.encode()
        assert len(data) == RESULT_BYTES + 8 * len(result.argmax)
        assert Result.decode(data) == result


def test_the_layout() -> None:
    used = [word.first + i for word in RESULT.values() for i in range(word.count)]
    assert len(used) == len(set(used))
    assert max(used) < RESULT_BYTES // 4
    data = FULL.encode()
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    assert data[:4] == b"LTRA"
    assert words[4:8] == [6, 9, FULL.failure.word, 0x12345]
    assert words[26:28] == [5, 1]
    assert words[64:] == [3, 0xFFF0_8000, 4, 0x8000, 5, 0xFFFF]


def test_room_is_whole_lines() -> None:
    assert [result_bytes(256, n) for n in (0, 1, 32, 33)] == [256, 512, 512, 768]


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=f"^n_made must fit 32 bits, not {1 << 32}$"):
        Result(fingerprint=0, n_made=1 << 32).encode()
