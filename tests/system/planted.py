"""Bisects a small model on the RTL with planted faults, and says whether the right unit is named.

``python -m tests.system.planted [WORD ...]`` does so for every fault of the RTL, or those whose
names have one of the words, or some at random. Many faults share a simulator
(:mod:`tests.system.variants`); one that changes the accelerator as a whole has its own, built by a
process that has the faulty source.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from tests.system.small_architectures import config_of_engine, make
from tests.system.variants import (
    CHOICE,
    SOUND,
    VARIANT,
    Shared,
    UnshareableError,
    Variants,
    elaborate,
    shared,
    traced,
)

from lutra.compile.compiler import compile_model
from lutra.compile.program import Program
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.diagnose import trace
from lutra.diagnose.bisect import bisect
from lutra.progress import StepProgress
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Top, two_ports
from lutra_golden.model.packed import PackedModel
from lutra_sim.diagnosis.monitor import WATCHED
from lutra_sim.mutants.catalogue import PACKAGES
from lutra_sim.mutants.mutant import Mutant, apply, planted
from lutra_sim.rtl import build
from lutra_sim.rtl.toolchain import cache_folder

__all__ = [
    "FAULTS",
    "Outcome",
    "Running",
    "SharedSimulator",
    "bisect_with",
    "chosen",
    "grouped",
    "is_named",
    "main",
    "mutant",
    "outcome",
    "outcomes",
    "setting",
    "simulated",
    "tried_together",
]

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("hw", "sim", "kernels_gpu", "host", "flows")
_PROMPT = [5, 77, 123, 9, 201, 42, 18]
_N_PREDICT = 2
_CPU_S = 240
"""Processor time of a bisection, beside the build: a fault may make a run endless."""
_OUTSIDE = ("control/ap_ctrl.py", "core/xrt.py", "core/board.py", "widths.py")
"""Files of what is around the accelerator, which bisect does not see."""
_SHARE = 40
"""Weight of the faults that share a simulator: twice to three times the accelerator."""
_WEIGHTS = {
    "VectorUnit": 8,
    "AttentionUnit": 4,
    "NormQuant": 4,
    "MatmulEngine": 3,
    "RopeQuant": 2,
    "DmaReader": 2,
    "_Finish": 2,
    "Logits": 2,
}
"""Verilog of components, in 100 kB; 1 of those that are not here."""

_READS, _WRITES, _CONTROL = "reads of", "writes", "control"
_UNITS = {
    "matmul/contract.py": ("matmul engine", "vector unit", "core"),
    "matmul/": ("matmul engine",),
    "stream/replay.py": ("matmul engine",),
    "attention/": ("attention unit",),
    "vector/norm.py": ("vector unit (norm)",),
    "arith/silu.py": ("vector unit (norm)",),
    "vector/rope.py": ("vector unit (rope)",),
    "vector/heads.py": ("vector unit (rope)",),
    "vector/head_scales.py": ("vector unit (rope)",),
    "vector/residual.py": ("vector unit (residual add)", "vector unit (logits)"),
    "vector/unit.py": ("vector unit",),
    "control/load.py": ("load unit",),
    "control/sequencer.py": ("sequencer",),
    # every unit that has chunks walks them
    "control/chunks.py": ("load unit", "vector unit", "attention unit"),
    # decodes instructions where they are used
    "control/fields.py": ("sequencer", "load unit", "vector unit", "core"),
    "core/accelerator.py": ("core", _CONTROL),
    "axi/writer.py": (_WRITES,),
    "axi/bursts.py": (_READS, _WRITES),
    "axi/width.py": (_READS, _WRITES),
    "axi/lite.py": (_CONTROL,),
    "axi/": (_READS,),
    "control/": (_CONTROL,),
    # shared arithmetic, registers and ports: the units that have them
    "arith/": ("vector unit", "attention unit"),
    "buffers.py": ("load unit", "vector unit", "attention unit"),
    "pipeline.py": ("vector unit", "attention unit", "matmul engine"),
}
"""Units of which one has to be named, by the file that has the fault; the first that fits."""

_SETTINGS = {
    "matmul/lut.py": ("llama-untied", "lut"),
    "matmul/mac.py": ("llama-untied", "mac"),
    "matmul/mixpe.py": ("llama-untied", "mixpe"),
    "matmul/accumulate.py": ("llama-untied", "lut"),
    "matmul/activations.py": ("llama-untied", "lut"),
    "matmul/engine.py": ("llama-untied", "mac"),
    "arith/silu.py": ("llama-untied", "lut"),
    "vector/heads.py": ("qwen3", "lut"),
    "attention/pairs.py": ("mistral-window", "lut"),
    "axi/width.py": ("bitnet", "narrow"),
}
"""Model and configuration of faults that :data:`_SETTING` does not have."""
_SETTING = ("bitnet", "ternary")


_OWN = planted(
    "hw/lutra_hw/control/load.py",
    [],
    # of those that the catalogue has, none changes a token of a single sequence
    (
        "all parameters from the first word on",
        "cut_word.eq(Mux(kind == _Kind.PARAM, param_word + word, word)),",
        "cut_word.eq(word),",
    ),
)
FAULTS = [*PACKAGES["hw"], *_OWN]
"""Faults of the RTL that are looked for."""


def _path(fault: Mutant) -> str:
    return fault.file.removeprefix("hw/lutra_hw/")


def _config(name: str) -> AcceleratorConfig:
    """Configuration by its engine, or with ports narrower than all that is moved."""
    if name != "narrow":
        return config_of_engine(name)
    return config_of_engine("ternary").with_(ports=two_ports(weights=128, data=128))


def mutant(words: str) -> Mutant:
    """The fault of the RTL whose name has ``words``."""
    [found] = [each for each in FAULTS if words in each.name]
    return found


def setting(fault: Mutant) -> tuple[str, str]:
    """Model and configuration in which a fault is looked for."""
    return _SETTINGS.get(_path(fault), _SETTING)


def is_named(fault: Mutant, unit: str | None) -> bool:
    """True if ``unit`` is the faulty one, or one that the fault is a part of."""
    units = next(u for start, u in _UNITS.items() if _path(fault).startswith(start))
    return unit is not None and any(unit.startswith(each) for each in units)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a fault: ``named`` says that the unit is right.

    ``kind`` is ``absent`` from the configuration, ``unbuilt`` where no netlist has it, ``silent``,
    ``token``, ``hang`` or ``error``.

    ``cpu_s`` is its share of the processor time of the simulator, and that of the bisection.
    """

    fault: str
    file: str
    kind: str
    named: bool
    unit: str | None
    detail: str | None
    cpu_s: float

    def line(self) -> str:
        """The outcome in words."""
        what = f"{self.file}: {self.fault}"
        if self.kind in _SILENT:
            return ": ".join([what, _SILENT[self.kind], *([self.detail] if self.detail else [])])
        verdict = "named" if self.named else "NOT NAMED"
        return f"{what}: {self.kind}, {verdict}: {self.unit}: {self.detail}"


_SILENT = {
    "absent": "not in this configuration",
    "unbuilt": "no hardware",
    "silent": "changes no token here",
}


def bisect_with(fault: Mutant, wave: Path | None = None) -> dict[str, Any]:
    """Bisect with ``fault`` in the hardware; the result as :class:`Bisected` has it.

    ``absent`` alone where the configuration's Verilog is that without the fault, ``unbuilt`` where
    there is none with it.
    """
    model, engine = setting(fault)
    with tempfile.TemporaryDirectory(prefix="lutra-planted-") as scratch:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "hw", Path(scratch) / "hw", ignore=ignored)
        apply(fault, Path(scratch))
        paths = [str(root / name) for root in (Path(scratch), ROOT) for name in _FOLDERS]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *paths]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LUTRA_COVERAGE": "0",
            "LUTRA_CACHE": str(cache_folder() / "mutants"),
        }
        command = [sys.executable, "-c", "from tests.system.planted import work; work()"]
        command += [model, engine, _verilog_of(_config(engine))]
        command += [] if wave is None else [str(wave)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == -signal.SIGXCPU:
        raise RuntimeError(f"{model} on {engine}: {_ENDLESS}")
    if done.returncode:
        raise RuntimeError(f"{model} on {engine}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


_ENDLESS = f"no end within {_CPU_S} s of processor time"


@cache
def _verilog_of(config: AcceleratorConfig) -> str:
    """Name of the Verilog of a configuration, which follows from its text."""
    return build._verilog(config, Top.ACCELERATOR, cache_folder(), lambda *_: None).parent.name


def work() -> None:
    """Bisect the model and engine of the command line, and print the result as JSON."""
    name, engine, sound, *wave = sys.argv[1:]
    config = _config(engine)
    try:
        found = _verilog_of(config)
    except Exception as error:
        # a combinational cycle, or whatever else a faulty source raises
        print(json.dumps({"unbuilt": f"{type(error).__name__}: {error}".partition("\n")[0]}))
        return
    if found == sound:
        print(json.dumps({"absent": True}))
        return
    with tempfile.TemporaryDirectory() as folder, _compiled_fast():
        model = make(Path(folder))(name)
        path = Path(wave[0]) if wave else None
        print(json.dumps(_bisected(model, compile_model(model, config), path)))


@contextmanager
def _compiled_fast() -> Iterator[None]:
    """Optimise nothing: compiling a simulator that runs once takes longer than what that saves."""
    before = dict(build._OPTIMIZE)
    build._OPTIMIZE |= {"fast": "-O0", "trace": "-O0"}
    try:
        yield
    finally:
        build._OPTIMIZE |= before


def _bisected(model: PackedModel, program: Program, wave: Path | None) -> dict[str, Any]:
    """The result of a bisection, as JSON has it, within the processor time that this process has
    left for it."""
    with AcceleratorDevice(RtlTransport(traceable=True), timeout_s=None) as device:
        device.load_program(model, program)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + _CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        return json.loads(json.dumps(asdict(bisect(device, model, _PROMPT, _N_PREDICT, wave=wave))))


def outcome(fault: Mutant) -> Outcome:
    """Plant a fault in a simulator of its own and bisect."""
    before = _children_s()
    try:
        found = bisect_with(fault)
    except RuntimeError as error:
        found = {"failed": str(error).splitlines()[-1]}
    return _outcome(fault, found, _children_s() - before)


def _outcome(fault: Mutant, found: dict[str, Any], cpu_s: float) -> Outcome:
    kind, named, unit, detail = "silent", False, None, None
    if found.get("failed"):
        kind, detail = "error", found["failed"]
    elif found.get("absent"):
        kind = "absent"
    elif found.get("unbuilt"):
        kind, detail = "unbuilt", found["unbuilt"]
    elif found["pass_index"] is not None:
        kind = "token" if found["error"] is None else "hang"
        unit, named = found["unit"], is_named(fault, found["unit"])
        path = re.sub(rf"\.({SOUND}|{VARIANT}\d+)\b", "", found["signal"] or "no signal")
        detail = f"{path}, cycle {found['cycle']}: {found['detail']}"
    return Outcome(
        fault=fault.fault,
        file=_path(fault),
        kind=kind,
        named=named,
        unit=unit,
        detail=detail,
        cpu_s=round(cpu_s, 1),
    )


def grouped(faults: Sequence[Mutant]) -> Iterator[list[Shared] | Mutant]:
    """Faults that share a simulator, and then those that need their own."""
    open_groups, alone = dict[str, tuple[int, list[Shared]]](), list[Mutant]()
    for fault in faults:
        try:
            each = shared(fault)
        except Exception:
            # a source that cannot be imported: its own process says why
            each = None
        if each is None:
            alone.append(fault)
            continue
        engine = setting(fault)[1]
        weight = sum(_WEIGHTS.get(kind.__name__, 1) for kind in each.components)
        total, group = open_groups.get(engine, (0, []))
        if group and total + weight > _SHARE:
            yield group
            total, group = 0, []
        group.append(each)
        open_groups[engine] = total + weight, group
    yield from (group for _, group in open_groups.values())
    yield from alone


def outcomes(group: Sequence[Shared], n_jobs: int) -> Iterator[Outcome]:
    """Bisect each of the faults of a group, which have the same engine, on one simulator."""
    start, faults = time.process_time() + _children_s(), [each.fault for each in group]
    with simulated(group) as simulator:
        share = (time.process_time() + _children_s() - start) / len(faults)
        running, todo = list[Running](), list(enumerate(faults, 1))
        while todo or running:
            while todo and len(running) < n_jobs:
                number, fault = todo.pop(0)
                if number in simulator.variants.present:
                    running.append(simulator.start(number))
                else:
                    yield _outcome(fault, {"absent": True}, share)
            if running:
                first = running.pop(0)
                found, cpu_s = first.result()
                yield _outcome(faults[first.number - 1], found, share + cpu_s)


@contextmanager
def simulated(group: Sequence[Shared]) -> Iterator["SharedSimulator"]:
    """The simulator of a group of faults that have the same engine."""
    faults = [each.fault for each in group]
    config = _config(setting(faults[0])[1])
    variants = elaborate(config, group)
    with (
        tempfile.TemporaryDirectory(prefix="lutra-planted-") as scratch,
        _built(config, variants, len(faults)),
    ):
        try:
            build.build(config, trace="vcd")
        except build.BuildError as error:
            raise UnshareableError(range(1, len(faults) + 1), str(error)) from error
        yield SharedSimulator(config, variants, faults, Path(scratch))


class SharedSimulator:
    """A simulator with several faults, and the models in which they are looked for."""

    def __init__(
        self, config: AcceleratorConfig, variants: Variants, faults: Sequence[Mutant], folder: Path
    ) -> None:
        self.variants, self._folder, self._faults = variants, folder, faults
        self._models = dict[str, tuple[PackedModel, Program]]()
        for name in dict.fromkeys(setting(fault)[0] for fault in faults):
            model = make(folder)(name)
            self._models[name] = model, compile_model(model, config)

    def start(self, number: int, wave: Path | None = None) -> "Running":
        """Bisect with a fault, by its number from 1 on, in a process of its own."""
        folder = self._folder / str(number)
        folder.mkdir()
        (folder / CHOICE).write_text(f"{number}\n")
        ports = _wire_ports(self.variants, number)
        model, program = self._models[setting(self._faults[number - 1])[0]]

        def work(sender: Connection) -> None:
            os.chdir(folder)
            trace.ports_of = lambda _: ports
            before = time.process_time()
            try:
                found = _bisected(model, program, wave)
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"}
            sender.send((found, time.process_time() - before))

        return Running(number, work)


class Running:
    """A bisection with fault ``number``, which goes on in a process of its own."""

    def __init__(self, number: int, work: Callable[[Connection], None]) -> None:
        self.number = number
        context = get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(sender,))
        self._process.start()
        sender.close()

    def result(self) -> tuple[dict[str, Any], float]:
        """The finding, as :func:`bisect_with` has it, and the processor time."""
        try:
            found, cpu_s = self._receiver.recv()
        except EOFError:
            found, cpu_s = {}, float(_CPU_S)
        self._process.join()
        if self._process.exitcode == -signal.SIGXCPU:
            found = {"failed": _ENDLESS}
        elif not found:
            found = {"failed": f"the process ended with status {self._process.exitcode}"}
        return found, cpu_s


@contextmanager
def _built(config: AcceleratorConfig, variants: Variants, n_faults: int) -> Iterator[None]:
    """Have simulators of the configuration built from its variants, traced where bisect looks."""
    scopes = {
        port.wire.rpartition(".")[0]
        for number in range(n_faults + 1)
        for name, port in _wire_ports(variants, number).items()
        if name.removeprefix("core.") in WATCHED
    }
    verilog = traced(variants.verilog, sorted(scopes))
    before = build._generate, build._hardware_sources
    build._generate, build._hardware_sources = lambda _: (verilog, {}), lambda: verilog
    try:
        with _compiled_fast():
            yield
    finally:
        build._generate, build._hardware_sources = before


def _wire_ports(variants: Variants, number: int) -> dict[str, build.WirePort]:
    ports = variants.ports_with(number)
    return {
        name: build.WirePort(wire=port["wire"], fields=port["fields"])
        for name, port in ports.items()
    }


def _children_s() -> float:
    """Processor time of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def chosen(faults: Sequence[Mutant], n: int, seed: int) -> list[Mutant]:
    """One fault of every file, and others at random up to ``n``, in random order."""
    rng, left = Random(seed), list(faults)
    rng.shuffle(left)
    firsts = {_path(fault): fault for fault in reversed(left)}
    rest = [fault for fault in left if firsts[_path(fault)] is not fault]
    return [*firsts.values(), *rest[: max(n - len(firsts), 0)]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Try faults; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.planted", description=(__doc__ or "").partition(".")[0]
    )
    parser.add_argument("words", nargs="*", help="only faults whose name has one of these words")
    parser.add_argument("-n", type=int, help="number of faults: one of each file, then at random")
    parser.add_argument("--seed", type=int, default=1, help="of the choice (%(default)s)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="at a time (%(default)s)")
    parser.add_argument(
        "--log", type=Path, help="file of outcomes, a line of JSON each; those in it are kept"
    )
    options = parser.parse_args(arguments)
    faults = [
        fault
        for fault in FAULTS
        if _path(fault) not in _OUTSIDE
        and (not options.words or any(word in fault.name for word in options.words))
    ]
    if options.n is not None:
        faults = chosen(faults, options.n, options.seed)
    known = _logged(options.log)
    todo = [fault for fault in faults if (_path(fault), fault.fault) not in known]
    with StepProgress() as progress:
        for i, each in enumerate(_tried(todo, options.jobs)):
            known[each.file, each.fault] = each
            print(each.line(), flush=True)
            if options.log is not None:
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(each)) + "\n")
            progress("bisecting planted faults", (i + 1) / len(todo))
    found = [known[_path(fault), fault.fault] for fault in faults]
    count = Counter(each.kind for each in found)
    shown = [each for each in found if each.kind not in _SILENT]
    right = sum(each.named for each in shown)
    print(
        f"\n{len(found)} of {len(FAULTS)} faults tried: {count['token']} change a token, "
        f"{count['hang'] + count['error']} hang or end in an error, {count['silent']} change "
        f"nothing here, {count['absent']} are not in the configuration, {count['unbuilt']} are no "
        f"hardware; {right} of {len(shown)} "
        f"were named, {sum(each.cpu_s for each in found):.0f} s of processor time"
    )
    return 0 if right == len(shown) else 1


def _tried(faults: Sequence[Mutant], n_jobs: int) -> Iterator[Outcome]:
    for group in grouped(faults):
        if isinstance(group, Mutant):
            yield outcome(group)
        else:
            yield from tried_together(group, n_jobs)


def tried_together(group: Sequence[Shared], n_jobs: int) -> Iterator[Outcome]:
    """Try the faults of a group on one simulator, and those on their own that it cannot have."""
    try:
        yield from outcomes(group, n_jobs)
    except UnshareableError as error:
        numbered = list(enumerate(group, 1))
        rest = [each for number, each in numbered if number not in error.numbers]
        others = [each for number, each in numbered if number in error.numbers]
        if rest:
            yield from tried_together(rest, n_jobs)
            yield from (outcome(each.fault) for each in others)
        elif len(others) > 1:
            # one of them may be what spoils it for all
            middle = len(others) // 2
            for half in (others[:middle], others[middle:]):
                yield from tried_together(half, n_jobs)
        else:
            yield outcome(others[0].fault)


def _logged(path: Path | None) -> dict[tuple[str, str], Outcome]:
    if path is None or not path.is_file():
        return {}
    found = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]
    return {(each.file, each.fault): each for each in found}


if __name__ == "__main__":
    sys.exit(main())
