"""``lutra verilog``: the file, and one line for what goes wrong; the text is tests/hw/core's."""

import argparse
from pathlib import Path

import pytest

pytest.importorskip("amaranth")

from lutra_flows import verilog
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.errors import LutraError


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verilog.add_command(parser)
    args = parser.parse_args(arguments)
    return args.command(args)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, AcceleratorConfig]]:
    """Tops that were generated, and their configurations."""
    import lutra_hw.core.accelerator
    import lutra_hw.core.xrt

    found = list[tuple[str, AcceleratorConfig]]()
    for module, name in (
        (lutra_hw.core.accelerator, "generate_verilog"),
        (lutra_hw.core.xrt, "generate_xrt_verilog"),
    ):

        def generate(config: AcceleratorConfig, name: str = name) -> str:
            found.append((name, config))
            return "module\n"

        monkeypatch.setattr(module, name, generate)
    return found


def test_tops(
    made: list[tuple[str, AcceleratorConfig]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "module\n"
    path = tmp_path / "kernel.v"
    assert run("--top", "xrt", "--engine", "mac", "-o", str(path)) == 0
    assert path.read_text() == "module\n" and capsys.readouterr().out == ""
    assert made[0] == ("generate_verilog", NANO)
    assert (made[1][0], made[1][1].engine) == ("generate_xrt_verilog", "mac")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(LutraError, match=r"nowhere is no folder: give --out in one that exists$"):
        run("-o", str(tmp_path / "nowhere" / "kernel.v"))
