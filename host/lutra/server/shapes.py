"""Answers as OpenAI's clients read them: whole, and as the chunks of a stream."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lutra.server.tools import Call, CallFilter, find_calls
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
    """Answers of one request, by the model ``model``: those of a ``chat``, or of texts.

    Answers of a chat may call the functions that are ``offered``, ``most_calls`` times at most. Of
    a stream, ``texts`` are the lengths of the choices so far, ``calls`` what looks for calls in
    them.
    """

    model: str
    chat: bool
    offered: Sequence[str] = ()
    most_calls: int | None = None
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()), init=False)
    texts: dict[int, int] = field(default_factory=dict[int, int], init=False)
    calls: dict[int, CallFilter] = field(default_factory=dict[int, CallFilter], init=False)

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
        own, reason = piece.logprobs, piece.finish_reason
        text, calls = piece.text, list[Call]()
        if self.offered:
            found = self.calls.setdefault(choice, CallFilter(self.offered, self.most_calls))
            text = found.push(text)
            if reason is not None:
                rest, calls = found.flush()
                text += rest
        if not text and own is None and reason is None:
            return None
        before = self.texts.get(choice, 0)
        self.texts[choice] = before + len(piece.text)
        logprobs = None if own is None else self._logprobs([own], [before])
        delta: _Json = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [{"index": i} | each.body for i, each in enumerate(calls)]
        part: _Json = {"delta": delta} if self.chat else {"text": text}
        return self._chunk(choice, part, logprobs, _reason(reason, calls))

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
        own = completion.logprobs
        logprobs = None
        if own is not None:
            lengths = [len(each.own.text) for each in own]
            logprobs = self._logprobs(own, [sum(lengths[:i]) for i in range(len(own))])
        text, calls = completion.text, list[Call]()
        if self.offered:
            text, calls = find_calls(text, self.offered, self.most_calls)
        part: _Json = {"text": text}
        if self.chat:
            message: _Json = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                message |= {"content": text or None, "tool_calls": [each.body for each in calls]}
            part = {"message": message}
        reason = _reason(completion.finish_reason, calls)
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


def _reason(reason: str | None, calls: Sequence[Call]) -> str | None:
    """Why an answer ended, as clients are told."""
    return "tool_calls" if calls and reason == "stop" else reason


def _entry(found: Logprob) -> _Json:
    bytes_ = list(found.text.encode())
    return {"token": found.text, "logprob": found.logprob, "bytes": bytes_}
