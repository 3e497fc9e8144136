"""Bisects a small model on the RTL with a planted fault, in a process that has the faulty source.

``python -m tests.system.planted [WORD ...]`` does so for every fault of the RTL, or those whose
names have one of the words, or some at random, and prints what was named.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.system.small_architectures import config_of_engine, make

from lutra.compile.compiler import compile_model
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.diagnose import trace
from lutra.diagnose.bisect import bisect
from lutra.progress import StepProgress
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Top
from lutra_sim.mutants.catalogue import PACKAGES
from lutra_sim.mutants.mutant import Mutant, apply, planted
from lutra_sim.rtl import build
from lutra_sim.rtl.toolchain import cache_folder

__all__ = ["Outcome", "bisect_with", "chosen", "is_named", "main", "mutant", "outcome", "setting"]

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("hw", "sim", "kernels_gpu", "host", "flows")
_PROMPT = [5, 77, 123, 9, 201, 42, 18]
_N_PREDICT = 2
_CPU_S = 240
"""Processor time of a bisection, beside the build: a fault may make a run endless."""
_OUTSIDE = ("control/ap_ctrl.py", "core/xrt.py", "core/board.py", "widths.py")
"""Files of what is around the accelerator, which bisect does not see."""

_READS, _WRITES, _CONTROL = "reads of", "writes", "control"
_UNITS = {
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
    # shared arithmetic, buffers and registers: the units that have them
    "arith/": ("vector unit", "attention unit"),
    "buffers.py": ("vector unit", "attention unit"),
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
}
"""Model and engine of faults that :data:`_SETTING` does not have."""
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


def mutant(words: str) -> Mutant:
    """The fault of the RTL whose name has ``words``."""
    [found] = [each for each in FAULTS if words in each.name]
    return found


def setting(fault: Mutant) -> tuple[str, str]:
    """Model and engine in which a fault is looked for."""
    return _SETTINGS.get(_path(fault), _SETTING)


def is_named(fault: Mutant, unit: str | None) -> bool:
    """True if ``unit`` is the faulty one, or one that the fault is a part of."""
    units = next(u for start, u in _UNITS.items() if _path(fault).startswith(start))
    return unit is not None and any(unit.startswith(each) for each in units)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a fault: ``kind`` is ``absent`` from the configuration, ``silent``, ``token``,
    ``hang`` or ``error``; ``named`` says that the unit is right.
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
        if self.kind in ("absent", "silent"):
            return f"{what}: {_SILENT[self.kind]}"
        verdict = "named" if self.named else "NOT NAMED"
        return f"{what}: {self.kind}, {verdict}: {self.unit}: {self.detail}"


_SILENT = {
    "absent": "not in this configuration",
    "silent": "changes no token here",
}


def bisect_with(fault: Mutant | None, wave: Path | None = None) -> dict[str, Any]:
    """Bisect with ``fault`` in the hardware; the result as :class:`Bisected` has it.

    None for every value where the configuration's Verilog is that without the fault.
    """
    model, engine = _SETTING if fault is None else setting(fault)
    with tempfile.TemporaryDirectory(prefix="lutra-planted-") as scratch:
        roots = [ROOT]
        if fault is not None:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / "hw", Path(scratch) / "hw", ignore=ignored)
            apply(fault, Path(scratch))
            roots.insert(0, Path(scratch))
        paths = [str(root / name) for root in roots for name in _FOLDERS]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *paths]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LUTRA_COVERAGE": "0",
        }
        sound = Path(scratch) / "sound.json"
        if fault is not None:
            environment["LUTRA_CACHE"] = str(cache_folder() / "mutants")
            sound.write_text(_sound(engine))
        command = [sys.executable, "-c", "from tests.system.planted import work; work()"]
        command += [model, engine, str(sound), *([] if wave is None else [str(wave)])]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == -signal.SIGXCPU:
        raise RuntimeError(f"{model} on {engine}: no end within {_CPU_S} s of processor time")
    if done.returncode:
        raise RuntimeError(f"{model} on {engine}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _sound(engine: str) -> str:
    """Verilog of an engine's configuration without a fault, by its name, and its ports, as JSON."""
    config = config_of_engine(engine)
    ports = {name: asdict(port) for name, port in build.ports_of(config).items()}
    return json.dumps({"verilog": _verilog_of(config), "ports": ports})


def _verilog_of(config: AcceleratorConfig) -> str:
    """Name of the Verilog of a configuration, which follows from its text."""
    return build._verilog(config, Top.ACCELERATOR, cache_folder(), lambda *_: None).parent.name


def work() -> None:
    """Bisect the model and engine of the command line, and print the result as JSON."""
    name, engine, sound, *wave = sys.argv[1:]
    config = config_of_engine(engine)
    if Path(sound).is_file():
        known = json.loads(Path(sound).read_text())
        if _verilog_of(config) == known["verilog"]:
            print(json.dumps({"absent": True}))
            return
        # no fault changes a port
        ports = {key: build.WirePort(**port) for key, port in known["ports"].items()}
        trace.ports_of = lambda _: ports
    # a simulator of a fault runs once: compiling takes longer than what optimising saves
    build._OPTIMIZE |= {"fast": "-O0", "trace": "-O0"}
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder))(name)
        device = AcceleratorDevice(RtlTransport(traceable=True))
        device.load_program(model, compile_model(model, config))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + _CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        path = Path(wave[0]) if wave else None
        found = bisect(device, model, _PROMPT, _N_PREDICT, wave=path)
        device.close()
    print(json.dumps(asdict(found)))


def outcome(fault: Mutant) -> Outcome:
    """Plant a fault and bisect."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def of(kind: str, named: bool, unit: str | None, detail: str | None) -> Outcome:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Outcome(
            fault=fault.fault,
            file=_path(fault),
            kind=kind,
            named=named,
            unit=unit,
            detail=detail,
            cpu_s=round(cpu_s, 1),
        )

    try:
        found = bisect_with(fault)
    except RuntimeError as error:
        return of("error", False, None, str(error).splitlines()[-1])
    if found.get("absent"):
        return of("absent", False, None, None)
    if found["pass_index"] is None:
        return of("silent", False, None, None)
    kind = "token" if found["error"] is None else "hang"
    detail = f"{found['signal']}, cycle {found['cycle']}: {found['detail']}"
    return of(kind, is_named(fault, found["unit"]), found["unit"], detail)


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
    parser.add_argument("-n", type=int, help="so many: one of each file, others at random")
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
    with ThreadPoolExecutor(options.jobs) as pool, StepProgress() as progress:
        for i, future in enumerate(as_completed([pool.submit(outcome, f) for f in todo])):
            each = future.result()
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
        f"{count['hang']} hang or end in an error, {count['silent']} change nothing here, "
        f"{count['absent']} are not in the configuration; {right} of {len(shown)} were named"
    )
    return 0 if right == len(shown) else 1


def _logged(path: Path | None) -> dict[tuple[str, str], Outcome]:
    if path is None or not path.is_file():
        return {}
    found = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()]
    return {(each.file, each.fault): each for each in found}


if __name__ == "__main__":
    sys.exit(main())
