"""Refusals of ``lutra deploy`` before it copies anything, and the wheel that it makes."""

import json
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from tests.pyproject import PYPROJECT, ROOT

from lutra.commands.cli import main
from lutra.deploy.checks import (
    check_agent_host,
    check_package_host,
    check_rights,
    check_room,
    describe,
)
from lutra.deploy.link import DeployError
from lutra.deploy.overlay import check_board, find_overlay
from lutra.deploy.wheel import PACKAGES, own_wheel
from lutra_golden.core.boards import BOARDS
from lutra_golden.install import DISTRIBUTION


def facts(**changes: Any) -> Mapping[str, Any]:
    """Facts of a KV260 on which everything is right, but for ``changes``."""
    python = {
        "path": "/usr/local/share/pynq-venv/bin/python3",
        "version": [3, 10, 12],
        "packages": {"numpy": "1.26.4", "pynq": "3.0.1", "pip": "22.0"},
        "card": None,
        "sites": [],
    }
    found = {
        "system": "Linux",
        "machine": "aarch64",
        "kernel": "5.15.0-1027-xilinx-zynqmp",
        "free_bytes": 9 * 10**9,
        "names": ["ZynqMP KV260 revB"],
        "compatible": ["xlnx,zynqmp-sk-kv260-revB", "xlnx,zynqmp"],
        "is_root": False,
        "sudo": True,
        "buffers": ["udmabuf0"],
        "far_python": [3, 10, 12],
        "python": python,
    }
    for key, value in changes.items():
        if key == "packages":
            python["packages"] |= value
        elif key in python:
            python[key] = value
        else:
            found[key] = value
    return found


@pytest.mark.parametrize(
    ("changes", "runtime", "problem"),
    [
        ({"system": "Darwin"}, "pynq", "b runs Darwin, Lutra's boards run Linux"),
        (
            {"version": [3, 8, 10]},
            "pynq",
            "pynq-venv/bin/python3 on b is Python 3.8.10, Lutra needs 3.10 or later: name another",
        ),
        (
            {"machine": "armv7l"},
            "pynq",
            "there is no NumPy that Lutra runs with: copy the agent with --agent, and run mode",
        ),
        ({"packages": {"pip": None}}, "xrt", "has no pip: run `apt install python3-pip` there, or"),
        (
            {"packages": {"pynq": None}},
            "pynq",
            "has no package pynq: install PYNQ (docs/board",
        ),
        (
            {"packages": {"pynq": "2.7.0"}},
            "pynq",
            "b has pynq 2.7.0, Lutra drives 3.0.1 and later: take a newer image",
        ),
        (
            {},
            "xrt",
            "b has no module pyxrt: install XRT 2.14 or later there, with its Python mo",
        ),
        (
            {"card": "none: no such"},
            "xrt",
            "XRT on b finds no card (no such): see `xbutil examine",
        ),
    ],
)
def test_versions_are_refused(changes: dict[str, Any], runtime: str, problem: str) -> None:
    with pytest.raises(DeployError) as error:
        check_package_host("b", facts(**changes), runtime, emulated=False)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_what_is_right_passes() -> None:
    check_package_host("b", facts(), "pynq", emulated=False)
    check_package_host("b", facts(card="xilinx_u55c_gen3x16_xdma_base_3"), "xrt", emulated=False)
    check_package_host("b", facts(packages={"pynq": None}), "pynq", emulated=True)
    check_agent_host("b", facts())
    check_room("b", facts(), 10**9)
    assert check_rights("b", facts(), "PYNQ") == ["sudo", "-n"]
    assert check_rights("b", facts(is_root=True, sudo=False), "PYNQ") == []
    assert describe(facts(), agent=False) == (
        "ZynqMP KV260 revB: Python 3.10.12, numpy 1.26.4, pynq 3.0.1, kernel "
        "5.15.0-1027-xilinx-zynqmp, 9.0 GB free"
    )
    assert "numpy" not in describe(facts(names=[]), agent=True)


def test_rights_memory_and_room_are_refused() -> None:
    with pytest.raises(DeployError, match=r"^PYNQ needs root, which the user of b is not: log in"):
        check_rights("b", facts(sudo=False), "PYNQ")
    with pytest.raises(DeployError, match=r"^b has no contiguous memory in /sys/class/u-dma-buf: "):
        check_agent_host("b", facts(buffers=[]))
    with pytest.raises(DeployError, match=r"^b has 33 MB of disk to use, 50 MB are needed: free s"):
        check_room("b", facts(free_bytes=10**8), 50 * 10**6)


@pytest.mark.parametrize(
    ("board", "names", "compatible"),
    [
        ("kv260", ["ZynqMP KV260 revB"], ["xlnx,zynqmp"]),
        ("kv260", ["ZynqMP SMK-K26 Rev1", "KV260"], []),
        ("kr260", [], ["xlnx,zynqmp-sk-kr260-revB", "xlnx,zynqmp"]),
        ("pynq_z2", ["Xilinx Pynq Z2", "Pynq-Z2"], ["xlnx,zynq-7000"]),
        ("u55c", ["xilinx_u55c_gen3x16_xdma_base_3"], []),
    ],
)
def test_a_board_is_known_by_what_it_says(
    board: str, names: list[str], compatible: list[str]
) -> None:
    assert check_board(BOARDS[board], names, compatible) is None


def test_another_board_is_refused() -> None:
    with pytest.raises(DeployError) as error:
        check_board(BOARDS["kv260"], ["ZynqMP KR260 revB"], ["xlnx,zynqmp"])
    assert str(error.value) == (
        "the machine is Kria KR260, the bitstream is for Kria KV260: give that of `lutra build "
        "--board kr260`"
    )
    with pytest.raises(
        DeployError, match=r"^the machine is xlnx,zynq-7000, the bitstream is for K"
    ):
        check_board(BOARDS["kv260"], ["a board"], ["xlnx,zynq-7000"])
    with pytest.raises(DeployError, match=r"^the machine is Alveo U50, the bitstream is for Alve"):
        check_board(BOARDS["u55c"], ["xilinx_u50_gen3x16_xdma_base_5"], [])
    # a module on a carrier that does not say which
    note = check_board(BOARDS["kv260"], ["ZynqMP SMK-K26 Rev1/B/A"], ["xlnx,zynqmp"])
    assert note == "it does not say that it is Kria KV260"


def build(folder: Path, board: str = "kv260", changes: Mapping[str, str] | None = None) -> Path:
    """A folder as ``lutra build`` leaves it."""
    deploy = folder / f"build-{board}/deploy"
    deploy.mkdir(parents=True)
    config = BOARDS[board].config
    identity = {
        "board": board,
        "configuration": config.name,
        "fingerprint": f"{config.fingerprint:016x}",
    }
    (deploy / "lutra.json").write_text(json.dumps(identity | dict(changes or {})))
    ends = (".xclbin",) if board.startswith("u") else (".bit", ".hwh", ".bit.bin")
    for end in ends:
        (deploy / f"lutra{end}").write_text(f"{board} {end}")
    return deploy.parent


def test_the_build_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeployError, match=r"^there is no build in this folder: run `lutra build "):
        find_overlay(None, None)
    # what is written where Vivado is not
    (tmp_path / "build-u50").mkdir()
    (tmp_path / "build-u50/lutra.json").write_text("{}")
    with pytest.raises(DeployError, match=r"^build-u50 has no bitstream, which Vivado makes: "):
        find_overlay(None, None)
    folder = build(tmp_path)
    for given in (None, folder, folder / "deploy"):
        overlay = find_overlay(given, None)
        assert overlay.board.name == "kv260" and overlay.config.name == "kv260"
        assert sorted(overlay.files) == ["lutra.bit", "lutra.bit.bin", "lutra.hwh", "lutra.json"]
    build(tmp_path, "u55c")
    assert sorted(find_overlay(tmp_path / "build-u55c", None).files) == [
        "lutra.json",
        "lutra.xclbin",
    ]
    with pytest.raises(DeployError, match=r"^builds in this folder: build-kv260, build-u55c: choo"):
        find_overlay(None, None)
    # another name beside the same identity
    other = folder / "deploy/my design.bit"
    (folder / "deploy/lutra.bit").rename(other)
    (folder / "deploy/lutra.hwh").rename(other.with_suffix(".hwh"))
    assert find_overlay(None, other).files["lutra.bit"] == other


def test_a_build_that_is_not_whole_or_of_another_lutra(tmp_path: Path) -> None:
    def refused(path: Path, match: str, bitstream: Path | None = None) -> None:
        with pytest.raises(DeployError, match=match):
            find_overlay(None if bitstream else path, bitstream)

    folder = build(tmp_path)
    deploy = folder / "deploy"
    refused(folder, "does not exist: give a .bit", tmp_path / "no.bit")
    (deploy / "lutra.hwh").unlink()
    refused(folder, r"lutra.bit has no lutra.hwh beside it: copy it from the build$")
    (deploy / "lutra.xclbin").touch()
    refused(folder, r"lutra.xclbin has no|is no bitstream of Kria", deploy / "lutra.xclbin")
    (deploy / "lutra.json").write_text("{}")
    refused(folder, r"lutra.json is not of `lutra build`: build again$")
    (deploy / "lutra.json").unlink()
    refused(folder, r"^there is no .*lutra.json, which says what the bitstream was built from: c")
    (deploy / "lutra.bit").unlink()
    (deploy / "lutra.xclbin").unlink()
    refused(folder, r"has no bitstream, which Vivado makes: run `lutra build --board BOARD` where")
    for changes, match in (
        (
            {"fingerprint": "0" * 16},
            r"which this Lutra does not have: build again with `lutra b",
        ),
        ({"configuration": "huge"}, r"is of configuration huge \("),
        ({"board": "x"}, "this Lutra knows no board 'x': use the one that built it"),
    ):
        folder = build(tmp_path / match[:5], changes=changes)
        refused(folder, match)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["a b"], "the board is USER@HOST as for ssh, not 'a b': give its address"),
        (["b", "--emulate", "u55c", "--agent"], "leave --build, --bitstream and --agent out"),
        (["b", "--build", "x", "--bitstream", "y"], "exclude each other: leave one out"),
        (["b", "--agent"], "--agent needs a user: give USER@b"),
        (["b", "--bitstream", "no.bit"], "the bitstream no.bit does not exist: give a .bit or"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1


def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LUTRA_SSH", "false")
    folder = build(tmp_path)
    assert main(["deploy", "b", "--build", str(folder), "-m", "tales-llama"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the model tales-llama needs configuration kv260")
    assert error.rstrip().endswith("give a model that fits it with -m")


def test_a_model_that_is_not_packed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be quantised on the board, every time."""
    model = ROOT / "host/lutra/models/data/tales"
    copied = tmp_path / "my tales"
    copied.mkdir()
    for path in model.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("LUTRA_SSH", "false")
    assert main(["deploy", "b", "--emulate", "u55c", "-m", str(copied)]) == 2
    assert "my tales is not packed: run `lutra pack" in capsys.readouterr().err


def test_the_wheel_has_the_lutra_that_runs() -> None:
    packages = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(path.partition("/")[2] for path in packages) == list(PACKAGES)
    name, data = own_wheel()
    assert (name, data) == own_wheel()
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
        text = (ROOT / "host/lutra/deploy/far.py").read_bytes()
        assert archive.read("lutra/deploy/far.py") == text
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
        record = archive.read(names[-1]).decode().splitlines()
    assert f"Version: {version(DISTRIBUTION)}+" in metadata and "Requires-Dist: numpy" in metadata
    assert len(record) == len(names) and len(set(names)) == len(names)
    assert not any(name.endswith((".so", ".pyc")) for name in names)
    assert "lutra/models/data/tales/config.json" in names
