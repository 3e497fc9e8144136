"""Rooflines: spots are what operations reach, and none is above the roof."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from lutra.commands.cli import main
from lutra.estimate.outline import open_outline
from lutra.estimate.plot import spots, write_roofline
from lutra.estimate.speed import Estimate, estimate


@pytest.fixture(scope="module")
def found() -> Estimate:
    return estimate(open_outline("random:qwen2.5-0.5b"), "kv260")


def test_spots(found: Estimate) -> None:
    """Of each phase the five products and attention, by the cycles of the estimate."""
    seen = spots(found)
    names = ["q, k, v", "attention", "output", "gate, up", "down", "head"]
    assert [(each.phase, each.name) for each in seen] == [
        (phase, name) for phase in ("prefill", "decode") for name in names
    ]
    [part] = [part for part in found.decode.parts if part.name == "gate, up"]
    [spot] = [each for each in seen if (each.phase, each.name) == ("decode", "gate, up")]
    assert spot.intensity == part.n_macs / part.n_bytes
    seconds = part.cycles / found.decode.clock_hz
    assert spot.macs_per_s == pytest.approx(24 * 2 * 4864 * 896 / seconds)


def test_the_roof(found: Estimate) -> None:
    """512 products of one bit in a cycle, a fourth of four bits; 128 bits but for refresh."""
    clock = found.decode.clock_hz
    assert found.peak_macs_per_s == 512 / 4 * clock
    assert found.bytes_per_s == pytest.approx(16 * clock * (1 - 0.35 / 7.8), rel=1e-3)
    for each in spots(found):
        if each.name not in ("attention", "head"):
            # what has come while other units were busy makes a product a little faster
            roof = min(found.peak_macs_per_s, each.intensity * found.bytes_per_s)
            assert 0.7 * roof < each.macs_per_s < 1.1 * roof


def test_pictures_are_the_same_each_time(found: Estimate, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        write_roofline(found, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    ElementTree.parse(paths[0])


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "roofline.png"
    assert main(["estimate", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "roofline.pdf"], "a plot must end in .svg or .png, not 'roofline.pdf'"),
        (["--plot", "nowhere/a.svg"], "the folder of nowhere/a.svg does not exist"),
        (["--plot", "a.svg", "--boards"], "--plot is of one board: give --config in place of"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *arguments]) == 2
    assert message in capsys.readouterr().err
