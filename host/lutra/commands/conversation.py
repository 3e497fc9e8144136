"""The loop of ``lutra chat``: read a line, print the answer piece by piece."""

import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from rich.console import Console

from lutra.llm import Mismatch, Piece
from lutra.serving.results import FinishReason
from lutra.text.messages import Message
from lutra.text.sampling import SamplingParams
from lutra_golden.errors import LutraError

__all__ = ["Chatting", "Conversation", "converse"]

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


@dataclass(frozen=True)
class Conversation:
    """Messages of a conversation; ``interrupted`` if Ctrl-C ended it.

    ``finish_reason`` is that of the last answer, None if there is none or Ctrl-C ended it.
    """

    messages: list[Message]
    interrupted: bool = False
    finish_reason: FinishReason | None = None


def converse(
    llm: Chatting,
    sampling: SamplingParams,
    max_tokens: int | None = None,
    system: str | None = None,
) -> Conversation:
    """Answer the lines of standard input until ``/exit`` or its end.

    On a terminal Ctrl-C stops an answer, and ends the conversation where a line is awaited; an
    error is shown, and the conversation goes on without the line that caused it. Elsewhere Ctrl-C
    ends the conversation with the text that has come, and errors are raised.
    """
    console = Console(highlight=False)
    interactive = sys.stdin.isatty()
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    history, reason = list(start), None
    if interactive:
        console.print(_HELP, style="dim")
    while True:
        try:
            line = _ask(console, interactive)
        except KeyboardInterrupt:
            console.print()
            return Conversation(history, interrupted=True, finish_reason=reason)
        if line is None or line == "/exit":
            return Conversation(history, finish_reason=reason)
        if line == "/clear":
            history, reason = list(start), None
        elif line.startswith("/"):
            console.print(f"unknown command {line.split()[0]}: {_HELP}", style="dim", markup=False)
        elif line:
            history.append({"role": "user", "content": line})
            try:
                answer, ended, interrupts = _answer(llm, history, max_tokens, sampling)
            except Mismatch:
                raise
            except LutraError as error:
                if not interactive:
                    raise
                text = f"error: {error} (or /clear)"
                console.print(text, style="red", markup=False, soft_wrap=True)
                history.pop()
                continue
            if answer or not interrupts:
                history.append({"role": "assistant", "content": answer})
                reason = ended
            if interrupts > (1 if interactive else 0):
                return Conversation(history, interrupted=True, finish_reason=reason)
            if history[-1]["role"] == "user":
                console.print("interrupted before the answer began", style="dim")
                history.pop()


def _ask(console: Console, interactive: bool) -> str | None:
    """The next line, None at the end."""
    try:
        return (console.input("[bold green]> [/]") if interactive else input()).strip()
    except EOFError:
        return None


def _answer(
    llm: Chatting, history: Sequence[Message], max_tokens: int | None, sampling: SamplingParams
) -> tuple[str, FinishReason | None, int]:
    """The answer as far as it came, why it ended, and how often Ctrl-C was pressed meanwhile.

    The first one ends it behind the token in hand; there is none before the answer has begun.
    """
    text, interrupts = "", 0
    reason: FinishReason | None = None

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1 or not text:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt), _on_interrupt(interrupt):
        for piece in llm.chat(history, max_tokens, sampling):
            text, reason = text + piece.text, piece.finish_reason
            print(piece.text, end="", flush=True)
            if interrupts:
                break
    print(flush=True)
    return text, reason, interrupts


@contextmanager
def _on_interrupt(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Have ``handler`` called on Ctrl-C."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
