"""The loop of ``lutra chat``: a line is asked for, the answer comes piece by piece."""

import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Protocol

from rich.console import Console

from lutra.llm import Mismatch, Piece
from lutra.text.chat_template import Message
from lutra.text.sampling import SamplingParams
from lutra_golden.errors import LutraError

__all__ = ["Chatting", "converse"]

_HELP = "/exit to leave, /clear to begin anew, Ctrl-C to stop an answer"


class Chatting(Protocol):
    """What answers: :class:`~lutra.llm.LLM`."""

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> Iterator[Piece]:
        """The answer, piece by piece."""
        ...


def converse(
    llm: Chatting,
    sampling: SamplingParams,
    max_tokens: int | None = None,
    system: str | None = None,
) -> list[Message]:
    """Answer the lines of standard input until ``/exit`` or their end; return what was said.

    On a terminal an error is shown and the conversation goes on without the line that caused it;
    elsewhere it is raised.
    """
    console = Console(highlight=False)
    asks = sys.stdin.isatty()
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    history = list(start)
    if asks:
        console.print(_HELP, style="dim")
    while (line := _ask(console, asks)) is not None:
        if line == "/exit":
            break
        if line == "/clear":
            history = list(start)
        elif line.startswith("/"):
            console.print(f"{line.split()[0]} is no command: {_HELP}", style="dim", markup=False)
        elif line:
            history.append({"role": "user", "content": line})
            try:
                answer = _answer(llm, history, max_tokens, sampling)
            except Mismatch:
                raise
            except LutraError as error:
                if not asks:
                    raise
                console.print(f"error: {error} (or /clear)", style="red", markup=False)
                history.pop()
                continue
            history.append({"role": "assistant", "content": answer})
    return history


def _ask(console: Console, asks: bool) -> str | None:
    """The next line, None at the end."""
    try:
        return (console.input("[bold green]> [/]") if asks else input()).strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        console.print()
        return None


def _answer(
    llm: Chatting, history: Sequence[Message], max_tokens: int | None, sampling: SamplingParams
) -> str:
    text = ""
    with _interruptible() as stopped:
        for piece in llm.chat(history, max_tokens, sampling):
            text += piece.text
            print(piece.text, end="", flush=True)
            if stopped.is_set():
                break
    print(flush=True)
    return text


@contextmanager
def _interruptible() -> Generator[Event]:
    """Ctrl-C sets the event, so that a device is never left within a token; twice it leaves."""
    stopped = Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
