"""Answers as OpenAI's clients read them: whole, and as the chunks of a stream."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lutra.serving.results import Completion, Logprob, Logprobs, Piece

__all__ = ["Shape", "usage"]

_Json = dict[str, object]


def usage(completions: Sequence[Completion], n: int) -> _Json:
    """Tokens of a request: each prompt counts once, whatever the ``n`` of its completions."""
    prompt = sum(each.stats.prompt_tokens for each in completions[::n])
    known = sum(each.stats.reused_tokens for each in completions[::n])
    made = sum(len(each.tokens) for each in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": known},
    }


@dataclass
class Shape:
    """Answers of one request, to the model ``model``: those of a ``chat``, or of texts.

    Of a stream, ``texts`` are the lengths of the choices so far.
    """

    model: str
    chat: bool
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()), init=False)
    texts: dict[int, int] = field(default_factory=dict[int, int], init=False)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def whole(self, completions: Sequence[Completion], n: int) -> _Json:
        """All choices, with their usage."""
        choices = [self._choice(index, each) for index, each in enumerate(completions)]
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head(kind) | {"choices": choices, "usage": usage(completions, n)}

    def opening(self, choice: int) -> _Json:
        """The first chunk of a choice of a chat: who speaks."""
        return self._chunk(choice, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def piece(self, choice: int, piece: Piece) -> _Json | None:
        """The chunk of a piece, None if there is nothing to say yet."""
        own = piece.logprobs
        if not piece.text and own is None and piece.finish_reason is None:
            return None
        before = self.texts.get(choice, 0)
        self.texts[choice] = before + len(piece.text)
        logprobs = None if own is None else self._logprobs([own], [before])
        content = {"content": piece.text} if piece.text else {}
        part: _Json = {"delta": content} if self.chat else {"text": piece.text}
        return self._chunk(choice, part, logprobs, piece.finish_reason)

    def closing(self, completions: Sequence[Completion], n: int) -> _Json:
        """The last chunk, which has the usage alone."""
        none: list[_Json] = []
        return self._chunk_head() | {"choices": none, "usage": usage(completions, n)}

    def _head(self, kind: str) -> _Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk_head(self) -> _Json:
        return self._head("chat.completion.chunk" if self.chat else "text_completion")

    def _chunk(self, choice: int, part: _Json, logprobs: _Json | None, reason: str | None) -> _Json:
        content = {"index": choice} | part | {"logprobs": logprobs, "finish_reason": reason}
        return self._chunk_head() | {"choices": [content]}

    def _choice(self, index: int, completion: Completion) -> _Json:
        reason: Literal["stop", "length"] = completion.finish_reason
        own = completion.logprobs
        logprobs = None
        if own is not None:
            lengths = [len(each.own.text) for each in own]
            logprobs = self._logprobs(own, [sum(lengths[:i]) for i in range(len(own))])
        part: _Json = {"text": completion.text}
        if self.chat:
            part = {"message": {"role": "assistant", "content": completion.text, "refusal": None}}
        return {"index": index} | part | {"logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, found: Sequence[Logprobs], offsets: Sequence[int]) -> _Json:
        if self.chat:
            top = [[_entry(each) for each in token.top] for token in found]
            own = [_entry(token.own) for token in found]
            content = [a | {"top_logprobs": b} for a, b in zip(own, top, strict=True)]
            return {"content": content, "refusal": None}
        return {
            "tokens": [each.own.text for each in found],
            "token_logprobs": [each.own.logprob for each in found],
            "top_logprobs": [{top.text: top.logprob for top in each.top} for each in found],
            "text_offset": list(offsets),
        }


def _entry(found: Logprob) -> _Json:
    bytes_ = list(found.text.encode())
    return {"token": found.text, "logprob": found.logprob, "bytes": bytes_}
