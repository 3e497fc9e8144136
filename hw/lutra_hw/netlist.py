"""Netlists of components, with names that every tool takes."""

import re

from amaranth.back import (
    rtlil,  # pyright: ignore[reportAttributeAccessIssue]
    verilog,
)
from amaranth.lib.wiring import Component

__all__ = ["to_rtlil", "to_verilog"]

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


def _without_brackets(text: str) -> str:
    # a select has a space between the name and the bracket
    return _ELEMENT_NAME.sub(lambda name: re.sub(r"\[(\d+)\]", r".\1", name[0]), text)
