"""The loop of ``lutra chat``: lines in, pieces out, on a terminal and without one."""

import io
import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from tests.host.random_model import SHAPES, write_model

from lutra.commands.cli import main
from lutra.commands.conversation import converse
from lutra.llm import Mismatch, Piece
from lutra.text.chat_template import Message
from lutra.text.sampling import SamplingParams
from lutra_golden.errors import LutraError


class Echo:
    """Answers with the last message, word by word; fails or is interrupted where one says so."""

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []
        self.interrupted = False

    def chat(
        self,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
    ) -> Iterator[Piece]:
        self.asked.append(list(messages))
        words = str(messages[-1]["content"]).split()
        for i, word in enumerate(words):
            if word == "fail":
                raise LutraError("the prompt is too long")
            if word == "differ":
                raise Mismatch("the device differs")
            if word in ("stop", "twice"):
                signal.raise_signal(signal.SIGINT)
            if word == "twice":
                signal.raise_signal(signal.SIGINT)
            reason = "length" if word == "long" else "stop" if i == len(words) - 1 else None
            yield Piece(i, word + " ", finish_reason=reason)


class Lines(io.StringIO):
    """Standard input, a terminal or not."""

    def __init__(self, text: str, terminal: bool) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def talk(
    monkeypatch: pytest.MonkeyPatch, text: str, *, terminal: bool = False, system: str | None = None
) -> tuple[Echo, list[Message]]:
    echo = Echo()
    monkeypatch.setattr(sys, "stdin", Lines(text, terminal))
    conversation = converse(echo, SamplingParams(), system=system)
    echo.interrupted = conversation.interrupted
    return echo, conversation.messages


def contents(history: list[Message]) -> list[str]:
    return [str(message["content"]) for message in history]


@pytest.mark.parametrize("terminal", [False, True])
def test_history_is_kept(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    echo, history = talk(monkeypatch, "one two\n\n  three \n", terminal=terminal, system="Be brief")
    assert contents(history) == ["Be brief", "one two", "one two ", "three", "three "]
    assert [m["role"] for m in history] == ["system", "user", "assistant", "user", "assistant"]
    assert contents(echo.asked[1]) == ["Be brief", "one two", "one two ", "three"]
    out = capsys.readouterr().out
    assert ("/exit to quit" in out) == terminal
    assert "one two \n" in out


def test_leaving_and_beginning_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, history = talk(monkeypatch, "one\n/clear\n/help\ntwo\n/exit\nthree\n", system="Be brief")
    assert contents(history) == ["Be brief", "two", "two "]
    assert "unknown command /help: /exit to quit, /clear to start over" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", None),
        ("one two\n", "stop"),
        ("one\nlong\n/exit\n", "length"),
        ("long\none stop two\n", None),
        ("long\n/clear\n", None),
    ],
)
def test_why_the_last_answer_ended(
    text: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Lines(text, False))
    assert converse(Echo(), SamplingParams()).finish_reason == reason


@pytest.mark.parametrize("terminal", [False, True])
def test_an_answer_is_stopped(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token in hand is finished; a conversation goes on where somebody can see that."""
    before = signal.getsignal(signal.SIGINT)
    echo, history = talk(monkeypatch, "a stop b c\nd\n", terminal=terminal)
    rest = ["d", "d "] if terminal else []
    assert contents(history) == ["a stop b c", "a stop ", *rest]
    assert echo.interrupted == (not terminal)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("terminal", [False, True])
def test_an_answer_is_stopped_before_it_began(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prefill, which may take minutes, is not waited for."""
    before = signal.getsignal(signal.SIGINT)
    echo, history = talk(monkeypatch, "stop a\nd\n", terminal=terminal)
    assert contents(history) == (["d", "d "] if terminal else ["stop a"])
    assert echo.interrupted == (not terminal)
    assert ("interrupted before the answer began" in capsys.readouterr().out) == terminal
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("terminal", [False, True])
def test_stopping_twice_leaves(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    echo, history = talk(monkeypatch, "a twice b\nd\n", terminal=terminal)
    assert contents(history) == ["a twice b", "a "]
    assert echo.interrupted
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("terminal", [False, True])
def test_leaving_where_a_line_is_awaited(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Lines):
        def readline(self, size: int | None = -1, /) -> str:
            return super().readline(-1 if size is None else size) or _raise_interrupt()

    echo = Echo()
    monkeypatch.setattr(sys, "stdin", Impatient("a\n", terminal))
    found = converse(echo, SamplingParams())
    assert (contents(found.messages), found.interrupted) == (["a", "a "], True)


def _raise_interrupt() -> NoReturn:
    raise KeyboardInterrupt


def test_an_error_on_a_terminal_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, history = talk(monkeypatch, "one\nfail\ntwo\n", terminal=True)
    assert contents(history) == ["one", "one ", "two", "two "]
    assert "error: the prompt is too long (or /clear)" in capsys.readouterr().out
    with pytest.raises(LutraError, match=r"^the prompt is too long$"):
        talk(monkeypatch, "one\nfail\ntwo\n")
    with pytest.raises(Mismatch):
        talk(monkeypatch, "differ\n", terminal=True)


# -- the command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", SHAPES["least"])
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    fields = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": template}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(fields))
    return tmp_path / "model"


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, *args: str) -> int:
    monkeypatch.setattr(sys, "stdin", Lines(text, False))
    return main(["chat", "-m", str(folder), "-dev", "golden", *args])


def test_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command(monkeypatch, folder, "hi\n", "-n", "4", "--json", "-sys", "Be", "--seed", "3") == 0
    )
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["model"], last["interrupted"]) == ("model", False)
    assert last["finish_reason"] in ("length", "stop")
    assert contents(last["messages"])[:2] == ["Be", "hi"]
    assert len(last["messages"]) == 3


def test_the_command_with_a_token_that_the_model_has_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before a question is asked for."""
    assert command(monkeypatch, folder, "", "--logit-bias", "304=1") == 2
    assert "error: logit_bias has token 304, outside the vocabulary" in capsys.readouterr().err


def test_the_command_with_another_template(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "other.jinja"
    path.write_text("{{ raise_exception('not today') }}")
    assert command(monkeypatch, folder, "hi\n", "--chat-template", str(path)) == 2
    assert "error: the chat template refuses these messages: not today" in capsys.readouterr().err
    path.write_bytes(b"\xff")
    assert command(monkeypatch, folder, "hi\n", "--chat-template", str(path)) == 2
    assert "other.jinja is not UTF-8 text: convert it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-n", "0"), "argument -n/--n-predict: must be 1 or more, not 0: see lutra chat --help"),
        (("--chat-template", "no/such/file"), "no/such/file: No such file or directory: give one"),
    ],
)
def test_arguments_that_are_wrong(
    args: tuple[str, ...],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, folder, "hi\n", *args) == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('never') }}", "the chat template refuses these messages: never"),
        ("{% for %}", "the chat template is not Jinja (line 1: "),
        (None, "the model model has no chat template"),
    ],
)
def test_templates_are_refused_before_the_model_is_read(
    template: str | None,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def opened(*args: object) -> NoReturn:
        raise AssertionError("the model is read, and may be quantised for minutes")

    monkeypatch.setattr("lutra.llm.open_model", opened)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert command(monkeypatch, folder, "hi\n") == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_model_that_was_not_trained_to_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, Path("tales"), "hi\n") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the model tales has no chat template: ")
    found = re.search(r"\(lutra (.*)\)", error)
    assert found is not None
    assert main([*shlex.split(found[1]), "-n", "2"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")
