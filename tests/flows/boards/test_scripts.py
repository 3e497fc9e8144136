"""Scripts for Vivado, run to a stand-in for it: it takes them, and sees planted errors."""

from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("amaranth")

from tests.flows.boards.projects import Change, cut, project, swap

from lutra_flows.boards.block_design import block_design
from lutra_flows.boards.check import run_scripts
from lutra_flows.boards.project import script_name
from lutra_flows.boards.scripts import BITSTREAM, HANDOFF
from lutra_flows.boards.tcl import word
from lutra_flows.boards.tcl_run import find_tcl, split_list
from lutra_flows.boards.vivado_table import COMMANDS, IPS
from lutra_golden.control.ap_ctrl import XRT_REGISTERS
from lutra_golden.core.boards import BOARDS, Flow
from lutra_golden.core.packaging import REGISTER_BYTES
from lutra_golden.errors import LutraError

needs_tcl = pytest.mark.skipif(find_tcl() is None, reason="neither tclsh nor tkinter")
SCRIPTED = [name for name, board in BOARDS.items() if script_name(board)]


def _write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _run(folder: Path, name: str, files: Mapping[str, str] | None = None, **options: object):
    files = project(name) if files is None else files
    tool = find_tcl()
    assert tool is not None
    script = script_name(BOARDS[name])
    assert script is not None
    return run_scripts(_write(folder, files) / script, files, **{"tool": tool, **options})


@needs_tcl
@pytest.mark.parametrize("name", SCRIPTED)
@pytest.mark.parametrize("has_board_files", [True, False])
def test_vivado_would_take_them(name: str, has_board_files: bool, tmp_path: Path) -> None:
    board = BOARDS[name]
    stand_in = _run(tmp_path, name, has_board_files=has_board_files)
    if board.flow == Flow.VITIS:
        assert stand_in.kernel_registers.keys() == XRT_REGISTERS.keys()
        for register, entry in XRT_REGISTERS.items():
            found = stand_in.kernel_registers[register]
            assert int(found["address_offset"], 0) == entry.address
            assert int(found["size"]) == 32 * entry.count
        return
    assert (tmp_path / BITSTREAM).exists() and (tmp_path / HANDOFF).exists()
    bases = {
        segment: base for (space, segment), (base, _) in stand_in.addresses.items()
        if space.endswith("/Data")
    }  # fmt: skip
    assert bases == {
        "accelerator_0/s_axi_control/reg0": board.registers_base,
        "axi_intc_0/S_AXI/Reg": board.intc_base,
    }
    ranges = {
        value for (space, _), value in stand_in.addresses.items() if not space.endswith("/Data")
    }
    expected = board.memory if has_board_files else board.memory[:1]
    assert ranges == {(memory.base, memory.n_bytes) for memory in expected}


@needs_tcl
def test_both_kinds_of_tcl_run_them(tmp_path: Path) -> None:
    pytest.importorskip("tkinter")
    calls = [
        _run(tmp_path, "pynq_z2", tool=tool).calls for tool in ("tkinter", "tclsh")
        if tool == "tkinter" or find_tcl() == "tclsh"
    ]  # fmt: skip
    assert calls[0] == calls[-1] != []


@needs_tcl
def test_the_table_has_nothing_else(tmp_path: Path) -> None:
    used, ips = set[str](), set[str]()
    for name in SCRIPTED:
        for call in _run(tmp_path / name, name).calls:
            used.add(call[0])
            if call[0] == "create_bd_cell":
                ips.add(call[4])
    assert used == COMMANDS.keys()
    assert ips & IPS.keys() == IPS.keys()


@needs_tcl
@pytest.mark.parametrize(("version", "good"), [("2022.1", False), ("2022.2", True),
                                               ("2025.2", True), ("2025.2.1", True)])  # fmt: skip
def test_versions(version: str, good: bool, tmp_path: Path) -> None:
    if good:
        _run(tmp_path, "kv260", version=version)
        return
    with pytest.raises(LutraError, match=r"Vivado 2022.1 is too old: use 2022.2 or later"):
        _run(tmp_path, "kv260", version=version)


_DESIGN, _BUILD = "block_design.tcl", "build.tcl"
_PORT = "[get_bd_pins zynq_ultra_ps_e_0/saxihp3_fpd_aclk] \\\n"
_MEMORY = (
    "connect_bd_intf_net [get_bd_intf_pins accelerator_0/m_axi_3] "
    "[get_bd_intf_pins smartconnect_memory_3/S00_AXI]\n"
)
ERRORS: dict[str, tuple[str, Change, str]] = {
    "command": (_DESIGN, swap("validate_bd_design", "check_bd_design"), 'invalid command name'),
    "option": (_DESIGN, swap("-vlnv xilinx", "-ip xilinx"), "create_bd_cell (UG994) has no option"),
    "option left out": (
        _DESIGN,
        swap("-offset 0xa0000000 ", ""),
        "assign_bd_address (UG994) needs -offset",
    ),
    "words": (_DESIGN, swap("save_bd_design", "save_bd_design x"), "takes 0 to 0 words"),
    "IP": (_DESIGN, swap(":axi_intc ", ":axi_irq "), "xilinx.com:ip:axi_irq is not in the table"),
    "own IP": (_DESIGN, swap("ip:accelerator", "ip:lutra"), "is not in the table of IP"),
    "parameter": (
        _DESIGN,
        swap("PSU__USE__IRQ0", "PSU__USE__IRQ"),
        "xilinx.com:ip:zynq_ultra_ps_e (PG201) has no parameter CONFIG.PSU__USE__IRQ",
    ),
    "value": (
        _DESIGN,
        swap("SAXIGP2__DATA_WIDTH 128", "SAXIGP2__DATA_WIDTH 256"),
        "must match 32|64|128, not 256",
    ),
    "value of a count": (_DESIGN, swap("NUM_MI 2", "NUM_MI 17"), "must match"),
    "pin": (_DESIGN, swap("/pl_clk0]", "/pl_clk]"), "(PG201) has no pin pl_clk"),
    "pin of a port that is off": (
        _DESIGN,
        swap("PSU__USE__S_AXI_GP5 1", "PSU__USE__S_AXI_GP5 0"),
        "saxihp3_fpd_aclk is not enabled",
    ),
    "clock left out": (_DESIGN, swap(_PORT, ""), "saxihp3_fpd_aclk is not connected"),
    "two drivers": (
        _DESIGN,
        swap("/ext_reset_in]", "/peripheral_aresetn]"),
        "a net must have one output, not 2",
    ),
    "connected twice": (
        _DESIGN,
        swap("[get_bd_pins axi_intc_0/intr]",
             "[get_bd_pins axi_intc_0/intr] [get_bd_pins accelerator_0/ap_rst_n]"),
        "accelerator_0/ap_rst_n is connected already",
    ),
    "interrupt left out": (
        _DESIGN,
        cut("connect_bd_net [get_bd_pins accelerator_0/interrupt]", "intr]"),
        "axi_intc_0/intr is not connected",
    ),
    "bus left out": (_DESIGN, swap(_MEMORY, ""), "smartconnect_memory_3/S00_AXI is not connected"),
    "two masters": (
        _DESIGN,
        swap("[get_bd_intf_pins axi_intc_0/s_axi]", "[get_bd_intf_pins accelerator_0/m_axi_0]"),
        "must be a master and accelerator_0/m_axi_0 a slave",
    ),
    "port width": (
        _DESIGN,
        swap("SAXIGP5__DATA_WIDTH 128", "SAXIGP5__DATA_WIDTH 64"),
        "m_axi_2 has 128 bits, zynq_ultra_ps_e_0/S_AXI_HP3_FPD has 64",
    ),
    "overlap": (_DESIGN, swap("0xa0010000", "0xa0000000"), "overlap in zynq_ultra_ps_e_0/Data"),
    "outside the window": (_DESIGN, swap("0xa0010000", "0x40000000"), "is not within"),
    "alignment": (_DESIGN, swap("0xa0000000", "0xa0000800"), "must be a power of two of 4 KB"),
    "segment": (_DESIGN, swap("HP0_DDR_LOW]", "HP0_DDR]"), "there is no address segment"),
    "space": (_DESIGN, swap("e_0/Data]", "e_0/Code]"), "no address space"),
    "no address": (
        _DESIGN,
        cut("assign_bd_address -offset 0xa0010000", "S_AXI/Reg]"),
        "axi_intc_0/S_AXI/Reg has no address in zynq_ultra_ps_e_0/Data",
    ),
    "neither assigned nor excluded": (
        _DESIGN,
        cut("    exclude_bd_addr_seg", "m_axi_0]"),
        "SAXIGP3/HP1_LPS_OCM has no address in accelerator_0/m_axi_0",
    ),
    "rule": (
        _DESIGN,
        swap("bd_rule:zynq_ultra_ps_e", "bd_rule:processing_system7"),
        "is no rule of xilinx.com:ip:zynq_ultra_ps_e",
    ),
    "cell twice": (_DESIGN, swap("smartconnect_memory_1\n", "smartconnect_memory_0\n"),
                   "cell smartconnect_memory_0 is there already"),
    "Tcl": (_DESIGN, swap("create_bd_design lutra_system", "create_bd_design {lutra_system"),
            "missing close-brace"),
    "property": (_BUILD, swap("ip_repo_paths", "ip_repo"), "a project has no property ip_repo"),
    "file": (_BUILD, swap("constraints.xdc", "pins.xdc"), "there is no file"),
    "run": (_BUILD, swap("open_run impl_1", "open_run synth_1\nget_runs synth_1"),
            "there is no run synth_1"),
    "nothing to open": (_BUILD, cut("launch_runs", "$jobs"), "open_run before launch_runs"),
    "board files": (_BUILD, swap("*:kv260_som:*", "*:kv270_som:*"), "no board files match"),
    "design": (_BUILD, swap("lutra_system.bd", "system.bd"), "there is no file system.bd"),
    "constraint": ("constraints.xdc", swap("COMPRESS", "COMPRES"), "a design has no property"),
}  # fmt: skip


@needs_tcl
@pytest.mark.parametrize("error", ERRORS)
def test_a_planted_error_is_refused(error: str, tmp_path: Path) -> None:
    name, change, message = ERRORS[error]
    files = {**project("kv260"), name: change(project("kv260")[name])}
    with pytest.raises(LutraError) as found:
        _run(tmp_path, "kv260", files)
    assert message in str(found.value)


KERNEL_ERRORS: dict[str, tuple[Change, str]] = {
    "size": (swap("size 64 $register", "size 40 $register"), "size of a register must match"),
    "register twice": (swap("add_register IER", "add_register GIE"), "must be added once"),
    "block": (swap("get_address_blocks reg0", "get_address_blocks Reg"), "calls the address block"),
    "map": (swap("get_memory_maps s_axi_control", "get_memory_maps s_axi"), "no memory map s_axi"),
    "bus": (swap("value m_axi_0", "value memory"), "value of a parameter must match"),
    "kind": (swap("sdx_kernel_type rtl", "sdx_kernel_type hls"), "must match rtl, not hls"),
    "object": (swap("-kernel_name lutra ", ""), "package_xo (UG1393) needs -kernel_name"),
    "option": (swap("-xo_path", "-xo"), "package_xo (UG1393) has no option -xo"),
    "source": (swap("lutra.v", "top.v"), "there is no file"),
}


@needs_tcl
@pytest.mark.parametrize("error", KERNEL_ERRORS)
def test_a_planted_error_of_a_kernel_is_refused(error: str, tmp_path: Path) -> None:
    change, message = KERNEL_ERRORS[error]
    files = {**project("u50"), "package_xo.tcl": change(project("u50")["package_xo.tcl"])}
    with pytest.raises(LutraError) as found:
        _run(tmp_path, "u50", files)
    assert message in str(found.value)


def test_registers_have_the_range_of_their_bus() -> None:
    assert f"-range {REGISTER_BYTES:#x} " in block_design(BOARDS["pynq_z2"])


def test_words_and_lists() -> None:
    assert word("xck26-sfvc784-2LV-c") == "xck26-sfvc784-2LV-c"
    assert word("two words") == "{two words}"
    assert word("$x [y]") == "{$x [y]}"
    with pytest.raises(ValueError, match=r"must have no braces"):
        word("a}b")
    assert split_list("CONFIG.A 1 CONFIG.B {two words} C {}") == [
        "CONFIG.A", "1", "CONFIG.B", "two words", "C", "",
    ]  # fmt: skip
