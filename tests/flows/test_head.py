"""Rows that two stages read whole: counted on a small model, and refused where there are none."""

from pathlib import Path

import numpy as np
import pytest
from tests.host.random_model import SHAPES, write_model

from lutra import LLM
from lutra.devices.base import Step
from lutra_flows.head import main, streams, table
from lutra_golden.model.decoder import Decoder
from lutra_golden.model.two_stage import Best

TEXT = "the king had a daughter and the daughter had a king "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "grouped", SHAPES["grouped"])


@pytest.mark.parametrize("name", ["least", "grouped"])
def test_streams_are_those_of_the_logits(name: str, tmp_path: Path) -> None:
    """Of a model of one layer, too."""
    folder = write_model(tmp_path / "model", SHAPES[name])
    with LLM(folder, "golden") as llm:
        tokens = llm.encode(TEXT)[:9]
        decoder = Decoder(llm.packed)
        [expected] = llm.device.run([Step(session=llm.device.session(), tokens=tokens)])
        logits, _ = decoder.head(streams(llm, decoder, tokens))
        np.testing.assert_array_equal(logits, expected.logits)


def test_shares() -> None:
    none = np.zeros(1, np.int64)
    found = [Best(none, none, n, n == 200) for n in (2, 4, 6, 200)]
    assert table({3: found}, 200).splitlines()[2:] == [
        "| 3 | 4 | 26.50% | 2.50% | 70.90% | 100.00% | 1 |"
    ]


def test_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in texts:
        path.write_text(TEXT * 2)
    options = ["-m", str(folder), "-n", "20", "--window", "8", "-k", "1", "5", "-t", "1"]
    assert main([*map(str, texts), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| 1", "20"], ["| 5", "20"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "0"], "-n, --window and -k must be 1 or more"),
        (["-n", "900", "--window", "30"], "tokens, too few for its share of 900: give longer"),
        (
            ["missing.txt", "--window", "30"],
            "missing.txt: No such file or directory: give a text file",
        ),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "one.txt"
    path.write_text(TEXT)
    assert main([str(path), *options, "-m", str(folder)]) == 2
    assert message in capsys.readouterr().err
