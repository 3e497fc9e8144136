"""Answers of a given form: on every device the same, and never another form."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

from tests.host.random_model import EOS

from lutra import LLM, LutraError, SamplingParams
from lutra.serving.speculation.adaptive import AdaptiveSpeculation
from lutra.serving.speculation.drafts import Drafts
from lutra.text import constraint
from lutra.text.tokenizer import Tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["king", "queen"]}, "age": {"type": "integer", "minimum": 7}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("grouped")


def test_texts_have_the_form(folder: Path) -> None:
    """Whatever the model would say; the text ends where the form does."""
    forms: list[tuple[dict[str, Any], str]] = [
        ({"regex": "(ab|cd){2}!"}, r"(ab|cd){2}!"),
        ({"grammar": 'root ::= "yes" | "no"'}, r"yes|no"),
        ({"grammar": 'start: "yes" | "no"'}, r"yes|no"),
    ]
    with LLM(folder, "golden") as llm:
        for seed in range(3):
            for form, pattern in forms:
                sampling = SamplingParams(seed=seed, temperature=2, top_k=0, **form)
                found = llm.generate("a king", 20, sampling)
                assert re.fullmatch(pattern, found.text)
                assert found.finish_reason == "stop"
                assert EOS not in found.tokens  # where nothing more fits, none is needed


def test_the_likeliest_tokens_that_fit_are_taken(folder: Path) -> None:
    """As the logits say: none is drawn that another device would not draw."""
    with LLM(folder, "golden") as llm:
        sampling = SamplingParams(temperature=0, regex="[a-f]{6}")
        found = llm.generate("a king", 10, sampling)
        tokens = llm.encode("a king")
        letters = {each: llm.encode(each)[-1] for each in "abcdef"}
        for letter in found.text:
            logits = llm.logits(tokens)[0][-1]
            best = max(letters, key=lambda each: (logits[letters[each]], -letters[each]))
            assert letter == best
            tokens.append(letters[letter])
        assert len(found.text) == 6
    with LLM(folder, "golden", check=True) as llm:
        assert llm.generate("a king", 10, sampling).tokens == found.tokens
        [other] = llm.generate(["a king"], 10, sampling)
        assert other.tokens == found.tokens


def test_a_schema(folder: Path) -> None:
    with LLM(folder, "golden") as llm:
        room = llm.context - len(llm.encode("a"))
        for schema in (SCHEMA, json.dumps(SCHEMA)):
            # white space may go on, so no token of it
            spaces = {llm.encode(each)[-1]: -100.0 for each in " \n\r\t"}
            sampling = SamplingParams(temperature=0, json_schema=schema, logit_bias=spaces)
            found = llm.generate("a", room, sampling)
            if found.finish_reason == "stop":
                answer = json.loads(found.text)
                assert answer["kind"] in ("king", "queen") and answer["age"] >= 7
            else:
                assert len(found.tokens) == room


def test_a_form_may_end_where_the_model_says(folder: Path) -> None:
    """An end token fits only where the form may end."""
    with LLM(folder, "golden") as llm:
        likely = {EOS: 100.0}
        for regex, text in (("(ab)+", "ab"), ("ab(cd)?", "ab"), ("(ab)*", "")):
            sampling = SamplingParams(temperature=0, regex=regex, logit_bias=likely)
            found = llm.generate("a", 20, sampling)
            assert (found.text, found.finish_reason, found.tokens[-1]) == (text, "stop", EOS)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_guessed_tokens_have_the_form(folder: Path, temperature: float) -> None:
    """A small model draws with a copy of the sampler, whose text goes on by itself."""
    sampling = SamplingParams(temperature=temperature, top_k=0, seed=3, regex="([a-c]{3}-){4}")
    with LLM(folder, "golden") as llm:
        alone = llm.generate("a king", 24, sampling)
    with LLM(folder, "golden") as draft, LLM(folder, "golden", speculation=draft) as llm:
        found = llm.generate("a king", 24, sampling)
    assert found.tokens == alone.tokens and found.text == alone.text
    assert re.fullmatch("([a-c]{3}-){4}", found.text)
    assert found.stats.drafted_tokens


def test_a_form_that_ends_in_a_pass_of_several_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of its last tokens are guessed at once, none is lost, and none too many; alone
    and in a batch."""

    def plan(
        _self: AdaptiveSpeculation, texts: Sequence[tuple[Drafts, int]], room: int
    ) -> list[list[int]]:
        sizes = [min(most, room // len(texts)) for _, most in texts]
        return [each.draft(n) if n else [] for (each, _), n in zip(texts, sizes, strict=True)]

    for temperature in (0, 1.5):
        sampling = SamplingParams(temperature=temperature, top_k=0, seed=3, regex="([a-c]{3}-){4}")
        with LLM(folder, "golden") as llm:
            alone = llm.generate("a king", 24, sampling)
        with monkeypatch.context() as patched, LLM(folder, "golden") as draft:
            patched.setattr(AdaptiveSpeculation, "plan", plan)
            patched.setattr(AdaptiveSpeculation, "took", lambda *_: None)
            with LLM(folder, "golden", speculation=draft) as llm:
                found = [llm.generate("a king", 24, sampling)]
                found += llm.generate(["a king", "a queen"], 24, sampling)[:1]
        for each in found:
            assert each.stats.accepted_tokens
            assert each.tokens == alone.tokens and each.text == alone.text


def test_several_completions_have_a_form_each(folder: Path) -> None:
    with LLM(folder, "golden") as llm:
        sampling = SamplingParams(temperature=3, top_k=0, top_p=1, regex="[a-z]{4}", n=3)
        found = llm.generate("a", 10, sampling)
        texts = [found.text, *(each.text for each in found.alternatives)]
        assert all(re.fullmatch("[a-z]{4}", each) for each in texts)
        assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "["}, r"^regex is not understood \(.*unclosed character class"),
        ({"grammar": "hm"}, r"^grammar is not understood \("),
        ({"grammar": ""}, r"^grammar is not understood \(No 'root' rule found"),
        ({"grammar": 'r ::= "a"'}, r"^grammar is not understood \(No 'root' rule found"),
        ({"grammar": "root ::= x"}, r"^grammar is not understood \(Rule 'x' not found"),
        ({"json_schema": {"type": 3}}, r"^json_schema is not understood \(type must be"),
        ({"json_schema": "{"}, r"^json_schema must be a JSON schema, a mapping or its text \("),
        ({"json_schema": "3"}, r"^json_schema must be a mapping or JSON text, not int$"),
        ({"json_schema": {"a": {1}}}, r"^json_schema must be a JSON schema, a mapping or its t"),
        ({"regex": 3}, r"^regex must be a string$"),
        ({"regex": "a", "grammar": "b"}, r"^regex and grammar are given together: give one of"),
    ],
)
def test_refusals(folder: Path, form: dict[str, object], message: str) -> None:
    """Before anything runs."""
    with LLM(folder, "golden", load=False) as llm, pytest.raises(LutraError, match=message):
        llm.stream("a", 10, SamplingParams(**form))  # pyright: ignore[reportArgumentType]


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(constraint, "import_module", missing)
    with pytest.raises(LutraError, match=r"^json_schema, regex and grammar need llguidance, which"):
        Tokenizer.open(folder).constraint(("regex", "a"), [EOS])
