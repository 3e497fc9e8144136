"""Netlists of components, with names that every tool takes."""

import re

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import (
    rtlil,  # pyright: ignore[reportAttributeAccessIssue]
    verilog,
)
from amaranth.lib.wiring import Component

from lutra_hw.widths import equal_widths

__all__ = ["to_clean_verilog", "to_rtlil", "to_verilog"]

# Amaranth's own script, without the optimisation that writes comparisons with zero as `!`, and
# without attributes: sources of other machines would differ
_WRITE = """\
read_rtlil <<rtlil
{text}
rtlil
proc -nomux -norom -noopt
memory_collect
attrmap {remove}
attrmap -modattr {remove}
write_verilog -norename
"""
_ATTRIBUTES = ("generator", "top", "src", "amaranth.hierarchy", "amaranth.decoding")
_ELEMENT_NAME = re.compile(r"\\[^\s\\\[]+\[\d+\]\S*")


def to_rtlil(component: Component, name: str) -> str:
    """RTLIL of the module ``name``; the same sources give the same text anywhere.

    Elements of an array ``scales`` are called ``scales.0``, ``scales.1``. As Amaranth calls them,
    they are called like bits of it, and Yosys fails (``findings/abc9-elements-of-a-port.sh``).
    """
    return _without_brackets(rtlil.convert(component, name=name, emit_src=False))


def to_verilog(component: Component, name: str) -> str:
    """Verilog of the module ``name``, with names as :func:`to_rtlil` has them."""
    text = verilog.convert(component, name=name, strip_internal_attrs=True, emit_src=False)
    return _without_brackets(text)


def to_clean_verilog(component: Component, name: str) -> str:
    """Verilog with operands of equal widths, for tools that warn of others; else as above."""
    yosys = find_yosys(lambda version: version >= (0, 40))
    remove = " ".join(f"-remove {attribute}" for attribute in _ATTRIBUTES)
    script = _WRITE.format(text=equal_widths(to_rtlil(component, name)), remove=remove)
    return yosys.run(["-q", "-"], script, ignore_warnings=True)


def _without_brackets(text: str) -> str:
    # a select has a space between the name and the bracket
    return _ELEMENT_NAME.sub(lambda name: re.sub(r"\[(\d+)\]", r".\1", name[0]), text)
