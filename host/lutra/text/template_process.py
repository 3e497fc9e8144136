"""A chat template that runs in a process of its own, within limits of time and memory.

A template comes with a model, and what it is given comes from clients of a server: neither is
trusted. Its process has nothing of this one's: no environment, no keys, no model.
"""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, cast

from lutra.closing import Closing
from lutra.text.chat_template import ChatTemplate
from lutra.text.messages import Message
from lutra_golden.errors import LutraError

__all__ = ["TEMPLATE_BYTES", "TEMPLATE_S", "TemplateProcess", "main"]

TEMPLATE_S = 5.0
"""Seconds that a template may take for one conversation, the start of its process included."""
TEMPLATE_BYTES = 512 << 20
"""Memory that the process of a template may have, the interpreter included."""
_ANOTHER = "shorten the messages, or serve the model with another template (--chat-template FILE)"


class TemplateProcess(Closing):
    """Renders with the template ``source``, for any thread, one conversation at a time.

    ``tokens`` are special tokens by the names it has for them. The process starts with the first
    conversation, and again after one that took more than ``seconds`` or ``memory_bytes``.
    """

    def __init__(
        self,
        source: str,
        tokens: Mapping[str, str],
        *,
        seconds: float = TEMPLATE_S,
        memory_bytes: int = TEMPLATE_BYTES,
    ) -> None:
        self._first: dict[str, object] = {
            "source": source,
            "tokens": dict(tokens),
            "memory_bytes": memory_bytes,
        }
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Compile the template; LutraError if it is no Jinja, or takes too much."""
        self._asked({})

    def render(self, messages: Sequence[Message], tools: Sequence[object] | None = None) -> str:
        """The prompt that the messages make, see :meth:`ChatTemplate.render`."""
        return self._asked({"messages": [dict(message) for message in messages], "tools": tools})

    def _asked(self, request: Mapping[str, object]) -> str:
        """What the process makes of a request: the prompt of a conversation, or nothing."""
        with self._lock:
            expired = threading.Event()
            process = self._process = self._process or _start()
            timer = threading.Timer(self._seconds, lambda: (expired.set(), process.kill()))
            timer.daemon = True
            timer.start()
            try:
                answer = self._ask(process, {**self._first, **request})
            finally:
                timer.cancel()
            if answer is None:
                self._end()
                reason = f"took more than {self._seconds:g} s" if expired.is_set() else "ended"
                raise LutraError(f"the process of the chat template {reason}: {_ANOTHER}")
        if "error" in answer:
            raise LutraError(answer["error"])
        return answer["text"]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(
        self, process: subprocess.Popen[bytes], request: dict[str, object]
    ) -> dict[str, str] | None:
        """An answer of the process, None if it has ended."""
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what was not read any more
                cast("IO[bytes]", pipe).close()
        process.wait()


def _start() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "lutra.text.template_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        start_new_session=True,  # Ctrl-C is for the server, which ends this process
    )


def main() -> int:
    """Answer lines of standard input, each a conversation or just the template, until its end;
    returns the exit code."""
    template: ChatTemplate | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if template is None:
            _limit(request["memory_bytes"])
        try:
            template = template or ChatTemplate(request["source"], request["tokens"])
            talk = request.get("messages")
            answer = {"text": "" if talk is None else template.render(talk, request["tools"])}
        except LutraError as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def _limit(memory_bytes: int) -> None:
    for what, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 0)):
        with suppress(OSError, ValueError):  # systems that do not know it
            resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    sys.exit(main())
