"""``kernel.xml`` and the memory banks: what they say, and that the reader sees planted errors."""

import configparser

import pytest

pytest.importorskip("amaranth")

from tests.flows.boards.projects import Change, cut, project, swap

from lutra_flows.boards.kernel import read_kernel
from lutra_golden.control.ap_ctrl import KERNEL, WINDOW, XRT_REGISTERS
from lutra_golden.core.boards import BOARDS
from lutra_golden.core.packaging import VLNV
from lutra_golden.errors import LutraError


@pytest.mark.parametrize("name", ["u50", "u55c"])
def test_content(name: str) -> None:
    kernel = read_kernel(project(name)["kernel.xml"])
    assert (kernel.name, kernel.vlnv) == (KERNEL, VLNV)
    assert kernel.masters == {"m_axi_0": 512}
    (argument,) = kernel.arguments
    assert argument.offset == XRT_REGISTERS["DESCRIPTOR"].address
    assert argument.port == "m_axi_0"
    assert f'range="{2 * WINDOW:#x}"' in project(name)["kernel.xml"]


@pytest.mark.parametrize("name", ["u50", "u55c"])
def test_banks(name: str) -> None:
    board = BOARDS[name]
    config = configparser.ConfigParser(delimiters=("=",))
    config.read_string("[top]\n" + project(name)["link.cfg"])
    assert config["top"]["platform"] == board.platform
    assert config["connectivity"]["nk"] == f"{KERNEL}:1:{KERNEL}_1"
    assert config["connectivity"]["sp"] == f"{KERNEL}_1.descriptor:HBM[0:31]"
    assert config["clock"]["freqhz"] == f"{board.config.clock_hz}:{KERNEL}_1"


_SECOND = (
    '<arg name="descriptor" addressQualifier="1" id="1" port="m_axi_0" size="0x8" offset="0x18" '
    'hostOffset="0x8" hostSize="0x8" type="void*"/></args>'
)
ERRORS: dict[str, tuple[Change, str]] = {
    "no XML": (swap("</root>", ""), "kernel.xml is no XML"),
    "root": (lambda text: text.replace("root", "top"), "kernel.xml must begin with root"),
    "version": (swap('versionMinor="6"', 'versionMinor="0"'), "must have version 1.6, not 1.0"),
    "two kernels": (swap("</root>", "<kernel/></root>"), "must have one kernel, not 2"),
    "unknown element": (swap("<ports>", "<pipes/><ports>"), "an unknown element pipes"),
    "order": (swap("<ports>", "<args/><ports>"), "must have ports before args"),
    "no name": (swap('<kernel name="lutra" ', "<kernel "), "name of the kernel is missing"),
    "odd name": (swap('<kernel name="lutra"', '<kernel name="lu-tra"'), "must be a word"),
    "language": (swap('"ip_c"', '"c"'), "language of kernel lutra must be 'ip_c'"),
    "protocol": (swap("ap_ctrl_chain", "user_managed"), "hwControlProtocol of kernel lutra"),
    "no interrupt": (swap('interrupt="true"', 'interrupt="false"'), "interrupt of kernel lutra"),
    "vlnv": (swap(f'vlnv="{VLNV}"', 'vlnv="lutra"'), "vlnv of kernel lutra must be"),
    "port twice": (
        swap('name="m_axi_0" mode', 'name="s_axi_control" mode'),
        "port s_axi_control is there 2 times",
    ),
    "name of the slave": (
        swap('name="s_axi_control"', 'name="s_axi"'),
        "the one slave must be s_axi_control, not s_axi",
    ),
    "width of the slave": (swap('dataWidth="32"', 'dataWidth="64"'), "must be 32, not 64"),
    "range of the slave": (swap('range="0x2000"', 'range="0x20000"'), "4 KB to 64 KB"),
    "range of a master": (
        swap("0xFFFFFFFFFFFFFFFF", "0xFFFFFFFF"),
        "range of master m_axi_0 must be",
    ),
    "width of a master": (swap('dataWidth="512"', 'dataWidth="500"'), "must be that of AXI4"),
    "mode": (swap('mode="master"', 'mode="read_only"'), "mode of port m_axi_0 must be"),
    "kind of port": (swap('portType="addressable"', 'portType="stream"'), "must be addressable"),
    "base": (swap('base="0x0"', 'base="0x1000"'), "base of port s_axi_control must be 0x0"),
    "id": (swap('id="0"', 'id="1"'), "id of argument descriptor must be 0"),
    "qualifier": (swap('addressQualifier="1"', 'addressQualifier="0"'), "must be 1, a pointer"),
    "port of an argument": (
        swap('port="m_axi_0"', 'port="m_axi_1"'),
        "must be a master that is there, not m_axi_1",
    ),
    "size": (swap('size="0x8"', 'size="0x4"'), "size and hostSize of pointer descriptor"),
    "offset among the handshake": (swap('offset="0x10"', 'offset="0xc"'), "from 0x10 on"),
    "offset outside": (swap('offset="0x10"', 'offset="0x1ffc"'), "within the slave's range"),
    "no number": (swap('offset="0x10"', 'offset="ten"'), "must be a whole number, not 'ten'"),
    "offset at the host": (swap('hostOffset="0x0"', 'hostOffset="0x8"'), "must be 0x0"),
    "type": (swap('type="void*"', 'type="int"'), "type of argument descriptor must be a pointer"),
    "argument twice": (swap("</args>", _SECOND), "argument descriptor is there 2 times"),
    "arguments overlap": (
        swap("</args>", _SECOND.replace('"0x18"', '"0x14"').replace("descriptor", "other")),
        "arguments descriptor and other share a register",
    ),
    "master without an argument": (
        cut('<arg name="descriptor"', "/>"),
        "master m_axi_0 has no argument",
    ),
}


def test_enough_errors_are_planted() -> None:
    assert len(ERRORS) >= 20


@pytest.mark.parametrize("error", ERRORS)
def test_a_planted_error_is_refused(error: str) -> None:
    change, message = ERRORS[error]
    text = change(project("u50")["kernel.xml"])
    with pytest.raises(LutraError) as found:
        read_kernel(text)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
