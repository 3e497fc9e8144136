"""The hand-over between two processes: its figures, and a small one."""

from pathlib import Path

import pytest
from tests.host.random_model import Shape, write_model

from lutra_flows.handover import HandOver, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(max_position_embeddings=256)
    return write_model(tmp_path_factory.mktemp("models") / "long", shape)


def figures(exposed_s: float) -> HandOver:
    return HandOver(
        prompt=8000, layers=24, alone_s=1.9, first_s=2.0, exposed_s=exposed_s, alone_token_s=0.01,
        token_s=0.011, layer_s=0.02, n_bytes=1_000_000,
    )  # fmt: skip


def test_what_may_be_exposed() -> None:
    """One layer's transfer, or 5 % of the time to the first token."""
    assert figures(0.1).met
    assert not figures(0.101).met
    assert figures(0.1).share == 0.05
    text = "\n".join(figures(0.015).lines())
    assert "1,000,000 bytes" in text
    assert "hand-over after the first token: 15.0 ms, 0.750% of" in text
    assert "if nothing were hidden: 480.0 ms" in text


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["-m", str(folder), "-dev", "golden", "-p", "200", "-n", "4", "--link", "0.001,1e7"]
    assert main(asked) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("prompt of 200 tokens, 2 layers, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--link", "1"], "--link must be seconds of latency and bytes per second"),
        (["--link", "0,0"], "--link must be"),
        (["-n", "1"], "--answer must be 2 or more, not 1"),
        (["--layers", "1"], "--layers is 1 or more, of a model random:SHAPE"),
        (["-p", "300"], "the context must be at most 256, the limit of long, not 316"),
    ],
)
def test_refusals(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
