"""Gains of drafts: what is counted, on a small model, and the prompts that are kept here."""

from pathlib import Path

import pytest
from tests.host.random_model import SHAPES, write_model

from lutra_flows.speculation import PROMPTS, Answered, main, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "least", SHAPES["least"])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "edit_one.txt").write_text("the king")
    (tmp_path / "summary_two.txt").write_text("a king the")
    return tmp_path


def test_the_prompts() -> None:
    """Twenty, of two kinds, each long enough for an answer of some length."""
    names = sorted(path.stem for path in PROMPTS.glob("*.txt"))
    assert len(names) == 20
    assert {name.partition("_")[0] for name in names} == {"edit", "summary"}
    assert all(len(path.read_text(encoding="utf-8")) > 600 for path in PROMPTS.glob("*.txt"))


def test_gains() -> None:
    one = Answered(
        name="edit_a", tokens=101, plain_s=4.0, drafted_s=2.0, drafted=90, accepted=60,
        plain_cycles=300, drafted_cycles=200,
    )  # fmt: skip
    other = Answered(name="summary_b", tokens=11, plain_s=1.0, drafted_s=1.0, drafted=0, accepted=0)
    assert (one.gain, one.gain_in_cycles, one.tokens_per_pass) == (2.0, 1.5, 2.5)
    assert other.gain_in_cycles is None
    lines = table([one, other]).splitlines()
    assert lines[2] == "| edit_a | 101 | 25.0 | 50.0 | 2.00 | 2.50 | 60 of 90 |"
    assert lines[-1] == "all: 2 prompts, 56 tokens on average, gain 1.50 on average, 1.00 at least"
    assert table([one]).splitlines()[2].endswith("| 60 of 90 | 1.50 |")


@pytest.mark.parametrize("options", [[], ["--temp", "1.5"], ["--draft", ""]])
def test_the_command(
    options: list[str], folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(folder) if not each else each for each in options]
    asked = ["-m", str(folder), "-dev", "golden", "-n", "12", "--prompts", str(prompts)]
    assert main([*asked, *options]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:4]] == ["| edit_one", "| summary_two"]
    assert rows[-1].startswith("all: 2 prompts, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "1"], "--answer must be 2 or more, not 1"),
        (
            ["--only", "poem"],
            "{prompts} has no such prompts: give --prompts a folder of .txt files",
        ),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    folder: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["-m", str(folder), "--prompts", str(prompts), *options]) == 2
    expected = f"error: {message.format(prompts=prompts)}"
    assert capsys.readouterr().err.splitlines()[-1] == expected
