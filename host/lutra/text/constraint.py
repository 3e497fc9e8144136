"""Answers of a given form: a JSON schema, a regular expression or a grammar, token by token."""

from collections.abc import Collection
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["Constraint", "ConstraintError", "Constraints"]


class ConstraintError(LutraError):
    """A text cannot go on: its form takes too much, or no token of the model fits."""


class Constraints:
    """Makes constraints for the vocabulary of one tokenizer, in the file format of ``tokenizers``;
    ``ends`` are its tokens that end a text."""

    def __init__(self, vocabulary: str, ends: Collection[int]) -> None:
        self._library = library = _llguidance()
        self._gbnf: Any = import_module("llguidance.gbnf_to_lark")
        try:
            self._tokenizer: Any = library.LLTokenizer(vocabulary, eos_token=sorted(ends) or None)
        except (ValueError, RuntimeError) as error:
            raise LutraError(
                f"this model's tokenizer cannot be constrained ({_line(error)}): leave "
                "json_schema, regex and grammar out"
            ) from None

    def make(self, kind: str, text: str) -> "Constraint":
        """A constraint of the ``kind`` ``json_schema``, ``regex`` or ``grammar``; LutraError for
        one that is not understood, or that is too large."""
        matcher = self._library.LLMatcher
        try:
            if kind == "json_schema":
                source: str = matcher.grammar_from_json_schema(text)
            elif kind == "regex":
                source = matcher.grammar_from_regex(text)
            else:
                source = matcher.grammar_from_lark(self._lark(text))
            made: Any = matcher(self._tokenizer, source, log_level=0)
        except (ValueError, RuntimeError) as error:
            raise LutraError(f"{kind} is not understood ({_line(error)})") from None
        if made.is_error():
            raise LutraError(f"{kind} is not understood ({_line(made.get_error())})")
        return Constraint(kind, made)

    def _lark(self, text: str) -> str:
        """A grammar of Lark, translated from GBNF if it is one; ValueError if it is neither."""
        try:
            return self._gbnf.any_to_lark(text)
        except Exception as error:  # llguidance raises this very class for rules that are missing
            raise ValueError(str(error)) from None


class Constraint:
    """Tokens that may come next in one text."""

    def __init__(self, kind: str, matcher: Any, n_tokens: int = 0) -> None:
        self._kind, self._matcher = kind, matcher
        self.n_tokens = n_tokens
        """Tokens so far, without those behind the end."""

    @property
    def complete(self) -> bool:
        """True if nothing may come any more."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def copy(self) -> "Constraint":
        """Another one, of the same text so far."""
        return Constraint(self._kind, self._matcher.deep_copy(), self.n_tokens)

    def allowed(self, size: int) -> NDArray[np.int64]:
        """Ids below ``size`` of the tokens that may come next, ascending; at least one. Behind the
        end of the text, where tokens are drawn ahead, all may."""
        if self.complete:
            return np.arange(size)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:size])
        if self._matcher.is_error() or not len(ids):
            reason = _line(self._matcher.get_error() or "no token of this model fits")
            raise ConstraintError(f"{self._kind} cannot be followed ({reason}): give a simpler one")
        return ids

    def push(self, token: int) -> None:
        """Go on with a token that may come."""
        if self.complete:
            return
        if not self._matcher.consume_token(token):
            reason = _line(self._matcher.get_error())
            raise ConstraintError(f"{self._kind} cannot be followed ({reason}): give a simpler one")
        self.n_tokens += 1


def _llguidance() -> Any:
    try:
        return import_module("llguidance")
    except ImportError:
        raise LutraError(
            "json_schema, regex and grammar need llguidance, which is missing: run "
            f"`{install_command('serve')}`"
        ) from None


def _line(error: object) -> str:
    # behind that mark llguidance has its own state
    return " ".join(str(error).partition("<state>")[0].split())[:300]
