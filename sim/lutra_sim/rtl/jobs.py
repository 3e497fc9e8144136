"""Several commands at a time, each leaving one file, all ended when one fails or is interrupted."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lutra_golden.machine import available_cores, end_group

__all__ = ["Job", "JobError", "run_jobs"]

_POLL_S = 0.02


@dataclass(frozen=True)
class Job:
    """``command`` writes ``output.partial``, which becomes ``output`` once it has succeeded."""

    command: Sequence[str | Path]
    output: Path
    cost: float = 1.0

    @property
    def partial(self) -> Path:
        """File that ``command`` writes."""
        # other processes may be making the same file
        return self.output.with_name(f"{self.output.name}.{os.getpid()}.partial")

    @property
    def log(self) -> Path:
        """Output of ``command``."""
        return self.output.with_name(f"{self.output.name}.log")


class JobError(RuntimeError):
    """The command of ``job`` failed."""

    def __init__(self, job: Job, status: int) -> None:
        self.job, self.status = job, status
        super().__init__(f"{job.output.name}: status {status}")


def run_jobs(
    jobs: Sequence[Job],
    *,
    environment: Mapping[str, str],
    n_parallel: int | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Run the jobs whose output is not there yet, costly ones first.

    ``on_progress`` is called with the share of the cost that is done.
    """
    if n_parallel is None:
        n_parallel = available_cores()
    waiting = sorted((job for job in jobs if not job.output.exists()), key=lambda job: job.cost)
    total = sum(job.cost for job in jobs) or 1.0
    done = total - sum(job.cost for job in waiting)
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    on_progress(done / total)
    try:
        while waiting or running:
            while waiting and len(running) < n_parallel:
                job = waiting.pop()
                with job.log.open("wb") as log:
                    process = subprocess.Popen(
                        [*map(str, job.command)],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=dict(environment),
                        cwd=job.output.parent,
                        start_new_session=True,
                    )
                running.append((job, process))
            time.sleep(_POLL_S)
            for job, process in [*running]:
                status = process.poll()
                if status is None:
                    continue
                running.remove((job, process))
                if status:
                    raise JobError(job, status)
                job.partial.replace(job.output)
                done += job.cost
                on_progress(done / total)
    finally:
        for _, process in running:
            # a compiler driver does not end its children itself
            end_group(process)
