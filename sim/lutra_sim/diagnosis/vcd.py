"""Reads the traces that the simulator writes: chosen wires, clock cycle by clock cycle."""

from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["cycles_of"]


def cycles_of(path: Path, wires: Sequence[str], clock_ps: int) -> Iterator[tuple[int, list[str]]]:
    """Each clock cycle of a trace, and the bits of ``wires`` that its rising edge sees.

    A wire is a path such as ``accelerator.core.load.done``. The list is the same every time, and
    changes in place. ValueError names a wire that the trace does not have.
    """
    with path.open("rb") as file:
        codes = _codes(file, wires)
        values = ["0"] * len(wires)
        now: int | None = None
        for line in file:
            first = line[:1]
            if first == b"#":
                if now is not None and now % clock_ps == 0:
                    yield now // clock_ps, values
                now = int(line[1:])
            elif first == b"b":
                bits, _, code = line[1:-1].partition(b" ")
                for slot in codes.get(code, ()):
                    values[slot] = bits.decode()
            elif first in b"01":
                for slot in codes.get(line[1:-1], ()):
                    values[slot] = first.decode()
        if now is not None and now % clock_ps == 0:
            yield now // clock_ps, values


def _codes(file: Iterator[bytes], wires: Sequence[str]) -> dict[bytes, list[int]]:
    """Places of the wires in the list of values, by their codes in the file."""
    wanted: dict[str, list[int]] = {}
    for slot, wire in enumerate(wires):
        wanted.setdefault(wire, []).append(slot)
    codes: dict[bytes, list[int]] = {}
    scopes: list[str] = []
    for line in file:
        words = line.split()
        if not words:
            continue
        if words[0] == b"$scope":
            scopes.append(words[2].decode())
        elif words[0] == b"$upscope":
            scopes.pop()
        elif words[0] == b"$var":
            # what is above the accelerator is Verilator's own
            path = ".".join([*scopes, words[4].decode()])
            path = path[path.find("accelerator") :]
            codes.setdefault(words[3], []).extend(wanted.pop(path, []))
        elif words[0] == b"$enddefinitions":
            break
    if wanted:
        raise ValueError(f"the trace has no wire {next(iter(wanted))}")
    return {code: slots for code, slots in codes.items() if slots}
