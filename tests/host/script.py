"""A device that says what it is told to say, for tests of what is made of tokens."""

from collections.abc import Sequence

import numpy as np

from lutra.devices.base import BaseDevice, Chunk, PassResult
from lutra.devices.sessions import BaseSession
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.packed import PackedModel

__all__ = ["Script", "ScriptSession"]


class ScriptSession(BaseSession):
    """Holds nothing."""

    def _read(self, layer: int, n: int) -> LayerKv:
        raise AssertionError("keys and values are not read")

    def _write(self, layer: int, kv: LayerKv) -> None:
        raise AssertionError("keys and values are not written")

    def _copy(self, source: BaseSession, lengths: Sequence[int]) -> None:
        pass

    def _release(self) -> None:
        pass


class Script(BaseDevice[ScriptSession]):
    """A device whose likeliest token is the next of a script, whatever it is given."""

    name, pass_tokens = "script", 4

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.script, self.passes = list(tokens), list[tuple[list[int], int, int]]()
        self.loaded = 0

    def _load(self, model: PackedModel) -> None:
        self.loaded += 1

    def _unload(self) -> None:
        self.loaded -= 1

    def _session(self, model: PackedModel) -> ScriptSession:
        return ScriptSession(self, len(model.layers))

    def _session_bytes(self, model: PackedModel) -> int:
        return 0

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        (chunk,) = chunks
        self.passes.append((list(chunk.tokens), chunk.position, chunk.logits_from))
        n = len(chunk.tokens) - chunk.logits_from
        logits = np.zeros((n, self.model.vocab_size), np.int64)
        if n:
            logits[-1, self.script.pop(0)] = 1000
        return PassResult(
            logits=logits,
            scale=np.ones(n),
            argmax=logits.argmax(axis=1),
            cycles=10 * len(chunk.tokens),
        )
