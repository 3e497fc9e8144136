"""Boards that can be emulated: their values, and the memory behind a configuration's ports."""

import re
from dataclasses import replace
from typing import Any

import pytest

from lutra_golden.core.boards import BOARDS
from lutra_golden.core.configs import CONFIGS, NANO
from lutra_golden.core.ports import two_ports
from lutra_golden.errors import LutraError
from lutra_golden.timing.boards import BOARD_PROFILES, board_timing, find_profile

KV260 = BOARD_PROFILES["kv260"]


@pytest.mark.parametrize("name", BOARD_PROFILES)
def test_a_board_carries_a_configuration_that_fits_it(name: str) -> None:
    board = find_profile(name)
    assert board.name == name
    config = CONFIGS[board.config]
    assert board.clock_hz <= config.clock_hz
    # its own, whose beats are words of the board's ports
    assert config is BOARDS[name].config
    assert {port.width for port in config.ports} == {board.port_width}
    timing = board_timing(board, config)
    assert set(timing.rates) == {(1, 1)}


def test_an_unknown_board_is_refused() -> None:
    with pytest.raises(LutraError, match=r"^the board must be one of kv260.*, not 'kv261'$"):
        find_profile("kv261")


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"n_ports": 0}, ValueError, "n_ports must be positive, not 0"),
        ({"clock_hz": 2e8}, TypeError, "clock_hz must be an integer, not 200000000.0"),
    ],
)
def test_bad_values(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        replace(KV260, **changes)


def test_a_wide_port_takes_a_word_of_the_boards_at_a_time() -> None:
    timing = board_timing(KV260, NANO)
    assert timing.rates == ((1, 8), (1, 4))
    # 16 GB/s at 187.498 MHz
    assert timing.total_rate == (16_000_000, 187_498)
    narrow = NANO.with_(ports=two_ports(weights=128, data=64))
    timing = board_timing(KV260, narrow)
    assert timing.rates == ((1, 1), (1, 1))
    # 7.8 us and 350 ns at 187.5 MHz
    assert (timing.refresh_interval, timing.refresh_cycles) == (1462, 65)


def test_ports_that_the_board_does_not_have_are_refused() -> None:
    message = "configuration nano has 2 memory ports, board kv260 1: use a configuration with fewer"
    with pytest.raises(LutraError, match=f"^{message}$"):
        board_timing(replace(KV260, n_ports=1), NANO)
