"""The hardware handoff of a Zynq UltraScale+ design: what PYNQ knows of a bitstream."""

from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.packaging import (
    INTERRUPT,
    IP_NAME,
    IP_VERSION,
    REGISTER_BYTES,
    REGISTER_PORT,
    register_words,
)
from lutra_golden.core.ports import port_name
from lutra_golden.timing.boards import BoardProfile

__all__ = ["ACCELERATOR", "INTERRUPT_CONTROLLER", "hwh"]

ACCELERATOR = "accelerator_0"
"""Name of the accelerator in the design."""
INTERRUPT_CONTROLLER = "axi_intc_0"
"""PYNQ finds an interrupt only behind an interrupt controller."""
_PROCESSOR = "zynq_ultra_ps_e_0"
_AXI = "xilinx.com:interface:aximm:1.0"
_PL_CLOCKS = 4
_CLOCK, _RESET = "pl_clk0", "pl_resetn0"


def hwh(board: BoardProfile, config: AcceleratorConfig) -> str:
    """The handoff file of ``config`` on ``board``: processor, interrupt controller, accelerator.

    Each of the accelerator's memory ports has a port of the processor.
    """
    root = Element("EDKSYSTEM", EDWVERSION="1.2", VIVADOVERSION="2025.2")
    device, package, speed = board.part.split("-", 2)
    SubElement(
        root, "SYSTEMINFO", ARCH="zynquplus", BOARD=board.name, DEVICE=device, NAME="lutra",
        PACKAGE=package, SPEEDGRADE=f"-{speed}",
    )  # fmt: skip
    SubElement(root, "EXTERNALPORTS")
    SubElement(root, "EXTERNALINTERFACES")
    modules = SubElement(root, "MODULES")
    modules.append(_accelerator(board, config))
    modules.append(_interrupt_controller())
    modules.append(_processor(board, config))
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8" standalone="no" ?>\n' + tostring(root, "unicode")


def _accelerator(board: BoardProfile, config: AcceleratorConfig) -> Element:
    module = _module(ACCELERATOR, IP_NAME, IP_VERSION)
    blocks = SubElement(module, "ADDRESSBLOCKS")
    block = SubElement(
        blocks, "ADDRESSBLOCK", ACCESS="read-write", INTERFACE=REGISTER_PORT, NAME="reg0",
        RANGE=str(REGISTER_BYTES), USAGE="register",
    )  # fmt: skip
    registers = SubElement(block, "REGISTERS")
    for word in register_words():
        register = SubElement(registers, "REGISTER", NAME=word.name)
        for name, value in (
            ("DESCRIPTION", word.doc),
            ("ADDRESS_OFFSET", hex(word.address)),
            ("SIZE", "32"),
            ("ACCESS", word.access),
            ("IS_ENABLED", "true"),
            ("RESET_VALUE", "0"),
        ):
            SubElement(register, "PROPERTY", NAME=name, VALUE=value)
        SubElement(register, "FIELDS")
    _parameters(
        module,
        {
            "LUTRA_CONFIG": config.name,
            "LUTRA_FINGERPRINT": f"{config.fingerprint:016x}",
            "C_BASEADDR": hex(board.registers_base),
            "C_HIGHADDR": hex(board.registers_base + REGISTER_BYTES - 1),
        },
    )
    _ports(
        module,
        ("ap_clk", "I", "clk", [(_PROCESSOR, _CLOCK)]),
        ("ap_rst_n", "I", "rst", [(_PROCESSOR, _RESET)]),
        (INTERRUPT, "O", "INTERRUPT", [(INTERRUPT_CONTROLLER, "intr")]),
    )
    masters = [(port_name(i), "MASTER", port.width) for i, port in enumerate(config.ports)]
    _interfaces(module, (REGISTER_PORT, "SLAVE", 32), *masters)
    memory = SubElement(module, "MEMORYMAP")
    for i in range(len(config.ports)):
        _range(
            memory, 0, 1 << 31, _PROCESSOR, port_name(i),
            f"S_AXI_HP{i}_FPD", "MEMORY", f"HP{i}_DDR_LOW",
        )  # fmt: skip
    return module


def _interrupt_controller() -> Element:
    module = _module(INTERRUPT_CONTROLLER, "xilinx.com:ip:axi_intc", "4.1")
    _parameters(module, {"C_NUM_INTR_INPUTS": "1", "C_KIND_OF_INTR": "0x00000000"})
    _ports(
        module,
        ("s_axi_aclk", "I", "clk", [(_PROCESSOR, _CLOCK)]),
        ("s_axi_aresetn", "I", "rst", [(_PROCESSOR, _RESET)]),
        ("intr", "I", "INTERRUPT", [(ACCELERATOR, INTERRUPT)]),
        ("irq", "O", "INTERRUPT", [(_PROCESSOR, "pl_ps_irq0")]),
    )
    _interfaces(module, ("s_axi", "SLAVE", 32))
    return module


def _processor(board: BoardProfile, config: AcceleratorConfig) -> Element:
    module = _module(_PROCESSOR, "xilinx.com:ip:zynq_ultra_ps_e", "3.5")
    _parameters(module, dict(_processor_parameters(board, config)))
    _ports(
        module,
        (_CLOCK, "O", "clk", [(ACCELERATOR, "ap_clk"), (INTERRUPT_CONTROLLER, "s_axi_aclk")]),
        (_RESET, "O", "rst", [(ACCELERATOR, "ap_rst_n"), (INTERRUPT_CONTROLLER, "s_axi_aresetn")]),
        ("pl_ps_irq0", "I", "INTERRUPT", [(INTERRUPT_CONTROLLER, "irq")]),
    )
    memories = [(f"S_AXI_HP{i}_FPD", "SLAVE", board.port_width) for i in range(len(config.ports))]
    _interfaces(module, ("M_AXI_HPM0_FPD", "MASTER", 128), *memories)
    memory = SubElement(module, "MEMORYMAP")
    for base, instance, port in (
        (board.registers_base, ACCELERATOR, REGISTER_PORT),
        (board.intc_base, INTERRUPT_CONTROLLER, "s_axi"),
    ):
        _range(
            memory, base, REGISTER_BYTES, instance, "M_AXI_HPM0_FPD", port, "REGISTER", "reg0"
        )  # fmt: skip
    return module


def _processor_parameters(
    board: BoardProfile, config: AcceleratorConfig
) -> Iterator[tuple[str, str]]:
    """Clocks of the fabric, of which the first is used, and widths of the ports."""
    for i in range(_PL_CLOCKS):
        prefix = f"PSU__CRL_APB__PL{i}_REF_CTRL__"
        yield f"PSU__FPGA_PL{i}_ENABLE", str(int(i == 0))
        yield f"{prefix}ACT_FREQMHZ", f"{board.clock_hz / 1e6 if i == 0 else 100:.6f}"
        yield f"{prefix}DIVISOR0", "8"
        yield f"{prefix}DIVISOR1", "1"
        yield f"{prefix}SRCSEL", "IOPLL"
    yield "C_MAXIGP0_DATA_WIDTH", "128"
    for i in range(len(config.ports)):
        # HP0 is SAXIGP2
        yield f"C_SAXIGP{i + 2}_DATA_WIDTH", str(board.port_width)


def _module(instance: str, name: str, version: str) -> Element:
    return Element(
        "MODULE", COREREVISION="1", FULLNAME=f"/{instance}", HWVERSION=version, INSTANCE=instance,
        IPTYPE="PERIPHERAL", IS_ENABLE="1", MODCLASS="PERIPHERAL",
        MODTYPE=name.rpartition(":")[2], VLNV=f"{name}:{version}",
    )  # fmt: skip


def _parameters(module: Element, values: dict[str, str]) -> None:
    parameters = SubElement(module, "PARAMETERS")
    for name, value in values.items():
        SubElement(parameters, "PARAMETER", NAME=name, VALUE=value)


def _ports(module: Element, *ports: tuple[str, str, str, list[tuple[str, str]]]) -> None:
    """Each with its name, direction, kind, and what it is connected to."""
    parent = SubElement(module, "PORTS")
    for name, direction, kind, ends in ports:
        port = SubElement(parent, "PORT", DIR=direction, NAME=name, SIGIS=kind)
        connections = SubElement(port, "CONNECTIONS")
        for instance, end in ends:
            SubElement(connections, "CONNECTION", INSTANCE=instance, PORT=end)


def _interfaces(module: Element, *interfaces: tuple[str, str, int]) -> None:
    """Each with its name, direction and width."""
    parent = SubElement(module, "BUSINTERFACES")
    for name, kind, width in interfaces:
        SubElement(parent, "BUSINTERFACE", DATAWIDTH=str(width), NAME=name, TYPE=kind, VLNV=_AXI)


def _range(
    memory: Element, base: int, n_bytes: int, instance: str, master: str, slave: str, kind: str,
    block: str,
) -> None:  # fmt: skip
    SubElement(
        memory, "MEMRANGE", ADDRESSBLOCK=block, BASENAME="C_BASEADDR", BASEVALUE=f"{base:#010x}",
        HIGHNAME="C_HIGHADDR", HIGHVALUE=f"{base + n_bytes - 1:#010x}", INSTANCE=instance,
        IS_DATA="TRUE", IS_INSTRUCTION="TRUE", MASTERBUSINTERFACE=master, MEMTYPE=kind,
        SLAVEBUSINTERFACE=slave,
    )  # fmt: skip
