"""Tcl of the block design around a Zynq's processing system.

Registers of the accelerator and of an interrupt controller behind a SmartConnect, a SmartConnect
for each memory port, one clock and its reset, all from the processing system. PYNQ finds an
interrupt only behind an interrupt controller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lutra_flows.boards.ipxact import ADDRESS_BLOCK
from lutra_flows.boards.pins import CLOCK, RESET
from lutra_flows.boards.tcl import word
from lutra_golden.core.boards import Board, Flow
from lutra_golden.core.packaging import INTERRUPT, REGISTER_BYTES, REGISTER_PORT, VLNV
from lutra_golden.core.ports import port_name

__all__ = ["ACCELERATOR", "DESIGN", "block_design"]

DESIGN = "lutra_system"
ACCELERATOR, _INTC = "accelerator_0", "axi_intc_0"
_RESET, _CONTROL = "proc_sys_reset_0", "smartconnect_registers"
_INTC_BYTES = 0x1_0000


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """A processing system: names of its pins, and its settings."""

    cell: str
    ip: str
    rule: str
    rule_options: str
    clock: str
    reset: str
    interrupt: str
    master: str
    master_clock: str
    settings: Mapping[str, str]
    ports: Sequence[_MemoryPort]
    unused: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _MemoryPort:
    """A memory port of a processing system: interface, its clock, and the names of its segments."""

    name: str
    interface: str
    clock: str
    segments: str


def block_design(board: Board) -> str:
    """Tcl that makes the block design :data:`DESIGN` of ``board`` in an open project."""
    processor = _mpsoc(board) if board.flow == Flow.ZYNQ_MPSOC else _zynq(board)
    return "\n".join(
        [
            f"# Written by `lutra build`: block design of {board.title}.",
            f"create_bd_design {DESIGN}",
            "",
            *_cells(processor, len(board.config.ports)),
            "",
            *_clocks(processor),
            "",
            *_buses(processor),
            "",
            *_addresses(board, processor),
            "",
            "validate_bd_design",
            "save_bd_design",
            "",
        ]
    )


def _mhz(board: Board) -> str:
    return f"{board.config.clock_hz / 1e6:g}"


def _mpsoc(board: Board) -> _Processor:
    """Zynq UltraScale+ (PG201): HP0 to HP3 are the slaves 2 to 5."""
    settings = {
        "PSU__FPGA_PL0_ENABLE": "1",
        "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": _mhz(board),
        "PSU__USE__IRQ0": "1",
        "PSU__USE__M_AXI_GP0": "1",
        "PSU__MAXIGP0__DATA_WIDTH": "32",
        "PSU__USE__M_AXI_GP1": "0",
        "PSU__USE__M_AXI_GP2": "0",
    }
    ports: list[_MemoryPort] = []
    for name, port in zip(board.memory_ports, board.config.ports, strict=True):
        number = int(name.removeprefix("HP"))
        slave = number + 2
        settings[f"PSU__USE__S_AXI_GP{slave}"] = "1"
        settings[f"PSU__SAXIGP{slave}__DATA_WIDTH"] = str(min(port.width, 128))
        ports.append(
            _MemoryPort(
                name=name,
                interface=f"S_AXI_{name}_FPD",
                clock=f"saxihp{number}_fpd_aclk",
                segments=f"SAXIGP{slave}",
            )
        )
    return _Processor(
        cell="zynq_ultra_ps_e_0",
        ip="xilinx.com:ip:zynq_ultra_ps_e",
        rule="xilinx.com:bd_rule:zynq_ultra_ps_e",
        rule_options="apply_board_preset 1",
        clock="pl_clk0",
        reset="pl_resetn0",
        interrupt="pl_ps_irq0",
        master="M_AXI_HPM0_FPD",
        master_clock="maxihpm0_fpd_aclk",
        settings=settings,
        ports=ports,
        unused=("LPS_OCM", "QSPI"),
    )


def _zynq(board: Board) -> _Processor:
    """Zynq-7000 (PG082)."""
    settings = {
        "PCW_FPGA0_PERIPHERAL_FREQMHZ": _mhz(board),
        "PCW_USE_FABRIC_INTERRUPT": "1",
        "PCW_IRQ_F2P_INTR": "1",
        "PCW_USE_M_AXI_GP0": "1",
    }
    ports: list[_MemoryPort] = []
    for name, port in zip(board.memory_ports, board.config.ports, strict=True):
        settings[f"PCW_USE_S_AXI_{name}"] = "1"
        settings[f"PCW_S_AXI_{name}_DATA_WIDTH"] = str(min(port.width, 64))
        ports.append(
            _MemoryPort(
                name=name,
                interface=f"S_AXI_{name}",
                clock=f"S_AXI_{name}_ACLK",
                segments=f"S_AXI_{name}",
            )
        )
    return _Processor(
        cell="processing_system7_0",
        ip="xilinx.com:ip:processing_system7",
        rule="xilinx.com:bd_rule:processing_system7",
        rule_options="make_external {FIXED_IO, DDR} apply_board_preset 1 Master Disable "
        "Slave Disable",
        clock="FCLK_CLK0",
        reset="FCLK_RESET0_N",
        interrupt="IRQ_F2P",
        master="M_AXI_GP0",
        master_clock="M_AXI_GP0_ACLK",
        settings=settings,
        ports=ports,
        unused=(),
    )


def _cells(processor: _Processor, n_ports: int) -> Iterator[str]:
    yield _cell(processor.ip, processor.cell)
    # a Zynq-7000 has its DDR pins from the rule, with or without board files
    is_mpsoc = processor.ip.endswith("zynq_ultra_ps_e")
    rule = (
        f"apply_bd_automation -rule {processor.rule} -config {{{processor.rule_options}}} "
        f"[get_bd_cells {processor.cell}]"
    )
    if is_mpsoc:
        yield 'if {[get_property board_part [current_project]] ne ""} {'
        yield f"    {rule}"
        yield "}"
    else:
        yield rule
    yield from _settings(processor.cell, processor.settings)
    yield _cell("xilinx.com:ip:proc_sys_reset", _RESET)
    yield _cell("xilinx.com:ip:axi_intc", _INTC)
    yield from _settings(_INTC, {"C_IRQ_CONNECTION": "1"})
    yield _cell("xilinx.com:ip:smartconnect", _CONTROL)
    yield from _settings(_CONTROL, {"NUM_SI": "1", "NUM_MI": "2"})
    for number in range(n_ports):
        yield _cell("xilinx.com:ip:smartconnect", _memory(number))
        yield from _settings(_memory(number), {"NUM_SI": "1", "NUM_MI": "1"})
    yield _cell(VLNV, ACCELERATOR)


def _memory(number: int) -> str:
    return f"smartconnect_memory_{number}"


def _cell(ip: str, name: str) -> str:
    return f"create_bd_cell -type ip -vlnv {ip} {name}"


def _settings(cell: str, settings: Mapping[str, str]) -> Iterator[str]:
    yield "set_property -dict [list \\"
    for name, value in settings.items():
        yield f"    CONFIG.{name} {word(value)} \\"
    yield f"] [get_bd_cells {cell}]"


def _net(source: str, sinks: Sequence[str]) -> Iterator[str]:
    yield f"connect_bd_net [get_bd_pins {source}] \\"
    for sink in sinks[:-1]:
        yield f"    [get_bd_pins {sink}] \\"
    yield f"    [get_bd_pins {sinks[-1]}]"


def _clocks(processor: _Processor) -> Iterator[str]:
    connects = [_CONTROL, *map(_memory, range(len(processor.ports)))]
    yield from _net(
        f"{processor.cell}/{processor.clock}",
        [
            f"{processor.cell}/{processor.master_clock}",
            *(f"{processor.cell}/{port.clock}" for port in processor.ports),
            f"{_RESET}/slowest_sync_clk",
            *(f"{connect}/aclk" for connect in connects),
            f"{_INTC}/s_axi_aclk",
            f"{ACCELERATOR}/{CLOCK}",
        ],
    )
    yield from _net(f"{processor.cell}/{processor.reset}", [f"{_RESET}/ext_reset_in"])
    yield from _net(
        f"{_RESET}/peripheral_aresetn",
        [
            *(f"{connect}/aresetn" for connect in connects),
            f"{_INTC}/s_axi_aresetn",
            f"{ACCELERATOR}/{RESET}",
        ],
    )
    yield from _net(f"{ACCELERATOR}/{INTERRUPT}", [f"{_INTC}/intr"])
    yield from _net(f"{_INTC}/irq", [f"{processor.cell}/{processor.interrupt}"])


def _buses(processor: _Processor) -> Iterator[str]:
    def connect(master: str, slave: str) -> str:
        return f"connect_bd_intf_net [get_bd_intf_pins {master}] [get_bd_intf_pins {slave}]"

    yield connect(f"{processor.cell}/{processor.master}", f"{_CONTROL}/S00_AXI")
    yield connect(f"{_CONTROL}/M00_AXI", f"{ACCELERATOR}/{REGISTER_PORT}")
    yield connect(f"{_CONTROL}/M01_AXI", f"{_INTC}/s_axi")
    for number, port in enumerate(processor.ports):
        yield connect(f"{ACCELERATOR}/{port_name(number)}", f"{_memory(number)}/S00_AXI")
        yield connect(f"{_memory(number)}/M00_AXI", f"{processor.cell}/{port.interface}")


def _addresses(board: Board, processor: _Processor) -> Iterator[str]:
    def assign(base: int, n_bytes: int, space: str, segment: str) -> str:
        return (
            f"assign_bd_address -offset {base:#x} -range {n_bytes:#x} "
            f"-target_address_space [get_bd_addr_spaces {space}] [get_bd_addr_segs {segment}]"
        )

    assert board.registers_base is not None and board.intc_base is not None
    data = f"{processor.cell}/Data"
    yield assign(
        board.registers_base,
        REGISTER_BYTES,
        data,
        f"{ACCELERATOR}/{REGISTER_PORT}/{ADDRESS_BLOCK}",
    )
    yield assign(board.intc_base, _INTC_BYTES, data, f"{_INTC}/S_AXI/Reg")
    for number, port in enumerate(processor.ports):
        space = f"{ACCELERATOR}/{port_name(number)}"
        first, *others = board.memory
        segment = f"{processor.cell}/{port.segments}/{port.name}"
        yield assign(first.base, first.n_bytes, space, f"{segment}_{first.segment}")
        for other in others:
            # there only if the settings of the board are
            yield f"if {{[llength [get_bd_addr_segs -quiet {segment}_{other.segment}]]}} {{"
            yield "    " + assign(other.base, other.n_bytes, space, f"{segment}_{other.segment}")
            yield "}"
        for unused in processor.unused:
            yield f"if {{[llength [get_bd_addr_segs -quiet {segment}_{unused}]]}} {{"
            yield (
                f"    exclude_bd_addr_seg [get_bd_addr_segs {segment}_{unused}] "
                f"-target_address_space [get_bd_addr_spaces {space}]"
            )
            yield "}"
