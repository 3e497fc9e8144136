"""From a design and a target to its figures."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from lutra_flows.synth.cells import Resources, ecp5_resources, xilinx_resources
from lutra_flows.synth.designs import TOP, Design, Part
from lutra_flows.synth.liberty import WHERE, Library, load_libraries
from lutra_flows.synth.units import split_units
from lutra_flows.synth.yosys import (
    Answer,
    Job,
    Yosys,
    find_yosys,
    fpga_job,
    liberty_script,
    run_jobs,
)
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_sim.rtl.toolchain import ToolchainError, cache_folder, check_cache

__all__ = ["TARGETS", "Report", "Request", "libraries", "synthesize"]

TARGETS = ("xcup", "xc7", "ecp5", "liberty")
Progress = Callable[[str, float], None]
# seconds of a run per megabyte of netlist on one core, roughly: for the estimate alone
_SECONDS = {"xcup": 40.0, "xc7": 40.0, "ecp5": 40.0, "liberty": 60.0}
_MULTIPLIERS = {False: "plain", True: "booth"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A design for a target; ``libraries`` only for ``liberty``."""

    design: Design
    target: str
    no_dsp: bool = False
    libraries: Sequence[Library] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """Resources of a design. Figures that a target does not have are None.

    ``lut_per_mac`` counts all LUTs, of logic and of memory. ``ff_share`` is the share of
    flip-flops in flip-flops and LUTs, or in the area. ``estimated_lc`` is Yosys' own estimate of
    logic cells when small LUTs share one. Areas are of cells, as the library gives them, without
    wires and without ``memory_bits``, the memories of more than
    :data:`~lutra_flows.synth.yosys.MACRO_WORDS` words. ``path_ps`` is the longest path by ABC's
    timer, without wires, set-up time and what the memories add. ``multipliers`` says which kind
    was the smaller. ``max_planes`` are the digits of a weight that the engine is built for.
    """

    engine: str
    format: str
    part: str
    tile: tuple[int, int, int]
    target: str
    macs_per_cycle: float
    max_planes: int | None = None
    lut: int | None = None
    lut_ram: int | None = None
    ff: int | None = None
    carry: int | None = None
    dsp: int | None = None
    bram: float | None = None
    uram: int | None = None
    estimated_lc: int | None = None
    area_um2: float | None = None
    ff_area_um2: float | None = None
    path_ps: float | None = None
    memory_bits: int | None = None
    memory_ports: int | None = None
    ff_share: float | None = None
    lut_per_mac: float | None = None
    area_um2_per_mac: float | None = None
    multipliers: str | None = None
    library: str | None = None
    tool: str = ""
    seconds: float = 0.0
    cached: bool = False
    cells: Mapping[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, object]:
        """The figures as JSON has them; the seconds are Yosys', also of an earlier run."""
        figures = asdict(self)
        seconds = figures.pop("seconds")
        tile = ",".join(map(str, self.tile))
        return {**figures, "tile": tile, "kind": "synthesised", "yosys_seconds": seconds}


def libraries(where: Path | None, wanted_by: str = "--target liberty") -> tuple[Library, ...]:
    """The libraries of ``--liberty``; LutraError says what is missing and where it is."""
    if where is None:
        raise LutraError(f"{wanted_by} needs --liberty FILE_OR_FOLDER: {WHERE}")
    return load_libraries(where, _cache())


def synthesize(
    requests: Sequence[Request],
    *,
    n_parallel: int = 1,
    progress: Progress = lambda stage, share: None,
) -> list[Report]:
    """Run Yosys for each request, or take its answer from the cache."""
    if importlib.util.find_spec("amaranth") is None:
        raise LutraError(f"Amaranth is not installed: run `{install_command('synth')}`")
    yosys, cache = find_yosys(), _cache()
    netlists: dict[int, str] = {}
    designs = {id(request.design): request.design for request in requests}
    for number, (key, design) in enumerate(designs.items()):
        progress("generating the hardware", number / len(designs))
        netlists[key] = design.netlist()
    jobs = [(r, *job) for r in requests for job in _jobs(r, netlists[id(r.design)])]
    answers = run_jobs(
        yosys,
        [job for _, _, _, job in jobs],
        cache,
        n_parallel=n_parallel,
        on_progress=lambda name, share: progress(f"Yosys: {name}", share),
    )
    reports: list[Report] = []
    for request in requests:
        own = [
            (booth, count, answer)
            for (r, booth, count, _), answer in zip(jobs, answers, strict=True)
            if r is request
        ]
        seconds = round(sum(a.seconds for _, _, a in own), 1)
        if request.design.part == Part.WHOLE:
            booth, answer = False, _sum([(count, a) for _, count, a in own])
        else:
            # multipliers as they make the smaller netlist
            booth, _, answer = min(own, key=lambda found: found[2].area or 0.0)
        reports.append(_report(request, yosys, booth, answer, seconds))
    return reports


def _cache() -> Path:
    try:
        check_cache()
        return cache_folder()
    except ToolchainError as error:
        raise LutraError(str(error)) from error


def _jobs(request: Request, netlist: str) -> list[tuple[bool, int, Job]]:
    """Jobs of a request, each with whether it has Booth multipliers and how often it counts."""
    design, target = request.design, request.target
    seconds = _SECONDS[target] * len(netlist) / 1e6
    name = f"{design.engine} {design.format} for {target}"
    if target != "liberty":
        map_to = partial(fpga_job, target, no_dsp=request.no_dsp)
        if design.part != Part.WHOLE:
            return [(False, 1, map_to(name=name, netlist=netlist, seconds=seconds))]
        return [
            (
                False,
                unit.count,
                map_to(
                    name=f"{name}, {unit.name}",
                    netlist=unit.netlist,
                    seconds=_SECONDS[target] * len(unit.netlist) / 1e6,
                ),
            )
            for unit in split_units(netlist)
        ]
    return [
        (
            booth,
            1,
            Job(
                name=f"{name}, {kind} multipliers",
                netlist=netlist,
                script=liberty_script(request.libraries, booth=booth),
                libraries=request.libraries,
                seconds=seconds,
            ),
        )
        for booth, kind in _MULTIPLIERS.items()
    ]


def _sum(units: Sequence[tuple[int, Answer]]) -> Answer:
    """Answer for a whole whose units are there ``count`` times, without their black boxes."""
    cells: Counter[str] = Counter()
    for count, answer in units:
        for cell, n in answer.cells.items():
            if not cell.startswith(f"{TOP}."):
                cells[cell] += count * n
    estimates = [count * (answer.estimated_lc or 0) for count, answer in units]
    return Answer(
        cells=cells,
        estimated_lc=sum(estimates) or None,
        area=None,
        ff_area=None,
        path_ps=None,
        memories=[],
        seconds=sum(answer.seconds for _, answer in units),
        cached=all(answer.cached for _, answer in units),
    )


def _report(request: Request, yosys: Yosys, booth: bool, answer: Answer, seconds: float) -> Report:
    design = request.design
    macs = design.macs_per_cycle
    common = Report(
        engine=design.engine,
        format=str(design.format),
        part=design.part.value,
        tile=design.tile,
        target=request.target,
        macs_per_cycle=round(macs, 3),
        max_planes=design.params.max_planes,
        tool=yosys.version,
        seconds=seconds,
        cached=answer.cached,
        cells=dict(sorted(answer.cells.items())),
    )
    if request.target == "liberty":
        area, ff_area = answer.area or 0.0, answer.ff_area or 0.0
        figures: dict[str, object] = {
            "area_um2": round(area, 3),
            "ff_area_um2": round(ff_area, 3),
            "path_ps": answer.path_ps,
            "memory_bits": sum(bits for bits, _ in answer.memories),
            "memory_ports": sum(ports for _, ports in answer.memories),
            "ff_share": round(ff_area / area, 4) if area else None,
            "area_um2_per_mac": round(area / macs, 4),
            "multipliers": _MULTIPLIERS[booth],
            "library": " ".join(library.name for library in request.libraries),
        }
    else:
        try:
            resources = _resources(request.target, answer.cells)
        except ValueError as error:
            raise LutraError(f"Yosys left {design.engine} unfinished: {error}") from error
        luts = resources.lut + resources.lut_ram
        figures = {k: v for k, v in vars(resources).items() if k != "other"}
        figures["estimated_lc"] = answer.estimated_lc
        figures["ff_share"] = round(resources.ff / max(1, resources.ff + luts), 4)
        figures["lut_per_mac"] = round(luts / macs, 4)
    return Report(**{**vars(common), **figures})


def _resources(target: str, cells: Mapping[str, int]) -> Resources:
    return ecp5_resources(cells) if target == "ecp5" else xilinx_resources(cells)
