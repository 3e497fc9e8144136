"""llama.cpp through llama-cpp-python, where that is installed: a judge with code of its own."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.text.messages import Message
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["LlamaCpp"]

_BATCH = 512


class LlamaCpp:
    """A GGUF file in llama.cpp, with room for ``context`` tokens."""

    def __init__(self, path: Path, context: int, threads: int | None = None) -> None:
        try:
            module: Any = import_module("llama_cpp")
        except ImportError:
            raise LutraError(
                f"the peer llama.cpp is not installed: run `{install_command('peers')}`, which "
                "compiles it"
            ) from None
        try:
            self._model: Any = module.Llama(
                str(path),
                n_ctx=context,
                n_batch=min(context, _BATCH),
                n_threads=threads,
                n_threads_batch=threads,
                logits_all=True,
                verbose=False,
            )
        except (ValueError, AssertionError) as error:
            raise LutraError(f"llama.cpp does not load {path} ({error}): update it") from None
        self._formats: Any = import_module("llama_cpp.llama_chat_format")
        self.name = f"llama.cpp ({module.__version__} of llama-cpp-python)"

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text; with ``special`` the names of special tokens are these tokens."""
        found: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=special)
        return found

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits ``[T, V]`` of a sequence, until the next call."""
        self._model.reset()
        self._model.eval(list(tokens))
        found: NDArray[np.float32] = self._model.scores[: len(tokens)]
        return found

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens that the file's own chat template makes of a conversation."""
        template = self._model.metadata.get("tokenizer.chat_template")
        if template is None:
            raise LutraError("llama.cpp finds no chat template in the file: use another one")
        bos, eos = (
            "" if token < 0 else self._model.detokenize([token], special=True).decode()
            for token in (self._model.token_bos(), self._model.token_eos())
        )
        form = self._formats.Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)
        return self.encode(str(form(messages=list(messages)).prompt), special=True)

    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        """The ``n`` likeliest tokens after ``prompt``, one after another."""
        found = [int(self.logits(prompt)[-1].argmax())]
        while len(found) < n:
            self._model.eval(found[-1:])
            found.append(int(self._model.scores[self._model.n_tokens - 1].argmax()))
        return found

    def close(self) -> None:
        """Release the model."""
        self._model.close()
