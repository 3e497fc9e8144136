"""Counts a whole accelerator by units: each distinct unit is a netlist of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lutra_flows.synth.designs import TOP

__all__ = ["UnitNetlist", "split_units"]

_HEAD = re.compile(r"^module \\(\S+)$", re.M)
_CELL = re.compile(r"^  cell \\(\S+) ", re.M)
_PORT = re.compile(r"^  wire .*\b(?:input|output|inout) \d+ .*$", re.M)

# number of a port, in its wire
_PLACE = re.compile(r"(?<=put )\d+(?= )")
_STATEMENT = re.compile(
    r"""
    ^(?:\ {2}attribute\ .*\n+)*               # of what follows
    (?:\ {2})?(?!attribute\ |module\ |end\n)\w.*\n+
    (?:\ {4}.*\n+)*                           # parameters and connections, or a process
    (?:\ {2}end\n+)?
    """,
    re.M | re.X,
)


@dataclass(frozen=True, kw_only=True)
class UnitNetlist:
    """RTLIL whose module :data:`TOP` is one unit, or the top with its units as black boxes.

    ``count`` is the number of instances of the unit in the whole.
    """

    name: str
    netlist: str
    count: int = 1


def split_units(netlist: str, within: str = f"{TOP}.core") -> Sequence[UnitNetlist]:
    """Split ``netlist`` into the top and the distinct units that the module ``within`` consists of.

    A unit is a submodule of ``within`` with all that it contains. Two units that differ in their
    names and in the order of their ports are the same unit. The cells of the whole are those
    of every netlist returned, times its ``count``, less the instances of black boxes.
    """
    modules = _modules(netlist)
    names = list(dict.fromkeys(_CELL.findall(modules[within])))
    units: dict[tuple[str, ...], UnitNetlist] = {}
    for name in names:
        text = _renamed("".join(modules[n] for n in _subtree(modules, name)), name)
        key = _content(text)
        first = units.get(key)
        units[key] = UnitNetlist(
            name=first.name if first else name.removeprefix(f"{within}."),
            netlist=first.netlist if first else text,
            count=first.count + 1 if first else 1,
        )
    own = "".join(modules[n] for n in (TOP, within))
    boxes = "".join(_black_box(name, modules[name]) for name in names)
    return [UnitNetlist(name="top", netlist=own + boxes), *units.values()]


def _modules(netlist: str) -> Mapping[str, str]:
    """Text of every module, with its attributes, by name."""
    found: dict[str, str] = {}
    begin = 0
    for head in _HEAD.finditer(netlist):
        end = netlist.index("\nend\n", head.end()) + len("\nend\n")
        found[head[1]] = netlist[begin:end]
        begin = end
    return found


def _subtree(modules: Mapping[str, str], name: str) -> Sequence[str]:
    below = [n for n in dict.fromkeys(_CELL.findall(modules[name])) if n in modules]
    return [name, *(n for child in below for n in _subtree(modules, child))]


def _renamed(text: str, name: str) -> str:
    """``text`` with the unit ``name`` as :data:`TOP`, and its submodules below that."""
    text = re.sub(rf"(?<=\\){re.escape(name)}(?=[.\s])", TOP, text)
    return f"attribute \\top 1\n{text}" if "attribute \\top 1" not in text else text


def _content(text: str) -> tuple[str, ...]:
    """Statements of ``text`` in an order of their own: Amaranth orders ports by their first use."""
    found: list[str] = []
    for module in _modules(text).values():
        head, *_ = _HEAD.findall(module)
        statements = _STATEMENT.findall(_PLACE.sub("", module))
        # parameters and connections of a cell have no order either; lines of a process have
        plain = [_sorted_lines(s) if s.startswith("  cell ") else s for s in statements]
        found += [head, *sorted(plain)]
    return tuple(found)


def _sorted_lines(text: str) -> str:
    return "\n".join(sorted(text.splitlines()))


def _black_box(name: str, text: str) -> str:
    ports = "\n".join(_PORT.findall(text))
    return f"attribute \\blackbox 1\nmodule \\{name}\n{ports}\nend\n"
