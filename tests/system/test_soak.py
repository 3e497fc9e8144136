"""Tokens of emulated boards under random faults: none is lost, none is wrong."""

import json
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.system.soak import Soak, main
from tests.system.soak_boards import BOARDS

pytestmark = [pytest.mark.rtl, pytest.mark.usefixtures("no_coverage")]


@pytest.mark.parametrize(
    ("name", "n_tokens"),
    [
        ("u55c", 100),
        pytest.param("kv260", 100, marks=[pytest.mark.pynq, pytest.mark.slow]),
        pytest.param("agent", 60, marks=pytest.mark.slow),
        pytest.param("u55c", 2000, marks=pytest.mark.slow),
    ],
)
def test_no_token_is_lost_or_wrong(name: str, n_tokens: int, tmp_path: Path) -> None:
    rng = Random(n_tokens)
    board = BOARDS[name](tmp_path / "model", rng)
    try:
        tally = Soak(board, rng, 0.4).run(n_tokens)
    finally:
        board.remove()
    assert (tally.tokens, tally.wrong, tally.lost, tally.problems) == (n_tokens, 0, 0, [])
    assert len(tally.faults) > 5 and len(tally.errors) > 4


def test_it_prints_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-n", "3", "--rate", "0.5"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["tokens"], found["wrong"], found["lost"]) == (3, 0, 0)
    assert len(lines) == len(found["faults"])
