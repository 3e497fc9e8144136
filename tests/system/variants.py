"""One accelerator with many faults of the RTL, of which a file chooses one when a run begins.

Where a fault changes components, each of them stands beside a copy with the fault. All copies have
the same inputs; the outputs are those of the copy that is chosen, so that the accelerator is then
what it is with that fault alone. One simulator serves all faults.
"""

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from amaranth import Instance, Module, Mux, Signal
from amaranth.hdl import Value, ValueCastable
from amaranth.lib.wiring import Component, In

import lutra_hw
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.core.accelerator import Accelerator
from lutra_hw.netlist import to_named_verilog
from lutra_sim.mutants.mutant import Mutant, changed
from lutra_sim.rtl.build import TOP
from lutra_sim.rtl.collector import paused_collector

__all__ = [
    "CHOICE",
    "SOUND",
    "VARIANT",
    "Shared",
    "UnshareableError",
    "Variants",
    "beside",
    "elaborate",
    "netlist",
    "shared",
    "traced",
]

CHOICE = "variant.txt"
"""File of the folder that a simulator starts in, with the number of the fault, 0 for none."""

_PACKAGE = lutra_hw.__name__
_ROOT = Path(next(iter(lutra_hw.__path__)))
SOUND, VARIANT = "sound", "variant_"
"""Name of the component without a fault, and what begins those of its copies."""
_NUMBER_WIDTH = 8
_CHOOSER = f"""
module lutra_variant(number);
  output reg [{_NUMBER_WIDTH - 1}:0] number;
  integer file, found;
  initial begin
    file = $fopen("{CHOICE}", "r");
    found = $fscanf(file, "%d", number);
    $fclose(file);
  end
endmodule
"""
_Place = tuple[str, str]
"""Module, and a name in it."""


class UnshareableError(ValueError):
    """Faults of these ``numbers`` need a simulator of their own.

    Where they are all, some of them may share one without the others.
    """

    def __init__(self, numbers: Iterable[int], why: str) -> None:
        super().__init__(why)
        self.numbers = frozenset(numbers)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A fault of which a copy stands beside what it changes: the faulty components."""

    fault: Mutant
    components: Mapping[type[Component], type[Component]]


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Verilog with faults numbered from 1 on, and all ports inside.

    ``present`` are the numbers of those that change something in the configuration.
    """

    verilog: str
    ports: Mapping[str, Mapping[str, Any]]
    present: Sequence[int]

    def ports_with(self, number: int) -> dict[str, Mapping[str, Any]]:
        """Ports of the accelerator with a fault, named as those of one without variants."""
        chosen = set[str]()
        for path in self.ports:
            parts = path.split(".")
            for i, part in enumerate(parts):
                if part == f"{VARIANT}{number}":
                    chosen.add(".".join(parts[:i]))
        found = dict[str, Mapping[str, Any]]()
        for path, port in self.ports.items():
            parts, kept = path.split("."), list[str]()
            for i, part in enumerate(parts):
                if part != SOUND and not part.startswith(VARIANT):
                    kept.append(part)
                    continue
                wanted = f"{VARIANT}{number}" if ".".join(parts[:i]) in chosen else SOUND
                if part != wanted:
                    break
            else:
                # the component itself has the same ports, and stands before its copies
                found.setdefault(".".join(kept), port)
        return found


def shared(fault: Mutant) -> Shared | None:
    """The fault as faulty copies of components; None if the accelerator as a whole would be one."""
    with _faulty(fault) as modules:
        components = dict[type[Component], type[Component]]()
        for module, name in _affected(modules):
            sound = getattr(sys.modules[module], name)
            if sound is Accelerator:
                return None
            components[sound] = getattr(modules[module], name)
    if not components:
        raise ValueError(f"{fault.name}: no component of the accelerator is affected")
    return Shared(fault=fault, components=components)


def elaborate(config: AcceleratorConfig, faults: Sequence[Shared]) -> Variants:
    """The accelerator of a configuration with these faults."""
    selected = Signal(_NUMBER_WIDTH)

    class Chosen(Accelerator):
        def elaborate(self, platform: object) -> Module:
            m = super().elaborate(platform)
            m.submodules.variant = Instance("lutra_variant", o_number=selected)
            return m

    with paused_collector(), beside(faults, selected):
        text, ports = netlist(Chosen(config), len(faults))
    present = [number for number in range(1, len(faults) + 1) if _is_present(text, number)]
    return Variants(verilog=text + _CHOOSER, ports=ports, present=present)


def netlist(component: Component, n_faults: int) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """Verilog and ports of a component that has faults beside its parts.

    Raises UnshareableError for all of them where there is no such netlist: for a combinational
    cycle, or whatever else a faulty source raises.
    """
    try:
        return to_named_verilog(component, TOP)
    except UnshareableError:
        raise
    except Exception as error:
        what = f"{type(error).__name__} in the netlist of {n_faults} faults"
        raise UnshareableError(range(1, n_faults + 1), what) from error


def traced(verilog: str, scopes: Sequence[str]) -> str:
    """The Verilog, of which only signals of these instances can be traced."""
    kept = {scope.rsplit(".", i)[0] for scope in scopes for i in range(scope.count(".") + 1)}

    def header(match: re.Match[str]) -> str:
        switch = "on" if match[1].removeprefix("\\") in kept else "off"
        return f"/*verilator tracing_{switch}*/\n{match[0]}"

    return re.sub(r"^module (\S+)\s?\(", header, verilog, flags=re.M)


@contextmanager
def _faulty(fault: Mutant) -> Iterator[dict[str, ModuleType]]:
    """The hardware's modules, all of which are imported anew from a source with the fault."""
    file = _ROOT / Path(*Path(fault.file).parts[2:])
    name = ".".join((_PACKAGE, *file.relative_to(_ROOT).with_suffix("").parts))
    text = changed(fault, file.read_text(encoding="utf-8"))

    class Loader(SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            return compile(text, str(file), "exec", dont_inherit=True)

    class Finder:
        @staticmethod
        def find_spec(fullname: str, *_: object) -> ModuleSpec | None:
            if fullname != name:
                return None
            loader = Loader(fullname, str(file))
            return importlib.util.spec_from_file_location(fullname, file, loader=loader)

    sound = {
        key: module
        for key, module in sys.modules.items()
        if key == _PACKAGE or key.startswith(f"{_PACKAGE}.")
    }
    for key in sound:
        del sys.modules[key]
    sys.meta_path.insert(0, Finder)  # pyright: ignore[reportArgumentType]
    try:
        for key in sound:
            importlib.import_module(key)
        anew = {key: sys.modules[key] for key in sound}
    finally:
        sys.meta_path.remove(Finder)  # pyright: ignore[reportArgumentType]
        sys.modules.update(sound)
    yield anew


def _affected(modules: Mapping[str, ModuleType]) -> set[_Place]:
    """Components whose netlist the changed source can change, of each branch the lowest."""
    imported = {module: _imported(module) for module in modules}
    found, done = set[_Place](), set[_Place]()
    todo = [
        (module, name)
        for module in modules
        for name in _own(module)
        if _print(getattr(sys.modules[module], name), module)
        != _print(getattr(modules[module], name), module)
    ]
    while todo:
        place = todo.pop()
        if place in done:
            continue
        done.add(place)
        value = getattr(sys.modules[place[0]], place[1])
        is_component = isinstance(value, type) and issubclass(value, Component)
        if is_component:
            found.add(place)
        # what makes a component depends on its constructor alone
        faulty = getattr(modules[place[0]], place[1])
        inside = is_component and _outside(value, place[0]) == _outside(faulty, place[0])
        for module in modules:
            names = {k for k, origin in imported[module].items() if origin == place}
            if module == place[0]:
                names.add(place[1])
            if names:
                todo += [(module, name) for name in _users(module, names, by_code=not inside)]
    return {place for place in found if not _is_abstract(place)}


def _is_abstract(place: _Place) -> bool:
    return "elaborate" not in dir(getattr(sys.modules[place[0]], place[1]))


def _own(module: str) -> list[str]:
    """Names that a module itself defines."""
    imported = _imported(module)
    return [
        name
        for name in vars(sys.modules[module])
        if name not in imported and not name.startswith("__")
    ]


@cache
def _imported(module: str) -> dict[str, _Place]:
    """Names that a module imports from others, and where they are defined."""
    path = sys.modules[module].__file__
    assert path is not None
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _users(module: str, names: set[str], *, by_code: bool) -> Iterator[str]:
    """Functions and classes of a module that use one of its names; else heirs alone."""
    for own in _own(module):
        value = getattr(sys.modules[module], own)
        if isinstance(value, type):
            bases = {base.__name__ for base in value.__bases__}
            if names & bases or (by_code and names & _names(value)):
                yield own
        elif by_code and names & _names(value):
            yield own


def _names(value: object) -> set[str]:
    """Names that functions use."""
    found = set[str]()
    for code in _codes(value):
        found.update(code.co_names)
        found |= {name for each in code.co_consts for name in _names(each)}
    return found


def _codes(value: object) -> Iterator[CodeType]:
    if isinstance(value, CodeType):
        yield value
    elif isinstance(value, FunctionType):
        yield value.__code__
    elif isinstance(value, property):
        yield from _codes(value.fget)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from _codes(value.__func__)
    elif isinstance(value, type):
        for each in vars(value).values():
            if not isinstance(each, type):
                yield from _codes(each)
    elif hasattr(value, "__wrapped__"):
        yield from _codes(value.__wrapped__)  # pyright: ignore[reportAttributeAccessIssue]


def _print(value: object, module: str) -> object:
    """Something that is the same for two values if the same source has made them."""
    if isinstance(value, CodeType):
        constants = [_print(each, module) for each in value.co_consts]
        return value.co_code, value.co_names, value.co_varnames, constants
    if isinstance(value, type):
        if value.__module__ != module:
            return value.__qualname__
        members = vars(value).items()
        return {k: _print(each, module) for k, each in members if not k.startswith("__")} | {
            "__init__": _print(vars(value).get("__init__"), module)
        }
    codes = [_print(code, module) for code in _codes(value)]
    return codes or re.sub(r"0x[0-9a-f]+", "", repr(value))


def _outside(value: type, module: str) -> object:
    """Print of what the users of a component can see without elaborating it."""
    return {
        k: _print(each, module)
        for k, each in vars(value).items()
        if k == "__init__" or not (k.startswith("__") or isinstance(each, FunctionType))
    }


@contextmanager
def beside(faults: Sequence[Shared], selected: Signal) -> Iterator[None]:
    """Elaborate each faulty component as a choice by ``selected`` between it and its copies."""
    copies = dict[type[Component], dict[int, type[Component]]]()
    for number, fault in enumerate(faults, 1):
        for sound, faulty in fault.components.items():
            copies.setdefault(sound, {})[number] = faulty
    before = {cls: (vars(cls).get("__init__"), vars(cls).get("elaborate")) for cls in copies}
    for cls, faulty in copies.items():
        _choose(cls, faulty, selected)
    try:
        yield
    finally:
        for cls, methods in before.items():
            for name, method in zip(("__init__", "elaborate"), methods, strict=True):
                if method is None:
                    delattr(cls, name)
                else:
                    setattr(cls, name, method)


def _choose(cls: Any, faulty: Mapping[int, Any], selected: Signal) -> None:
    begin: Callable[..., None] = cls.__init__
    own: Callable[[Component, object], Any] = cls.elaborate

    def __init__(self: Any, *args: object, **options: object) -> None:
        self.__dict__.setdefault("_made_with", (args, options))
        begin(self, *args, **options)

    def elaborate(self: Any, platform: object) -> Any:
        if type(self) is not cls or self.__dict__.get("_is_copy"):
            return own(self, platform)
        args, options = self._made_with
        m, sound = Module(), cls(*args, **options)
        sound.__dict__["_is_copy"] = True
        m.submodules[SOUND] = sound
        others = dict[int, Any]()
        for number, kind in faulty.items():
            others[number] = m.submodules[f"{VARIANT}{number}"] = kind(*args, **options)
        _check(self, faulty)
        _check_ports(sound, others)
        for (_, member, mine), *rest in zip(
            *(each.signature.flatten(each) for each in (self, sound, *others.values())),
            strict=True,
        ):
            value, *ports = (Value.cast(port) for _, _, port in rest)
            if member.flow == In:
                m.d.comb += [port.eq(Value.cast(mine)) for port in (value, *ports)]
                continue
            for number, port in zip(others, ports, strict=True):
                value = Mux(selected == number, port, value)
            m.d.comb += Value.cast(mine).eq(value)
        return m

    for method in (__init__, elaborate):
        setattr(cls, method.__name__, method)


def _check(component: Component, numbers: Iterable[int]) -> None:
    """Refuse faults of a component that others reach by something else than its ports."""
    ports = component.signature.members.keys()
    for name, value in vars(component).items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if name not in ports and any(isinstance(v, (Value, ValueCastable)) for v in values):
            what = f"{type(component).__qualname__} is reached by {name}, which is no port"
            raise UnshareableError(numbers, what)


def _check_ports(sound: Component, others: Mapping[int, Component]) -> None:
    """Refuse faults with which the component has other ports."""

    def shapes(component: Component) -> list[tuple[object, object]]:
        ports = component.signature.flatten(component)
        return [(path, Value.cast(port).shape()) for path, _, port in ports]

    numbers = [number for number, each in others.items() if shapes(each) != shapes(sound)]
    if numbers:
        raise UnshareableError(numbers, f"{type(sound).__qualname__} has other ports")


def _is_present(verilog: str, number: int) -> bool:
    """True if a fault changes the netlist of a component that the configuration has."""
    modules = dict[str, str]()
    for match in re.finditer(r"^module (\S+)\s?\(.*?^endmodule", verilog, re.M | re.S):
        modules[match[1].lstrip("\\")] = match[0]
    for name in modules:
        place, _, last = name.rpartition(".")
        if last == f"{VARIANT}{number}" and (
            _subtree(modules, name) != _subtree(modules, f"{place}.{SOUND}")
        ):
            return True
    return False


def _subtree(modules: Mapping[str, str], root: str) -> str:
    """Text of a module and of all below it, whatever it is called."""
    below = (text for name, text in modules.items() if f"{name}.".startswith(f"{root}."))
    texts = [text.replace(root, "") for text in below]
    return re.sub(r"(port)?\$\d+(\$\d+)?", "", "".join(texts))
