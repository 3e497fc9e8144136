"""Commands, IP and parameters of Vivado that the scripts use, each with its document.

UG835: Tcl commands. UG994: block designs. UG1118: packaging of IP. UG1393: kernels of Vitis.
PG201: Zynq UltraScale+ processing system. PG082: Zynq-7000 processing system. PG247: SmartConnect.
PG164: processor system reset. PG099: interrupt controller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["COMMANDS", "IPS", "PROPERTIES", "Command", "Ip", "SpaceRule"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its flags, its options with a value, and how many other words it takes.

    ``needs`` are options that it cannot do without.
    """

    source: str
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    words: tuple[int, int] = (0, 0)
    needs: tuple[str, ...] = ()


COMMANDS: Mapping[str, Command] = {
    "version": Command(source="UG835", flags=("-short",)),
    "create_project": Command(
        source="UG835", flags=("-force", "-in_memory"), options=("-part",), words=(1, 2),
        needs=("-part",),
    ),
    "close_project": Command(source="UG835"),
    "current_project": Command(source="UG835"),
    "current_fileset": Command(source="UG835"),
    "get_board_parts": Command(source="UG835", flags=("-quiet",), words=(0, 1)),
    "get_property": Command(source="UG835", words=(2, 2)),
    "set_property": Command(source="UG835", options=("-dict",), words=(1, 3)),
    "update_ip_catalog": Command(source="UG835"),
    "get_files": Command(source="UG835", words=(1, 1)),
    "add_files": Command(
        source="UG835", flags=("-norecurse",), options=("-fileset",), words=(1, 1)
    ),
    "update_compile_order": Command(source="UG835", options=("-fileset",)),
    "make_wrapper": Command(source="UG835", flags=("-top",), options=("-files",),
                            needs=("-files", "-top")),
    "launch_runs": Command(source="UG835", options=("-to_step", "-jobs"), words=(1, 1)),
    "wait_on_runs": Command(source="UG835", words=(1, 1)),
    "get_runs": Command(source="UG835", words=(1, 1)),
    "open_run": Command(source="UG835", words=(1, 1)),
    "report_timing_summary": Command(source="UG835", options=("-file",), needs=("-file",)),
    "report_utilization": Command(source="UG835", options=("-file",), needs=("-file",)),
    "report_power": Command(source="UG835", options=("-file",), needs=("-file",)),
    "create_bd_design": Command(source="UG994", words=(1, 1)),
    "create_bd_cell": Command(
        source="UG994", options=("-type", "-vlnv"), words=(1, 1), needs=("-type", "-vlnv")
    ),
    "get_bd_cells": Command(source="UG994", flags=("-quiet",), words=(1, 1)),
    "get_bd_pins": Command(source="UG994", words=(1, 1)),
    "get_bd_intf_pins": Command(source="UG994", words=(1, 1)),
    "get_bd_addr_spaces": Command(source="UG994", words=(1, 1)),
    "get_bd_addr_segs": Command(source="UG994", flags=("-quiet",), words=(1, 1)),
    "apply_bd_automation": Command(
        source="UG994", options=("-rule", "-config"), words=(1, 1), needs=("-rule", "-config")
    ),
    "connect_bd_net": Command(source="UG994", words=(2, 64)),
    "connect_bd_intf_net": Command(source="UG994", words=(2, 2)),
    "assign_bd_address": Command(
        source="UG994", options=("-offset", "-range", "-target_address_space"), words=(1, 1),
        needs=("-offset", "-range", "-target_address_space"),
    ),
    "exclude_bd_addr_seg": Command(
        source="UG994", options=("-target_address_space",), words=(1, 1),
        needs=("-target_address_space",),
    ),
    "validate_bd_design": Command(source="UG994"),
    "save_bd_design": Command(source="UG994"),
    "create_clock": Command(
        source="UG835", options=("-name", "-period"), words=(1, 1), needs=("-period",)
    ),
    "get_ports": Command(source="UG835", words=(1, 1)),
    "current_design": Command(source="UG835"),
    "ipx::package_project": Command(
        source="UG1118", flags=("-import_files", "-force"),
        options=("-root_dir", "-vendor", "-library", "-taxonomy", "-set_current"),
        needs=("-root_dir", "-vendor", "-library", "-taxonomy"),
    ),
    "ipx::current_core": Command(source="UG1118"),
    "ipx::infer_bus_interface": Command(source="UG1118", words=(3, 3)),
    "ipx::associate_bus_interfaces": Command(
        source="UG1118", options=("-busif", "-clock", "-reset"), words=(1, 1), needs=("-clock",)
    ),
    "ipx::get_memory_maps": Command(
        source="UG1118", options=("-of_objects",), words=(1, 1), needs=("-of_objects",)
    ),
    "ipx::get_address_blocks": Command(
        source="UG1118", options=("-of_objects",), words=(1, 1), needs=("-of_objects",)
    ),
    "ipx::add_register": Command(source="UG1118", words=(2, 2)),
    "ipx::add_register_parameter": Command(source="UG1393", words=(2, 2)),
    "ipx::get_register_parameters": Command(
        source="UG1393", options=("-of_objects",), words=(1, 1), needs=("-of_objects",)
    ),
    "ipx::update_source_project_archive": Command(
        source="UG1393", options=("-component",), needs=("-component",)
    ),
    "ipx::create_xgui_files": Command(source="UG1118", words=(1, 1)),
    "ipx::update_checksums": Command(source="UG1118", words=(1, 1)),
    "ipx::check_integrity": Command(source="UG1118", flags=("-kernel", "-quiet"), words=(1, 1)),
    "ipx::save_core": Command(source="UG1118", words=(1, 1)),
    "package_xo": Command(
        source="UG1393", flags=("-force",),
        options=("-xo_path", "-kernel_name", "-ip_directory", "-kernel_xml", "-ctrl_protocol"),
        needs=("-xo_path", "-kernel_name", "-ip_directory", "-kernel_xml"),
    ),
}  # fmt: skip
"""Commands of Vivado by name; those of Tcl itself are Tcl's."""

PROPERTIES: Mapping[str, Mapping[str, str]] = {
    "project": {
        "board_part": r".+:part0:[\d.]+",
        "ip_repo_paths": r".+",
        "DIRECTORY": r".+",
    },
    "fileset": {"top": r"\w+"},
    "run": {"PROGRESS": r"\d+%", "STATUS": r".+"},
    "design": {"BITSTREAM.GENERAL.COMPRESS": r"TRUE|FALSE"},
    "core": {
        "name": r"\w+",
        "version": r"\d+\.\d+",
        "sdx_kernel": r"true",
        "sdx_kernel_type": r"rtl",
    },
    "register": {"address_offset": r"0x[0-9a-f]+", "size": r"32|64", "description": r".+"},
    "parameter": {"value": r"m_axi_\d+"},
}
"""Properties by the kind of object (UG835; UG908 for BITSTREAM; UG1118 and UG1393 for IP)."""

_BOOL = "[01]"


@dataclass(frozen=True, kw_only=True)
class SpaceRule:
    """Segments that a memory port of a processing system reaches: (base, bytes) by name."""

    segments: Mapping[str, tuple[int, int]]
    board_only: tuple[str, ...] = ()
    """Segments that are there only with the settings of the board."""


@dataclass(frozen=True, kw_only=True)
class Ip:
    """An IP of Vivado's catalog.

    ``parameters`` are patterns of values. ``inputs`` and ``outputs`` are pins; ``masters`` and
    ``slaves`` interfaces with the clock pin of each, or "" for one of its own. Pins and interfaces
    named in ``enabled_by`` exist only while that parameter has the value; a pattern of names.
    """

    source: str
    parameters: Mapping[str, str]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    masters: tuple[str, ...] = ()
    slaves: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Inputs that may stay open."""
    enabled_by: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    segments: Mapping[str, tuple[str, SpaceRule]] = field(default_factory=dict)
    """Of a slave interface of a processing system: prefix of its segments, and what they are."""
    registers: str = ""
    """Segment of the IP's own registers."""
    space: str = ""
    """Address space of a processor."""
    window: tuple[int, int] = (0, 0)
    """First address and bytes that a processor reaches through its master (UG1085, UG585)."""

    def is_enabled(self, name: str, parameters: Mapping[str, str]) -> bool:
        """True if the pin or interface ``name`` is there with these values."""
        for pattern, (parameter, value) in self.enabled_by.items():
            if re.fullmatch(pattern, name):
                return re.fullmatch(value, parameters.get(parameter, "0")) is not None
        return True


_MPSOC_MEMORY = SpaceRule(
    segments={
        "DDR_LOW": (0, 0x8000_0000),
        "DDR_HIGH": (0x8_0000_0000, 0x8_0000_0000),
        "LPS_OCM": (0xFF00_0000, 0x100_0000),
        "QSPI": (0xC000_0000, 0x2000_0000),
    },
    board_only=("DDR_HIGH",),
)
_ZYNQ_MEMORY = SpaceRule(segments={"DDR_LOWOCM": (0, 0x4000_0000)})

IPS: Mapping[str, Ip] = {
    "xilinx.com:ip:zynq_ultra_ps_e": Ip(
        source="PG201",
        parameters={
            "PSU__FPGA_PL0_ENABLE": _BOOL,
            "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": r"\d+(\.\d+)?",
            "PSU__USE__IRQ0": _BOOL,
            **{f"PSU__USE__M_AXI_GP{i}": _BOOL for i in range(3)},
            **{f"PSU__MAXIGP{i}__DATA_WIDTH": "32|64|128" for i in range(3)},
            **{f"PSU__USE__S_AXI_GP{i}": _BOOL for i in range(7)},
            **{f"PSU__SAXIGP{i}__DATA_WIDTH": "32|64|128" for i in range(7)},
        },
        inputs=(
            "maxihpm0_fpd_aclk", "maxihpm1_fpd_aclk", "maxihpm0_lpd_aclk",
            *(f"saxihp{i}_fpd_aclk" for i in range(4)), "pl_ps_irq0",
        ),
        outputs=("pl_clk0", "pl_resetn0"),
        masters=("M_AXI_HPM0_FPD", "M_AXI_HPM1_FPD", "M_AXI_HPM0_LPD"),
        slaves=tuple(f"S_AXI_HP{i}_FPD" for i in range(4)),
        enabled_by={
            "pl_clk0": ("PSU__FPGA_PL0_ENABLE", "1"),
            "pl_ps_irq0": ("PSU__USE__IRQ0", "1"),
            "M_AXI_HPM0_FPD|maxihpm0_fpd_aclk": ("PSU__USE__M_AXI_GP0", "1"),
            "M_AXI_HPM1_FPD|maxihpm1_fpd_aclk": ("PSU__USE__M_AXI_GP1", "1"),
            "M_AXI_HPM0_LPD|maxihpm0_lpd_aclk": ("PSU__USE__M_AXI_GP2", "1"),
            **{
                f"S_AXI_HP{i}_FPD|saxihp{i}_fpd_aclk": (f"PSU__USE__S_AXI_GP{i + 2}", "1")
                for i in range(4)
            },
        },
        segments={
            f"S_AXI_HP{i}_FPD": (f"SAXIGP{i + 2}/HP{i}_", _MPSOC_MEMORY) for i in range(4)
        },
        space="Data",
        window=(0xA000_0000, 0x1000_0000),
    ),
    "xilinx.com:ip:processing_system7": Ip(
        source="PG082",
        parameters={
            "PCW_FPGA0_PERIPHERAL_FREQMHZ": r"\d+(\.\d+)?",
            "PCW_USE_FABRIC_INTERRUPT": _BOOL,
            "PCW_IRQ_F2P_INTR": _BOOL,
            "PCW_USE_M_AXI_GP0": _BOOL,
            **{f"PCW_USE_S_AXI_HP{i}": _BOOL for i in range(4)},
            **{f"PCW_S_AXI_HP{i}_DATA_WIDTH": "32|64" for i in range(4)},
        },
        inputs=("M_AXI_GP0_ACLK", *(f"S_AXI_HP{i}_ACLK" for i in range(4)), "IRQ_F2P"),
        outputs=("FCLK_CLK0", "FCLK_RESET0_N"),
        masters=("M_AXI_GP0",),
        slaves=tuple(f"S_AXI_HP{i}" for i in range(4)),
        enabled_by={
            "IRQ_F2P": ("PCW_IRQ_F2P_INTR", "1"),
            "M_AXI_GP0|M_AXI_GP0_ACLK": ("PCW_USE_M_AXI_GP0", "1"),
            **{
                f"S_AXI_HP{i}|S_AXI_HP{i}_ACLK": (f"PCW_USE_S_AXI_HP{i}", "1") for i in range(4)
            },
        },
        segments={f"S_AXI_HP{i}": (f"S_AXI_HP{i}/HP{i}_", _ZYNQ_MEMORY) for i in range(4)},
        space="Data",
        window=(0x4000_0000, 0x4000_0000),
    ),
    "xilinx.com:ip:smartconnect": Ip(
        source="PG247",
        parameters={"NUM_SI": r"[1-9]|1[0-6]", "NUM_MI": r"[1-9]|1[0-6]"},
        inputs=("aclk", "aresetn"),
        masters=("M00_AXI", "M01_AXI"),
        slaves=("S00_AXI",),
        enabled_by={"M01_AXI": ("NUM_MI", "2")},
    ),
    "xilinx.com:ip:proc_sys_reset": Ip(
        source="PG164",
        parameters={},
        inputs=("slowest_sync_clk", "ext_reset_in", "aux_reset_in", "dcm_locked"),
        optional=("aux_reset_in", "dcm_locked"),
        outputs=("peripheral_aresetn", "interconnect_aresetn"),
    ),
    "xilinx.com:ip:axi_intc": Ip(
        source="PG099",
        parameters={"C_IRQ_CONNECTION": _BOOL},
        inputs=("s_axi_aclk", "s_axi_aresetn", "intr"),
        outputs=("irq",),
        slaves=("s_axi",),
        registers="S_AXI/Reg",
    ),
}  # fmt: skip
"""IP by vendor, library and name; Vivado takes the newest version."""
