"""Tcl that Vivado runs in batch mode: the build of a bitstream, and the packaging of a kernel."""

from __future__ import annotations

from lutra_flows.boards.block_design import DESIGN
from lutra_flows.boards.kernel import ARGUMENT
from lutra_flows.boards.pins import CLOCK, RESET, TopPins
from lutra_flows.boards.tcl import word
from lutra_golden.control.ap_ctrl import XRT_REGISTERS
from lutra_golden.core.boards import Board
from lutra_golden.core.packaging import IP_NAME, IP_VERSION

__all__ = [
    "BITSTREAM",
    "FIRMWARE",
    "HANDOFF",
    "OBJECT",
    "OLDEST",
    "REPORTS",
    "bitstream_script",
    "board_constraints",
    "clock_constraints",
    "kernel_script",
]

OLDEST = "2022.2"
"""Oldest Vivado that the scripts are for."""
BITSTREAM, HANDOFF, OBJECT = "lutra.bit", "lutra.hwh", "lutra.xo"
FIRMWARE = "lutra.bit.bin"
"""The bitstream as Linux loads it without PYNQ."""
REPORTS = {"timing": "timing.rpt", "utilization": "utilization.rpt", "power": "power.rpt"}
"""Reports of a build, in its folder ``reports``."""
_PROJECT = "lutra"


def _preamble() -> list[str]:
    return [
        f"if {{[package vcompare [version -short] {OLDEST}] < 0}} {{",
        f'    error "Vivado [version -short] is too old: use {OLDEST} or later"',
        "}",
        "set here [file dirname [file normalize [info script]]]",
    ]


def clock_constraints(board: Board) -> str:
    """Constraints of the packaged IP alone, when it is synthesised out of context."""
    period = 1e9 / board.config.clock_hz
    return f"create_clock -name {CLOCK} -period {period:.3f} [get_ports {CLOCK}]\n"


def board_constraints() -> str:
    """Constraints of the whole design; its clock and pins are those of the processing system."""
    return "set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]\n"


def bitstream_script(board: Board, part: str) -> str:
    """Tcl from an empty folder to the bitstream, its handoff file, and the reports."""
    lines = [
        f"# Written by `lutra build`: bitstream for {board.title}. Run: vivado -mode batch -source",
        *_preamble(),
        f"create_project -force {_PROJECT} [file join $here vivado] -part {word(part)}",
    ]
    if board.board_part is not None:
        lines += [
            f"set boards [lsort -dictionary [get_board_parts -quiet {word(board.board_part)}]]",
            "if {[llength $boards]} {",
            "    set_property board_part [lindex $boards end] [current_project]",
            "} else {",
            (
                f'    puts "lutra: no board files of {board.title}: its memory and pins stay as '
                'it booted with them"'
            ),
            "}",
        ]
    lines += [
        "set_property ip_repo_paths [list [file join $here ip]] [current_project]",
        "update_ip_catalog",
        "source [file join $here block_design.tcl]",
        f"add_files -norecurse [make_wrapper -files [get_files {DESIGN}.bd] -top]",
        "add_files -fileset constrs_1 -norecurse [file join $here constraints.xdc]",
        f"set_property top {DESIGN}_wrapper [current_fileset]",
        "update_compile_order -fileset sources_1",
        "set jobs 4",
        "if {[info exists ::env(LUTRA_JOBS)]} { set jobs $::env(LUTRA_JOBS) }",
        "launch_runs impl_1 -to_step write_bitstream -jobs $jobs",
        "wait_on_runs impl_1",
        'if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {',
        '    error "the build stopped: [get_property STATUS [get_runs impl_1]]"',
        "}",
        "open_run impl_1",
        "set reports [file join $here reports]",
        "file mkdir $reports",
        f"report_timing_summary -file [file join $reports {REPORTS['timing']}]",
        f"report_utilization -file [file join $reports {REPORTS['utilization']}]",
        f"report_power -file [file join $reports {REPORTS['power']}]",
        "set directory [get_property DIRECTORY [current_project]]",
        (
            f"file copy -force [file join $directory {_PROJECT}.runs impl_1 {DESIGN}_wrapper.bit] "
            f"[file join $here {BITSTREAM}]"
        ),
        (
            f"file copy -force [file join $directory {_PROJECT}.gen sources_1 bd {DESIGN} "
            f"hw_handoff {DESIGN}.hwh] [file join $here {HANDOFF}]"
        ),
        "close_project",
        "",
    ]
    return "\n".join(lines)


def kernel_script(board: Board, part: str, top: TopPins) -> str:
    """Tcl that packages the kernel: IP, its register map, and the object for ``v++``."""
    vendor, library, name = IP_NAME.split(":")
    core = "[ipx::current_core]"
    control = top.control.name
    (memory,) = top.masters
    lines = [
        f"# Written by `lutra build`: kernel for {board.title}. Run: vivado -mode batch -source",
        *_preamble(),
        f"create_project -force {_PROJECT} [file join $here vivado] -part {word(part)}",
        f"add_files -norecurse [file join $here {top.name}.v]",
        f"set_property top {top.name} [current_fileset]",
        "update_compile_order -fileset sources_1",
        (
            f"ipx::package_project -root_dir [file join $here ip] -vendor {vendor} "
            f"-library {library} -taxonomy /KernelIP -import_files -set_current true"
        ),
        f"set_property name {name} {core}",
        f"set_property version {IP_VERSION} {core}",
    ]
    lines += [
        f"ipx::infer_bus_interface {pin} xilinx.com:signal:{kind}_rtl:1.0 {core}"
        for pin, kind in ((CLOCK, "clock"), (RESET, "reset"))
    ]
    lines += [
        f"ipx::associate_bus_interfaces -busif {bus.name} -clock {CLOCK} {core}"
        for bus in top.buses
    ]
    lines.append(f"ipx::associate_bus_interfaces -clock {CLOCK} -reset {RESET} {core}")
    lines.append(
        f"set block [ipx::get_address_blocks reg0 -of_objects "
        f"[ipx::get_memory_maps {control} -of_objects {core}]]"
    )
    for register, entry in XRT_REGISTERS.items():
        lines += [
            f"set register [ipx::add_register {register} $block]",
            f"set_property description {word(_plain(entry.doc))} $register",
            f"set_property address_offset {entry.address:#x} $register",
            f"set_property size {32 * entry.count} $register",
        ]
    lines += [
        "ipx::add_register_parameter ASSOCIATED_BUSIF $register",
        (
            f"set_property value {memory.name} "
            "[ipx::get_register_parameters ASSOCIATED_BUSIF -of_objects $register]"
        ),
        f"set_property sdx_kernel true {core}",
        f"set_property sdx_kernel_type rtl {core}",
        f"ipx::update_source_project_archive -component {core}",
        f"ipx::create_xgui_files {core}",
        f"ipx::update_checksums {core}",
        f"ipx::check_integrity -kernel {core}",
        f"ipx::save_core {core}",
        (
            f"package_xo -force -xo_path [file join $here {OBJECT}] -kernel_name {top.name} "
            "-ip_directory [file join $here ip] -kernel_xml [file join $here kernel.xml]"
        ),
        "close_project",
        "",
    ]
    assert [*XRT_REGISTERS][-1].lower() == ARGUMENT
    return "\n".join(lines)


def _plain(doc: str) -> str:
    return doc.replace("`", "")
