"""RTLIL whose operators have operands of one width, so that no tool widens or cuts one by itself.

Amaranth writes operands as short as their values allow, and Verilog extends them by its own rules:
right, but linters cannot tell such an operand from a mistake. Products keep theirs, by which tools
choose multipliers. Values and timing stay the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["equal_widths"]

_CELL = re.compile(
    r"  cell (?P<kind>\$\w+) (?P<name>\S+)\n(?P<body>(?:    (?:parameter|connect) .*\n)+)  end\n"
)
_LINE = re.compile(r"    (parameter|connect) \\(\w+) (.*)\n")
_MODULE = re.compile(r"^module .*\n(?:.*\n)*?end\n", re.M)
_WIRE = re.compile(r"^  wire width (\d+) .*?(\S+)$", re.M)
_PROCESS = re.compile(
    r"  process (?P<name>\S+)\n(?P<first>(?:    assign .*\n)+)(?P<rest>(?:    .*\n)*)  end\n"
)
_ASSIGN = re.compile(r"( +)assign (\{.*?\}|\S+ \[[\d:]+\]) (.*)\n")
_CHUNK = re.compile(r"\d+'([01]+)|((?:\\|\$)\S+) \[(\d+)(?::(\d+))?\]")
_SAME_AS_RESULT = {"$add", "$sub", "$and", "$or", "$xor", "$xnor"}
_COMPARE = {"$eq", "$ne", "$lt", "$le", "$gt", "$ge"}
_ORDER = {"$lt", "$le", "$gt", "$ge"}
_SHIFT_RIGHT = {"$shr", "$sshr", "$shift"}
_DIVIDE = {"$divfloor", "$modfloor"}

_Bit = tuple[str, int] | str
"""A bit of a wire, or 0 or 1."""


def equal_widths(rtlil: str) -> str:
    """``rtlil`` as Amaranth writes it, with equal operands and every process that of whole wires.

    What no condition of a process changes becomes connections: simulators run a process without
    inputs never, and Yosys would write it as one. A process that drives a part of a wire drives a
    wire of its own, or Yosys would have to write what is connected to the rest as such a process.
    """
    return _MODULE.sub(_processes, _CELL.sub(_equal, rtlil))


def _bits(spec: str) -> list[_Bit]:
    """Bits of a signal, the least significant first."""
    found: list[_Bit] = []
    for constant, name, high, low in reversed(_CHUNK.findall(spec)):
        if constant:
            found += reversed(constant)
        else:
            found += [(name, bit) for bit in range(int(low or high), int(high) + 1)]
    return found


def _spec(bits: Sequence[_Bit]) -> str:
    """Signal of these bits."""
    chunks: list[str] = []
    begin = 0
    while begin < len(bits):
        end, first = begin + 1, bits[begin]
        if isinstance(first, str):
            while end < len(bits) and isinstance(bits[end], str):
                end += 1
            constant = "".join(str(bit) for bit in reversed(bits[begin:end]))
            chunks.append(f"{end - begin}'{constant}")
        else:
            while end < len(bits) and bits[end] == (first[0], first[1] + end - begin):
                end += 1
            place = f"{first[1] + end - begin - 1}:{first[1]}" if end - begin > 1 else f"{first[1]}"
            chunks.append(f"{first[0]} [{place}]")
        begin = end
    return chunks[0] if len(chunks) == 1 else f"{{ {' '.join(reversed(chunks))} }}"


def _resized(spec: str, old: int, width: int, *, is_signed: bool) -> str:
    """Signal ``spec`` of ``old`` bits with ``width`` of them, extended or cut."""
    if width == old:
        return spec
    # a wire as a whole has no place behind its name
    bits = _bits(spec) or [(spec, bit) for bit in range(old)] if old else []
    assert len(bits) == old, f"{spec} has {len(bits)} bits, not {old}"
    top: _Bit = bits[-1] if is_signed and bits else "0"
    return _spec([*bits, *[top] * (width - len(bits))][:width])


def _equal(match: re.Match[str]) -> str:
    kind, name = match["kind"], match["name"]
    parameters: dict[str, int] = {}
    ports: dict[str, str] = {}
    for what, key, value in _LINE.findall(match["body"]):
        if what == "connect":
            ports[key] = value
        elif value.isdecimal():
            parameters[key] = int(value)
    result = parameters.get("Y_WIDTH", 0)
    widths = [parameters.get(f"{port}_WIDTH", 0) for port in "AB" if port in ports]
    signs = [bool(parameters.get(f"{port}_SIGNED")) for port in "AB" if port in ports]
    if kind in _SAME_AS_RESULT and signs[0] == signs[1]:
        return _cell(kind, name, ports, widths, (result, result), signs, result)
    if kind in _COMPARE and signs[0] == signs[1]:
        width = max(*widths, 1)
        return _cell(kind, name, ports, widths, (width, width), signs, result, kind in _ORDER)
    if kind in ("$not", "$neg"):
        return _cell(kind, name, ports, widths, (result,), signs, result)
    if kind == "$shl":
        return _cell(kind, name, ports, widths, (result, widths[1]), signs, result)
    # a signed place shifts either way, which no operator of Verilog does
    if kind in _SHIFT_RIGHT and not signs[1]:
        new = (max(widths[0], result), widths[1])
        keeps_sign = kind == "$sshr"
        return _cell(kind, name, ports, widths, new, signs, result, keeps_sign, new[0])
    if kind in _DIVIDE and not any(signs):
        width = max(*widths, result)
        return _cell(kind, name, ports, widths, (width, width), signs, result, False, width)
    return match[0]


def _cell(
    kind: str,
    name: str,
    ports: dict[str, str],
    old: Sequence[int],
    widths: Sequence[int],
    signs: Sequence[bool],
    result: int,
    keeps_sign: bool = False,
    computed: int | None = None,
) -> str:
    """The cell with operands of ``widths``, not of the ``old`` ones.

    It has ``computed`` bits, of which ``result`` are used, or just these. Once extended, an operand
    needs its sign only where the operator depends on it.
    """
    computed = result if computed is None else computed
    lines: list[str] = []
    output = ports["Y"]
    if computed > result:
        output = f"{name}$all"
        lines += [f"  wire width {computed} {output}"]
    lines += [f"  cell {kind} {name}"]
    for port, width, is_signed in zip("AB", widths, signs, strict=False):
        lines += [
            f"    parameter \\{port}_SIGNED {int(is_signed and keeps_sign)}",
            f"    parameter \\{port}_WIDTH {width}",
        ]
    lines += [f"    parameter \\Y_WIDTH {computed}"]
    for port, before, width, is_signed in zip("AB", old, widths, signs, strict=False):
        operand = _resized(ports[port], before, width, is_signed=is_signed)
        lines += [f"    connect \\{port} {operand}"]
    lines += [f"    connect \\Y {output}", "  end"]
    if computed > result:
        lines += [f"  connect {ports['Y']} {_spec([(output, bit) for bit in range(result)])}"]
    return "".join(f"{line}\n" for line in lines)


def _processes(match: re.Match[str]) -> str:
    """A module with its processes changed."""
    widths = {name: int(width) for width, name in _WIRE.findall(match[0])}

    def change(process: re.Match[str]) -> str:
        if process["rest"]:
            return _private(process, widths)
        values = dict(pair for line in _ASSIGN.finditer(process["first"]) for pair in _pairs(line))
        return "".join(_pieces("  connect", values))

    return _PROCESS.sub(change, match[0])


def _private(process: re.Match[str], widths: dict[str, int]) -> str:
    """The process of the bits that its conditions change, and connections of the others.

    Wires of its own take the place of those of which it drives a part.
    """
    values = dict(pair for line in _ASSIGN.finditer(process["first"]) for pair in _pairs(line))
    changing = {bit for line in _ASSIGN.finditer(process["rest"]) for bit, _ in _pairs(line)}
    driven: dict[str, list[int]] = {}
    for name, bit in sorted(changing):
        driven.setdefault(name, []).append(bit)
    own: dict[tuple[str, int], tuple[str, int]] = {}
    constant = {bit: value for bit, value in values.items() if bit not in changing}
    lines = [*_pieces("  connect", constant)] if constant else []
    for name, bits in driven.items():
        if len(bits) == widths[name]:
            continue
        wire = f"{name}${process['name'].removeprefix('$')}"
        places = {(name, bit): (wire, place) for place, bit in enumerate(bits)}
        lines += [f"  wire width {len(bits)} {wire}\n", *_pieces("  connect", places)]
        own |= places
    if not lines:
        return process[0]

    def renamed(line: re.Match[str]) -> str:
        values = {own.get(bit, bit): value for bit, value in _pairs(line)}
        return "".join(_pieces(f"{line[1]}assign", values))

    first = {own.get(bit, bit): value for bit, value in values.items() if bit in changing}
    lines += [f"  process {process['name']}\n", *_pieces("    assign", first)]
    return "".join(lines) + _ASSIGN.sub(renamed, process["rest"]) + "  end\n"


def _pairs(line: re.Match[str]) -> list[tuple[tuple[str, int], _Bit]]:
    """Bits of an assignment, each with its value."""
    found: list[tuple[tuple[str, int], _Bit]] = []
    for bit, value in zip(_bits(line[2]), _bits(line[3]), strict=True):
        assert not isinstance(bit, str), f"{line[0]} assigns to a constant"
        found.append((bit, value))
    return found


def _pieces(word: str, values: Mapping[tuple[str, int], _Bit]) -> Iterator[str]:
    """Lines that give wires their values, one for neighbouring bits."""
    bits = sorted(values)
    begin = 0
    for end in range(1, len(bits) + 1):
        before = bits[end - 1]
        if end == len(bits) or bits[end] != (before[0], before[1] + 1):
            piece = bits[begin:end]
            yield f"{word} {_spec(piece)} {_spec([values[bit] for bit in piece])}\n"
            begin = end
