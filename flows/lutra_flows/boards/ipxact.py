"""``component.xml``: the accelerator as packaged IP, in IP-XACT 1685-2009 as Vivado reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from lutra_flows.boards.pins import CLOCK, RESET, Bus, Role, TopPins
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.packaging import (
    INTERRUPT,
    IP_NAME,
    IP_VERSION,
    REGISTER_BYTES,
    register_words,
)

__all__ = ["ADDRESS_BLOCK", "SPIRIT", "XILINX", "component_xml"]

SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
XILINX = "http://www.xilinx.com"
ADDRESS_BLOCK = "reg0"
_VIEWS = {
    "xilinx_anylanguagesynthesis": ":vivado.xilinx.com:synthesis",
    "xilinx_anylanguagebehavioralsimulation": ":vivado.xilinx.com:simulation",
}


def component_xml(top: TopPins, config: AcceleratorConfig, verilog: str, constraints: str) -> str:
    """IP-XACT of ``top``, with the paths of its Verilog and of the constraints for it alone."""
    ElementTree.register_namespace("spirit", SPIRIT)
    ElementTree.register_namespace("xilinx", XILINX)
    root = Element(_spirit("component"))
    for tag, value in zip(
        ("vendor", "library", "name", "version"), (*IP_NAME.split(":"), IP_VERSION), strict=True
    ):
        _add(root, tag, value)
    _interfaces(_add(root, "busInterfaces"), top)
    _spaces(_add(root, "addressSpaces"), top)
    _registers(_add(root, "memoryMaps"), top.control)
    _model(_add(root, "model"), top)
    _files(_add(root, "fileSets"), verilog, constraints)
    _add(root, "description", "Lutra, an accelerator of low-bit language models")
    _parameters(root, _settings(config))
    _extensions(root)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _settings(config: AcceleratorConfig) -> Mapping[str, str]:
    """Parameters that a driver finds in the hardware handoff."""
    return {"LUTRA_CONFIG": config.name, "LUTRA_FINGERPRINT": f"{config.fingerprint:016x}"}


def _spirit(tag: str) -> str:
    return f"{{{SPIRIT}}}{tag}"


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    element = ElementTree.SubElement(
        parent, _spirit(tag), {_spirit(name): value for name, value in attributes.items()}
    )
    element.text = text
    return element


def _name(parent: Element, tag: str, name: str) -> Element:
    element = _add(parent, tag)
    _add(element, "name", name)
    return element


def _vlnv(parent: Element, tag: str, vlnv: str) -> None:
    vendor, library, name, version = vlnv.split(":")
    _add(parent, tag, vendor=vendor, library=library, name=name, version=version)


def _parameters(parent: Element, values: Mapping[str, str]) -> None:
    parameters = _add(parent, "parameters")
    owner = parent.findtext(_spirit("name"), "")
    for name, value in values.items():
        parameter = _name(parameters, "parameter", name)
        _add(parameter, "value", value, id=f"PARAM_VALUE.{owner}.{name}".upper())


def _interfaces(parent: Element, top: TopPins) -> None:
    for bus in top.buses:
        interface = _name(parent, "busInterface", bus.name)
        _vlnv(interface, "busType", "xilinx.com:interface:aximm:1.0")
        _vlnv(interface, "abstractionType", "xilinx.com:interface:aximm_rtl:1.0")
        if bus.role == Role.CONTROL:
            slave = _add(interface, "slave")
            _add(slave, "memoryMapRef", memoryMapRef=bus.name)
        else:
            master = _add(interface, "master")
            _add(master, "addressSpaceRef", addressSpaceRef=bus.name)
        signals = {signal.upper(): pin.name for signal, pin in bus.signals.items()}
        _port_maps(interface, signals)
        _parameters(interface, dict(_axi(bus)))
    buses = ":".join(bus.name for bus in top.buses)
    _signal(
        parent, CLOCK, "clock", "CLK", is_slave=True,
        parameters={"ASSOCIATED_BUSIF": buses, "ASSOCIATED_RESET": RESET},
    )  # fmt: skip
    _signal(parent, RESET, "reset", "RST", is_slave=True, parameters={"POLARITY": "ACTIVE_LOW"})
    _signal(
        parent, INTERRUPT, "interrupt", "INTERRUPT", is_slave=False,
        parameters={"SENSITIVITY": "LEVEL_HIGH"},
    )  # fmt: skip


def _axi(bus: Bus) -> Iterator[tuple[str, str]]:
    """Parameters of an AXI interface (Vivado, UG1118)."""
    yield "DATA_WIDTH", str(bus.data_width)
    yield "ADDR_WIDTH", str(bus.address_width)
    if bus.role == Role.CONTROL:
        yield "PROTOCOL", "AXI4LITE"
    else:
        yield "PROTOCOL", "AXI4"
        yield "SUPPORTS_NARROW_BURST", "0"
        yield "HAS_BURST", "1"
    yield "READ_WRITE_MODE", bus.mode


def _signal(
    parent: Element,
    name: str,
    kind: str,
    logical: str,
    *,
    is_slave: bool,
    parameters: Mapping[str, str],
) -> None:
    interface = _name(parent, "busInterface", name)
    _vlnv(interface, "busType", f"xilinx.com:signal:{kind}:1.0")
    _vlnv(interface, "abstractionType", f"xilinx.com:signal:{kind}_rtl:1.0")
    _add(interface, "slave" if is_slave else "master")
    _port_maps(interface, {logical: name})
    _parameters(interface, parameters)


def _port_maps(interface: Element, signals: Mapping[str, str]) -> None:
    maps = _add(interface, "portMaps")
    for logical, physical in signals.items():
        port_map = _add(maps, "portMap")
        _name(port_map, "logicalPort", logical)
        _name(port_map, "physicalPort", physical)


def _spaces(parent: Element, top: TopPins) -> None:
    for bus in top.masters:
        space = _name(parent, "addressSpace", bus.name)
        _add(space, "range", str(1 << bus.address_width), format="long")
        _add(space, "width", str(bus.data_width), format="long")


def _registers(parent: Element, control: Bus) -> None:
    memory_map = _name(parent, "memoryMap", control.name)
    block = _name(memory_map, "addressBlock", ADDRESS_BLOCK)
    _add(block, "baseAddress", "0", format="long")
    _add(block, "range", str(REGISTER_BYTES), format="long")
    _add(block, "width", "32", format="long")
    _add(block, "usage", "register")
    _add(block, "access", "read-write")
    for word in register_words():
        register = _name(block, "register", word.name)
        _add(register, "description", word.doc)
        _add(register, "addressOffset", f"{word.address:#x}")
        _add(register, "size", "32", format="long")
        _add(register, "access", word.access)


def _model(parent: Element, top: TopPins) -> None:
    views = _add(parent, "views")
    for view, environment in _VIEWS.items():
        element = _name(views, "view", view)
        _add(element, "envIdentifier", environment)
        _add(element, "language", "Verilog")
        _add(element, "modelName", top.name)
        _name_reference(element, f"{view}_view_fileset")
    ports = _add(parent, "ports")
    for pin in top.pins:
        wire = _add(_name(ports, "port", pin.name), "wire")
        _add(wire, "direction", "in" if pin.is_input else "out")
        if pin.width > 1:
            vector = _add(wire, "vector")
            _add(vector, "left", str(pin.width - 1), format="long")
            _add(vector, "right", "0", format="long")
        types = _add(_add(wire, "wireTypeDefs"), "wireTypeDef")
        _add(types, "typeName", "wire")
        for view in _VIEWS:
            _add(types, "viewNameRef", view)


def _name_reference(view: Element, files: str) -> None:
    reference = _add(view, "fileSetRef")
    _add(reference, "localName", files)


def _files(parent: Element, verilog: str, constraints: str) -> None:
    for view in _VIEWS:
        files = _name(parent, "fileSet", f"{view}_view_fileset")
        _file(files, verilog, ("fileType", "verilogSource"))
        if "synthesis" in view:
            kinds = ("xdc", "USED_IN_synthesis", "USED_IN_out_of_context")
            _file(files, constraints, *(("userFileType", kind) for kind in kinds))


def _file(parent: Element, path: str, *kinds: tuple[str, str]) -> None:
    element = _name(parent, "file", path)
    for tag, kind in kinds:
        _add(element, tag, kind)


def _extensions(root: Element) -> None:
    """Families of FPGAs, and the place in Vivado's catalog."""

    def add(parent: Element, tag: str, text: str | None = None) -> Element:
        element = ElementTree.SubElement(parent, f"{{{XILINX}}}{tag}")
        element.text = text
        return element

    core = add(_add(root, "vendorExtensions"), "coreExtensions")
    families = add(core, "supportedFamilies")
    for family in ("zynq", "zynquplus", "virtexuplusHBM", "versal", "versalhbm"):
        element = add(families, "family", family)
        element.set(f"{{{XILINX}}}lifeCycle", "Beta")
    add(add(core, "taxonomies"), "taxonomy", "/UserIP")
    add(core, "displayName", "Lutra")
    add(core, "coreRevision", "1")
