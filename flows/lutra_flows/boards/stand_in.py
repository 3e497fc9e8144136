"""Stand-in for Vivado, to which the scripts can be run: it records every command and checks it.

A command, option, IP, parameter, pin or segment that is not in :mod:`vivado_table` is refused. So
is a design with a pin, bus or address that was forgotten. Nothing is synthesised, and what the
table has wrong, only Vivado can tell.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lutra_flows.boards.ipxact import ADDRESS_BLOCK
from lutra_flows.boards.ipxact_reader import Component
from lutra_flows.boards.vivado_table import COMMANDS, IPS, PROPERTIES, Command, Ip
from lutra_golden.core.packaging import REGISTER_PORT
from lutra_golden.errors import LutraError

__all__ = ["StandIn"]

_BOARD_FILES = (
    "xilinx.com:kv260_som:part0:1.4",
    "xilinx.com:kr260_som:part0:1.1",
    "tul.com.tw:pynq-z2:part0:1.0",
)
_RULES = {
    "xilinx.com:bd_rule:zynq_ultra_ps_e": "xilinx.com:ip:zynq_ultra_ps_e",
    "xilinx.com:bd_rule:processing_system7": "xilinx.com:ip:processing_system7",
}


@dataclass
class _Cell:
    name: str
    kind: str
    ip: Ip
    parameters: dict[str, str] = field(default_factory=dict)
    nets: dict[str, str] = field(default_factory=dict)
    """Driver of each pin that is connected."""
    peers: dict[str, tuple[_Cell, str]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return self.ip.is_enabled(name, self.parameters)


@dataclass
class _Arguments:
    """Words of a call, told apart."""

    flags: set[str]
    options: dict[str, str]
    words: list[str]


class StandIn:
    """The Vivado that a script sees. ``calls`` are all commands, in their order.

    ``component`` is the packaged IP that its catalog has beside the vendor's, ``has_board_files``
    if the settings of the board are installed, ``split`` splits a list of Tcl.
    """

    def __init__(
        self,
        split: Callable[[str], Sequence[str]],
        component: Component | None = None,
        *,
        has_board_files: bool = True,
        version: str = "2022.2",
    ) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.version = version
        self._split = split
        self._component = component
        self._has_board_files = has_board_files
        self._cells: dict[str, _Cell] = {}
        self.addresses: dict[tuple[str, str], tuple[int, int]] = {}
        """Base and bytes of each segment in each address space."""
        self._excluded: set[tuple[str, str]] = set()
        self._folder = Path()
        self._project = ""
        self._design = ""
        self._properties: dict[tuple[str, str], str] = {}
        self._has_run = False
        self.kernel_registers: dict[str, dict[str, str]] = {}
        """Properties of the registers that a kernel's script adds, by name."""

    def call(self, name: str, *words: str) -> str:
        """Answer a command; LutraError says why Vivado would not take it."""
        command = COMMANDS.get(name)
        if command is None:
            raise LutraError(f"{name} is not in the table of Vivado's commands")
        self.calls.append((name, *words))
        arguments = _parse(name, command, words)
        answer = getattr(self, f"_{name.replace('::', '_')}", None)
        return answer(arguments) if answer is not None else f"{name}|"

    # project and files

    def _version(self, _: _Arguments) -> str:
        return self.version

    def _create_project(self, arguments: _Arguments) -> str:
        self._project, folder = arguments.words
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        return "project|"

    def _current_project(self, _: _Arguments) -> str:
        return "project|"

    def _current_fileset(self, _: _Arguments) -> str:
        return "fileset|"

    def _current_design(self, _: _Arguments) -> str:
        return "design|"

    def _get_board_parts(self, arguments: _Arguments) -> str:
        (pattern,) = arguments.words
        found = [name for name in _BOARD_FILES if fnmatch.fnmatch(name, pattern)]
        if not found:
            raise LutraError(f"no board files match {pattern}")
        return " ".join(found) if self._has_board_files else ""

    def _get_runs(self, arguments: _Arguments) -> str:
        if arguments.words[0] != "impl_1":
            raise LutraError(f"there is no run {arguments.words[0]}")
        return "run|"

    def _get_files(self, arguments: _Arguments) -> str:
        if arguments.words[0] != f"{self._design}.bd":
            raise LutraError(f"there is no file {arguments.words[0]}")
        return arguments.words[0]

    def _add_files(self, arguments: _Arguments) -> str:
        (path,) = arguments.words
        if not Path(path).is_file() and not path.endswith("_wrapper.v"):
            raise LutraError(f"there is no file {path}")
        return path

    def _make_wrapper(self, _: _Arguments) -> str:
        return f"{self._design}_wrapper.v"

    def _launch_runs(self, _: _Arguments) -> str:
        self._has_run = True
        made = (
            self._folder / f"{self._project}.runs/impl_1/{self._design}_wrapper.bit",
            self._folder
            / f"{self._project}.gen/sources_1/bd/{self._design}/hw_handoff/{self._design}.hwh",
        )
        for path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return ""

    def _open_run(self, _: _Arguments) -> str:
        if not self._has_run:
            raise LutraError("open_run before launch_runs: there is nothing to open")
        return "design|"

    def _get_property(self, arguments: _Arguments) -> str:
        name, target = arguments.words
        kind = target.partition("|")[0]
        if name not in PROPERTIES.get(kind, {}):
            raise LutraError(f"a {kind} has no property {name}")
        known = {"PROGRESS": "100%", "STATUS": "write_bitstream Complete!"}
        known["DIRECTORY"] = str(self._folder)
        return known.get(name, self._properties.get((kind, name), ""))

    def _set_property(self, arguments: _Arguments) -> str:
        if "-dict" in arguments.options:
            values = self._split(arguments.options["-dict"])
            if len(values) % 2 or len(arguments.words) != 1:
                raise LutraError("set_property -dict must have pairs and one object")
            pairs = [*zip(values[::2], values[1::2], strict=True)]
        else:
            if len(arguments.words) != 3:
                raise LutraError("set_property must have a name, a value and an object")
            pairs = [(arguments.words[0], arguments.words[1])]
        target = arguments.words[-1]
        for name, value in pairs:
            self._set(target, name, value)
        return ""

    def _set(self, target: str, name: str, value: str) -> None:
        kind, _, which = target.partition("|")
        if kind == "cell":
            cell = self._cells[which]
            parameter = name.removeprefix("CONFIG.")
            pattern = cell.ip.parameters.get(parameter)
            if pattern is None or not name.startswith("CONFIG."):
                raise LutraError(f"{cell.kind} ({cell.ip.source}) has no parameter {name}")
            if not re.fullmatch(pattern, value):
                raise LutraError(f"{name} of {cell.kind} must match {pattern}, not {value}")
            cell.parameters[parameter] = value
            return
        pattern = PROPERTIES.get(kind, {}).get(name)
        if pattern is None:
            raise LutraError(f"a {kind} has no property {name}")
        if not re.fullmatch(pattern, value):
            raise LutraError(f"{name} of a {kind} must match {pattern}, not {value}")
        self._properties[kind, name] = value
        if kind == "register":
            self.kernel_registers[which][name] = value

    # block design

    def _create_bd_design(self, arguments: _Arguments) -> str:
        (self._design,) = arguments.words
        return self._design

    def _create_bd_cell(self, arguments: _Arguments) -> str:
        (name,) = arguments.words
        kind = arguments.options["-vlnv"]
        if arguments.options["-type"] != "ip":
            raise LutraError(f"cell {name} must be of type ip")
        if name in self._cells:
            raise LutraError(f"cell {name} is there already")
        own = self._component
        if own is not None and kind == own.vlnv:
            ip = _packaged(own)
        elif kind in IPS:
            ip = IPS[kind]
        else:
            raise LutraError(f"{kind} is not in the table of IP")
        self._cells[name] = _Cell(name=name, kind=kind, ip=ip)
        return f"cell|{name}"

    def _get_bd_cells(self, arguments: _Arguments) -> str:
        return f"cell|{self._cell(arguments.words[0]).name}"

    def _cell(self, name: str) -> _Cell:
        if name not in self._cells:
            raise LutraError(f"there is no cell {name}")
        return self._cells[name]

    def _end(self, path: str, names: Callable[[Ip], Sequence[str]], what: str) -> tuple[_Cell, str]:
        cell_name, _, name = path.partition("/")
        cell = self._cell(cell_name)
        if name not in names(cell.ip):
            raise LutraError(f"{cell.kind} ({cell.ip.source}) has no {what} {name}")
        if not cell.has(name):
            raise LutraError(f"{what} {path} is not enabled by the parameters of {cell_name}")
        return cell, name

    def _get_bd_pins(self, arguments: _Arguments) -> str:
        self._end(arguments.words[0], lambda ip: (*ip.inputs, *ip.outputs), "pin")
        return f"pin|{arguments.words[0]}"

    def _get_bd_intf_pins(self, arguments: _Arguments) -> str:
        self._end(arguments.words[0], lambda ip: (*ip.masters, *ip.slaves), "interface")
        return f"interface|{arguments.words[0]}"

    def _connect_bd_net(self, arguments: _Arguments) -> str:
        ends = [
            self._end(word.removeprefix("pin|"), lambda ip: (*ip.inputs, *ip.outputs), "pin")
            for word in arguments.words
        ]
        drivers = [(cell, pin) for cell, pin in ends if pin in cell.ip.outputs]
        if len(drivers) != 1:
            raise LutraError(f"a net must have one output, not {len(drivers)}: {arguments.words}")
        source = f"{drivers[0][0].name}/{drivers[0][1]}"
        for cell, pin in ends:
            if pin in cell.ip.inputs and pin in cell.nets:
                raise LutraError(f"{cell.name}/{pin} is connected already")
            cell.nets[pin] = source
        return ""

    def _connect_bd_intf_net(self, arguments: _Arguments) -> str:
        (master, first), (slave, second) = (
            self._end(
                word.removeprefix("interface|"), lambda ip: (*ip.masters, *ip.slaves), "interface"
            )
            for word in arguments.words
        )
        if first not in master.ip.masters or second not in slave.ip.slaves:
            raise LutraError(
                f"{master.name}/{first} must be a master and {slave.name}/{second} a slave"
            )
        for cell, name in ((master, first), (slave, second)):
            if name in cell.peers:
                raise LutraError(f"{cell.name}/{name} is connected already")
        master.peers[first], slave.peers[second] = (slave, second), (master, first)
        return ""

    def _apply_bd_automation(self, arguments: _Arguments) -> str:
        cell = self._cell(arguments.words[0].removeprefix("cell|"))
        if _RULES.get(arguments.options["-rule"]) != cell.kind:
            raise LutraError(f"{arguments.options['-rule']} is no rule of {cell.kind}")
        options = self._split(arguments.options["-config"])
        known = {"apply_board_preset", "make_external", "Master", "Slave"}
        if len(options) % 2 or not {*options[::2]} <= known:
            raise LutraError(f"options of the rule must be of {known}, not {options}")
        return ""

    # addresses

    def _get_bd_addr_spaces(self, arguments: _Arguments) -> str:
        (space,) = arguments.words
        cell_name, _, name = space.partition("/")
        cell = self._cell(cell_name)
        if name != cell.ip.space and (cell.ip.space or name not in cell.ip.masters):
            raise LutraError(f"{cell.kind} has no address space {name}")
        return f"space|{space}"

    def _get_bd_addr_segs(self, arguments: _Arguments) -> str:
        (segment,) = arguments.words
        if self._segment(segment) is None:
            if "-quiet" in arguments.flags:
                return ""
            raise LutraError(f"there is no address segment {segment}")
        return f"segment|{segment}"

    def _segment(self, path: str) -> tuple[int, int] | None:
        """Base and bytes of a segment: of memory as it is, of registers (0, 0); None if none."""
        cell_name, _, name = path.partition("/")
        cell = self._cells.get(cell_name)
        if cell is None:
            return None
        if cell.ip.registers and name == cell.ip.registers:
            return 0, 0
        for interface, (prefix, rule) in cell.ip.segments.items():
            short = name.removeprefix(prefix)
            if short == name or short not in rule.segments or not cell.has(interface):
                continue
            if short in rule.board_only and not self._has_board_files:
                continue
            return rule.segments[short]
        return None

    def _assign_bd_address(self, arguments: _Arguments) -> str:
        segment = arguments.words[0].removeprefix("segment|")
        space = arguments.options["-target_address_space"].removeprefix("space|")
        base, n_bytes = (int(arguments.options[name], 0) for name in ("-offset", "-range"))
        found = self._segment(segment)
        assert found is not None
        if n_bytes < 4096 or n_bytes & (n_bytes - 1) or base % n_bytes:
            raise LutraError(
                f"the range of {segment} must be a power of two of 4 KB or more, at a multiple of "
                f"it, not {n_bytes:#x} at {base:#x}"
            )
        window = self._cell(space.partition("/")[0]).ip.window if found == (0, 0) else found
        if not window[0] <= base <= base + n_bytes <= window[0] + window[1]:
            raise LutraError(f"{segment} at {base:#x} is not within {space}, {window[0]:#x} on")
        for (other_space, other), (first, size) in self.addresses.items():
            if other_space == space and base < first + size and first < base + n_bytes:
                raise LutraError(f"{segment} and {other} overlap in {space}")
        if (space, segment) in self.addresses:
            raise LutraError(f"{segment} has an address in {space} already")
        self.addresses[space, segment] = base, n_bytes
        return ""

    def _exclude_bd_addr_seg(self, arguments: _Arguments) -> str:
        segment = arguments.words[0].removeprefix("segment|")
        space = arguments.options["-target_address_space"].removeprefix("space|")
        self._excluded.add((space, segment))
        return ""

    def _validate_bd_design(self, _: _Arguments) -> str:
        for cell in self._cells.values():
            for pin in cell.ip.inputs:
                if cell.has(pin) and pin not in cell.nets and pin not in cell.ip.optional:
                    raise LutraError(f"{cell.name}/{pin} is not connected")
            for interface in (*cell.ip.masters, *cell.ip.slaves):
                if cell.has(interface) and interface not in cell.peers:
                    raise LutraError(f"{cell.name}/{interface} is not connected")
            self._check_addresses(cell)
        return ""

    def _check_addresses(self, cell: _Cell) -> None:
        """Every segment that a master reaches has an address there or is excluded."""
        for master in cell.ip.masters:
            if not (cell.ip.space or cell.kind not in IPS) or not cell.has(master):
                continue
            space = f"{cell.name}/{cell.ip.space or master}"
            for segment in self._reached(cell, master):
                if not {(space, segment)} & (self.addresses.keys() | self._excluded):
                    raise LutraError(f"{segment} has no address in {space}")
            if not cell.ip.space:
                self._check_width(cell, master)

    def _reached(self, cell: _Cell, master: str) -> list[str]:
        slave, interface = cell.peers[master]
        if slave.ip.registers:
            return [f"{slave.name}/{slave.ip.registers}"]
        if interface in slave.ip.segments:
            prefix, rule = slave.ip.segments[interface]
            return [
                f"{slave.name}/{prefix}{name}"
                for name in rule.segments
                if self._has_board_files or name not in rule.board_only
            ]
        return [
            s for name in slave.ip.masters if slave.has(name) for s in self._reached(slave, name)
        ]

    def _check_width(self, cell: _Cell, master: str) -> None:
        """A memory port has the width of the port of the processing system behind it."""
        assert self._component is not None
        own = self._component.interfaces[master].parameters["DATA_WIDTH"]
        slave, interface = cell.peers[master][0].peers["M00_AXI"]
        prefix = slave.ip.segments[interface][0].partition("/")[0]
        names = (f"PSU__{prefix}__DATA_WIDTH", f"PCW_{prefix}_DATA_WIDTH")
        there = next((slave.parameters[name] for name in names if name in slave.parameters), None)
        if there != own:
            raise LutraError(
                f"{cell.name}/{master} has {own} bits, {slave.name}/{interface} has {there}"
            )

    # packaging of a kernel

    def _ipx_current_core(self, _: _Arguments) -> str:
        return "core|"

    def _ipx_get_address_blocks(self, arguments: _Arguments) -> str:
        if arguments.words[0] != ADDRESS_BLOCK:
            raise LutraError(f"Vivado calls the address block that it infers reg0, not {arguments}")
        return "block|"

    def _ipx_get_memory_maps(self, arguments: _Arguments) -> str:
        if arguments.words[0] != REGISTER_PORT:
            raise LutraError(f"there is no memory map {arguments.words[0]}")
        return "map|"

    def _ipx_add_register(self, arguments: _Arguments) -> str:
        name, block = arguments.words
        if block != "block|" or name in self.kernel_registers:
            raise LutraError(f"register {name} must be added once, to an address block")
        self.kernel_registers[name] = {}
        return f"register|{name}"

    def _ipx_add_register_parameter(self, arguments: _Arguments) -> str:
        name, register = arguments.words
        if name != "ASSOCIATED_BUSIF" or not register.startswith("register|"):
            raise LutraError(f"a register has no parameter {name}")
        return "parameter|"

    def _ipx_get_register_parameters(self, arguments: _Arguments) -> str:
        return self._ipx_add_register_parameter(
            _Arguments(set(), {}, [arguments.words[0], arguments.options["-of_objects"]])
        )


def _parse(name: str, command: Command, words: Sequence[str]) -> _Arguments:
    found = _Arguments(flags=set(), options={}, words=[])
    rest = [*words]
    while rest:
        word = rest.pop(0)
        if word in command.flags:
            found.flags.add(word)
        elif word in command.options:
            if not rest:
                raise LutraError(f"{name} {word} has no value")
            found.options[word] = rest.pop(0)
        elif word.startswith("-"):
            raise LutraError(f"{name} ({command.source}) has no option {word}")
        else:
            found.words.append(word)
    for option in command.needs:
        if option not in found.flags and option not in found.options:
            raise LutraError(f"{name} ({command.source}) needs {option}")
    low, high = command.words
    if not low <= len(found.words) <= high:
        raise LutraError(f"{name} takes {low} to {high} words, not {len(found.words)}: {words}")
    return found


def _packaged(component: Component) -> Ip:
    """An entry of the table for packaged IP."""
    signals = {
        (interface.is_master, port)
        for interface in component.interfaces.values()
        if interface.kind.startswith("xilinx.com:signal:")
        for port in interface.ports.values()
    }
    buses = [i for i in component.interfaces.values() if i.kind.endswith(":aximm:1.0")]
    return Ip(
        source="component.xml",
        parameters=dict.fromkeys(component.parameters, ".*"),
        inputs=tuple(port for is_master, port in signals if not is_master),
        outputs=tuple(port for is_master, port in signals if is_master),
        masters=tuple(bus.name for bus in buses if bus.is_master),
        slaves=tuple(bus.name for bus in buses if not bus.is_master),
        registers=f"{REGISTER_PORT}/{ADDRESS_BLOCK}",
    )
