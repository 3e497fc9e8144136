"""The handoff file of a design: registers, addresses and clock, as PYNQ's own parser has them."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lutra.devices.accelerator.hwh import ACCELERATOR, INTERRUPT_CONTROLLER, hwh
from lutra_golden.control.registers import REGISTERS
from lutra_golden.core.configs import NANO
from lutra_golden.core.packaging import REGISTER_BYTES, VLNV, register_words
from lutra_golden.timing.boards import find_profile

BOARD = find_profile("kv260")


def test_registers_are_those_of_the_register_map() -> None:
    root = ElementTree.fromstring(hwh(BOARD, NANO).split("\n", 1)[1])
    module = next(each for each in root.iter("MODULE") if each.get("INSTANCE") == ACCELERATOR)
    found = {
        str(register.get("NAME")): {
            str(each.get("NAME")): str(each.get("VALUE")) for each in register.iter("PROPERTY")
        }
        for register in module.iter("REGISTER")
    }
    assert {name: int(values["ADDRESS_OFFSET"], 16) for name, values in found.items()} == {
        word.name: word.address for word in register_words()
    }
    assert found["DOORBELL"]["ACCESS"] == "write-only"


def test_each_memory_port_has_one_of_the_processors() -> None:
    root = ElementTree.fromstring(hwh(BOARD, NANO).split("\n", 1)[1])
    ranges = {
        str(each.get("MASTERBUSINTERFACE")): str(each.get("SLAVEBUSINTERFACE"))
        for each in root.iter("MEMRANGE")
        if each.get("MEMTYPE") == "MEMORY"
    }
    assert ranges == {"m_axi_0": "S_AXI_HP0_FPD", "m_axi_1": "S_AXI_HP1_FPD"}


@pytest.mark.pynq
def test_pynqs_own_parser_finds_the_accelerator(tmp_path: Path) -> None:
    """At its address, with its registers, interrupt and clock."""
    path = tmp_path / "design.hwh"
    path.write_text(hwh(BOARD, NANO), encoding="utf-8")
    metadata: Any = import_module("pynqmetadata.frontends").Metadata
    parser: Any = import_module("pynqmetadata.views.runtime").RuntimeMetadataParser
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = parser(metadata(input=str(path)))
    entry = found.ip_dict[ACCELERATOR]
    assert entry["type"] == VLNV
    assert (entry["phys_addr"], entry["addr_range"]) == (BOARD.registers_base, REGISTER_BYTES)
    registers = entry["registers"]
    assert len(registers) == sum(register.count for register in REGISTERS.values())
    assert registers["TOKEN_1"]["address_offset"] == REGISTERS["TOKEN"].address + 4
    assert found.interrupt_pins[f"{ACCELERATOR}/interrupt"]["controller"] == INTERRUPT_CONTROLLER
    assert found.interrupt_controllers[INTERRUPT_CONTROLLER]["raw_irq"] == 121
    assert found.ip_dict[INTERRUPT_CONTROLLER]["phys_addr"] == BOARD.intc_base
    assert found.clock_dict[0]["frequency"] == BOARD.clock_hz / 1e6
    assert entry["parameters"]["LUTRA_FINGERPRINT"] == f"{NANO.fingerprint:016x}"
