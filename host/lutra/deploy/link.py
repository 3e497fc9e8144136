"""The link of ``lutra deploy``: one login by SSH, and the far side's program behind it."""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from lutra.closing import Closing
from lutra.deploy import far
from lutra.devices.accelerator.board_link import complaint, end_ssh, ssh_command
from lutra_golden.errors import LutraError

__all__ = ["DeployError", "FarLink", "check_target"]

Note = Callable[[str, str], None]
_TARGET = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:-]*")
# for any shell of a login: no name of a file goes this way
_COMMAND = (
    "python3 -c 'import sys; "
    'sys.version_info >= (3, 8) or sys.exit("Python 3.8 or later is needed"); '
    "n = int(sys.stdin.buffer.readline()); "
    'exec(compile(sys.stdin.buffer.read(n), "lutra_far", "exec")); sys.exit(main())\''
)
_LINES_MAX = 200  # of what a login says before the far side does
_NO_PYTHON = 127  # exit status of a shell that finds no program
_DOING = {
    "probe": "looking at it",
    "missing": "comparing files",
    "put": "copying",
    "commit": "putting files in place",
    "environment": "installing",
    "run": "running a program there",
}
_ADVICE = {
    "Host key verification failed": "run `ssh {target}` once, compare the key and accept it",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "another machine answers: see ~/.ssh/known_hosts",
    "Permission denied": "let the board know your key: `ssh-copy-id {target}`",
    "Could not resolve": "give the address of the board",
    "Connection refused": "start the SSH server of the board",
    "Connection timed out": "see that the board runs and is in this network",
    "No route to host": "see that the board runs and is in this network",
    "is needed": "install it on the board",
}
"""Advice by what the client of SSH says."""


class DeployError(LutraError):
    """A step of a deployment that failed: one line."""


class _DroppedError(DeployError):
    """The link is gone."""


def check_target(target: str) -> str:
    """Return ``target`` if it is a host as ``ssh`` takes it, with or without a user."""
    if not _TARGET.fullmatch(target):
        raise LutraError(f"the board is USER@HOST as for ssh, not {target!r}: give its address")
    return target


class FarLink(Closing):
    """The far side's program on ``target``; requests are those of :class:`lutra.deploy.far`."""

    def __init__(self, target: str) -> None:
        self._target, self._resources = check_target(target), ExitStack()
        command = [*ssh_command(), "--", target, _COMMAND]
        self._errors = self._resources.enter_context(tempfile.TemporaryFile())
        try:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # an interrupt ends the link when we do
            )
        except OSError as error:
            self.close()
            raise DeployError(
                f"{command[0]} cannot be started ({error.strerror}): install OpenSSH's client, or "
                "name another in LUTRA_SSH"
            ) from None
        self._resources.callback(end_ssh, process)
        assert process.stdin is not None and process.stdout is not None
        self._writes, self._reads = process.stdin, process.stdout
        try:
            source = Path(far.__file__).read_bytes()
            self._send(b"%d\n%s" % (len(source), source))
            self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        """Read up to the far side's first line."""
        for _ in range(_LINES_MAX):
            line = self._reads.readline()
            if line.strip() == far.HELLO.encode():
                return
            if not line:
                raise self._dropped("connecting")
        raise DeployError(f"{self._target} answers with something else than Lutra: see `ssh -v`")

    def ask(
        self,
        name: str,
        fields: Mapping[str, object],
        data: Iterable[bytes] = (),
        note: Note = lambda stream, line: None,
    ) -> Any:
        """Send a request, and ``data`` behind it; its answer, with its lines to ``note`` before."""
        try:
            self._send(json.dumps({"do": name, **fields}).encode() + b"\n")
            for piece in data:
                self._send(piece)
        except _DroppedError:
            # it may have said why before it ended
            answer = self._answer(name, note)
            if "error" not in answer:
                raise
        else:
            answer = self._answer(name, note)
        if "error" in answer:
            raise DeployError(f"{self._target}: {answer['error']}")
        return answer["ok"]

    def _answer(self, name: str, note: Note) -> Mapping[str, Any]:
        while line := self._reads.readline():
            try:
                answer = json.loads(line)
            except ValueError:
                break
            if "note" not in answer:
                return answer
            note(answer["stream"], answer["note"])
        raise self._dropped(_DOING.get(name, name))

    def _send(self, data: bytes) -> None:
        try:
            self._writes.write(data)
            self._writes.flush()
        except OSError:
            raise self._dropped("copying") from None

    def _dropped(self, what: str) -> _DroppedError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        said = complaint(self._errors)
        if self._process.returncode == _NO_PYTHON:
            return _DroppedError(
                f"{self._target} has no python3 ({said}): install Python 3.8 or later there"
            )
        why = said or "the other end closed it"
        advice = next(
            (text for key, text in _ADVICE.items() if key in said),
            "run the same command again, which goes on where this one ended",
        )
        advice = advice.format(target=self._target)
        return _DroppedError(f"the link to {self._target} ended while {what} ({why}): {advice}")

    def close(self) -> None:
        """End it, and with it whatever runs there for us."""
        self._resources.close()
