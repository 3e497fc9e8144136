"""``component.xml``: what it says, and that its reader sees planted errors."""

import pytest

pytest.importorskip("amaranth")

from tests.flows.boards.projects import Change, cut, project, swap

from lutra_flows.boards.ipxact_reader import read_component
from lutra_flows.boards.project import COMPONENT
from lutra_golden.core.boards import BOARDS
from lutra_golden.core.packaging import VLNV, register_words
from lutra_golden.errors import LutraError

GOOD = "kv260"


@pytest.mark.parametrize("name", ["kv260", "kr260", "pynq_z2", "v80"])
def test_content(name: str) -> None:
    component, config = read_component(project(name)[COMPONENT]), BOARDS[name].config
    assert component.vlnv == VLNV
    assert component.registers == {word.name: word.address for word in register_words()}
    assert component.parameters == {
        "LUTRA_CONFIG": config.name,
        "LUTRA_FINGERPRINT": f"{config.fingerprint:016x}",
    }
    assert {*component.files} == {"lutra.v", "lutra_clock.xdc"}
    assert all(f"ip/{file}" in project(name) for file in component.files)
    buses = [i for i in component.interfaces.values() if "DATA_WIDTH" in i.parameters]
    widths = {i.name: int(i.parameters["DATA_WIDTH"]) for i in buses if i.is_master}
    assert widths == {f"m_axi_{n}": port.width for n, port in enumerate(config.ports)}
    assert component.interfaces["m_axi_0"].parameters["READ_WRITE_MODE"] == "READ_ONLY"


def _name(text: str) -> str:
    return f"<spirit:name>{text}</spirit:name>"


def _offset(text: str) -> str:
    return f"<spirit:addressOffset>{text}</spirit:addressOffset>"


def _other_root(text: str) -> str:
    return text.replace("<spirit:component ", "<spirit:design ").replace(
        "</spirit:component>", "</spirit:design>"
    )


ERRORS: dict[str, tuple[Change, str]] = {
    "no XML": (swap("</spirit:component>", ""), "component.xml is no XML"),
    "other root": (_other_root, "must begin with"),
    "other namespace": (
        lambda text: text.replace("SPIRIT/1685-2009", "SPIRIT/1685-2014"),
        "must begin with",
    ),
    "no vendor": (cut("<spirit:vendor>", "</spirit:vendor>"), "the component's vendor is missing"),
    "odd version": (swap("<spirit:version>", "<spirit:version>v"), "vendor:library:name:version"),
    "unknown element": (
        swap("<spirit:busInterfaces>", "<spirit:bus/><spirit:busInterfaces>"),
        "component has an unknown element bus",
    ),
    "order": (
        swap(
            "<spirit:busInterfaces>",
            "<spirit:description>x</spirit:description><spirit:busInterfaces>",
        ),
        "component must have busInterfaces before description",
    ),
    "interface twice": (swap(_name("m_axi_1"), _name("m_axi_0")), "m_axi_0 is there 2 times"),
    "abstraction of another bus": (
        swap('spirit:name="aximm_rtl"', 'spirit:name="axis_rtl"'),
        "abstractionType of interface s_axi_control must be",
    ),
    "bus of another kind": (
        lambda text: text.replace('spirit:name="interrupt', 'spirit:name="intr'),
        "interface interrupt has an unknown type",
    ),
    "master and slave": (
        swap("<spirit:slave>", "<spirit:master/><spirit:slave>"),
        "must be a master or a slave",
    ),
    "no such memory map": (
        swap('memoryMapRef="s_axi_control"', 'memoryMapRef="registers"'),
        "must name a memoryMapRef that is there, not registers",
    ),
    "no such address space": (
        swap('addressSpaceRef="m_axi_0"', 'addressSpaceRef="m_axi_7"'),
        "must name a addressSpaceRef that is there, not m_axi_7",
    ),
    "port that is not there": (
        swap(_name("s_axi_control_awaddr"), _name("s_axi_control_addr")),
        "maps AWADDR to s_axi_control_addr, which is no port",
    ),
    "signal twice": (swap(_name("ARVALID"), _name("AWVALID")), "maps AWVALID twice"),
    "signal that AXI has not": (
        swap(_name("AWPROT"), _name("AWSECURE")),
        "has AWSECURE, which AXI4LITE READ_WRITE has not",
    ),
    "signal missing": (swap(_name("WSTRB"), _name("WKEEP")), "has no WSTRB, which AXI4LITE"),
    "protocol": (swap(">AXI4LITE<", ">AXI5<"), "PROTOCOL of interface s_axi_control must be"),
    "mode": (
        swap(">READ_ONLY<", ">READ_WRITE<"),
        "interface m_axi_0 has no AWADDR, which AXI4 READ_WRITE needs",
    ),
    "width": (swap(">128</spirit:value>", ">256</spirit:value>"), "must have 256 bits, not 128"),
    "address space": (
        swap(f">{1 << 40}<", f">{1 << 32}<"),
        "address space m_axi_0 must have 1099511627776 bytes",
    ),
    "direction": (
        swap("<spirit:direction>out</spirit:direction>", "<spirit:direction>in</spirit:direction>"),
        "must be an output",
    ),
    "bits the wrong way round": (
        swap(
            '<spirit:right spirit:format="long">0</spirit:right>',
            '<spirit:right spirit:format="long">13</spirit:right>',
        ),
        "must have bits N:0, not 11:13",
    ),
    "bits missing": (swap(">11</spirit:left>", ">0</spirit:left>"), "must have 12 bits, not 1"),
    "clock names no bus": (
        swap(">s_axi_control:m_axi_0:", ">s_axi_control:m_axi_9:"),
        "clock ap_clk names a bus m_axi_9 that is not there",
    ),
    "bus without a clock": (
        swap(">s_axi_control:m_axi_0:", ">s_axi_control:"),
        "interface m_axi_0 has no clock",
    ),
    "clock names no reset": (
        swap(">ap_rst_n</spirit:value>", ">ap_rst</spirit:value>"),
        "clock ap_clk must name a reset that is there, not ap_rst",
    ),
    "polarity": (swap("ACTIVE_LOW", "LOW"), "POLARITY of interface ap_rst_n must be"),
    "sensitivity": (swap("LEVEL_HIGH", "LEVEL"), "SENSITIVITY of interface interrupt must be"),
    "register twice": (swap(_name("IDENT"), _name("VERSION")), "register VERSION is there twice"),
    "registers overlap": (
        swap(_offset("0x14"), _offset("0x10")),
        "registers CONTROL and STATUS are both at 0x10",
    ),
    "register outside": (
        swap(_offset("0x14"), _offset("0x1000")),
        "register STATUS must be at a multiple of 4 below 0x1000",
    ),
    "register unaligned": (
        swap(_offset("0x14"), _offset("0x16")),
        "register STATUS must be at a multiple of 4",
    ),
    "register without an address": (
        swap(_offset("0x14"), ""),
        "addressOffset of STATUS is missing",
    ),
    "access": (swap(">write-only<", ">wo<"), "access of CONTROL must be one of"),
    "size of a register": (
        swap(">32</spirit:size>", ">64</spirit:size>"),
        "register IDENT must have 32 bits, not 64",
    ),
    "range of the block": (
        swap(">4096</spirit:range>", ">3000</spirit:range>"),
        "must have a power of two of 4,096 bytes",
    ),
    "view of no tool": (
        swap(":vivado.xilinx.com:synthesis", ":ise.xilinx.com:synthesis"),
        "view xilinx_anylanguagesynthesis must be for one of",
    ),
    "no such file set": (
        swap("<spirit:localName>xilinx", "<spirit:localName>x"),
        "a view names a file set",
    ),
    "file elsewhere": (
        swap(_name("lutra.v"), _name("../lutra.v")),
        "file ../lutra.v must be inside the folder",
    ),
    "file of no type": (cut("<spirit:fileType>", "</spirit:fileType>"), "lutra.v has no type"),
    "parameter twice": (
        swap(_name("LUTRA_CONFIG"), _name("LUTRA_FINGERPRINT")),
        "parameter LUTRA_FINGERPRINT is there twice",
    ),
}


def test_enough_errors_are_planted() -> None:
    assert len(ERRORS) >= 20


@pytest.mark.parametrize("error", ERRORS)
def test_a_planted_error_is_refused(error: str) -> None:
    change, message = ERRORS[error]
    text = change(project(GOOD)[COMPONENT])
    with pytest.raises(LutraError) as found:
        read_component(text)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
