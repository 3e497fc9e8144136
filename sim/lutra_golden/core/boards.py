"""Boards: the FPGA, the configuration for it, and how the two are connected."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import KV260, NANO, PYNQ_Z2, U50, U55C
from lutra_golden.strings import StringEnum

__all__ = ["BOARDS", "Board", "Flow", "MemoryRange"]


class Flow(StringEnum):
    """Tools that make a bitstream for a board, by the processor that starts the accelerator."""

    ZYNQ_MPSOC = "zynq_mpsoc"
    """Vivado: block design around the processing system of a Zynq UltraScale+."""
    ZYNQ_7000 = "zynq_7000"
    """Vivado: block design around the processing system of a Zynq-7000."""
    VITIS = "vitis"
    """Vitis: a kernel of XRT in the platform of an Alveo card."""
    IP = "ip"
    """Verilog and packaged IP only."""


@dataclass(frozen=True, kw_only=True)
class MemoryRange:
    """Addresses that memory ports reach, by the name of their segment in the block design."""

    segment: str
    base: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board, and the place of the accelerator on it.

    Parameters
    ----------
    title : name by which it is sold.
    part : FPGA as Vivado names it, with package and speed grade.
    fpga : the same by the name that ``lutra synth --part`` has for it; None if it has none.
    source : document that the figures are from.
    registers_base, intc_base : addresses, as the processor sees them, of the accelerator's
        registers and of the interrupt controller; None where there is no such processor.
    memory_ports : ports of the processing system, one for each port of ``config``.
    memory : ranges that these ports reach.
    board_part : pattern for Vivado's board files, which hold the settings of the processing system.
    platform : platform of Vitis.
    banks : last memory bank of the platform that the kernel uses.
    bank_bytes : bytes of a bank.
    """

    name: str
    title: str
    flow: Flow
    part: str
    fpga: str | None = None
    config: AcceleratorConfig
    source: str
    registers_base: int | None = None
    intc_base: int | None = None
    memory_ports: tuple[str, ...] = ()
    memory: tuple[MemoryRange, ...] = ()
    board_part: str | None = None
    platform: str | None = None
    banks: int = 0
    bank_bytes: int = 0

    def __post_init__(self) -> None:
        is_zynq = self.flow in (Flow.ZYNQ_MPSOC, Flow.ZYNQ_7000)
        if is_zynq and len(self.memory_ports) != len(self.config.ports):
            raise ValueError(
                f"memory_ports must be one for each of {len(self.config.ports)} ports of "
                f"configuration {self.config.name}, not {', '.join(self.memory_ports) or 'none'}"
            )
        if is_zynq and (self.registers_base is None or self.intc_base is None or not self.memory):
            raise ValueError("a Zynq must have registers_base, intc_base and memory")
        if self.flow == Flow.VITIS and not (self.platform and self.banks and self.bank_bytes):
            raise ValueError("a card of XRT must have platform, banks and bank_bytes")
        if self.flow == Flow.VITIS and len(self.config.ports) != 1:
            raise ValueError(
                f"a kernel of XRT must have one memory port, as it has one argument, not "
                f"{len(self.config.ports)}"
            )


_KV260 = Board(
    name="kv260",
    title="Kria KV260",
    flow=Flow.ZYNQ_MPSOC,
    fpga="xck26",
    part="xck26-sfvc784-2LV-c",
    config=KV260,
    source="AMD DS987 (K26), UG1085 (addresses, ports to the memory controller)",
    registers_base=0xA000_0000,
    intc_base=0xA001_0000,
    # HP1 and HP2 share a port of the memory controller: beside weights they carry what is least,
    # instructions and writes, HP0 parameters and embeddings, HP3 keys and values
    memory_ports=("HP1", "HP0", "HP3", "HP2"),
    memory=(
        MemoryRange(segment="DDR_LOW", base=0, n_bytes=0x8000_0000),
        MemoryRange(segment="DDR_HIGH", base=0x8_0000_0000, n_bytes=0x8000_0000),
    ),
    board_part="*:kv260_som:*",
)
_KR260 = replace(_KV260, name="kr260", title="Kria KR260", board_part="*:kr260_som:*")
_PYNQ_Z2 = Board(
    name="pynq_z2",
    title="TUL PYNQ-Z2",
    flow=Flow.ZYNQ_7000,
    fpga="xc7z020",
    part="xc7z020clg400-1",
    config=PYNQ_Z2,
    source="AMD DS190 (Zynq-7020), UG585 (addresses, ports to the memory controller)",
    registers_base=0x4000_0000,
    intc_base=0x4001_0000,
    # HP0 and HP1 share a port of the memory controller, HP2 and HP3 the other
    memory_ports=("HP0", "HP2"),
    memory=(MemoryRange(segment="DDR_LOWOCM", base=0, n_bytes=0x2000_0000),),
    board_part="*:pynq-z2:*",
)
_U50 = Board(
    name="u50",
    title="Alveo U50",
    flow=Flow.VITIS,
    fpga="xcu50",
    part="xcu50-fsvh2104-2-e",
    config=U50,
    source="AMD DS965, UG1120 (platform)",
    platform="xilinx_u50_gen3x16_xdma_5_202210_1",
    banks=32,
    bank_bytes=1 << 28,
)
_U55C = Board(
    name="u55c",
    title="Alveo U55C",
    flow=Flow.VITIS,
    fpga="xcu55c",
    part="xcu55c-fsvh2892-2L-e",
    config=U55C,
    source="AMD DS978, UG1120 (platform)",
    platform="xilinx_u55c_gen3x16_xdma_3_202210_1",
    banks=32,
    bank_bytes=1 << 29,
)
_V80 = Board(
    name="v80",
    title="Alveo V80",
    flow=Flow.IP,
    part="xcv80-lsva4737-2MHP-e-S",
    config=NANO,
    source="AMD DS1013",
)

BOARDS: Mapping[str, Board] = {
    board.name: board for board in (_KV260, _KR260, _PYNQ_Z2, _U50, _U55C, _V80)
}
"""Boards that ``lutra build`` knows, by name."""
