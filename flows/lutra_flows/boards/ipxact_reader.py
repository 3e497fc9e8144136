"""Reading of ``component.xml``, which refuses what Vivado would trip over.

Source: IEEE 1685-2009 (order of elements, references), AMD UG1118 (interfaces, their parameters),
ARM IHI 0022 (signals of AXI4 and AXI4-Lite, and their directions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

from lutra_flows.boards.ipxact import SPIRIT
from lutra_flows.boards.xml_reader import children, number, parse, required, unique
from lutra_golden.errors import LutraError

__all__ = ["Component", "Interface", "read_component"]

_ORDER = (
    "vendor", "library", "name", "version", "busInterfaces", "channels", "remapStates",
    "addressSpaces", "memoryMaps", "model", "componentGenerators", "choices", "fileSets",
    "whiteboxElements", "cpus", "otherClockDrivers", "description", "parameters",
    "vendorExtensions",
)  # fmt: skip
_INTERFACE_ORDER = (
    "name", "displayName", "description", "busType", "abstractionType", "master", "slave",
    "connectionRequired", "portMaps", "bitsInLau", "bitSteering", "endianness", "parameters",
    "vendorExtensions",
)  # fmt: skip
_REGISTER_ORDER = (
    "name", "displayName", "description", "dim", "addressOffset", "typeIdentifier", "size",
    "volatile", "access", "reset", "field", "parameters",
)  # fmt: skip
_ACCESS = ("read-only", "write-only", "read-write", "writeOnce", "read-writeOnce")
_ENVIRONMENTS = (":vivado.xilinx.com:synthesis", ":vivado.xilinx.com:simulation")
# signals that a master gives, all others it takes; those of each channel that must be there
_GIVEN = re.compile(r"A[RW](?!READY)\w+|W(?!READY)\w+|[BR]READY")
_CHANNELS = {
    "AXI4": {
        "read": "ARADDR ARLEN ARSIZE ARBURST ARVALID ARREADY RDATA RRESP RLAST RVALID RREADY",
        "write": "AWADDR AWLEN AWSIZE AWBURST AWVALID AWREADY WDATA WSTRB WLAST WVALID WREADY "
        "BRESP BVALID BREADY",
    },
    "AXI4LITE": {
        "read": "ARADDR ARVALID ARREADY RDATA RRESP RVALID RREADY",
        "write": "AWADDR AWVALID AWREADY WDATA WSTRB WVALID WREADY BRESP BVALID BREADY",
    },
}
_OPTIONAL = {
    "AXI4": set("ARID AWID RID BID ARPROT AWPROT ARCACHE AWCACHE ARLOCK AWLOCK ARQOS AWQOS "
                "ARREGION AWREGION".split()),
    "AXI4LITE": {"ARPROT", "AWPROT"},
}  # fmt: skip
_WIDTHS = {
    "ARLEN": 8, "AWLEN": 8, "ARSIZE": 3, "AWSIZE": 3, "ARBURST": 2, "AWBURST": 2, "ARCACHE": 4,
    "AWCACHE": 4, "ARPROT": 3, "AWPROT": 3, "RRESP": 2, "BRESP": 2,
}  # fmt: skip
_MODES = {
    "READ_WRITE": ("read", "write"),
    "READ_ONLY": ("read",),
    "WRITE_ONLY": ("write",),
}


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A bus interface: its type, ports by logical name, and parameters."""

    name: str
    kind: str
    is_master: bool
    ports: Mapping[str, str]
    parameters: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Component:
    """Content of a ``component.xml``; ``ports`` are (input, width) by name."""

    vlnv: str
    interfaces: Mapping[str, Interface]
    ports: Mapping[str, tuple[bool, int]]
    registers: Mapping[str, int]
    parameters: Mapping[str, str]
    files: Sequence[str]


def read_component(text: str) -> Component:
    """Read ``component.xml``; LutraError names the first thing that is wrong."""
    root = parse(text, _tag("component"), "component.xml")
    children(root, [*map(_tag, _ORDER)], "component")
    vlnv = ":".join(
        required(root.findtext(_tag(name)), f"the component's {name}") for name in _ORDER[:4]
    )
    if not re.fullmatch(r"[\w.-]+:\w+:\w+:\d+(\.\d+)*", vlnv):
        raise LutraError(f"the component must be vendor:library:name:version, not {vlnv}")
    ports = _ports(root)
    spaces = _named(root, "addressSpaces", "addressSpace")
    maps = _named(root, "memoryMaps", "memoryMap")
    interfaces = {
        name: _interface(element, ports, spaces, maps)
        for name, element in _named(root, "busInterfaces", "busInterface").items()
    }
    _associations(interfaces)
    _all_mapped(interfaces, ports)
    registers: dict[str, int] = {}
    for name, element in maps.items():
        registers |= _memory_map(element, name)
    return Component(
        vlnv=vlnv,
        interfaces=interfaces,
        ports=ports,
        registers=registers,
        parameters=_parameters(root),
        files=_files(root),
    )


def _tag(name: str) -> str:
    return f"{{{SPIRIT}}}{name}"


def _path(*names: str) -> str:
    return "/".join(map(_tag, names))


def _named(root: Element, group: str, tag: str) -> dict[str, Element]:
    elements = root.findall(_path(group, tag))
    names = [
        required(element.findtext(_tag("name")), f"the name of a {tag}") for element in elements
    ]
    unique(names, tag)
    return dict(zip(names, elements, strict=True))


def _parameters(element: Element) -> dict[str, str]:
    found: dict[str, str] = {}
    for parameter in element.findall(_path("parameters", "parameter")):
        name = required(parameter.findtext(_tag("name")), "the name of a parameter")
        if name in found:
            raise LutraError(f"parameter {name} is there twice: give it once")
        found[name] = required(parameter.findtext(_tag("value")), f"the value of parameter {name}")
    return found


def _ports(root: Element) -> dict[str, tuple[bool, int]]:
    found: dict[str, tuple[bool, int]] = {}
    views = _named(root.find(_tag("model")) or root, "views", "view")
    for name, view in views.items():
        environment = view.findtext(_tag("envIdentifier"))
        if environment not in _ENVIRONMENTS:
            raise LutraError(
                f"view {name} must be for one of {', '.join(_ENVIRONMENTS)}, not {environment}"
            )
        required(view.findtext(_tag("modelName")), f"the top module of view {name}")
    if not views:
        raise LutraError("the model must have a view")
    for name, port in _named(root.find(_tag("model")) or root, "ports", "port").items():
        direction = port.findtext(_path("wire", "direction"))
        if direction not in ("in", "out"):
            raise LutraError(f"port {name} must be in or out, not {direction}")
        width = 1
        if (vector := port.find(_path("wire", "vector"))) is not None:
            left, right = (
                number(vector.findtext(_tag(end)), f"the {end} bit of port {name}")
                for end in ("left", "right")
            )
            if right != 0 or left < right:
                raise LutraError(f"port {name} must have bits N:0, not {left}:{right}")
            width = left + 1
        for view in port.iter(_tag("viewNameRef")):
            if view.text not in views:
                raise LutraError(f"port {name} names a view {view.text} that is not there")
        found[name] = (direction == "in", width)
    return found


def _interface(
    element: Element,
    ports: Mapping[str, tuple[bool, int]],
    spaces: Mapping[str, Element],
    maps: Mapping[str, Element],
) -> Interface:
    name = element.findtext(_tag("name"), "")
    children(element, [*map(_tag, _INTERFACE_ORDER)], f"interface {name}")
    kind, abstraction = (
        _vlnv(element.find(_tag(tag)), f"{tag} of interface {name}")
        for tag in ("busType", "abstractionType")
    )
    expected = kind.replace(":1.0", "_rtl:1.0")
    if abstraction != expected:
        raise LutraError(
            f"abstractionType of interface {name} must be {expected}, not {abstraction}"
        )
    master, slave = element.find(_tag("master")), element.find(_tag("slave"))
    if (master is None) == (slave is None):
        raise LutraError(f"interface {name} must be a master or a slave")
    interface = Interface(
        name=name,
        kind=kind,
        is_master=master is not None,
        ports=_port_maps(element, name, ports),
        parameters=_parameters(element),
    )
    if kind == "xilinx.com:interface:aximm:1.0":
        _reference(master, slave, name, spaces, maps)
        _axi(interface, ports)
        if master is not None:
            _space(spaces[name], interface, ports)
    else:
        _signal(interface, ports)
    return interface


def _vlnv(element: Element | None, what: str) -> str:
    if element is None:
        raise LutraError(f"{what} is missing")
    parts = [element.get(_tag(name)) for name in _ORDER[:4]]
    return ":".join(required(part, f"a part of the {what}") for part in parts)


def _port_maps(
    element: Element, name: str, ports: Mapping[str, tuple[bool, int]]
) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for port_map in element.findall(_path("portMaps", "portMap")):
        logical, physical = (
            required(
                port_map.findtext(_path(tag, "name")), f"the {tag} of a map of interface {name}"
            )
            for tag in ("logicalPort", "physicalPort")
        )
        if logical in found:
            raise LutraError(f"interface {name} maps {logical} twice: map it once")
        if physical not in ports:
            raise LutraError(f"interface {name} maps {logical} to {physical}, which is no port")
        found[logical] = physical
    return found


def _reference(
    master: Element | None,
    slave: Element | None,
    name: str,
    spaces: Mapping[str, Element],
    maps: Mapping[str, Element],
) -> None:
    if master is not None:
        element, tag, there = master, "addressSpaceRef", spaces
    else:
        assert slave is not None
        element, tag, there = slave, "memoryMapRef", maps
    reference = element.find(_tag(tag))
    named = None if reference is None else reference.get(_tag(tag))
    if named not in there:
        raise LutraError(f"interface {name} must name a {tag} that is there, not {named}")


def _axi(interface: Interface, ports: Mapping[str, tuple[bool, int]]) -> None:
    name, parameters = interface.name, interface.parameters
    protocol, mode = parameters.get("PROTOCOL"), parameters.get("READ_WRITE_MODE")
    if protocol not in _CHANNELS:
        raise LutraError(f"PROTOCOL of interface {name} must be AXI4 or AXI4LITE, not {protocol}")
    if mode not in _MODES:
        raise LutraError(
            f"READ_WRITE_MODE of interface {name} must be one of {', '.join(_MODES)}, not {mode}"
        )
    needed = {s for channel in _MODES[mode] for s in _CHANNELS[protocol][channel].split()}
    prefixes = {"read": ("AR", "R"), "write": ("AW", "W", "B")}
    allowed = {
        signal
        for signal in needed | _OPTIONAL[protocol]
        if any(signal.startswith(p) for channel in _MODES[mode] for p in prefixes[channel])
    }
    for signal in sorted(needed - interface.ports.keys()):
        raise LutraError(f"interface {name} has no {signal}, which {protocol} {mode} needs")
    for signal in sorted(interface.ports.keys() - allowed):
        raise LutraError(f"interface {name} has {signal}, which {protocol} {mode} has not")
    for signal, port in interface.ports.items():
        is_given = bool(_GIVEN.fullmatch(signal)) == interface.is_master
        is_input, width = ports[port]
        if is_input == is_given:
            raise LutraError(
                f"{signal} of interface {name} must be an {'output' if is_given else 'input'}"
            )
        expected = _width(signal, interface)
        if expected is not None and width != expected:
            raise LutraError(f"{signal} of interface {name} must have {expected} bits, not {width}")


def _width(signal: str, interface: Interface) -> int | None:
    if signal in ("RDATA", "WDATA"):
        return number(interface.parameters.get("DATA_WIDTH"), f"DATA_WIDTH of {interface.name}")
    if signal == "WSTRB":
        width = number(interface.parameters.get("DATA_WIDTH"), f"DATA_WIDTH of {interface.name}")
        return width // 8
    if signal in ("ARADDR", "AWADDR"):
        return number(interface.parameters.get("ADDR_WIDTH"), f"ADDR_WIDTH of {interface.name}")
    if signal.endswith(("VALID", "READY", "LAST")):
        return 1
    return _WIDTHS.get(signal)


def _space(space: Element, interface: Interface, ports: Mapping[str, tuple[bool, int]]) -> None:
    n_bytes = number(space.findtext(_tag("range")), f"the range of address space {interface.name}")
    bits = next(ports[interface.ports[s]][1] for s in ("ARADDR", "AWADDR") if s in interface.ports)
    if n_bytes != 1 << bits:
        raise LutraError(
            f"address space {interface.name} must have {1 << bits} bytes, as its addresses have "
            f"{bits} bits, not {n_bytes}"
        )


def _signal(interface: Interface, ports: Mapping[str, tuple[bool, int]]) -> None:
    name = interface.name
    kinds = {
        "xilinx.com:signal:clock:1.0": ("CLK", True),
        "xilinx.com:signal:reset:1.0": ("RST", True),
        "xilinx.com:signal:interrupt:1.0": ("INTERRUPT", False),
    }
    if interface.kind not in kinds:
        raise LutraError(f"interface {name} has an unknown type {interface.kind}")
    logical, is_input = kinds[interface.kind]
    if [*interface.ports] != [logical]:
        raise LutraError(f"interface {name} must map {logical} and nothing else")
    if ports[interface.ports[logical]] != (is_input, 1):
        raise LutraError(f"{logical} of {name} must be an {'input' if is_input else 'output'} bit")
    wanted = {
        "RST": ("POLARITY", ("ACTIVE_LOW", "ACTIVE_HIGH")),
        "INTERRUPT": ("SENSITIVITY", ("LEVEL_HIGH", "EDGE_RISING")),
    }
    if logical in wanted:
        parameter, values = wanted[logical]
        if interface.parameters.get(parameter) not in values:
            raise LutraError(
                f"{parameter} of interface {name} must be {' or '.join(values)}, not "
                f"{interface.parameters.get(parameter)}"
            )


def _associations(interfaces: Mapping[str, Interface]) -> None:
    """Refuse a clock that names what is not there, and a bus without a clock."""
    clocked: set[str] = set()
    for interface in interfaces.values():
        if not interface.kind.endswith(":clock:1.0"):
            continue
        buses = required(
            interface.parameters.get("ASSOCIATED_BUSIF"), f"ASSOCIATED_BUSIF of {interface.name}"
        ).split(":")
        reset = interface.parameters.get("ASSOCIATED_RESET", "")
        for bus in buses:
            if bus not in interfaces:
                raise LutraError(f"clock {interface.name} names a bus {bus} that is not there")
        if reset not in interfaces or not interfaces[reset].kind.endswith(":reset:1.0"):
            raise LutraError(f"clock {interface.name} must name a reset that is there, not {reset}")
        clocked |= {*buses}
    for interface in interfaces.values():
        if interface.kind.startswith("xilinx.com:interface:") and interface.name not in clocked:
            raise LutraError(f"interface {interface.name} has no clock: add it to ASSOCIATED_BUSIF")


def _all_mapped(interfaces: Mapping[str, Interface], ports: Mapping[str, tuple[bool, int]]) -> None:
    mapped = [port for interface in interfaces.values() for port in interface.ports.values()]
    unique(mapped, "port")
    for port in sorted(ports.keys() - set(mapped)):
        raise LutraError(f"port {port} belongs to no interface")


def _memory_map(memory_map: Element, name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    taken: dict[int, str] = {}
    for block in memory_map.findall(_tag("addressBlock")):
        what = f"address block {block.findtext(_tag('name'))} of {name}"
        n_bytes = number(block.findtext(_tag("range")), f"the range of {what}")
        if n_bytes & (n_bytes - 1) or n_bytes < 4096:
            raise LutraError(f"{what} must have a power of two of 4,096 bytes or more")
        for register in block.findall(_tag("register")):
            word, offset = _register(register, n_bytes, what)
            if word in found:
                raise LutraError(f"register {word} is there twice: give it once")
            if offset in taken:
                raise LutraError(f"registers {taken[offset]} and {word} are both at {offset:#x}")
            found[word], taken[offset] = offset, word
    return found


def _register(register: Element, n_bytes: int, what: str) -> tuple[str, int]:
    name = required(register.findtext(_tag("name")), f"the name of a register of {what}")
    children(register, [*map(_tag, _REGISTER_ORDER)], f"register {name}")
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise LutraError(f"register {name!r} must be a word of letters, digits and _")
    offset = number(register.findtext(_tag("addressOffset")), f"addressOffset of {name}")
    size = number(register.findtext(_tag("size")), f"size of {name}")
    if size != 32:
        raise LutraError(f"register {name} must have 32 bits, not {size}")
    if offset % 4 or not 0 <= offset < n_bytes:
        raise LutraError(
            f"register {name} must be at a multiple of 4 below {n_bytes:#x}, not {offset:#x}"
        )
    access = register.findtext(_tag("access"))
    if access not in _ACCESS:
        raise LutraError(f"access of {name} must be one of {', '.join(_ACCESS)}, not {access}")
    return name, offset


def _files(root: Element) -> Sequence[str]:
    sets = _named(root, "fileSets", "fileSet")
    model = root.find(_tag("model"))
    assert model is not None
    for reference in model.iter(_tag("fileSetRef")):
        named = reference.findtext(_tag("localName"))
        if named not in sets:
            raise LutraError(f"a view names a file set {named} that is not there")
    files: dict[str, None] = {}
    for name, element in sets.items():
        found = element.findall(_tag("file"))
        if not found:
            raise LutraError(f"file set {name} has no files")
        for file in found:
            path = required(file.findtext(_tag("name")), f"the name of a file of {name}")
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise LutraError(f"file {path} must be inside the folder of component.xml")
            if file.find(_tag("fileType")) is None and file.find(_tag("userFileType")) is None:
                raise LutraError(f"file {path} has no type")
            files[path] = None
    return [*files]
