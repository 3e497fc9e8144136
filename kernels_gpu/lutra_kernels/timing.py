"""Times on a CUDA device: graphs of many calls over more weights than the cache holds."""

import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import triton.language as tl

from lutra_kernels import arrays
from lutra_kernels.jit import jit
from lutra_kernels.layout import cdiv

__all__ = [
    "CALLS",
    "ROTATED_BYTES",
    "Time",
    "describe",
    "n_copies",
    "read_ceiling",
    "read_kernel",
    "time_calls",
]

CALLS = 20
"""Calls of a graph."""
REPLAYS = 20
ROTATED_BYTES = 180_000_000
"""Weights that a graph goes through: three times the second-level cache of an H200."""
_READ_BYTES = 1 << 30
_READ_BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class Time:
    """Microseconds of one call, over the replays of a graph."""

    median: float
    p10: float
    p90: float


def n_copies(n_bytes: int) -> int:
    """Copies of ``n_bytes`` that together exceed every cache; at most one for each call."""
    return max(1, min(CALLS, cdiv(ROTATED_BYTES, n_bytes)))


def time_calls(calls: Sequence[Callable[[], object]]) -> Time:
    """Time of one of ``calls``, which a graph of :data:`CALLS` goes through in turn."""
    torch = import_module("torch")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(CALLS):
            calls[i % len(calls)]()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    times: list[float] = []
    for _ in range(REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(1000 * start.elapsed_time(stop) / CALLS)
    p10, median, p90 = (float(x) for x in np.percentile(times, (10, 50, 90)))
    return Time(median=median, p10=p10, p90=p90)


@jit
def read_kernel(x_ptr, o_ptr, BLOCK: tl.constexpr):
    """Read int32 ``[programs * BLOCK]``; one store per program, so that nothing is left out."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x_ptr + i, eviction_policy="evict_first"), 0)
    tl.store(o_ptr + tl.program_id(0), total)


def read_ceiling() -> float:
    """Gigabytes a second that a kernel reaches which only reads."""
    torch = import_module("torch")
    words = _READ_BYTES // 4
    data = torch.ones(words, dtype=torch.int32, device=arrays.DEVICE)
    programs = words // _READ_BLOCK
    out = torch.empty(programs, dtype=torch.int32, device=arrays.DEVICE)

    def call() -> None:
        read_kernel[(programs,)](data, out, BLOCK=_READ_BLOCK, num_warps=8)

    call()
    if not bool((out == _READ_BLOCK).all()):
        raise RuntimeError("the reading kernel's sums are wrong")
    return _READ_BYTES / time_calls([call]).median / 1000


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def describe() -> dict[str, str]:
    """Device, clocks, driver, versions and commit, as far as they can be found out."""
    torch = import_module("torch")
    major, minor = torch.cuda.get_device_capability()
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    state = _output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    folder = str(Path(__file__).parent)
    return {
        "device": str(torch.cuda.get_device_name()),
        "capability": f"{major}.{minor}",
        "driver, clocks, power": state[0] if state else "",
        "cuda": str(torch.version.cuda),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "gemlite": _version("gemlite"),
        "python": platform.python_version(),
        "commit": _output("git", "-C", folder, "rev-parse", "HEAD"),
    }
