"""Moves a register in the one definition, and prints where its consumers have it then, as JSON.

A process of its own: what is imported before the definition changes would keep the old one.
"""

import json
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from lutra_golden.control.registers import REGISTERS

NAME, PLACE = "IDENT", 0x7F0
REGISTERS[NAME] = replace(REGISTERS[NAME], address=PLACE)

from amaranth.sim import Simulator
from tests.flows.boards.projects import project

from lutra.devices.accelerator import pynq
from lutra.devices.accelerator.hwh import hwh
from lutra_flows.boards.ipxact_reader import read_component
from lutra_flows.boards.project import COMPONENT
from lutra_flows.reference import registers_page
from lutra_golden.core.configs import KV260
from lutra_golden.timing.boards import find_profile
from lutra_hw.control.registers import RegisterFile


def read_rtl(address: int) -> int:
    """Answer of the RTL to a read over AXI4-Lite."""
    dut: Any = RegisterFile(KV260)  # its ports exist at run time only
    simulator = Simulator(dut)
    simulator.add_clock(1e-8)
    found: list[int] = []

    async def read(ctx):
        ctx.set(dut.s_axi.rready, 1)
        ctx.set(dut.s_axi.araddr, address)
        ctx.set(dut.s_axi.arvalid, 1)
        await ctx.tick().until(dut.s_axi.arready)
        ctx.set(dut.s_axi.arvalid, 0)
        (data,) = await ctx.tick().sample(dut.s_axi.rdata).until(dut.s_axi.rvalid)
        found.append(data)

    simulator.add_testbench(read)
    simulator.run()
    return found[0]


def main() -> None:
    """Print the places."""
    files = project("kv260")
    handoff = ElementTree.fromstring(hwh(find_profile("kv260"), KV260))
    offset = handoff.find(f".//REGISTER[@NAME='{NAME}']/PROPERTY[@NAME='ADDRESS_OFFSET']")
    assert offset is not None
    rdl = re.search(rf"}} {NAME} @(0x\w+);", files["registers.rdl"])
    page = re.search(rf"\| (0x\w+) \| `{NAME}` \|", registers_page())
    assert rdl and page
    places = {
        "component.xml": read_component(files[COMPONENT]).registers[NAME],
        "SystemRDL": int(rdl[1], 0),
        "hardware handoff": int(offset.attrib["VALUE"], 0),
        "driver": vars(pynq)["_ADDRESSES"][NAME],
        "documentation": int(page[1], 0),
    }
    print(json.dumps({"places": places, "rtl": read_rtl(PLACE)}))


if __name__ == "__main__":
    main()
