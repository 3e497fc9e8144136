"""The golden memory: bounds, and the fault on reading what was never written."""

import numpy as np
import pytest

from lutra_golden.control.memory import Memory, MemoryFault


def test_what_was_written_is_read() -> None:
    memory = Memory(64)
    memory.write(8, b"lutra")
    memory.store(13, np.array([1, 2, 3], np.uint8))
    assert memory.read(8, 8).tobytes() == b"lutra\1\2\3"
    assert len(memory) == 64


def test_empty_accesses_are_allowed() -> None:
    memory = Memory(4)
    memory.write(4, b"")
    assert memory.read(2, 0).size == 0


@pytest.mark.parametrize(("address", "first"), [(0, 0), (7, 7), (10, 12)])
def test_reading_an_unwritten_byte_is_a_fault_that_names_it(address: int, first: int) -> None:
    memory = Memory(32)
    memory.write(8, b"abcd")
    with pytest.raises(MemoryFault, match=f"^read of byte {first:#x}, which was never written$"):
        memory.read(address, 4)


@pytest.mark.parametrize(("address", "n_bytes"), [(-1, 1), (16, 1), (12, 5), (0, 17)])
def test_outside_is_a_fault(address: int, n_bytes: int) -> None:
    memory = Memory(16)
    message = rf"^access of {n_bytes} bytes at -?0x[0-9a-f]+ is outside the memory of 0x10 bytes$"
    with pytest.raises(MemoryFault, match=message):
        memory.read(address, n_bytes)
    with pytest.raises(MemoryFault, match=message):
        memory.write(address, bytes(n_bytes))
    with pytest.raises(MemoryFault, match=message):
        memory.store(address, np.zeros(n_bytes, np.uint8))


def test_only_the_host_makes_a_new_version_of_a_page() -> None:
    memory = Memory(3 * 4096)
    memory.store(0, np.zeros(4, np.uint8))
    assert memory.version(0, len(memory)) == 0
    memory.write(4095, b"a")
    first = memory.version(0, 4096)
    assert first > memory.version(4096, 8192) == 0
    memory.write(4095, b"ab")
    assert memory.version(0, 1) == memory.version(4096, 4096) > first
    assert memory.version(8192, 4096) == memory.version(8192, 0) == 0


def test_says_what_is_known_and_what_is_stored() -> None:
    memory, seen = Memory(16), list[tuple[int, bytes]]()
    memory.on_store = lambda address, data: seen.append((address, data.tobytes()))
    memory.write(2, b"ab")
    memory.store(4, np.frombuffer(b"c", np.uint8))
    data, known = memory.known(1, 5)
    assert data.tobytes() == b"\0abc\0"
    assert known.tolist() == [False, True, True, True, False]
    assert seen == [(4, b"c")]
