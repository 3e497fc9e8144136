"""All files of a board's project, and of what is carried to the board."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lutra_flows.boards.block_design import block_design
from lutra_flows.boards.ipxact import component_xml
from lutra_flows.boards.ipxact_reader import read_component
from lutra_flows.boards.kernel import kernel_xml, link_config, read_kernel
from lutra_flows.boards.pins import TopPins, pins_of
from lutra_flows.boards.registers import system_rdl
from lutra_flows.boards.scripts import (
    FIRMWARE,
    bitstream_script,
    board_constraints,
    clock_constraints,
    kernel_script,
)
from lutra_golden.core.boards import Board, Flow
from lutra_golden.core.packaging import REGISTER_BYTES, VLNV

if TYPE_CHECKING:
    from lutra_hw.core.board import BoardAccelerator

__all__ = ["COMPONENT", "device_tree", "project_files", "script_name", "top_pins", "verilog"]

COMPONENT = "ip/component.xml"
_VERILOG, _CLOCK = "lutra.v", "lutra_clock.xdc"


def _component(board: Board) -> BoardAccelerator:
    from lutra_hw.core.board import BoardAccelerator

    if board.flow == Flow.VITIS:
        from lutra_hw.core.xrt import XrtAccelerator

        return XrtAccelerator(board.config)
    return BoardAccelerator(board.config)


def top_pins(board: Board) -> TopPins:
    """Pins of the top module of ``board``."""
    from lutra_hw.core.board import TOP

    return pins_of(_component(board), TOP, len(board.config.ports))


def verilog(board: Board) -> str:
    """Verilog of the top module of ``board``."""
    from lutra_hw.core.board import TOP
    from lutra_hw.netlist import to_clean_verilog

    return to_clean_verilog(_component(board), TOP)


def script_name(board: Board) -> str | None:
    """Script that Vivado runs; None for a board with packaged IP only."""
    return {Flow.VITIS: "package_xo.tcl", Flow.IP: None}.get(board.flow, "build.tcl")


def project_files(board: Board, part: str, text: str) -> Mapping[str, str]:
    """Text of every file of the project by its path; ``text`` is the Verilog."""
    top = top_pins(board)
    files = {
        "registers.rdl": system_rdl(xrt=board.flow == Flow.VITIS),
        "lutra.json": json.dumps(_identity(board, part), indent=4) + "\n",
    }
    if board.flow == Flow.VITIS:
        files |= {
            _VERILOG: text,
            "kernel.xml": kernel_xml(top),
            "link.cfg": link_config(board, top),
            "package_xo.tcl": kernel_script(board, part, top),
        }
        read_kernel(files["kernel.xml"])
        return files
    files |= {
        f"ip/{_VERILOG}": text,
        f"ip/{_CLOCK}": clock_constraints(board),
        COMPONENT: component_xml(top, board.config, _VERILOG, _CLOCK),
    }
    read_component(files[COMPONENT])
    if board.flow != Flow.IP:
        files |= {
            "block_design.tcl": block_design(board),
            "build.tcl": bitstream_script(board, part),
            "constraints.xdc": board_constraints(),
            "lutra.dtsi": device_tree(board),
        }
    return files


def _identity(board: Board, part: str) -> Mapping[str, object]:
    """Facts that a driver or a person compares before the first token."""
    config = board.config
    return {
        "board": board.name,
        "part": part,
        "ip": VLNV,
        "configuration": config.name,
        "fingerprint": f"{config.fingerprint:016x}",
        "clock_hz": config.clock_hz,
        "registers": board.registers_base,
        "interrupt_controller": board.intc_base,
    }


def device_tree(board: Board) -> str:
    """Device tree overlay that loads the bitstream, for systems without PYNQ.

    The accelerator's registers become a UIO device, without the interrupt, which is behind a
    controller. Source: Linux, fpga-region and generic-uio.
    """
    assert board.registers_base is not None
    is_mpsoc = board.flow == Flow.ZYNQ_MPSOC
    base, n_bytes = board.registers_base, REGISTER_BYTES
    cells = f"<0x0 {base:#x} 0x0 {n_bytes:#x}>" if is_mpsoc else f"<{base:#x} {n_bytes:#x}>"
    return f"""\
/* Written by `lutra build`: {board.title}. dtc -@ -I dts -O dtb -o lutra.dtbo lutra.dtsi */
/dts-v1/;
/plugin/;
&fpga_full {{
    firmware-name = "{FIRMWARE}";
}};
&amba {{
    lutra@{base:x} {{
        compatible = "generic-uio";
        reg = {cells};
    }};
}};
"""
