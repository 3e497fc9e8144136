"""Completions: where text ends and why, what is said of each token, several of one prompt."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.host.random_model import EOS
from tests.host.script import Script

from lutra import LLM, Logprobs, LutraError, SamplingParams
from lutra.devices.base import Chunk, PassResult, Step, StepResult
from lutra.devices.golden import GoldenDevice

GREEDY = SamplingParams(temperature=0)
OTTER = "\N{OTTER}"


class Counting(GoldenDevice):
    """The golden device, which counts the tokens that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = 0

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        self.computed += sum(len(step.tokens) for step in steps)
        return super().run(steps)


class Saturating(GoldenDevice):
    """Says that a value saturated in passes that begin ``at`` a position or behind it."""

    at = 0

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        return replace(super()._pass(chunks), saturated=chunks[0].position >= self.at)


@pytest.fixture
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("least")


@pytest.fixture
def ids(folder: Path) -> Callable[[str], list[int]]:
    """Tokens of a text, one a byte but for ``th`` and ``the``."""
    tokenizer = LLM(folder, "golden").tokenizer
    return lambda text: tokenizer.encode(text, add_bos=False)


# -- stop strings and reasons


def test_a_stop_string_that_spans_tokens(folder: Path, ids: Callable[[str], list[int]]) -> None:
    script = ids("one END two")
    stream = LLM(folder, Script(script)).stream("a END", 20, replace(GREEDY, stop=["x", "END"]))
    pieces = list(stream)
    assert [piece.text for piece in pieces] == ["o", "n", "e", " ", "", "", ""]
    assert [piece.finish_reason for piece in pieces] == [None] * 6 + ["stop"]
    (found,) = stream.completions
    assert (found.text, found.finish_reason) == ("one ", "stop")
    assert found.tokens == [piece.token for piece in pieces] == script[:7]
    assert found.stats is stream.stats
    assert found.logprobs is None and found.alternatives == []


def test_a_stop_string_of_characters_that_tokens_cut(
    folder: Path, ids: Callable[[str], list[int]]
) -> None:
    """Neither bytes nor whole characters of it come; those around it do."""
    script = ids(f"ü{OTTER}ü!{OTTER}")
    for stop, expected, n in (("ü!", f"ü{OTTER}", 9), (f"{OTTER}ü", "ü", 8), (OTTER, "ü", 6)):
        stream = LLM(folder, Script(script)).stream("a", 20, replace(GREEDY, stop=stop))
        assert "".join(piece.text for piece in stream) == expected
        assert len(stream.stats.tokens) == n


def test_what_was_held_comes_at_the_end(folder: Path, ids: Callable[[str], list[int]]) -> None:
    script = ids("one EN")
    for n, tokens, reason in ((6, script, "length"), (9, [*script, EOS], "stop")):
        stream = LLM(folder, Script(tokens)).stream("a", n, replace(GREEDY, stop="END"))
        pieces = list(stream)
        assert pieces[4].text == "" and "".join(piece.text for piece in pieces) == "one EN"
        assert pieces[-1].text == "EN" and pieces[-1].finish_reason == reason
        assert stream.completions[0].tokens == tokens


def test_a_stop_string_in_the_last_token_is_the_reason(
    folder: Path, ids: Callable[[str], list[int]]
) -> None:
    found = LLM(folder, Script(ids("the"))).generate("a", 1, replace(GREEDY, stop="he"))
    assert (found.text, found.finish_reason) == ("t", "stop")


def test_why_a_completion_ended(folder: Path) -> None:
    letters = [100] * 40
    assert LLM(folder, Script(letters)).generate("a", 3, GREEDY).finish_reason == "length"
    full = LLM(folder, Script(letters)).generate("a", None, GREEDY)
    assert (full.finish_reason, len(full.tokens)) == ("length", 30)
    for n in (2, 5):  # an end token that is the last one allowed ends it, too
        found = LLM(folder, Script([100, EOS])).generate("a", n, GREEDY)
        assert (found.finish_reason, found.tokens) == ("stop", [100, EOS])


def test_every_token_has_a_piece(folder: Path) -> None:
    pieces = list(LLM(folder, Script([67, 303, EOS])).stream("a", 9, GREEDY))
    assert [piece.token for piece in pieces] == [67, 303, EOS]
    assert [piece.text for piece in pieces] == ["b", "", ""]


def test_a_stream_that_is_closed_has_completed_nothing(folder: Path) -> None:
    llm = LLM(folder, Script([100] * 9))
    with llm.stream("a", 9, GREEDY) as stream:
        for _ in range(8):
            assert next(stream).finish_reason is None
    assert stream.completions == []
    with llm.stream("a", 1, GREEDY) as stream:
        assert next(stream).finish_reason == "length"
    assert len(stream.completions) == 1


# -- biases and penalties


def test_the_prompt_and_the_text_are_what_is_repeated(folder: Path) -> None:
    """The script's token has a logit of 1,000, or of 50 if it came before; token 7 has 90, then
    4."""
    params = replace(GREEDY, logit_bias={7: 90.0}, repetition_penalty=20.0)
    found = LLM(folder, Script([100, 100, 101, 101, 50])).generate("a", 5, params)
    assert found.tokens == [100, 7, 101, 101, 50]
    prompt = LLM(folder, "golden").encode("ab")
    found = LLM(folder, Script([prompt[1], 100])).generate("ab", 2, params)
    assert found.tokens == [7, 100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": {304: 1}}, "logit_bias has token 304, outside the vocabulary: give ids "),
        ({"logprobs": 305}, "logprobs must be at most 304, the size of the vocabulary, not 305"),
    ],
)
def test_tokens_that_the_model_has_not(options: dict[str, Any], message: str, folder: Path) -> None:
    """Refused when it is asked for, not with the first piece."""
    with pytest.raises(LutraError, match=f"^{message}"):
        LLM(folder, "golden").stream("a", 3, SamplingParams(**options))


# -- logarithms of probabilities


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0, logprobs=4),
        SamplingParams(temperature=2.0, top_k=3, seed=2, logprobs=4),
        SamplingParams(
            temperature=0, logit_bias={9: 100, 12: 100}, repetition_penalty=9, logprobs=4
        ),
    ],
)
def test_logprobs_are_those_of_the_models_logits(sampling: SamplingParams, folder: Path) -> None:
    """Without bias, penalty, temperature and what is kept."""
    llm = LLM(folder, "golden")
    found = llm.generate("a king", 8, sampling)
    prompt = llm.encode("a king")
    logits, scale = llm.logits([*prompt, *found.tokens[:-1]])
    assert found.logprobs is not None and len(found.logprobs) == len(found.tokens)
    rows = slice(len(prompt) - 1, None)
    for token, said, row, each in zip(
        found.tokens, found.logprobs, logits[rows], scale[rows], strict=True
    ):
        nats = row * each
        expected = nats - np.logaddexp.reduce(nats)
        assert said.own.token == token
        assert [one.token for one in said.top] == np.argsort(-row, kind="stable")[:4].tolist()
        for one in (said.own, *said.top):
            assert one.logprob == pytest.approx(expected[one.token], rel=1e-12, abs=1e-12)
            assert one.text == llm.tokenizer.token_text(one.token)


def test_logprobs_come_with_the_pieces(folder: Path) -> None:
    llm = LLM(folder, Script([100, 303, EOS]))
    stream = llm.stream("a", 9, replace(GREEDY, logprobs=0))
    pieces = list(stream)
    assert [piece.logprobs for piece in pieces] == stream.completions[0].logprobs
    for piece in pieces:
        assert isinstance(piece.logprobs, Logprobs)
        assert (piece.logprobs.own.token, piece.logprobs.top) == (piece.token, [])
        assert piece.logprobs.own.logprob == 0.0  # the script is certain
    assert pieces[-1].logprobs is not None and pieces[-1].logprobs.own.text == "<|eos|>"


# -- several completions of a prompt


SEVERAL = SamplingParams(temperature=2.0, seed=5, n=3, logprobs=1, repetition_penalty=1.3)


def apart(folder: Path, sampling: SamplingParams, n: int) -> list[Any]:
    """Completions of seeds that follow each other, each of an LLM of its own."""
    return [
        LLM(folder, "golden").generate("a king had", n, replace(sampling, n=1, seed=5 + i))
        for i in range(3)
    ]


def test_several_completions_are_those_of_the_seeds(folder: Path) -> None:
    device = Counting()
    llm = LLM(folder, device)
    found = llm.generate("a king had", 8, SEVERAL)
    every, expected = [found, *found.alternatives], apart(folder, SEVERAL, 8)
    assert len(every) == 3
    for one, other in zip(every, expected, strict=True):
        assert (one.tokens, one.text) == (other.tokens, other.text)
        assert (one.finish_reason, one.logprobs) == (other.finish_reason, other.logprobs)
    assert len({tuple(each.tokens) for each in every}) == 3
    assert not any(each.alternatives for each in found.alternatives)
    n = len(llm.encode("a king had"))
    assert device.computed == n + sum(len(each.tokens) - 1 for each in every)
    first, *others = [each.stats for each in every]
    assert (first.prompt_tokens, first.reused_tokens, first.computed_tokens) == (n, 0, n)
    for stats in others:
        assert (stats.prompt_tokens, stats.reused_tokens, stats.computed_tokens) == (n, n, 0)
        assert stats.prefill_s == 0 and stats.decode_steps == stats.generated_tokens - 1
        assert stats.bit_exact is None
    assert llm.stats is others[-1]


def test_several_completions_are_streamed_one_after_another(folder: Path) -> None:
    llm = LLM(folder, "golden", check=True)
    stream = llm.stream("a king had", 6, SEVERAL)
    texts, reasons = ["", "", ""], list[tuple[int, str]]()
    for piece in stream:
        assert piece.index == len(reasons)
        assert llm.stats is stream.stats
        texts[piece.index] += piece.text
        if piece.finish_reason is not None:
            reasons.append((piece.index, piece.finish_reason))
    assert texts == [each.text for each in stream.completions]
    assert reasons == [(i, each.finish_reason) for i, each in enumerate(stream.completions)]
    assert [each.tokens for each in stream.completions] == [
        each.tokens for each in apart(folder, SEVERAL, 6)
    ]
    assert all(each.stats.bit_exact for each in stream.completions)
    # one token of each, which the prompt's own logits give
    assert llm.generate("a king had", 1, SEVERAL).alternatives[1].stats.bit_exact


def test_several_completions_that_are_closed_between(folder: Path) -> None:
    llm = LLM(folder, "golden")
    expected = apart(folder, SEVERAL, 6)
    with llm.stream("a king had", 6, SEVERAL) as stream:
        for _ in range(len(expected[0].tokens) + 1):
            next(stream)
    assert [each.tokens for each in stream.completions] == [expected[0].tokens]
    assert stream.stats.tokens == expected[1].tokens[:1]
    again = llm.generate("a king had", 6, SEVERAL)
    assert [each.tokens for each in (again, *again.alternatives)] == [e.tokens for e in expected]
    assert again.stats.computed_tokens == 1


def test_several_completions_whose_model_is_gone(folder: Path) -> None:
    llm = LLM(folder, "golden")
    stream = llm.stream("a king had", 1, SEVERAL)
    next(stream)
    llm.close()
    with pytest.raises(LutraError, match=r"^the model was closed or loaded again since this "):
        next(stream)


@pytest.mark.parametrize("in_prompt", [True, False])
def test_saturation_of_the_prompt_is_that_of_all(in_prompt: bool, folder: Path) -> None:
    """Saturation of another completion is not."""
    device = Saturating()
    llm = LLM(folder, device)
    device.at = 0 if in_prompt else len(llm.encode("a king had"))
    stream = llm.stream("a king had", 4, SEVERAL)
    while next(stream).index == 0:
        pass
    assert stream.completions[0].stats.saturated
    assert stream.stats.saturated == in_prompt


def test_an_answer_has_what_a_text_has(folder: Path) -> None:
    llm = LLM(folder, "golden")
    llm.set_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}:")
    stream = llm.chat([{"role": "user", "content": "a king"}], 5, SEVERAL)
    list(stream)
    assert len(stream.completions) == 3
    assert all(len(each.logprobs or ()) == len(each.tokens) for each in stream.completions)
