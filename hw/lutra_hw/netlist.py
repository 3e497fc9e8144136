"""Netlists of components, with names that every tool takes."""

import re
from collections.abc import Iterator
from typing import Any

from amaranth._toolchain.yosys import find_yosys
from amaranth.back import (
    rtlil,  # pyright: ignore[reportAttributeAccessIssue]
    verilog,
)
from amaranth.hdl import Fragment, Value
from amaranth.hdl._ir import PortDirection
from amaranth.lib import data
from amaranth.lib.wiring import Component, In

from lutra_hw.widths import equal_widths

__all__ = ["to_clean_verilog", "to_named_verilog", "to_rtlil", "to_verilog"]

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
    return to_named_verilog(component, name)[0]


def to_named_verilog(component: Component, name: str) -> tuple[str, dict[str, dict[str, object]]]:
    """Verilog as :func:`to_verilog` has it, and the ports of the components inside ``component``.

    A key is the path of a component and the port, ``core.load.rd_cmd__valid``; what has no name has
    none. ``wire`` is the path of its wire in the netlist; ``fields`` are the first bit and width of
    each field of a structure.
    """
    fragment = Fragment.get(component, None)
    text, names = verilog.convert_fragment(
        fragment, _own_ports(component), name, strip_internal_attrs=True, emit_src=False
    )
    return _without_brackets(text), _ports_inside(fragment, names)


def to_clean_verilog(component: Component, name: str) -> str:
    """Verilog with operands of equal widths, for tools that warn of others; else as above."""
    yosys = find_yosys(lambda version: version >= (0, 40))
    remove = " ".join(f"-remove {attribute}" for attribute in _ATTRIBUTES)
    script = _WRITE.format(text=equal_widths(to_rtlil(component, name)), remove=remove)
    return yosys.run(["-q", "-"], script, ignore_warnings=True)


def _ports_inside(fragment: Fragment, names: Any) -> dict[str, dict[str, object]]:
    """Ports of the components in a fragment, by the paths of signals in its netlist."""
    found: dict[str, dict[str, object]] = {}
    for path, inner in _components(fragment, ()):
        for port, _, value in inner.signature.flatten(inner):
            signal = Value.cast(value)
            if signal not in names:
                continue
            shape, fields = value.shape(), {}
            if isinstance(shape, data.StructLayout):
                fields = {key: (field.offset, field.width) for key, field in shape}
            key = ".".join((*path, "__".join(map(str, port))))
            found[key] = {"wire": ".".join(names[signal]), "fields": fields}
    return found


def _own_ports(component: Component) -> dict[str, tuple[Value, PortDirection]]:
    """Ports of the component itself."""
    return {
        "__".join(map(str, path)): (
            Value.cast(value),
            PortDirection.Input if member.flow == In else PortDirection.Output,
        )
        for path, member, value in component.signature.flatten(component)
    }


def _components(
    fragment: Fragment, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Component]]:
    """The components inside a fragment that have a name, each with its path."""
    for inner, name, _ in fragment.subfragments:
        if name is None:
            continue
        place = (*path, name)
        yield from ((place, each) for each in inner.origins or () if isinstance(each, Component))
        yield from _components(inner, place)


def _without_brackets(text: str) -> str:
    # a select has a space between the name and the bracket
    return _ELEMENT_NAME.sub(lambda name: re.sub(r"\[(\d+)\]", r".\1", name[0]), text)
