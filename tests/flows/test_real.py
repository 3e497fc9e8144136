"""Checks of real models, on a small file and with a stand-in for the peer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import MODELS, write_gguf

from lutra.evaluate.divergence import Divergence
from lutra.llm import LLM
from lutra.models import load_model
from lutra.text.messages import Message
from lutra.text.tokenizer import Tokenizer
from lutra_flows import real
from lutra_flows.real import BEGIN, END, QWEN, KnownFile, Limits, Report, main, table
from lutra_golden.errors import LutraError

LETTERS = "abcdefgh"
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TEXT = "abba cab dad " * 9


class Peer:
    """The file in floating point, in the place of llama.cpp."""

    other_tokens = other_chat = False

    def __init__(self, path: Path, context: int, threads: int | None = None) -> None:
        self.model, self.tokenizer = load_model(path), Tokenizer.open(path)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_bos=False) + [3] * self.other_tokens

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.model.forward(np.array(tokens)).astype(np.float32)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        found = self.tokenizer.encode_template("".join(str(each["content"]) for each in messages))
        return found + [4] * self.other_chat

    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(n):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def close(self) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Llama in Q4_K with a vocabulary of letters."""
    pieces = ["<unk>", "<s>", "</s>", "\N{LOWER ONE EIGHTH BLOCK}", *LETTERS]
    n = MODELS["llama"].vocab_size
    pieces += [f"<{i}>" for i in range(len(pieces), n)]
    fields: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(n)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (n - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT,
        "context_length": 64,
    }
    path = tmp_path / "otter.gguf"
    write_gguf(path, replace(MODELS["llama"], fields=fields), "Q4_K")
    monkeypatch.setattr(real, "LlamaCpp", Peer)
    monkeypatch.setattr(real, "_WINDOW", 32)
    monkeypatch.setattr(real, "_MESSAGES", ({"role": "user", "content": "abba"},))
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    return path


def arguments(path: Path, *options: str) -> list[str]:
    text = str(path.parent / "text")
    few = ["--golden-tokens", "3", "--rtl-tokens", "0", "-t", "1"]
    return ["--other", str(path), "--text", text, *few, *options]


def test_a_file_is_checked_and_its_figures_are_written(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = path.parent / "quality.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n", encoding="utf-8")
    code = main(arguments(path, "--tokens", "60", "--no-starts", "--page", str(page)))
    out, err = capsys.readouterr()
    assert code in (0, 1) and err == ""
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{out}{END}\nafter\n"
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| otter | ")]
    format = LLM(path, "cpu", load=False).packed.format
    assert [row[1] for row in rows] == [f"Lutra, `cpu`, {format}", "llama.cpp"]
    assert [row[2] for row in rows] == ["62", "62"]  # of windows that are whole
    # the stand-in is the yardstick itself
    assert rows[1][4:] == ["+0.00% ± 0.00%", "0.00000 ± 0.00000", "100.0% |"]
    assert rows[0][5] != "0.00000 ± 0.00000"
    assert "of 24 greedy tokens" in out and "golden model's: `cpu` 3 tokens." in out
    assert "62 tokens are fewer than the 16,384 that the goals are meant for." in out
    assert "| otter: KL | 0.004 |" in out


def test_what_differs_from_the_peer_is_an_error(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peer, "other_chat", True)
    assert main(arguments(path, "--tokens", "10", "--no-starts")) == 2
    assert "error: the chat's prompt is [" in capsys.readouterr().err
    monkeypatch.setattr(Peer, "other_tokens", True)
    assert main(arguments(path, "--tokens", "10", "--no-starts")) == 2
    assert capsys.readouterr().err == f"error: {path}: the text has other tokens in llama.cpp\n"


def test_a_device_that_is_not_here_says_so_before_anything_is_compared(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def absent(path: Path, device: str, text: str, n: int) -> int:
        asked.append(f"{device} {n}")
        raise LutraError(f"device {device} is not here")

    monkeypatch.setattr(real, "_same", absent)
    monkeypatch.setattr(real, "LlamaCpp", None)  # not even opened
    assert main(arguments(path, "--rtl-tokens", "2")) == 2
    assert capsys.readouterr().err == "error: device rtl is not here\n"
    assert asked == ["rtl 2"]


def test_a_known_file_is_that_file(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["--qwen", str(path), "--text", str(path)]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"error: {path} has {path.stat().st_size:,} bytes, {QWEN.name} has 491,400,064: give that "
        "file, or this one as --other\n"
    )
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    known = KnownFile(name="abc", n_bytes=3, sha256=abc, limits=Limits())
    known.check(file)
    file.write_bytes(b"abd")
    with pytest.raises(LutraError, match=f"^{file} has SHA-256 .*, abc has {abc}: copy it"):
        known.check(file)


def test_there_must_be_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--text", str(path)]) == 2
    expected = "error: there is no file to check: give --qwen FILE or --other FILE\n"
    assert capsys.readouterr().err == expected


def test_goals_that_are_missed_are_said() -> None:
    divergence = Divergence(
        tokens=16863, kl=0.0031, kl_stderr=0.0001, ppl=80, change=-0.002, change_stderr=0.001,
        top1=0.97,
    )  # fmt: skip
    report = Report(
        name="otter", format="W5.9A8g32", quality={"W5.9A8g32": divergence}, exact={}, chat=3,
        chat_tokens=24, starts=[(5.06, 8), (1.5, 1.2)], limits=Limits(kl=0.003, change=0.003),
    )  # fmt: skip
    assert [goal.met for goal in report.goals] == [False, True]
    lines = table([report]).splitlines()
    assert lines[2] == (
        "| otter | Lutra, `cpu`, W5.9A8g32 | 16,863 | 80.000 | -0.20% ± 0.10% | 0.00310 ± 0.00010 "
        "| 97.0% |"
    )
    assert "Command to first token, first time: 5.1 s; 8.0 s of processor time to its end." in lines
    assert "| otter: KL | 0.003 | 0.00310 | **no** |" in lines
    assert "| otter: change of perplexity | 0.003 | 0.00200 | yes |" in lines
    assert "not looked at" in table([report]) and "fewer" not in table([report])
