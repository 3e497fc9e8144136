"""Files by which Vitis knows the accelerator as a kernel: ``kernel.xml``, and its memory banks.

Source: AMD UG1393, RTL Kernel XML File, and ``v++`` options of ``--connectivity``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from lutra_flows.boards.pins import TopPins
from lutra_flows.boards.xml_reader import children, number, parse, required, unique
from lutra_golden.control.ap_ctrl import WINDOW, XRT_REGISTERS
from lutra_golden.core.boards import Board
from lutra_golden.core.packaging import VLNV
from lutra_golden.errors import LutraError

__all__ = ["ARGUMENT", "Kernel", "KernelArgument", "instance", "kernel_xml", "link_config",
           "read_kernel"]  # fmt: skip

ARGUMENT = "descriptor"
"""Name of the kernel's one argument, an address."""
_CONTROL_BYTES = 2 * WINDOW
_ALL = "0xFFFFFFFFFFFFFFFF"
_PROTOCOL = "ap_ctrl_chain"


@dataclass(frozen=True, kw_only=True)
class KernelArgument:
    """An argument: its register, and the port to what it points to."""

    name: str
    port: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Content of a ``kernel.xml``; ``masters`` are widths in bits by port."""

    name: str
    vlnv: str
    masters: dict[str, int]
    arguments: Sequence[KernelArgument]


def instance(top: TopPins) -> str:
    """Name of the kernel's one compute unit."""
    return f"{top.name}_1"


def kernel_xml(top: TopPins) -> str:
    """``kernel.xml`` of the kernel ``top``."""
    root = Element("root", versionMajor="1", versionMinor="6")
    kernel = ElementTree.SubElement(
        root,
        "kernel",
        name=top.name,
        language="ip_c",
        vlnv=VLNV,
        attributes="",
        preferredWorkGroupSizeMultiple="0",
        workGroupSize="1",
        interrupt="true",
        hwControlProtocol=_PROTOCOL,
    )
    ports = ElementTree.SubElement(kernel, "ports")
    _port(ports, top.control.name, "slave", f"{_CONTROL_BYTES:#x}", top.control.data_width)
    for bus in top.masters:
        _port(ports, bus.name, "master", _ALL, bus.data_width)
    (memory,) = top.masters
    register = XRT_REGISTERS["DESCRIPTOR"]
    ElementTree.SubElement(
        ElementTree.SubElement(kernel, "args"),
        "arg",
        name=ARGUMENT,
        addressQualifier="1",
        id="0",
        port=memory.name,
        size=f"{4 * register.count:#x}",
        offset=f"{register.address:#x}",
        hostOffset="0x0",
        hostSize=f"{4 * register.count:#x}",
        type="void*",
    )
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _port(ports: Element, name: str, mode: str, n_bytes: str, width: int) -> None:
    ElementTree.SubElement(
        ports,
        "port",
        name=name,
        mode=mode,
        range=n_bytes,
        dataWidth=str(width),
        portType="addressable",
        base="0x0",
    )


def link_config(board: Board, top: TopPins) -> str:
    """Configuration of ``v++ --link``: one compute unit, and the memory banks that it reaches."""
    unit = instance(top)
    return "\n".join(
        [
            f"platform={board.platform}",
            "[connectivity]",
            f"nk={top.name}:1:{unit}",
            f"sp={unit}.{ARGUMENT}:HBM[0:{board.banks - 1}]",
            "[clock]",
            f"freqHz={board.config.clock_hz}:{unit}",
            "",
        ]
    )


def read_kernel(text: str) -> Kernel:
    """Read ``kernel.xml``; LutraError names the first thing that is wrong."""
    root = parse(text, "root", "kernel.xml")
    version = root.get("versionMajor"), root.get("versionMinor")
    if version != ("1", "6"):
        raise LutraError(f"kernel.xml must have version 1.6, not {'.'.join(map(str, version))}")
    children(root, ["kernel"], "kernel.xml")
    if len(root) != 1:
        raise LutraError(f"kernel.xml must have one kernel, not {len(root)}")
    kernel = root[0]
    children(kernel, ["ports", "args"], "the kernel")
    name = _word(kernel, "name", "the kernel")
    for attribute, expected in (
        ("language", "ip_c"),
        ("hwControlProtocol", _PROTOCOL),
        ("workGroupSize", "1"),
        ("preferredWorkGroupSizeMultiple", "0"),
        ("attributes", ""),
        ("interrupt", "true"),
    ):
        if kernel.get(attribute) != expected:
            raise LutraError(
                f"{attribute} of kernel {name} must be {expected!r}, not {kernel.get(attribute)!r}"
            )
    vlnv = required(kernel.get("vlnv"), f"vlnv of kernel {name}")
    if not re.fullmatch(r"[\w.-]+:\w+:\w+:\d+\.\d+", vlnv):
        raise LutraError(f"vlnv of kernel {name} must be vendor:library:name:version, not {vlnv}")
    masters, control_bytes = _ports(kernel)
    return Kernel(
        name=name,
        vlnv=vlnv,
        masters=masters,
        arguments=_arguments(kernel, masters, control_bytes),
    )


def _word(element: Element, attribute: str, what: str) -> str:
    value = required(element.get(attribute), f"{attribute} of {what}")
    if not re.fullmatch(r"[A-Za-z_]\w*", value):
        raise LutraError(f"{attribute} of {what} must be a word of letters, digits and _: {value}")
    return value


def _ports(kernel: Element) -> tuple[dict[str, int], int]:
    """Widths of the masters, and the bytes of the slave."""
    masters: dict[str, int] = {}
    slaves: dict[str, int] = {}
    ports = kernel.findall("ports/port")
    unique([_word(port, "name", "a port") for port in ports], "port")
    for port in ports:
        name, mode = port.attrib["name"], port.get("mode")
        if port.get("portType") != "addressable":
            raise LutraError(f"portType of port {name} must be addressable")
        if number(port.get("base"), f"base of port {name}") != 0:
            raise LutraError(f"base of port {name} must be 0x0")
        width = number(port.get("dataWidth"), f"dataWidth of port {name}")
        n_bytes = number(port.get("range"), f"range of port {name}")
        if mode == "master":
            if width not in (32, 64, 128, 256, 512, 1024):
                raise LutraError(f"dataWidth of port {name} must be that of AXI4, not {width}")
            if n_bytes != int(_ALL, 16):
                raise LutraError(f"range of master {name} must be {_ALL}, not {n_bytes:#x}")
            masters[name] = width
        elif mode == "slave":
            if width != 32:
                raise LutraError(f"dataWidth of slave {name} must be 32, not {width}")
            if n_bytes & (n_bytes - 1) or not 0x1000 <= n_bytes <= 0x10000:
                raise LutraError(
                    f"range of slave {name} must be a power of two of 4 KB to 64 KB, not "
                    f"{n_bytes:#x}"
                )
            slaves[name] = n_bytes
        else:
            raise LutraError(f"mode of port {name} must be master or slave, not {mode}")
    if [*slaves] != ["s_axi_control"]:
        raise LutraError(f"the one slave must be s_axi_control, not {', '.join(slaves) or 'none'}")
    return masters, slaves["s_axi_control"]


def _arguments(
    kernel: Element, masters: dict[str, int], control_bytes: int
) -> Sequence[KernelArgument]:
    found: list[KernelArgument] = []
    host_end = 0
    for place, arg in enumerate(kernel.findall("args/arg")):
        name = _word(arg, "name", "an argument")
        if number(arg.get("id"), f"id of argument {name}") != place:
            raise LutraError(f"id of argument {name} must be {place}, its place")
        if arg.get("addressQualifier") != "1":
            raise LutraError(f"addressQualifier of argument {name} must be 1, a pointer")
        port = arg.get("port")
        if port not in masters:
            raise LutraError(f"port of argument {name} must be a master that is there, not {port}")
        size, offset, host_offset, host_size = (
            number(arg.get(attribute), f"{attribute} of argument {name}")
            for attribute in ("size", "offset", "hostOffset", "hostSize")
        )
        if (size, host_size) != (8, 8):
            raise LutraError(f"size and hostSize of pointer {name} must be 0x8")
        if offset < 0x10 or offset % 4 or offset + size > control_bytes:
            raise LutraError(
                f"offset of argument {name} must be a multiple of 4 from 0x10 on, within the "
                f"slave's range, not {offset:#x}"
            )
        if host_offset != host_end:
            raise LutraError(f"hostOffset of argument {name} must be {host_end:#x}")
        if not required(arg.get("type"), f"type of argument {name}").endswith("*"):
            raise LutraError(f"type of argument {name} must be a pointer")
        host_end += host_size
        for other in found:
            if offset < other.offset + other.n_bytes and other.offset < offset + size:
                raise LutraError(f"arguments {other.name} and {name} share a register")
        found.append(KernelArgument(name=name, port=port, offset=offset, n_bytes=size))
    unique([argument.name for argument in found], "argument")
    for master in masters:
        if all(argument.port != master for argument in found):
            raise LutraError(f"master {master} has no argument: XRT does not know its memory")
    return found
