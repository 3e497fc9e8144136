"""The register map has one definition: IP, handoff, driver, RTL and SystemRDL follow it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("amaranth")

from tests.flows.boards.projects import project

from lutra_flows.boards.registers import system_rdl
from lutra_golden.control.ap_ctrl import CTRL_BITS, WINDOW, XRT_REGISTERS
from lutra_golden.control.registers import IDENT, REGISTERS
from lutra_golden.core.packaging import register_words

ROOT = Path(__file__).resolve().parents[3]
_PLACE = re.compile(r"^    \} (\w+)(?:\[(\d+)\])? @(0x\w+)(?: \+= 4)?;$", re.M)


def _words(text: str) -> dict[str, int]:
    """Addresses of all words of an address map, by the names that IP-XACT has."""
    found: dict[str, int] = {}
    for name, count, address in _PLACE.findall(text):
        if count:
            found |= {f"{name}_{i}": int(address, 0) + 4 * i for i in range(int(count))}
        else:
            found[name] = int(address, 0)
    return found


def test_system_rdl_has_every_word() -> None:
    text = system_rdl()
    assert _words(text) == {word.name: word.address for word in register_words()}
    assert text.count("{") == text.count("}")


def test_system_rdl_of_a_kernel() -> None:
    text = system_rdl(xrt=True)
    own, kernel = text.split("addrmap kernel {")
    assert _words(own) == _words(system_rdl())
    assert f"accelerator own @{WINDOW:#x};" in kernel
    words = {
        name if register.count == 1 else f"{name}_{word}": register.address + 4 * word
        for name, register in XRT_REGISTERS.items()
        for word in range(register.count)
    }
    assert _words(kernel) == words
    for name, (bit, _, _) in CTRL_BITS.items():
        assert f"}} {name}[{bit}:{bit}];" in kernel


def test_access_is_that_of_the_registers() -> None:
    text = system_rdl()
    for name, register in REGISTERS.items():
        place = text.index(f"@{register.address:#05x}")
        body = text[text.rindex("reg {", 0, place) : place]
        assert ("sw = r;" in body) == (register.access == "ro"), name
        assert ("sw = w;" in body) == (register.access == "wo"), name
        assert ("woclr" in body) == (register.access == "w1c"), name


@pytest.mark.parametrize("name", ["kv260", "u50"])
def test_a_compiler_of_system_rdl_reads_it(name: str, tmp_path: Path) -> None:
    compiler = pytest.importorskip("systemrdl").RDLCompiler()
    path = tmp_path / "registers.rdl"
    path.write_text(project(name)["registers.rdl"])
    compiler.compile_file(str(path))
    top = compiler.elaborate(top_def_name="accelerator").top
    found = {node.get_path_segment(): node.absolute_address for node in top.registers(unroll=True)}
    assert len(found) == sum(1 for _ in register_words())


def test_all_follow_one_definition() -> None:
    command = [sys.executable, "-m", "tests.flows.boards.moved_registers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["places"] == dict.fromkeys(found["places"], 0x7F0)
    assert len(found["places"]) == 5
    assert found["rtl"] == IDENT
