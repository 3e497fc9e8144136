"""Requests at once: what is counted, on a small model."""

from pathlib import Path

import pytest
from tests.host.random_model import SHAPES, write_model

from lutra import LLM
from lutra_flows.clients import Served, main, serve, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "least", SHAPES["least"])


def test_what_requests_take(folder: Path) -> None:
    with LLM(folder, "golden") as llm:
        found = serve(llm.device, 3, 5, 4)
    assert (found.clients, found.prompt, found.answer) == (3, 5, 4)
    assert len(found.first) == 3 and 0 < max(found.first) < found.seconds
    assert 0 < found.per_pass < found.seconds


def test_rates_are_of_all_requests() -> None:
    served = Served(
        clients=4, prompt=30, answer=20, seconds=2.0, first=[0.5, 1.0, 1.0, 1.5], per_pass=0.05
    )
    assert (served.total_tokens_per_s, served.answer_tokens_per_s) == (100, 80)
    assert table([served]).splitlines()[2] == "| 4 | 100 | 80 | 50.0 | 1.00, 1.50 |"


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-m", str(folder), "-dev", "golden", "-c", "1", "2", "-p", "4", "-n", "3"]
    assert main(options) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 1", "| 2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "0"], "--clients must be 1 or more, not 0"),
        (["-n", "2"], "--answer must be 3 or more, not 2"),
        (["-p", "999", "-n", "9"], "999 and 9 tokens exceed the context of 32: give fewer"),
    ],
)
def test_refusals(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", str(folder), "-dev", "golden", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
