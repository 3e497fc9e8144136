"""Boards: what they have fits together, and agrees with what a driver is told of them."""

from dataclasses import replace

import pytest

from lutra_golden.core.boards import BOARDS, Board, Flow
from lutra_golden.core.configs import CONFIGS, NANO
from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_golden.timing.boards import BOARD_PROFILES

KV260, PYNQ_Z2, U50 = BOARDS["kv260"], BOARDS["pynq_z2"], BOARDS["u50"]


def test_names() -> None:
    assert [*BOARDS] == ["kv260", "kr260", "pynq_z2", "u50", "u55c", "v80"]
    for name, board in BOARDS.items():
        assert name == board.name
        assert CONFIGS[board.config.name] == board.config


def test_a_kr260_is_the_same_part() -> None:
    assert BOARDS["kr260"].part == KV260.part
    assert BOARDS["kr260"].config is KV260.config
    # but not the same board: settings of the processor differ
    assert BOARDS["kr260"].board_part not in (None, KV260.board_part)


@pytest.mark.parametrize("name", ["kv260", "u50", "u55c", "pynq_z2"])
def test_drivers_meet_the_same_board(name: str) -> None:
    board, profile = BOARDS[name], BOARD_PROFILES[name]
    assert board.part == profile.part
    if board.flow != Flow.VITIS:
        assert board.registers_base == profile.registers_base
        assert board.intc_base == profile.intc_base


@pytest.mark.parametrize("board", BOARDS.values(), ids=[*BOARDS])
def test_bursts_do_not_leave_what_memory_takes(board: Board) -> None:
    assert all(port.burst_bytes <= BOUNDARY_BYTES for port in board.config.ports)


def test_a_board_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="one for each of 4 ports of configuration kv260, not HP0"):
        replace(KV260, memory_ports=("HP0",))
    with pytest.raises(ValueError, match=r"one for each of 4 ports .* not HP0, HP1, HP2"):
        replace(KV260, memory_ports=("HP0", "HP1", "HP2"))
    for missing in ({"registers_base": None}, {"intc_base": None}, {"memory": ()}):
        with pytest.raises(ValueError, match="a Zynq must have registers_base"):
            replace(PYNQ_Z2, **missing)
    with pytest.raises(ValueError, match="must have platform, banks and bank_bytes"):
        replace(U50, platform=None)
    with pytest.raises(ValueError, match=r"must have one memory port, .* not 2"):
        replace(U50, config=NANO)
