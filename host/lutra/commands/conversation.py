"""The loop of ``lutra chat``: read a line, print the answer piece by piece."""

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

_HELP = "/exit to quit, /clear to start over, Ctrl-C to stop an answer"


class Chatting(Protocol):
    """The part of :class:`~lutra.llm.LLM` that a conversation needs."""

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
    """Answer the lines of standard input until ``/exit`` or its end; returns the messages.

    On a terminal an error is shown and the conversation goes on without the line that caused it;
    elsewhere it is raised.
    """
    console = Console(highlight=False)
    interactive = sys.stdin.isatty()
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    history = list(start)
    if interactive:
        console.print(_HELP, style="dim")
    while (line := _ask(console, interactive)) is not None:
        if line == "/exit":
            break
        if line == "/clear":
            history = list(start)
        elif line.startswith("/"):
            console.print(f"unknown command {line.split()[0]}: {_HELP}", style="dim", markup=False)
        elif line:
            history.append({"role": "user", "content": line})
            try:
                answer = _answer(llm, history, max_tokens, sampling)
            except Mismatch:
                raise
            except LutraError as error:
                if not interactive:
                    raise
                console.print(f"error: {error} (or /clear)", style="red", markup=False)
                history.pop()
                continue
            history.append({"role": "assistant", "content": answer})
    return history


def _ask(console: Console, interactive: bool) -> str | None:
    """The next line, None at the end."""
    try:
        return (console.input("[bold green]> [/]") if interactive else input()).strip()
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
    """Set the event on Ctrl-C, so that no token is cut off; a second Ctrl-C interrupts."""
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
