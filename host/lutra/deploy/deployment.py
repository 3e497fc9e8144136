"""A deployment, step by step: look, compare, copy, install, test."""

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lutra.deploy.checks import (
    check_agent_host,
    check_package_host,
    check_rights,
    check_room,
    describe,
)
from lutra.deploy.far import ROOT
from lutra.deploy.link import DeployError, FarLink
from lutra.deploy.overlay import Overlay, check_board, runtime_of
from lutra.deploy.sets import FileSet, Upload
from lutra.deploy.wheel import own_wheel
from lutra.devices.accelerator import agent
from lutra.devices.accelerator.bitstreams import FOLDER_VARIABLE
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.choose import choose_device
from lutra.devices.hardware import BOARD_SCHEME
from lutra.diagnose.selftest import selftest
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import find_profile

__all__ = ["Deployment", "Done"]

Progress = Callable[[str, float], None]
_ENVIRONMENT_BYTES = 200 << 20  # of Lutra and the packages that it needs
_N_PACKAGES = 28  # of these, roughly: for the estimate alone
_TEST_S = 1800.0
_SELFTEST_CHECKS = 7
_OVERLAY = "overlay"
_LAUNCHER = f"""\
#!/bin/bash -l
# Lutra on this board, with the environment that a login has, for PYNQ, and that of XRT
if [ -f /opt/xilinx/xrt/setup.sh ]; then . /opt/xilinx/xrt/setup.sh >/dev/null; fi
here="$(cd "$(dirname "$0")" && pwd)"
# the bitstream that came with it, whoever runs this
export {FOLDER_VARIABLE}="${{{FOLDER_VARIABLE}:-$here/{_OVERLAY}}}"
# root, who may run this, leaves no files that their owner cannot remove
export PYTHONDONTWRITEBYTECODE=1
exec "$here/venv/bin/python" -m lutra "$@"
"""
_AGENT_LAUNCHER = """\
#!/bin/sh
# the agent of this board, for `-dev board://USER@HOST`
here="$(dirname "$0")"
exec {sudo}python3 "$here/lutra_agent.py"{options} "$@"
"""


@dataclass(frozen=True)
class Done:
    """A step that is over, in words; ``ok`` is false if it found something wrong."""

    name: str
    text: str
    seconds: float
    ok: bool = True


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Contents of a deployment to ``target``.

    ``model`` is the folder of a packed model, or the name of one that ships with Lutra. With
    ``agent`` the board gets the agent in the place of the package, and the model stays here.
    ``emulate`` is a board that the far side simulates, in the place of its own. ``python`` is the
    far side's Python with PYNQ, ``wheels`` a folder of packages for a board without internet, and
    ``tree`` a folder that stands for the far side's /proc and /sys, for tests.
    """

    target: str
    overlay: Overlay | None = None
    model: str | Path = "tales"
    agent: bool = False
    emulate: str | None = None
    python: str | None = None
    wheels: Path | None = None
    tree: str = "/"

    @property
    def runtime(self) -> str:
        """Device that runs the model on the far side."""
        if self.emulate is not None:
            return find_profile(self.emulate).runtime
        assert self.overlay is not None
        return runtime_of(self.overlay.board)

    def steps(
        self, packed: PackedModel | None, *, test: bool = True, progress: Progress
    ) -> Iterator[Done]:
        """Carry it out; DeployError ends it where it is, and the board keeps what it had.

        ``packed`` is the model, which an agent is tested with; nobody else needs it.
        """
        progress(f"connecting to {self.target}", 0.0)
        with FarLink(self.target) as link:
            start = time.monotonic()
            facts = link.ask("probe", {"python": self.python, "tree": self.tree})
            sudo, note = self._check(facts)
            text = describe(facts, agent=self.agent)
            yield Done("board", text + (f"; {note}" if note else ""), time.monotonic() - start)
            wheel = None if self.agent else own_wheel()
            yield from self._copy(link, facts, list(self._sets(sudo, wheel)), progress)
            if wheel is not None:
                yield self._install(link, facts, wheel[0], progress)
            done = None
            if test and not self.agent:
                yield (done := self._test(link, sudo, progress))
        if test and self.agent and packed is not None:
            yield (done := self._test_agent(packed, progress))
        if done is None or done.ok:
            yield Done("next", self._run_command(sudo), 0.0)

    def _check(self, facts: Any) -> tuple[Sequence[str], str | None]:
        """Refuse a board that will not do; the way to root there, and what is not known."""
        target, note = self.target, None
        if self.overlay is not None:
            names = [*facts["names"], *filter(None, [facts["python"]["card"]])]
            note = check_board(self.overlay.board, names, facts["compatible"])
        if self.agent:
            check_agent_host(target, facts)
            return check_rights(target, facts, "the agent"), note
        emulated = self.emulate is not None
        check_package_host(target, facts, self.runtime, emulated=emulated)
        if emulated or self.runtime == "xrt":
            return [], note
        return check_rights(target, facts, "PYNQ"), note

    # -- copying

    def _sets(self, sudo: Sequence[str], wheel: tuple[str, bytes] | None) -> Iterator[FileSet]:
        """Sets of files for the board; the package, if it gets one, is ``wheel``."""
        if self.overlay is not None:
            yield FileSet(title="overlay", link=_OVERLAY, files=self.overlay.files)
        if wheel is None:
            source = Path(agent.__file__)
            yield FileSet(
                title="agent",
                link="lutra_agent.py",
                files={source.name: source},
                target=source.name,
            )
            yield self._program("agent", self._agent_launcher(sudo))
            return
        yield FileSet(title="package", link="package", files=dict([wheel]))
        yield self._program("lutra", _LAUNCHER)
        if self.wheels is not None:
            paths = {path.name: path for path in sorted(self.wheels.glob("*.whl"))}
            if not paths:
                raise DeployError(f"{self.wheels} has no .whl files: fill it with `pip download`")
            yield FileSet(title="wheels", link="wheels", files=paths)
        if isinstance(self.model, Path):
            paths = [path for path in sorted(self.model.rglob("*")) if path.is_file()]
            files = {path.relative_to(self.model).as_posix(): path for path in paths}
            yield FileSet(title="model", link=self._model_link, files=files)

    @staticmethod
    def _program(name: str, text: str) -> FileSet:
        files = {name: text.encode()}
        return FileSet(title="program", link=name, files=files, target=name, executable=True)

    def _agent_launcher(self, sudo: Sequence[str]) -> str:
        options = ""
        if self.overlay is not None:
            options += f' --bitstream "$here/{_OVERLAY}/{self.overlay.bitstream}"'
            # the interrupt is behind a controller, which the agent does not use
            options += f" --registers {self.overlay.board.registers_base:#x}"
        return _AGENT_LAUNCHER.format(sudo="".join(f"{word} " for word in sudo), options=options)

    @property
    def _model_link(self) -> str:
        assert isinstance(self.model, Path)
        return f"models/{self.model.resolve().name}"

    def _copy(
        self, link: FarLink, facts: Any, sets: Sequence[FileSet], progress: Progress
    ) -> Iterator[Done]:
        """Copy what is not there yet, a set at a time, when it is known that all of it has room."""
        progress("comparing with what is there", 0.0)
        uploads = [Upload.compare(link, files) for files in sets]
        needed = sum(upload.n_bytes for upload in uploads)
        new = any(upload.missing for upload in uploads if upload.files.title == "package")
        check_room(self.target, facts, needed + (_ENVIRONMENT_BYTES if new else 0))
        for upload in uploads:
            start = time.monotonic()
            upload.send(link, progress)
            n, size = len(upload.table), sum(row[1] for row in upload.table)
            text = f"{ROOT}/{upload.files.link}: {n} file{'s' * (n > 1)}, {size / 1e6:.1f} MB"
            text += f", {len(upload.missing)} copied" if upload.missing else ", there already"
            yield Done(upload.files.title, text, time.monotonic() - start)

    # -- the package

    def _install(self, link: FarLink, facts: Any, wheel: str, progress: Progress) -> Done:
        start, python = time.monotonic(), facts["python"]
        has_pynq = python["packages"]["pynq"] is not None
        constraints = ["numpy<2"] if has_pynq else []
        collected = 0

        def hear(_stream: str, line: str) -> None:
            nonlocal collected
            collected += line.startswith("Collecting ")
            progress("installing on the board", min(collected / _N_PACKAGES, 0.99))

        progress("installing on the board", 0.0)
        # a simulated board needs what simulates it
        extras = "" if self.emulate is None else "[sim]"
        inputs = [wheel, extras, python["path"], python["version"], python["sites"], constraints]
        key = json.dumps(inputs)
        fields = {
            "python": python["path"],
            "wheel": "package",
            "constraints": constraints,
            "wheels": None if self.wheels is None else "wheels",
            "key": _short(key),
            "extras": extras,
        }
        new = link.ask("environment", fields, note=hear)
        text = f"{ROOT}/venv beside the packages of {python['path']}"
        return Done("install", text if new else f"{text}, there already", time.monotonic() - start)

    def arguments(self) -> list[str]:
        """Arguments of ``lutra`` by which a command runs the model on the far side's device."""
        found = ["-dev", self.runtime]
        if self.emulate is not None:
            found += ["--emulate", self.emulate]
        else:
            assert self.overlay is not None
            found += ["--config", self.overlay.config.name]
        if isinstance(self.model, Path):
            return [*found, "-m", f"{ROOT}/{self._model_link}"]
        return found if self.model == "tales" else [*found, "-m", self.model]

    def _test(self, link: FarLink, sudo: Sequence[str], progress: Progress) -> Done:
        """Run ``lutra selftest`` on the far side."""
        start, lines, said = time.monotonic(), list[str](), list[str]()

        def hear(stream: str, line: str) -> None:
            (lines if stream == "out" else said).append(line)
            if share := re.search(r"(\d+) ?%", line):
                progress("testing the board", int(share[1]) / 100)

        progress("testing the board", 0.0)
        command = [*sudo, f"{ROOT}/lutra", "selftest", *self.arguments(), "--json"]
        code = link.ask("run", {"command": command, "limit_s": _TEST_S}, note=hear)
        seconds = time.monotonic() - start
        checks: Sequence[Mapping[str, Any]] = []
        with suppress(IndexError, ValueError, KeyError):
            checks = json.loads(lines[-1])["checks"] if code in (0, 1) else []
        if not checks:
            errors = [line for line in said if line.startswith("error: ")]
            why = (errors or said or ["it said nothing"])[-1].removeprefix("error: ")
            raise DeployError(f"the self-test on {self.target} could not run: {why}")
        made = [each for each in checks if not each["left_out"]]
        return _tested([(each["name"], each["problem"]) for each in made], seconds)

    def _test_agent(self, packed: PackedModel, progress: Progress) -> Done:
        """Run the self-test here, on the accelerator that the agent lends."""
        start, address = time.monotonic(), BOARD_SCHEME + self.target
        config = None if self.overlay is None else self.overlay.config
        device, _ = choose_device(address, config=config, progress=progress)
        assert isinstance(device, AcceleratorDevice)
        checks: list[tuple[str, str | None]] = []
        for check in selftest(device, packed):
            progress("testing the board", min(len(checks) / _SELFTEST_CHECKS, 0.99))
            if not check.left_out:
                checks.append((check.name, check.problem))
        return _tested(checks, time.monotonic() - start)

    # -- afterwards

    def _run_command(self, sudo: Sequence[str]) -> str:
        """Command by which this PC has the board tell a story."""
        if self.agent:
            found = ["lutra", "run", "-dev", f"{BOARD_SCHEME}{self.target}"]
            found += ["--config", self.overlay.config.name] if self.overlay else []
            return shlex.join(found + ([] if self.model == "tales" else ["-m", str(self.model)]))
        command = [*sudo[:1], f"{ROOT}/lutra", "run", *self.arguments()]
        return shlex.join(["ssh", self.target, shlex.join(command)])


def _tested(checks: Sequence[tuple[str, str | None]], seconds: float) -> Done:
    for name, problem in checks:
        if problem:
            return Done("self-test", f"{name}: {problem}", seconds, ok=False)
    return Done("self-test", f"ok: {', '.join(name for name, _ in checks)}", seconds)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
