"""llama.cpp as a judge: how its Python interface is used, with a stand-in for it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from lutra.evaluate.peer import LlamaCpp
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

FILE = Path("model.gguf")
MESSAGES = ({"role": "user", "content": "hello"},)


class StandIn:
    """A model of four tokens, the next of which is always the last one plus one."""

    metadata: ClassVar[dict[str, str]] = {"tokenizer.chat_template": "TEMPLATE"}

    def __init__(self, path: str, **options: object) -> None:
        if path == "broken.gguf":
            raise ValueError("no such model")
        self.path, self.options = path, options
        self.scores = np.zeros((16, 4), np.float32)
        self.n_tokens, self.closed = 0, False

    def tokenize(self, text: bytes, *, add_bos: bool, special: bool) -> list[int]:
        assert not add_bos
        return [len(text), int(special)]

    def detokenize(self, tokens: list[int], *, special: bool) -> bytes:
        assert special
        return f"<{tokens[0]}>".encode()

    def token_bos(self) -> int:
        return -1

    def token_eos(self) -> int:
        return 3

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        for token in tokens:
            self.scores[self.n_tokens] = 0
            self.scores[self.n_tokens, (token + 1) % 4] = 1
            self.n_tokens += 1

    def close(self) -> None:
        self.closed = True


def formatter(**options: str) -> Any:
    assert options == {"template": "TEMPLATE", "eos_token": "<3>", "bos_token": ""}
    return lambda messages: SimpleNamespace(prompt=f"[{messages[0]['content']}]")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, formats = ModuleType("llama_cpp"), ModuleType("llama_cpp.llama_chat_format")
    for name, value in (("Llama", StandIn), ("__version__", "0.0.1")):
        monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(formats, "Jinja2ChatFormatter", formatter, raising=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_chat_format", formats)


def test_tokens_logits_and_a_chat() -> None:
    peer = LlamaCpp(FILE, 16, threads=2)
    assert peer.name == "llama.cpp (0.0.1 of llama-cpp-python)"
    assert peer.encode("otter") == [5, 0]
    assert peer.encode("otter", special=True) == [5, 1]
    assert peer.logits([0, 2]).argmax(axis=1).tolist() == [1, 3]
    assert peer.logits([3]).argmax(axis=1).tolist() == [0]  # from an empty context again
    assert peer.chat_prompt(MESSAGES) == [len("[hello]"), 1]
    assert peer.greedy([2, 1], 3) == [2, 3, 0]
    peer.close()


def test_a_file_without_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "metadata", {})
    with pytest.raises(LutraError, match="finds no chat template"):
        LlamaCpp(FILE, 16).chat_prompt(MESSAGES)


def test_what_it_does_not_load() -> None:
    with pytest.raises(
        LutraError, match=r"^llama\.cpp does not load broken\.gguf \(no such model\): update it$"
    ):
        LlamaCpp(Path("broken.gguf"), 16)


def test_without_it_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(LutraError) as error:
        LlamaCpp(FILE, 16)
    assert str(error.value) == (
        f"the peer llama.cpp is not installed: run `{install_command('peers')}`, which compiles it"
    )
