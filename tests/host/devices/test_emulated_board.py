"""The emulated board: what stays on it, its memory, and when interrupts and resets come."""

from collections.abc import Iterator
from typing import Any

import pytest

from lutra.devices.emulated.board import BoardFault, EmulatedBoard
from lutra_golden.control.registers import REGISTERS
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.timing.boards import find_profile

BOARD = find_profile("kv260")
CONTROL, STATUS = REGISTERS["CONTROL"].address, REGISTERS["STATUS"].address
LEAST_CYCLES = 20  # that an access of a register takes


class Fabric:
    """Memory and registers in the place of a simulator; CONTROL raises the interrupt at once."""

    def __init__(self, config: AcceleratorConfig, *_: Any, **__: Any) -> None:
        self.config = config
        self.n_cycles = self.n_resets = 0
        self.is_up = self.is_closed = False
        self.registers: dict[tuple[str, int], int] = {}
        self._memory: dict[int, bytes] = {}

    def reset(self) -> None:
        self.registers = {("IRQ_ENABLE", 0): 1}
        self.is_up = False
        self.n_resets += 1

    def run(self, n_cycles: int) -> bool:
        self.n_cycles += n_cycles
        return self.is_up

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        self.registers[name, index] = value
        self.is_up = name == "CONTROL"

    def read_register(self, name: str, index: int = 0) -> int:
        return self.registers.get((name, index), 0)

    def write(self, address: int, data: bytes) -> None:
        self._memory[address] = data

    def peek(self, address: int, n_bytes: int) -> bytes:
        return self._memory.get(address, bytes(n_bytes))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedBoard]:
    monkeypatch.setattr("lutra_sim.rtl.device.Simulator", Fabric)
    board = EmulatedBoard(BOARD)
    board.program(NANO)
    yield board
    board.close()


def fabric(board: EmulatedBoard) -> Fabric:
    assert isinstance(board.simulator, Fabric)
    return board.simulator


def test_memory_stays_when_the_fabric_changes(board: EmulatedBoard) -> None:
    address, _ = board.allocate(4)
    before = fabric(board)
    before.write(address, b"kept")
    board.program(NANO)
    assert fabric(board) is before and not before.is_closed
    board.program(NANO.with_(max_context=64))
    assert fabric(board) is not before and before.is_closed
    assert fabric(board).peek(address, 4) == b"kept"


def test_a_reset_leaves_interrupts_to_the_driver(board: EmulatedBoard) -> None:
    assert fabric(board).read_register("IRQ_ENABLE") == 0
    board.write(CONTROL, 1)
    board.reset()
    assert fabric(board).read_register("IRQ_ENABLE") == 0
    assert not board.level


def test_the_clock_runs_while_registers_are_accessed(board: EmulatedBoard) -> None:
    assert board.read(STATUS) == 0
    assert fabric(board).n_cycles >= LEAST_CYCLES
    before = fabric(board).n_cycles
    board.write(CONTROL, 1)
    assert board.level and fabric(board).n_cycles >= before + LEAST_CYCLES
    with pytest.raises(BoardFault, match=r"^there is no register at 0xffc: the bus answers SLVERR"):
        board.read(0xFFC)


def test_a_reset_comes_after_as_many_cycles(board: EmulatedBoard) -> None:
    found, board.faults.reset_after = fabric(board), 100
    before = found.n_resets
    board.advance(70)
    assert (found.n_resets, board.faults.reset_after) == (before, 30)
    board.advance(30)
    assert (found.n_resets, board.faults.reset_after) == (before + 1, None)


def test_buffers_are_given_back(board: EmulatedBoard) -> None:
    whole = BOARD.buffer_bytes
    address, n_bytes = board.allocate(whole)
    assert (address, n_bytes, board.n_buffers) == (BOARD.buffer_base, whole, 1)
    with pytest.raises(BoardFault, match=r"^BO allocation failed: the accelerator's memory has"):
        board.allocate(1)
    for _ in range(2):
        board.free(address)
        assert board.n_buffers == 0
    board.faults.hole_bytes = whole - 1
    with pytest.raises(BoardFault, match=r"^BO allocation failed: no \d+ bytes in a row$"):
        board.allocate(whole)
    board.faults.hole_bytes, board.faults.short_buffers = None, True
    assert board.allocate(whole) == (address, whole // 2)


def test_nothing_is_on_a_board_at_first() -> None:
    with pytest.raises(BoardFault, match=r"^nothing is on the fabric: load a bitstream first$"):
        EmulatedBoard(BOARD).read(STATUS)
