"""Bisects a small model on the RTL with a planted fault, in a process that has the faulty source.

``python -m tests.system.planted [WORD ...]`` does so for every fault of the RTL, or those whose
names have one of the words, and prints a table.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.system.small_architectures import config_of_engine, make

from lutra.compile.compiler import compile_model
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.diagnose.bisect import bisect
from lutra_sim.mutants.catalogue import PACKAGES
from lutra_sim.mutants.mutant import Mutant, apply, planted
from lutra_sim.rtl.toolchain import cache_folder

__all__ = ["bisect_with", "is_named", "main", "mutant", "setting"]

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("hw", "sim", "kernels_gpu", "host", "flows")
_PROMPT = [5, 77, 123, 9, 201, 42, 18]
_N_PREDICT = 2

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


def bisect_with(fault: Mutant | None, wave: Path | None = None) -> dict[str, Any]:
    """Bisect with ``fault`` in the hardware; the result as :class:`Bisected` has it."""
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
        if fault is not None:
            environment["LUTRA_CACHE"] = str(cache_folder() / "mutants")
        command = [sys.executable, "-c", "from tests.system.planted import work; work()"]
        command += [model, engine, *([] if wave is None else [str(wave)])]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{model} on {engine}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def work() -> None:
    """Bisect the model and engine of the command line, and print the result as JSON."""
    name, engine, *wave = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder))(name)
        device = AcceleratorDevice(RtlTransport(traceable=True))
        device.load_program(model, compile_model(model, config_of_engine(engine)))
        path = Path(wave[0]) if wave else None
        found = bisect(device, model, _PROMPT, _N_PREDICT, wave=path)
        device.close()
    print(json.dumps(asdict(found)))


def main(words: Sequence[str]) -> int:
    """Try the faults; returns the exit status."""
    faults = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    right = changed = 0
    for fault in faults:
        try:
            found = bisect_with(fault)
        except RuntimeError as error:
            print(f"{_path(fault)}: {fault.fault}: ERROR: {error}", flush=True)
            continue
        if found["pass_index"] is None:
            print(f"{_path(fault)}: {fault.fault}: changes no token here", flush=True)
            continue
        changed += 1
        named = is_named(fault, found["unit"])
        right += named
        verdict = "named" if named else "NOT NAMED"
        print(f"{_path(fault)}: {fault.fault}: {verdict}: {found['unit']}", flush=True)
        print(f"    {found['signal']}, cycle {found['cycle']}: {found['detail']}", flush=True)
    print(f"\n{right} of {changed} faults that change a token or hang were named")
    return 0 if right == changed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
