"""Line coverage of the generated Verilog over all runs: ``python -m lutra_sim.rtl.coverage``.

Verilator leaves one file of counts per run. The same component is called otherwise in its own
bench and in the accelerator; equal Verilog is counted as one module, whatever it is called.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lutra_sim.rtl.build import TOP
from lutra_sim.rtl.device import coverage_folder

__all__ = ["GOAL", "ModuleCoverage", "Point", "main", "merge", "read_points", "report"]

GOAL = 0.9
"""Share of lines below which a module is named."""

_MAX_RANGES = 8
# declarations with an initial value, and what Yosys adds to every `always @*` to wake it up
_NO_CODE = re.compile(r"\s*(reg\b|if \(\\\$auto\$verilog_backend)")


@dataclass(frozen=True)
class Point:
    """Something Verilator counted: ``lines`` that run together, or one way of a branch."""

    file: str
    module: str
    kind: str  # "line" or "branch"
    line: int
    column: int
    comment: str
    lines: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class ModuleCoverage:
    """Which lines of ``file`` were executed and which ways branches went."""

    name: str
    file: str
    lines: Mapping[int, bool]
    branches: Mapping[tuple[int, int, str], bool]

    @property
    def missing(self) -> list[int]:
        """Lines that were never executed."""
        return sorted(line for line, hit in self.lines.items() if not hit)

    @property
    def share(self) -> float:
        """Share of the lines that were executed; 1 where there are none."""
        return _share([self])


def read_points(path: Path) -> Iterator[Point]:
    """Points of a file that Verilator wrote; what is not line coverage is passed over."""
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = re.fullmatch(r"C '(.*)' (\d+)", text)
        if found is None:
            continue
        fields = dict(item.split("\x02", 1) for item in found[1].split("\x01") if "\x02" in item)
        kind, _, module = fields.get("page", "").partition("/")
        if kind not in ("v_line", "v_branch"):
            continue
        yield Point(
            file=fields["f"],
            module=module,
            kind=kind[2:],
            line=int(fields["l"]),
            column=int(fields.get("n", 0)),
            comment=fields.get("o", ""),
            lines=tuple(_expand(fields.get("S", ""))),
            count=int(found[2]),
        )


def merge(paths: Iterable[Path]) -> list[ModuleCoverage]:
    """Coverage of every module over all files, by name."""
    merged: dict[str, _Merged] = {}
    for path in paths:
        for point in read_points(path):
            place = _place(point.file, point.module)
            module = merged.setdefault(place.identity, _Merged(point.module, place))
            module.add(point, place)
    modules = [module.result() for module in merged.values()]
    return sorted(modules, key=lambda module: module.name)


def report(modules: Sequence[ModuleCoverage]) -> str:
    """Table of the coverage of ``modules``, its total, and what is missing where."""
    width = max(len(module.name) for module in modules)
    rows = [f"{'module':<{width}}  {'lines':>6}  {'run':>6}  {'branches':>8}  {'gone':>6}"]
    for name, group in (*((module.name, [module]) for module in modules), ("total", modules)):
        n_lines = sum(len(module.lines) for module in group)
        n_branches = sum(len(module.branches) for module in group)
        rows.append(
            f"{name:<{width}}  {n_lines:>6}  {_percent(_share(group)):>6}  "
            f"{n_branches:>8}  {_percent(_share(group, branches=True)):>6}"
        )
    low = [module for module in modules if module.share < GOAL]
    rows += ["", f"{len(low)} of {len(modules)} modules below {_percent(GOAL)} of their lines"]
    rows += [f"  {_percent(m.share)}  {m.name}  {m.file}:{_ranges(m.missing)}" for m in low]
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_sim.rtl.coverage", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="where the runs left their counts; $LUTRA_COVERAGE_DIR or build/coverage",
    )
    folder: Path = parser.parse_args(arguments).folder or coverage_folder()
    paths = sorted(folder.glob("**/*.dat"))
    modules = merge(paths)
    if not modules:
        message = f"error: no coverage in '{folder}': run `make sim`, which collects it"
        print(message, file=sys.stderr)
        return 2
    print(f"line coverage of the generated Verilog in {len(paths)} runs\n\n{report(modules)}")
    return 0


@dataclass(frozen=True)
class _Place:
    """A module in the Verilog: its identity, its first line and its text, if it has any."""

    identity: str
    first_line: int
    text: tuple[str, ...]


class _Merged:
    """Sums of the counts of a module; lines are relative to its first."""

    def __init__(self, name: str, place: _Place) -> None:
        self._name, self._file, self._place = name, "", place
        self._counts: dict[tuple[str, int, int, str, tuple[int, ...]], int] = {}

    def add(self, point: Point, place: _Place) -> None:
        first = place.first_line
        lines = tuple(line - first for line in point.lines)
        key = (point.kind, point.line - first, point.column, point.comment, lines)
        self._counts[key] = self._counts.get(key, 0) + point.count
        # a module of the accelerator is called what it is called there
        name = (not point.module.startswith(f"{TOP}."), point.module, point.file)
        if not self._file or name < (
            not self._name.startswith(f"{TOP}."),
            self._name,
            self._file,
        ):
            self._name, self._file, self._place = point.module, point.file, place

    def result(self) -> ModuleCoverage:
        first, text = self._place.first_line, self._place.text
        lines: dict[int, bool] = {}
        branches: dict[tuple[int, int, str], bool] = {}
        no_code = {number for number, line in enumerate(text) if _NO_CODE.match(line)}
        for (kind, line, column, comment, members), count in self._counts.items():
            if kind == "branch" and line not in no_code:
                branches[line + first, column, comment] = count > 0
            for member in (member for member in members if member not in no_code):
                lines[member + first] = lines.get(member + first, True) and count > 0
        return ModuleCoverage(self._name, self._file, lines, branches)


def _place(file: str, module: str) -> _Place:
    known = _modules_of(file).get(module)
    return known or _Place(f"{file}:{module}", 0, ())


@cache
def _modules_of(file: str) -> dict[str, _Place]:
    """Modules of a Verilog file by name; empty where the file is gone."""
    path = Path(file)
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    modules: dict[str, _Place] = {}
    name, first = "", 0
    for number, line in enumerate(lines, 1):
        if found := re.match(r"module \\?([^\s(]+)", line):
            name, first = found[1], number
        elif line == "endmodule" and name:
            text = tuple(lines[first - 1 : number])
            modules[name] = _Place(_identity(name, text), first, text)
    return modules


def _identity(name: str, text: Sequence[str]) -> str:
    """Hash of a module's text without its own name, which is a prefix of its submodules' names."""
    joined = "\n".join(text).replace(f"\\{name}.", "\\.")
    joined = re.sub(r"^module \\?[^\s(]+ ?", "", joined)
    joined = re.sub(r"\$auto\$verilog_backend\S*", "", joined)
    return hashlib.sha256(joined.encode()).hexdigest()


def _expand(ranges: str) -> Iterator[int]:
    """Lines of ``3,5-7``."""
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _ranges(lines: Sequence[int]) -> str:
    """``3,5-7`` of lines in order, cut short where there are many."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and runs[-1][-1] == line - 1:
            runs[-1] = [runs[-1][0], line]
        else:
            runs.append([line])
    shown = ["-".join(map(str, run)) for run in runs[:_MAX_RANGES]]
    return ",".join([*shown, *(["..."] if len(runs) > _MAX_RANGES else [])])


def _share(modules: Iterable[ModuleCoverage], *, branches: bool = False) -> float:
    hits = [
        hit
        for module in modules
        for hit in (module.branches if branches else module.lines).values()
    ]
    return sum(hits) / len(hits) if hits else 1.0


def _percent(share: float) -> str:
    # rounded down: what is not complete does not look it
    return f"{int(share * 1000 + 1e-9) / 10:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
