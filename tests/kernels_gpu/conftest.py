"""Kernels are tested in a process of their own, in which Triton interprets them.

Triton decides when a kernel is defined whether it is compiled or interpreted, so one process
cannot do both. Tests marked ``interpreted`` are run by a child that has ``TRITON_INTERPRET=1``, one
child per test module (and worker); their reports come back as if the test had run here. With
``LUTRA_TEST_CUDA=1`` they run here instead, on the CUDA device.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

CHILD = "LUTRA_INTERPRETED_CHILD"


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in as few programs as possible, which the interpreter runs one after another, and
    without its watch over 32 bits, which the tests of single kernels are under."""
    from triton.runtime import interpreter

    from lutra_kernels import launch
    from lutra_kernels.arrays import INTERPRETED

    if not INTERPRETED:
        return

    def gemv_rule(n: int, n_blocks: int, plane: int, mixed: bool = False) -> launch.Tile:
        return launch.Tile(block_n=1 << (n - 1).bit_length(), block_b=8 // plane, num_warps=1)

    monkeypatch.setattr(launch, "gemv_rule", gemv_rule)
    monkeypatch.setattr(launch, "_SMS", 1)
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


def _is_elsewhere(item: pytest.Item) -> bool:
    """True if ``item`` must run in a child process."""
    here = os.environ.get("TRITON_INTERPRET") == "1" or os.environ.get("LUTRA_TEST_CUDA") == "1"
    return not here and item.get_closest_marker("interpreted") is not None


class _Child:
    """pytest in another process, which runs the requested tests and sends their reports."""

    def __init__(self, module: Path, config: pytest.Config) -> None:
        self.module = module
        (child_in, to_child), (from_child, child_out) = os.pipe(), os.pipe()
        environment = {
            **os.environ,
            "TRITON_INTERPRET": "1",
            CHILD: f"{child_in},{child_out}",
        }
        for name in [name for name in environment if name.startswith("PYTEST_")]:
            del environment[name]
        command = [sys.executable, "-m", "pytest", str(module), f"--rootdir={config.rootpath}"]
        command += ["-p", "no:cacheprovider", "-p", "no:terminal", "--override-ini=addopts="]
        command += ["--import-mode=importlib", "--strict-markers"]
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            cwd=config.rootpath,
            env=environment,
            pass_fds=(child_in, child_out),
            stdout=self.output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(child_in)
        os.close(child_out)
        self.requests = os.fdopen(to_child, "w")
        self.answers = os.fdopen(from_child)

    def run(self, nodeid: str) -> list[dict[str, object]]:
        try:
            self.requests.write(nodeid + "\n")
            self.requests.flush()
            answer = self.answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self.process.wait()
            self.output.seek(0)
            raise RuntimeError(
                f"the interpreting process ended with status {status}\n{self.output.read()}"
            )
        reports = json.loads(answer)
        for report in reports:
            # why a test was skipped is a tuple, which JSON does not know
            if isinstance(report["longrepr"], list):
                report["longrepr"] = tuple(report["longrepr"])
        return reports

    def close(self) -> None:
        try:
            self.requests.close()
        except BrokenPipeError:  # it is gone already
            pass
        self.process.wait()
        self.answers.close()
        self.output.close()


_child: _Child | None = None


def _close() -> None:
    global _child
    if _child is not None:
        _child.close()
        _child = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    global _child
    if not _is_elsewhere(item):
        return None
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    if _child is None or _child.module != item.path:
        _close()
        _child = _Child(item.path, item.config)
    try:
        for data in _child.run(item.nodeid):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            hook.pytest_runtest_logreport(report=report)
    except RuntimeError as error:
        _close()
        when, where = "call", item.location
        report = pytest.TestReport(item.nodeid, where, {}, "failed", str(error), when)
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    if nextitem is None or nextitem.path != item.path:
        _close()
    # what a test that ran here has left set up for the folder, as pytest's own protocol does
    item.session._setupstate.teardown_exact(nextitem)
    return True


def _serve(session: pytest.Session, requests: IO[str], answers: IO[str]) -> None:
    from _pytest.runner import runtestprotocol

    items = {item.nodeid: item for item in session.items}
    for line in requests:
        item = items[line.rstrip("\n")]
        reports = runtestprotocol(item, log=False, nextitem=None)
        hook = session.config.hook
        data = [
            hook.pytest_report_to_serializable(config=session.config, report=report)
            for report in reports
        ]
        answers.write(json.dumps(data) + "\n")
        answers.flush()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    channel = os.environ.get(CHILD)
    if channel is None or session.testsfailed:
        return None
    child_in, child_out = (int(number) for number in channel.split(","))
    with os.fdopen(child_in) as requests, os.fdopen(child_out, "w") as answers:
        _serve(session, requests, answers)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    _close()
