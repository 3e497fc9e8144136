"""The Python interface: generation, streaming, limits, and the comparison with the golden model."""

import asyncio
import gc
import json
import os
import re
import signal
import textwrap
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.host.random_model import (
    EOS,
    SHAPES,
    Shape,
    config_for,
    write_model,
    write_tokenizer,
)
from tests.host.script import Script

import lutra
from lutra import LLM, LutraError, SamplingParams
from lutra.devices import auto, processors
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.base import (
    Chunk,
    DeviceError,
    GreedyResult,
    PassResult,
    Session,
    Step,
    StepResult,
)
from lutra.devices.golden import GoldenDevice, GoldenSession
from lutra.llm import Mismatch
from lutra.serving import pace
from lutra.text.tokenizer import Tokenizer
from lutra_golden.core.configs import NANO
from lutra_golden.model.packed import PackedModel

GREEDY = SamplingParams(temperature=0)


class Broken(GoldenDevice):
    """The golden device with one wrong value from a position on."""

    name, pass_tokens = "broken", 4

    def __init__(self, what: str, position: int) -> None:
        super().__init__()
        self._what, self._position = what, position

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        if chunks[0].position < self._position:
            return result
        if self._what == "saturated":
            return replace(result, saturated=not result.saturated)
        values = getattr(result, self._what).copy()
        if values.size:
            values.flat[-1] += 1
        return replace(result, **{self._what: values})


class Counting(GoldenDevice):
    """The golden device, which counts the tokens that it computes and keeps their logits, all of
    them."""

    pass_tokens, most_best = 16, 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.computed, self.results = 0, list[StepResult]()

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        results = super().run(steps)
        self.computed += sum(len(step.tokens) for step in steps)
        self.results += results
        return results


class Letters(Counting):
    """Its likeliest tokens are letters that no merge of the tokenizer touches."""

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        assert result.logits is not None
        logits = result.logits - (1 << 40)
        letters = slice(*(2 + ord(each) - ord("!") for each in "aj"))
        logits[:, letters] += 1 << 40
        return replace(result, logits=logits, argmax=logits.argmax(axis=1))


class Interrupted(GoldenDevice):
    """Raises in the pass that :attr:`left` counts down to, with all its keys and values written."""

    def __init__(self, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.error, self.left = error, 0

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        self.left -= 1
        if not self.left:
            raise self.error
        return result


class Held(GoldenDevice):
    """After :meth:`hold`, a pass begins and goes on only when it is over; not in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.over, self._held = threading.Event(), threading.Event(), False

    def hold(self) -> None:
        self._held, self._parent = True, os.getpid()

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        if self._held and os.getpid() == self._parent:
            self.begun.set()
            self.over.wait()
        return super()._pass(chunks)


class Saturating(GoldenDevice):
    """Says that the residual stream is full where it has a token at ``above`` or behind it."""

    pass_tokens = 1
    above = 1 << 30

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        return replace(result, saturated=chunks[0].position >= self.above)


class SaturatingOnce(GoldenDevice):
    """Says that a value saturated in the pass that begins ``at`` a position."""

    at = 0

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        result = super()._pass(chunks)
        return replace(result, saturated=chunks[0].position == self.at)


class Descriptors(AcceleratorDevice):
    """The interpreter, which makes greedy tokens; notes how many it is asked for.

    One by one, the pass ``fails`` of all that make tokens fails.
    """

    fails = -1

    def __init__(self) -> None:
        super().__init__(InterpretedTransport(), config_for(SHAPES["least"]))
        self.asked = list[int]()

    def greedy(
        self, session: Session, token: int, n: int, ends: Collection[int] = ()
    ) -> GreedyResult:
        self.asked.append(n)
        found = super().greedy(session, token, n, ends)
        left, self.fails = self.fails, self.fails - len(found.tokens)
        if not 0 < left <= len(found.tokens):
            return found
        session.truncate(session.length - len(found.tokens) + left)
        return replace(found, tokens=found.tokens[:left], error=DeviceError("a fault"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text may wait for any number of greedy tokens."""
    monkeypatch.setattr(pace, "RUN_S", 1e9)


@pytest.fixture
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("least")


@pytest.fixture
def llm(folder: Path) -> LLM:
    return LLM(folder, "golden")


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose likeliest tokens are not always the same."""
    return write_model(tmp_path_factory.mktemp("varied") / "model", SHAPES["least"], seed=2)


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a context of 512."""
    shape = replace(SHAPES["least"], max_position_embeddings=512)
    return write_model(tmp_path_factory.mktemp("long") / "model", shape)


# -- generation


def test_generation_is_the_devices_greedy_choice(llm: LLM) -> None:
    """By hand, token after token, on another device."""
    prompt = "a king had three sons"
    tokens = llm.tokenizer.encode(prompt)
    device = GoldenDevice()
    device.load(llm.packed)
    session, expected = device.session(), list[int]()
    for position in range(len(tokens) + 5):
        token = tokens[position] if position < len(tokens) else expected[-1]
        [result] = device.run([Step(session=session, tokens=[token])])
        if position >= len(tokens) - 1:
            expected.append(int(result.argmax[0]))
    completion = llm.generate(prompt, 6, GREEDY)
    assert completion.tokens == expected
    assert completion.text == llm.tokenizer.decode(expected)


def test_stream_and_generate_agree(llm: LLM) -> None:
    sampling = SamplingParams(temperature=1.0, seed=3)
    pieces = list(llm.stream("a", 12, sampling))
    completion = llm.generate("a", 12, sampling)
    assert "".join(piece.text for piece in pieces) == completion.text
    assert [piece.token for piece in pieces][:12] == completion.tokens
    assert llm.generate("a", 12, replace(sampling, seed=4)).tokens != completion.tokens


@pytest.mark.parametrize(
    ("sampling", "two_stages"),
    [
        (GREEDY, True),
        (SamplingParams(temperature=2.0, seed=5), True),
        (SamplingParams(temperature=2.0, top_k=3, top_p=0.7, n=2), True),
        (SamplingParams(temperature=2.0, top_k=0), False),
        (SamplingParams(logprobs=1), False),
        (replace(GREEDY, repetition_penalty=1.2), False),
        (replace(GREEDY, logit_bias={5: 3.0}), False),
        (replace(GREEDY, regex="[a-z ]*"), False),
    ],
)
def test_tokens_are_the_same_with_the_best_alone(
    varied: Path, sampling: SamplingParams, two_stages: bool
) -> None:
    """Which are asked for where they are enough."""
    if sampling.form is not None:
        pytest.importorskip("llguidance")
    device = GoldenDevice()
    device.most_best = 0
    whole = LLM(varied, device, speculation="off").generate("abc", 9, sampling)
    few = LLM(varied, "golden", speculation="off").generate("abc", 9, sampling)
    for one, other in zip((whole, *whole.alternatives), (few, *few.alternatives), strict=True):
        assert other.tokens == one.tokens
        assert one.stats.head.tokens == 0
    # the first token of another completion comes from the prompt's last logits, too
    assert (few.stats.head.tokens == len(few.tokens)) == two_stages
    assert bool(few.stats.head.rescored) == two_stages


def test_checked_tokens_have_all_logits(varied: Path) -> None:
    llm = LLM(varied, "golden", check=True)
    found = llm.generate("abc", 5, GREEDY)
    assert found.stats.bit_exact and found.stats.head.tokens == 0


def test_prompts_are_cut_into_passes(folder: Path) -> None:
    device = Script([7, 8, 9])
    llm = LLM(folder, device)
    tokens = llm.tokenizer.encode("abcdefgh")
    assert len(tokens) == 9
    llm.generate("abcdefgh", 3, GREEDY)
    assert device.passes == [
        (tokens[:4], 0, 4),
        (tokens[4:8], 4, 4),
        (tokens[8:], 8, 0),
        ([7], 9, 0),
        ([8], 10, 0),
    ]


def test_only_the_last_logits_of_a_prompt_are_asked_for(folder: Path) -> None:
    device = Script([7])
    LLM(folder, device).generate("abcdef", 1, GREEDY)
    assert [(len(tokens), first) for tokens, _, first in device.passes] == [(4, 4), (3, 2)]


def test_the_end_of_the_story_ends_it(folder: Path) -> None:
    llm = LLM(folder, Script([100, EOS, 101]))
    completion = llm.generate("a", 10, GREEDY)
    assert completion.tokens == [100, EOS]
    assert completion.text == llm.tokenizer.decode([100])
    assert completion.stats.generated_tokens == 2
    assert completion.stats.decode_steps == 1


def test_an_empty_prompt_begins_a_story(llm: LLM) -> None:
    assert len(llm.generate("", 3, GREEDY).tokens) <= 3
    assert llm.stats.prompt_tokens == 1


def test_characters_are_streamed_whole(folder: Path) -> None:
    text = "ü\N{OTTER}the日"
    ids = LLM(folder, "golden").tokenizer.encode(text, add_bos=False)
    llm = LLM(folder, Script(ids))
    pieces = list(llm.stream("a", len(ids), GREEDY))
    assert [piece.token for piece in pieces] == ids
    texts = [piece.text for piece in pieces]
    assert texts == ["", "ü", "", "", "", "\N{OTTER}", "the", "", "", "日"]


def test_a_story_cut_inside_a_character_says_so_at_the_end(folder: Path) -> None:
    """With the token that ends it, of which there is one piece as of all others."""
    ids = LLM(folder, "golden").tokenizer.encode("x\N{OTTER}", add_bos=False)
    for script, n in ((ids, 3), ([*ids[:2], EOS], 9)):
        llm = LLM(folder, Script(script))
        pieces = [(piece.token, piece.text) for piece in llm.stream("a", n, GREEDY)]
        texts = ["x", "", "\N{REPLACEMENT CHARACTER}"]
        assert pieces == list(zip(script[:3], texts, strict=True))
        assert llm.stats.tokens == script[:3]


def test_tokens_without_text_are_generated_too(folder: Path) -> None:
    """A model may have more tokens than its tokenizer."""
    llm = LLM(folder, Script([303, 100]))
    completion = llm.generate("a", 2, GREEDY)
    assert completion.tokens == [303, 100]
    assert completion.text == llm.tokenizer.decode([100])


# -- figures


def test_stats_of_a_device_with_a_clock(folder: Path) -> None:
    llm = LLM(folder, Script([7, 8, 9]))
    stats = llm.generate("abcdef", 3, GREEDY).stats
    assert stats is llm.stats
    assert (stats.prompt_tokens, stats.generated_tokens, stats.decode_steps) == (7, 3, 2)
    assert (stats.reused_tokens, stats.computed_tokens) == (0, 7)
    assert (stats.prefill_cycles, stats.decode_cycles) == (70, 20)
    assert stats.decode_cycles_per_token == 10
    assert stats.tokens == [7, 8, 9]
    assert stats.bit_exact is None
    assert stats.prefill_s > 0
    assert stats.decode_tokens_per_s is not None
    assert stats.simulated_cycles_per_s == pytest.approx(90 / (stats.prefill_s + stats.decode_s))


def test_stats_of_a_device_without_a_clock(llm: LLM) -> None:
    stats = llm.generate("a", 1, GREEDY).stats
    assert stats.prefill_cycles is stats.decode_cycles is None
    assert stats.decode_cycles_per_token is stats.simulated_cycles_per_s is None
    assert stats.decode_tokens_per_s is None  # one token takes no decode step
    assert llm.generate("a", 2, GREEDY).stats.decode_tokens_per_s is not None


def test_stats_are_there_while_it_lasts(llm: LLM) -> None:
    stream = llm.stream("ab", 5, GREEDY)
    next(stream)
    next(stream)
    assert llm.stats is stream.stats
    assert stream.stats.generated_tokens == 2
    del stream
    assert llm.generate("ab", 1, GREEDY).stats.generated_tokens == 1


# -- limits


def test_the_context_can_be_filled(llm: LLM) -> None:
    room = llm.context - 2
    filled = llm.generate("a", room, SamplingParams(temperature=5.0, top_k=0, top_p=1.0, seed=5))
    assert llm.context == 32
    assert len(filled.tokens) == room or filled.tokens[-1] == EOS


def test_without_a_limit_the_context_is_filled(folder: Path) -> None:
    device = Script([100] * 40)
    llm = LLM(folder, device)
    assert len(llm.generate("a").tokens) == llm.context - 2
    assert device.passes[-1][1] == llm.context - 2


def test_the_longest_prompt_leaves_room_for_one_token(llm: LLM) -> None:
    prompt = "a" * 30
    assert len(llm.tokenizer.encode(prompt)) == llm.context - 1
    assert len(llm.generate(prompt).tokens) == 1
    message = "^2 tokens cannot be generated: the prompt takes 31 of 32 positions: "
    with pytest.raises(LutraError, match=message + "ask for 1 to 1$"):
        llm.stream(prompt, 2)


@pytest.mark.parametrize("n", [31, 40])
def test_a_prompt_that_is_too_long(n: int, llm: LLM) -> None:
    """Refused when it is given, not when the first piece is asked for."""
    message = (
        f"^the prompt has {n + 1} tokens, the context 32: shorten the prompt to at most 31 tokens$"
    )
    with pytest.raises(LutraError, match=message):
        llm.stream("a" * n)


@pytest.mark.parametrize("n", [-1, 0, 31, 1000])
def test_more_tokens_than_the_context_holds(n: int, llm: LLM) -> None:
    message = (
        f"^{n} tokens cannot be generated: the prompt takes 2 of 32 positions: ask for 1 to 30$"
    )
    with pytest.raises(LutraError, match=message):
        llm.stream("a", n)


def test_logits_of_a_sequence(llm: LLM, folder: Path) -> None:
    tokens = list(range(10))
    values, scale = llm.logits(tokens)
    assert values.shape == (10, 304)
    assert scale.shape == (10,)
    narrow = GoldenDevice()
    narrow.pass_tokens = 1
    single = LLM(folder, narrow).logits(tokens)
    np.testing.assert_array_equal(values, single[0])
    np.testing.assert_array_equal(scale, single[1])
    with pytest.raises(LutraError, match=r"^there are no tokens to evaluate: give at least one$"):
        llm.logits([])
    with pytest.raises(LutraError, match=r"^tokens must be a list of token ids, not int: make "):
        llm.logits(cast(list[int], 5))
    with pytest.raises(LutraError, match=r"^token id 304 is outside the vocabulary of 304$"):
        llm.logits([1, 304])
    with pytest.raises(LutraError, match=r"^36 tokens exceed the context of 32: give fewer$"):
        llm.logits([1] * 36)


# -- comparison


def test_a_device_that_is_exact(folder: Path) -> None:
    llm = LLM(folder, "golden", check=True)
    assert llm.generate("abcdef", 3, GREEDY).stats.bit_exact is True


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("logits", r"in 1 of 304 logits, first at position 7, logit 303"),
        ("argmax", r"in 0 of 304 logits, in the scale, the arg-max or the saturation flag"),
        ("scale", r"in 0 of 304 logits, in the scale, the arg-max or the saturation flag"),
        ("saturated", r"in 0 of 304 logits, in the scale, the arg-max or the saturation flag"),
    ],
)
def test_a_difference_is_found_where_it_is(what: str, place: str, folder: Path) -> None:
    llm = LLM(folder, Broken(what, 7), check=True)
    pieces: list[str] = []
    message = f"^device broken differs from the golden model {place}: this is a bug in "
    with pytest.raises(Mismatch, match=message):
        pieces.extend(piece.text for piece in llm.stream("abcdef", 3, GREEDY))
    assert llm.stats.bit_exact is False
    assert llm.stats.generated_tokens == 1


def test_a_difference_in_the_prompt_is_found(folder: Path) -> None:
    llm = LLM(folder, Broken("logits", 4), check=True)
    with pytest.raises(Mismatch, match="first at position 6, logit 303"):
        llm.generate("abcdef", 3, GREEDY)


def test_without_a_check_nothing_is_compared(folder: Path) -> None:
    llm = LLM(folder, Broken("logits", 0))
    assert llm.generate("abcdef", 3, GREEDY).stats.bit_exact is None


# -- construction


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"device": "gpu"},
            "device must be auto, .*, xrt, board://host or lutra://host, not 'gpu'",
        ),
        (
            {"device": "interpreted", "config": "giant"},
            r"configuration must be one of nano, pynq_z2, kv260, u50, u55c, not 'giant'",
        ),
        ({"config": "nano"}, "device golden has no configuration to choose: leave config out"),
        ({"engine": "lut"}, "device golden has no matmul engine to choose: leave engine out"),
        (
            {"threads": 2},
            "only device cpu has threads, golden has none: leave threads out",
        ),
        (
            {"device": GoldenDevice(), "engine": "lut"},
            (
                "engine is for a device that is given by name: leave it out, or make the device "
                "with it"
            ),
        ),
        (
            {"device": object()},
            "device must be auto, .* or xrt, or an object with the methods of .*, not object",
        ),
        ({"device": None}, "device must be auto, .* or xrt, or an object with .*, not NoneType"),
        ({"context": 2.5}, r"context must be a whole number, not 2\.5"),
        ({"context": "64"}, "context must be a whole number, not '64'"),
        ({"group": 64.0}, r"group must be a whole number, not 64\.0"),
        ({"wave": "x.vcd", "device": "rtl"}, r"wave must be a pathlib\.Path, not 'x\.vcd'"),
        ({"format": 4}, "format must be a name such as W4A8, not 4"),
        ({"prefix_bytes": "1"}, "prefix_bytes must be a whole number, not '1'"),
        ({"threads": "2", "device": "cpu"}, "threads must be a whole number, not '2'"),
        ({"prefix_bytes": -1}, r"prefix_bytes must be 0 \(keep none\) or more, not -1"),
        ({"threads": 10_000, "device": "cpu"}, r"threads must be 1 to \d+, not 10000"),
        (
            {"wave": Path("x.vcd")},
            "only device rtl writes a waveform: choose it, or leave wave out",
        ),
        (
            {"wave": Path("x.png"), "device": "rtl"},
            r"a waveform file must end in \.vcd or \.fst, not 'x\.png'",
        ),
        (
            {"wave": Path("no/such/x.vcd"), "device": "rtl"},
            "the folder of the waveform no/such/x.vcd does not exist: make it, or give another",
        ),
        (
            {"device": "interpreted", "config": NANO},
            (
                "configuration nano is built for head_dim 64, the model has 32: "
                "use a configuration with head_dim=32"
            ),
        ),
    ],
)
def test_options_that_can_not_be(options: dict[str, Any], message: str, folder: Path) -> None:
    arguments: dict[str, Any] = {"device": "golden"} | options
    with pytest.raises(LutraError, match=f"^{message}$"):
        LLM(folder, **arguments)


def test_a_text_that_is_too_long(model_folder: Callable[[str], Path]) -> None:
    """Of a model that is packed, too, and of one that is not."""

    def check(tokenizer: Tokenizer, context: int) -> None:
        raise LutraError(f"{len(tokenizer.encode('ab'))} of {context}")

    for model, context in ((model_folder("llama-whole"), 32), ("tales", 256)):
        with pytest.raises(LutraError, match=f"^[123] of {context}$"):
            LLM(model, "golden", check_text=check, load=False)


@pytest.mark.parametrize("model", [None, 3, b"tales"])
def test_a_model_is_a_name_or_a_path(model: Any) -> None:
    with pytest.raises(LutraError, match=r"^model must be a name or a path, not "):
        LLM(model, "golden")


@pytest.mark.parametrize("sampling", [{"temperature": 0}, 0, {}])
def test_sampling_has_a_type(sampling: Any, llm: LLM) -> None:
    kind = type(sampling).__name__
    with pytest.raises(
        LutraError, match=rf"^sampling must be SamplingParams\(\.\.\.\), not {kind}"
    ):
        llm.generate("abc", 1, sampling)


@pytest.mark.parametrize(
    ("model", "options", "engine", "format", "a_width"),
    [
        ("tales", {}, "ternary", "W1.58A8", 8),
        ("tales", {"engine": "mac"}, "mac", "W1.58A8", 8),
        ("tales-llama", {}, "lut", "W8A8g32", 8),
        ("tales-llama", {"format": "w4a16"}, "lut", "W4A16", 16),
        ("tales-llama", {"format": "W8A8", "engine": "mixpe"}, "mixpe", "W8A8", 8),
    ],
)
def test_engine_and_format_of_a_model(
    model: str, options: dict[str, Any], engine: str, format: str, a_width: int
) -> None:
    with LLM(model, "interpreted", **options) as llm:
        facts = llm.device.facts()
        assert (facts["engine"], llm.packed.format, llm.packed.a_bits) == (engine, format, a_width)
        assert str(facts["config"]).startswith("nano")


def test_a_group_is_that_of_the_weights(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llama-whole")
    found = LLM(folder, "golden", format="W2A8", group=64)
    assert found.packed.group == LLM(folder, "golden").packed.group == 64
    with pytest.raises(LutraError, match=r"^groups of 128 do not divide a depth of 64: choose an"):
        LLM(folder, "golden", group=128)


def test_formats_differ_and_engines_do_not() -> None:
    prompt, texts = "Once", dict[tuple[str, str], list[int]]()
    for engine in ("lut", "mixpe"):
        for format in ("W1A8", "W4A8"):
            llm = LLM("tales-llama", "interpreted", engine=engine, format=format, check=True)
            texts[engine, format] = llm.generate(prompt, 4, GREEDY).tokens
            assert llm.stats.bit_exact is True
    assert texts["lut", "W1A8"] == texts["mixpe", "W1A8"]
    assert texts["lut", "W4A8"] == texts["mixpe", "W4A8"]
    assert texts["lut", "W1A8"] != texts["lut", "W4A8"]


def test_the_rounded_model_is_what_is_run(folder: Path) -> None:
    llm = LLM("tales-llama", "golden", format="W2A8")
    rounded = llm.rounded
    assert rounded.activation_bits == 8
    # four values per group of 64
    assert np.unique(rounded.layers[0].q_proj.dequantized()[3, :64]).size <= 4
    ternary = LLM(folder, "golden")
    assert ternary.source is not None
    expected = ternary.source.layers[0].q_proj.dequantized()
    np.testing.assert_allclose(ternary.rounded.layers[0].q_proj.dequantized(), expected, 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "gpu"}, "engine must be one of ternary, lut, mixpe, mac, lookup, not 'gpu'"),
        ({"format": "W5A8"}, "format must be one of W1A8, .*, not 'W5A8'"),
        ({"group": 48}, "group must be 32, 64 or 128, not 48"),
        (
            {"engine": "ternary"},
            (
                "engine ternary does not run W8A8, only ternary weights with one scale per "
                "matrix and 8-bit activations with one scale per token: use engine lut, mixpe or "
                "mac"
            ),
        ),
        (
            {"engine": "ternary", "format": "W4A16"},
            "engine ternary does not run W4A16, only .*: use engine lut, mixpe or mac",
        ),
        (
            {"format": "W1.58A8"},
            "the weights of tales-llama are not ternary, and W1.58A8 is for .*",
        ),
        (
            {"engine": "lut", "config": config_for(SHAPES["least"])},
            (
                "configuration small is built with engine ternary, not lut: "
                "leave the engine out, or give another configuration"
            ),
        ),
    ],
)
def test_engines_and_formats_that_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LutraError, match=f"^{message}$"):
        LLM("tales-llama", "interpreted", **options)


def test_a_ternary_model_has_one_format() -> None:
    message = r"^the weights of tales are ternary .*: use format W1\.58A8, not W4A8$"
    with pytest.raises(LutraError, match=message):
        LLM("tales", "golden", format="W4A8")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mixed", Shape(vocab_size=256))
    write_tokenizer(folder)
    message = (
        "mixes two models: its tokenizer has 260 tokens, config.json 256: copy the model again$"
    )
    with pytest.raises(LutraError, match=message):
        LLM(folder, "golden")


def test_an_added_token_that_the_model_has_no_row_for(tmp_path: Path) -> None:
    """Programs add padding that was never trained: the model runs, the token is refused."""
    folder = write_model(tmp_path / "padded", Shape(vocab_size=260))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for i, special in ((260, True), (261, False)):
        content["added_tokens"].append({"id": i, "content": f"<{i}>", "special": special, **flags})
    path.write_text(json.dumps(content))
    llm = LLM(folder, "golden")
    assert llm.tokenizer.vocab_size == 262
    assert len(llm.generate("the <260>", 3, GREEDY).tokens) == 3
    with pytest.raises(LutraError, match="token id 261 is outside the vocabulary of 260"):
        llm.generate("the <261>", 3, GREEDY)


def test_the_shipped_model_tells_a_tale() -> None:
    llm = LLM("tales", "golden", check=True)
    completion = llm.generate("Once upon a", 8, GREEDY)
    assert len(completion.text) >= 8
    assert completion.stats.bit_exact is True


# -- several at once


PROMPTS = [
    "a king",
    "a king had",
    "a king had three sons",
    "the sea",
    "b",
    "a kind",
    "a king h",
    "c",
]


def alone(folder: Path, prompt: str, sampling: SamplingParams, n: int = 8) -> list[int]:
    """Tokens of a generation that nothing else has to do with."""
    return LLM(folder, "golden", prefix_bytes=0).generate(prompt, n, sampling).tokens


def sampled(i: int) -> SamplingParams:
    return SamplingParams(temperature=1.5, seed=i)


def test_eight_threads_give_what_each_gives_alone(folder: Path) -> None:
    expected = [alone(folder, prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    with LLM(folder, "golden", check=True) as llm, ThreadPoolExecutor(8) as pool:
        for _ in range(2):  # the second time from prefixes that are known
            runs = [
                pool.submit(llm.generate, prompt, 8, sampled(i)) for i, prompt in enumerate(PROMPTS)
            ]
            completions = [run.result() for run in runs]
            assert [each.tokens for each in completions] == expected
            assert all(each.stats.bit_exact for each in completions)
            assert len({id(each.stats) for each in completions}) == 8


def test_prompts_of_a_list_run_together(folder: Path) -> None:
    """Their completions are in the order of the prompts, and those of each alone."""
    with LLM(folder, "golden", check=True) as llm:
        for sampling in (GREEDY, sampled(3)):
            found = llm.generate(PROMPTS, 8, sampling)
            assert [each.tokens for each in found] == [
                alone(folder, prompt, sampling) for prompt in PROMPTS
            ]
            assert all(each.stats.bit_exact for each in found)
        one = llm.generate("a king had", 8, sampled(3))
        [several] = llm.generate(["a king had"], 8, replace(sampled(3), n=3, logprobs=2))
        assert (several.text, several.tokens) == (one.text, one.tokens)
        assert several.logprobs is not None and len(several.logprobs) == len(several.tokens)
        assert [each.tokens for each in several.alternatives] == [
            alone(folder, "a king had", sampled(4)), alone(folder, "a king had", sampled(5))
        ]  # fmt: skip
        assert several.stats.decode_s > 0 and several.stats.prefill_s > 0
        assert llm.generate([], 8) == []


def test_completions_are_in_the_order_of_their_seeds(folder: Path, llm: LLM) -> None:
    """Whichever ends first."""
    stop = [chr(letter) for letter in range(ord("a"), ord("k"))]
    [first] = llm.generate(["a king"], 16, replace(sampled(1), n=6, stop=stop))
    found = [first, *first.alternatives]
    expected = [alone(folder, "a king", replace(sampled(1 + i), stop=stop), 16) for i in range(6)]
    assert [each.tokens for each in found] == expected
    lengths = [len(each) for each in expected]
    assert lengths != sorted(lengths)


def test_a_prompt_of_a_list_that_does_not_fit_is_named(folder: Path, llm: LLM) -> None:
    with pytest.raises(LutraError, match=r"^prompt 1: the prompt has \d+ tokens, the context"):
        llm.generate(["a", "b" * 200, "c"])


def test_a_device_that_fails_fails_the_list(folder: Path) -> None:
    with LLM(folder, "golden") as llm:

        def broken(steps: Sequence[Step]) -> list[StepResult]:
            raise DeviceError("a bus error: check the board")

        run, llm.device.run = llm.device.run, broken  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(DeviceError, match=r"^a bus error: check the board$"):
            llm.generate(PROMPTS, 8)
        llm.device.run = run  # pyright: ignore[reportAttributeAccessIssue]
        assert llm.generate(["a king"], 8, GREEDY)[0].tokens == alone(folder, "a king", GREEDY)


def test_coroutines_share_passes(folder: Path) -> None:
    async def read(llm: LLM, prompt: str, i: int) -> list[int]:
        return [piece.token async for piece in llm.stream_async(prompt, 8, sampled(i))]

    async def all_of(llm: LLM) -> list[list[int]]:
        return await asyncio.gather(*(read(llm, each, i) for i, each in enumerate(PROMPTS)))

    with LLM(folder, "golden") as llm:
        found = asyncio.run(all_of(llm))
        assert found == [alone(folder, each, sampled(i)) for i, each in enumerate(PROMPTS)]
        again = asyncio.run(llm.generate_async("a king had", 8, replace(sampled(2), n=2), 1))
        assert again.tokens == alone(folder, "a king had", sampled(2))
        assert again.alternatives[0].tokens == alone(folder, "a king had", sampled(3))
        assert again.finish_reason in ("stop", "length")


def test_a_coroutine_that_is_cancelled_ends_its_request(folder: Path) -> None:
    async def read(llm: LLM) -> list[int]:
        stream = llm.stream_async("a king", 20, GREEDY)
        waiting = asyncio.create_task(anext(aiter(llm.stream_async("the sea", 20, GREEDY))))
        await asyncio.sleep(0)
        waiting.cancel()
        tokens = [piece.token async for piece in stream]
        stream.close()
        with pytest.raises(LutraError, match=r"^the stream is closed: start another one$"):
            await anext(stream)
        return tokens

    with LLM(folder, "golden") as llm:
        assert asyncio.run(read(llm)) == alone(folder, "a king", GREEDY, 20)
        assert llm.requests()[1] == 0


def test_a_model_that_is_closed_ends_coroutines(folder: Path) -> None:
    async def read(llm: LLM) -> None:
        stream = llm.stream_async("a king", 20, GREEDY)
        await anext(stream)
        llm.close()
        with pytest.raises(LutraError, match=r"^the model was closed: load it again$"):
            while True:
                await anext(stream)

    llm = LLM(folder, "golden")
    asyncio.run(read(llm))
    with pytest.raises(LutraError, match="is not loaded"):
        llm.stream_async("a king")
    llm.load()
    assert asyncio.run(llm.generate_async("a king", 8, GREEDY)).tokens == alone(
        folder, "a king", GREEDY
    )
    llm.close()


def test_streams_take_turns(folder: Path) -> None:
    expected = [alone(folder, prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    llm = LLM(folder, "golden")
    streams = [llm.stream(prompt, 8, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    running = set(range(8))
    while running:
        for i in sorted(running):
            if next(streams[i], None) is None:
                running.remove(i)
    assert [stream.stats.tokens for stream in streams] == expected


def test_a_stream_goes_on_in_another_thread(folder: Path, llm: LLM) -> None:
    stream = llm.stream("a king", 8, sampled(0))
    next(stream)
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: next(stream, None), range(16)):
            pass
    assert stream.stats.tokens == alone(folder, "a king", sampled(0))


def test_logits_between_two_tokens_of_a_stream(folder: Path, llm: LLM) -> None:
    stream = llm.stream("a king", 8, sampled(0))
    for _ in stream:
        llm.logits([3, 4, 5])
    assert stream.stats.tokens == alone(folder, "a king", sampled(0))


# -- greedy tokens that a device makes by itself


@pytest.mark.usefixtures("patient")
def test_greedy_tokens_come_by_ever_more(varied: Path) -> None:
    device = Descriptors()
    llm, prompt = LLM(varied, device), "the sea"
    expected = alone(varied, prompt, GREEDY, 20)
    assert len(expected) == 20 and len(set(expected)) == 4
    stream = llm.stream(prompt, 20, GREEDY)
    pieces = list(stream)
    assert stream.stats.tokens == expected
    assert [piece.token for piece in pieces][:20] == expected
    assert "".join(piece.text for piece in pieces) == llm.tokenizer.decode(expected)
    assert device.asked == [1, 2, 4, 8, 4]
    assert (stream.stats.generated_tokens, stream.stats.decode_steps) == (20, 19)
    assert stream.stats.decode_s > 0


def test_greedy_tokens_of_a_slow_device_come_one_by_one(
    varied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "RUN_S", 0.0)
    device = Descriptors()
    found = LLM(varied, device).generate("the sea", 5, GREEDY)
    assert found.tokens == alone(varied, "the sea", GREEDY, 5)
    assert device.asked == [1] * 4


@pytest.mark.usefixtures("patient")
def test_an_end_token_among_them_ends_the_story(varied: Path) -> None:
    device = Descriptors()
    llm, expected = LLM(varied, device), alone(varied, "the sea", GREEDY, 20)
    llm.eos = frozenset([expected[6], EOS])
    n = expected.index(expected[6]) + 1
    assert n == 7
    completion = llm.generate("the sea", 20, GREEDY)
    assert completion.tokens == expected[:n]
    assert completion.text == llm.tokenizer.decode(expected[: n - 1])
    assert completion.stats.decode_steps == n - 1


@pytest.mark.usefixtures("patient")
def test_drawn_and_checked_tokens_are_single_steps(varied: Path) -> None:
    device = Descriptors()
    llm = LLM(varied, device)
    assert llm.generate("the sea", 8, sampled(1)).tokens == alone(varied, "the sea", sampled(1))
    llm = LLM(varied, device, check=True)
    completion = llm.generate("the sea", 8, GREEDY)
    assert completion.tokens == alone(varied, "the sea", GREEDY)
    assert completion.stats.bit_exact
    assert device.asked == []


@pytest.mark.usefixtures("patient")
def test_a_stop_string_among_them_ends_the_story(varied: Path) -> None:
    """With the tokens that the device has made behind it left out, and kept for later."""
    device = Descriptors()
    llm, prompt = LLM(varied, device), "c"
    expected = alone(varied, prompt, GREEDY, 12)
    text = llm.tokenizer.decode(expected)
    assert text.startswith('""""""`')
    found = llm.generate(prompt, 12, replace(GREEDY, stop='"`'))
    assert (found.text, found.finish_reason) == ('"""""', "stop")
    assert found.tokens == expected[:7]
    assert device.asked == [1, 2, 4]
    assert llm.generate(prompt, 12, GREEDY).tokens == expected
    device.asked.clear()
    for options in ({"logit_bias": {102: 9.0}}, {"repetition_penalty": 1.5}, {"logprobs": 0}):
        assert len(llm.generate(prompt, 6, replace(GREEDY, **options)).tokens) == 6
    assert device.asked == []


@pytest.mark.usefixtures("patient")
def test_greedy_streams_take_turns(varied: Path) -> None:
    expected = [alone(varied, prompt, GREEDY) for prompt in PROMPTS[:4]]
    llm = LLM(varied, Descriptors())
    streams = [llm.stream(prompt, 8, GREEDY) for prompt in PROMPTS[:4]]
    drawn = llm.stream("c", 8, sampled(7))
    running = [*streams, drawn]
    while running:
        running = [stream for stream in running if next(stream, None) is not None]
    assert [stream.stats.tokens for stream in streams] == expected
    assert drawn.stats.tokens == alone(varied, "c", sampled(7))


@pytest.mark.usefixtures("patient")
def test_a_greedy_stream_that_is_closed_among_tokens(varied: Path) -> None:
    """Its statistics are those of the pieces; what it has computed is known."""
    llm = LLM(varied, Descriptors())
    with llm.stream("a king had", 20, GREEDY) as stream:
        for _ in range(5):
            next(stream)
    assert stream.stats.tokens == alone(varied, "a king had", GREEDY, 5)
    assert (stream.stats.generated_tokens, stream.stats.decode_steps) == (5, 7)
    again = llm.generate("a king had", 20, GREEDY)
    assert again.tokens == alone(varied, "a king had", GREEDY, 20)
    assert again.stats.computed_tokens == 1


@pytest.mark.usefixtures("patient")
def test_a_greedy_stream_whose_model_is_gone_gives_no_more(varied: Path) -> None:
    llm = LLM(varied, Descriptors())
    stream = llm.stream("the sea", 20, GREEDY)
    for _ in range(5):  # of four tokens at a time, one has come
        next(stream)
    llm.close()
    with pytest.raises(LutraError, match=GONE):
        next(stream)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_fault_among_greedy_tokens_comes_behind_those_before_it(n: int, varied: Path) -> None:
    device = Descriptors()
    llm, pieces = LLM(varied, device), list[int]()
    device.fails = n
    with pytest.raises(DeviceError, match=r"^a fault$"):
        pieces.extend(piece.token for piece in llm.stream("the sea", 20, GREEDY))
    assert pieces == alone(varied, "the sea", GREEDY, 1 + n)
    device.fails = -1
    assert llm.generate("the sea", 8, GREEDY).tokens == alone(varied, "the sea", GREEDY)


# -- streams that end early


CLOSED = "^the stream is closed: start another one$"
GONE = "^the model was closed or loaded again since this began: start another stream$"


def test_a_closed_stream(llm: LLM) -> None:
    stream = llm.stream("a king", 8, GREEDY)
    next(stream)
    stream.close()
    for _ in range(2):
        with pytest.raises(LutraError, match=CLOSED):
            next(stream)
    with llm.stream("a king", 8, GREEDY) as stream:
        next(stream)
    with pytest.raises(LutraError, match=CLOSED):
        next(stream)


def test_a_stream_that_has_ended_stays_so(llm: LLM) -> None:
    stream = llm.stream("a", 1, GREEDY)
    assert len(list(stream)) >= 1
    assert next(stream, None) is None


@pytest.mark.parametrize("again", [False, True])
def test_a_stream_whose_model_is_gone(again: bool, folder: Path, llm: LLM) -> None:
    stream = llm.stream("a king", 8, GREEDY)
    next(stream)
    llm.close()
    if again:
        llm.load()
    with pytest.raises(LutraError, match=GONE):
        next(stream)
    if not again:
        for use in (lambda: llm.generate("a"), lambda: llm.logits([1])):
            with pytest.raises(LutraError, match=r"^the model least is not loaded: call load\(\)$"):
                use()
        llm.close()
        llm.load()
    assert llm.generate("a king", 8, GREEDY).tokens == alone(folder, "a king", GREEDY)


def test_a_device_that_another_model_took(folder: Path, tmp_path: Path) -> None:
    device, other = GoldenDevice(), write_model(tmp_path / "other", SHAPES["least"], seed=2)
    llm = LLM(folder, device)
    stream = llm.stream("a king", 8, GREEDY)
    next(stream)
    taker = LLM(other, device)
    taken = r"^device golden has loaded the model other since: call load\(\) to take it back, or"
    with pytest.raises(LutraError, match=taken):
        next(stream)
    for use in (lambda: llm.generate("a king", 8, GREEDY), lambda: llm.logits([1])):
        with pytest.raises(LutraError, match=taken):
            use()
    assert taker.generate("a king", 8, GREEDY).tokens == alone(other, "a king", GREEDY)
    taker.close()
    with pytest.raises(LutraError, match=r"^no model is loaded: call load"):
        llm.generate("a king", 8, GREEDY)
    llm.load()
    assert llm.generate("a king", 8, GREEDY).tokens == alone(folder, "a king", GREEDY)


def test_a_device_that_is_taken_while_a_session_opens(folder: Path, tmp_path: Path) -> None:
    other = LLM(write_model(tmp_path / "other", SHAPES["least"], seed=2), "golden").packed

    class Taken(GoldenDevice):
        taker: PackedModel | None = None

        def session(self) -> GoldenSession:
            if self.taker is not None:
                self.load(self.taker)
            return super().session()

    device = Taken()
    llm = LLM(folder, device)
    device.taker = other
    with pytest.raises(LutraError, match=r"^device golden has loaded the model other since: "):
        llm.generate("a king", 8, GREEDY)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupt_in_the_middle(error: type[BaseException], at: int, folder: Path) -> None:
    device = Interrupted(error)
    device.pass_tokens = 4
    llm, prompt = LLM(folder, device), "a king had"
    other = llm.stream("a king", 8, sampled(1))
    next(other)
    device.left = at
    stream = llm.stream(prompt, 8, sampled(2))
    with pytest.raises(error):
        list(stream)
    with pytest.raises(LutraError, match=CLOSED):
        next(stream)
    assert llm.generate(prompt, 8, sampled(2)).tokens == alone(folder, prompt, sampled(2))
    for _ in other:
        pass
    assert other.stats.tokens == alone(folder, "a king", sampled(1))
    device.left = 1
    with pytest.raises(error):
        llm.logits([1, 2])
    assert llm.logits([1, 2])[0].shape == (2, 304)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_to_load_again(folder: Path, llm: LLM) -> None:
    expected = llm.generate("a king", 4, GREEDY).tokens
    stream = llm.stream("a king", 4, GREEDY)
    next(stream)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = list[str]()
            for use in (lambda: llm.generate("a", 1), lambda: next(stream)):
                try:
                    use()
                except LutraError as error:
                    said.append(str(error))
            llm.load()
            said.append(str(llm.generate("a king", 4, GREEDY).tokens))
            os.write(write, "\n".join(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read().split("\n")
    os.waitpid(child, 0)
    message = "the model was loaded before this process was forked: call load() again here"
    assert said == [message, message, str(expected)]
    list(stream)
    assert stream.stats.tokens == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_forked_while_threads_generate(folder: Path) -> None:
    """It can close what it got, and load it again: it waits for no thread of its parent."""
    device = Held()
    llm = LLM(folder, device)
    stream = llm.stream("a king", 4, GREEDY)
    next(stream)
    device.hold()
    thread = threading.Thread(target=lambda: next(stream))
    thread.start()
    device.begun.wait()
    closing = threading.Thread(target=llm.close)
    closing.start()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            stream.close()
            said = "no error"
            try:
                next(stream)
            except LutraError as error:
                said = str(error)
            llm.close()
            llm.load()
            os.write(write, f"{said}; {llm.generate('a king', 4, GREEDY).tokens}".encode())
        finally:
            os._exit(0)
    os.close(write)
    device.over.set()
    thread.join()
    closing.join()
    with os.fdopen(read) as answer:
        assert answer.read() == (
            "the model was loaded before this process was forked: call load() again here; "
            f"{alone(folder, 'a king', GREEDY, 4)}"
        )
    os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_that_closed_first_takes_a_device_of_its_own(folder: Path) -> None:
    """The parent's may not work there: a GPU's context does not outlive a fork."""
    llm = LLM(folder, "golden")
    inherited = llm.device
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            llm.close()
            kept = llm.device is inherited
            llm.load()
            first = llm.device
            llm.load()
            said = (kept, first is not inherited, llm.device is first)
            os.write(write, repr(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == "(True, True, True)"
    os.waitpid(child, 0)


# -- known prefixes


def test_a_known_prefix_is_not_computed_again(long_folder: Path) -> None:
    device = Counting()
    llm = LLM(long_folder, device)
    prompt = "once upon a time there was"
    n = len(llm.encode(prompt))
    first = llm.generate(prompt, 5, GREEDY)
    assert (device.computed, first.stats.computed_tokens) == (n + 4, n)
    again = llm.generate(prompt, 5, GREEDY)
    assert again.tokens == first.tokens
    assert (again.stats.prompt_tokens, again.stats.reused_tokens) == (n, n - 1)
    assert (again.stats.computed_tokens, device.computed) == (1, n + 4 + 5)
    longer = llm.generate(prompt + " a king", 5, GREEDY)
    assert longer.stats.computed_tokens == len(llm.encode(prompt + " a king")) - n
    # shorter than what is known, and unlike all of it
    assert llm.generate(prompt[:15], 2, GREEDY).stats.computed_tokens == 1
    assert llm.generate("no" + prompt, 2, GREEDY).stats.reused_tokens == 0
    assert llm.generate(prompt[:5], 2, GREEDY).stats.reused_tokens == 0


def test_results_are_the_same_with_and_without_known_prefixes(long_folder: Path) -> None:
    rng = np.random.default_rng(3)
    prompts = [
        "the king " * int(rng.integers(2, 5)) + "xyz"[: int(rng.integers(4))] for _ in range(12)
    ]
    devices = Counting(), Counting()
    with_known = LLM(long_folder, devices[0], check=True)
    without = LLM(long_folder, devices[1], prefix_bytes=0)
    for i, prompt in enumerate(prompts):
        one, other = (each.generate(prompt, 4, sampled(i)) for each in (with_known, without))
        assert one.tokens == other.tokens
        found, expected = (device.results[-4:] for device in devices)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a.logits[-1], b.logits[-1])
            np.testing.assert_array_equal(a.scale[-1], b.scale[-1])
    assert devices[0].computed < devices[1].computed // 2


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def test_the_second_turn_of_a_chat_computes_what_is_new(long_folder: Path) -> None:
    device = Letters()
    llm = LLM(long_folder, device)
    llm.set_chat_template(TEMPLATE)
    messages = [{"role": "user", "content": "once upon a time there was a king. " * 5}]
    stream = llm.chat(messages, 45, GREEDY)
    answer = "".join(piece.text for piece in stream)
    before = stream.stats.prompt_tokens + len(stream.stats.tokens)
    assert 200 <= before == device.computed + 1
    device.computed = 0
    question = "[user]and then?[assistant]"
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "and then?"},
    ]
    second = llm.chat(messages, 1, GREEDY)
    list(second)
    # the last token of the answer was never fed
    new = len(llm.tokenizer.encode(question, add_bos=False)) + 1
    assert second.stats.prompt_tokens == before - 1 + new
    assert device.computed == second.stats.computed_tokens == new


def test_a_part_that_is_shared_serves_several(long_folder: Path) -> None:
    """A long story is not cut for a prompt that shares little of it."""
    device = Counting()
    llm = LLM(long_folder, device)
    story = "once upon a time " + "there was a king " * 4
    llm.generate(story, 1, GREEDY)
    other = llm.generate("once upon a time at sea", 1, GREEDY)
    assert other.stats.reused_tokens == len(llm.encode("once upon a time "))
    assert llm.generate(story + "x", 1, GREEDY).stats.computed_tokens == 1
    assert llm.generate("once upon a time at sea!", 1, GREEDY).stats.computed_tokens == 1


def test_a_known_prefix_keeps_its_saturation(long_folder: Path) -> None:
    """Steps behind saturated keys and values say so; positions cut off do not count."""
    device = Saturating()
    llm = LLM(long_folder, device)
    prompt = "once upon a time there was a king"
    n = device.above = len(llm.encode(prompt)) - 1
    assert llm.generate(prompt, 2, GREEDY).stats.saturated
    device.above = 1 << 30
    assert llm.generate(prompt + "!", 2, GREEDY).stats.saturated
    again = llm.generate(prompt[:-2], 2, GREEDY).stats
    assert (again.reused_tokens, again.saturated) == (n - 2, False)
    assert not llm.generate("at sea", 2, GREEDY).stats.saturated


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams()])
def test_a_step_that_saturated_is_not_forgotten(
    sampling: SamplingParams, long_folder: Path
) -> None:
    """The steps behind it may say that they did not."""
    device = SaturatingOnce()
    llm = LLM(long_folder, device)
    prompt = "once upon a time"
    device.at = len(llm.encode(prompt))
    assert llm.generate(prompt, 4, sampling).stats.saturated
    device.at = 0
    assert llm.generate("at sea", 4, sampling).stats.saturated


def test_sessions_that_are_kept_give_way(long_folder: Path) -> None:
    """To running ones where the device has no room, and to later ones beyond the bound."""
    device = GoldenDevice()
    model = LLM(long_folder, device).packed
    row = model.head_dim * 2 + 8
    size = device._session_bytes(model)  # pyright: ignore[reportPrivateUsage]
    device = Counting(memory_limit=2 * size)
    llm = LLM(long_folder, device)
    prompts = [letter * 20 for letter in "abc"]
    for prompt in prompts:
        assert llm.generate(prompt, 2, GREEDY).stats.reused_tokens == 0
    assert llm.generate(prompts[2], 2, GREEDY).stats.reused_tokens == 20
    assert llm.generate(prompts[0], 2, GREEDY).stats.reused_tokens == 0
    streams = [llm.stream(prompt, 3, GREEDY) for prompt in prompts]
    for stream in streams[:2]:
        next(stream)
    with pytest.raises(LutraError, match=r"^no memory for another session on device golden: "):
        next(streams[2])
    list(streams[0])
    assert llm.generate(prompts[2], 2, GREEDY).stats.reused_tokens == 0
    list(streams[1])
    # 21 tokens of the prompt and one of two that are generated
    llm = LLM(long_folder, device, prefix_bytes=2 * 22 * row)
    for prompt in prompts:
        llm.generate(prompt, 2, GREEDY)
    assert [llm.generate(each, 2, GREEDY).stats.reused_tokens for each in prompts] == [0, 0, 0]
    assert llm.generate(prompts[2], 2, GREEDY).stats.reused_tokens == 20


# -- opening and closing


def test_closing_releases_the_device(folder: Path) -> None:
    device = Script([7, 8])
    with LLM(folder, device) as llm:
        assert device.loaded == 1
        assert repr(llm) == "<LLM least W1.58A8 on script, context 32>"
    assert device.loaded == 0
    assert repr(llm) == "<LLM least W1.58A8 on script, context 32, not loaded>"
    llm.load()
    assert llm.generate("a", 1, GREEDY).tokens == [7]
    later = LLM(folder, device, load=False)
    with pytest.raises(LutraError, match=r"not loaded: call load\(\)$"):
        later.generate("a", 1, GREEDY)


def test_nothing_stays_of_what_is_dropped(folder: Path) -> None:
    threads = threading.active_count()
    llm = LLM(folder, "golden", check=True)
    stream = llm.stream("a king had", 4, GREEDY)
    next(stream)
    llm.generate("a king had", 4, GREEDY)
    gone = [weakref.ref(each) for each in (llm, llm.device, stream)]
    gc.disable()  # at once: a model is too large to wait for the collector
    try:
        del llm, stream
        assert [each() for each in gone] == [None] * 3
    finally:
        gc.enable()
    assert threading.active_count() == threads


def test_auto_takes_the_next_best(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest device has no room for the model."""

    class Small(GoldenDevice):
        name = "cpu"

        def _load(self, model: PackedModel) -> None:
            raise LutraError("device cpu has no memory for it")

    monkeypatch.setattr(auto, "gpu_count", lambda: 0)
    monkeypatch.setattr(auto, "interpreted", lambda: False)
    monkeypatch.setattr(processors, "CpuDevice", lambda *_: Small())
    llm = LLM(folder)
    assert llm.device.name == "golden"
    assert llm.notes == ["device cpu has no memory for it; device golden runs instead, in NumPy"]
    with pytest.raises(LutraError, match=r"^device cpu has no memory for it$"):
        LLM(folder, "cpu")


def test_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages: list[str] = []
    LLM(folder, "golden", format="W1.58A8", progress=lambda stage, _: stages.append(stage))
    assert set(stages) == {"packing"}  # it is ternary already
    stages.clear()
    LLM("tales-llama", "golden", progress=lambda stage, _: stages.append(stage), load=False)
    assert "quantising" in stages and "packing" not in stages
    LLM(folder, "golden", progress=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("page", ["README.md", "host/README.md", "docs/devices.md"])
def test_the_examples_of_the_pages(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    # code is indented; other examples on the pages are commands
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)
    examples = [block for block in blocks if "    from lutra import LLM" in block]
    assert examples
    for example in examples:
        code = re.sub(r'device="(rtl|cpu)"', 'device="golden"', textwrap.dedent(example))
        exec(code.replace("max_tokens=64", "max_tokens=3"), {})
    assert capsys.readouterr().out


def test_names_of_the_package() -> None:
    assert {name for name in dir(lutra) if not name.startswith("_")} == {
        name for name in lutra.__all__ if name != "__version__"
    }
    for name in lutra.__all__:
        assert getattr(lutra, name) is not None
    assert lutra.Stream is type(LLM("tales", "golden").stream("Once", 1))


@pytest.mark.parametrize("prompt", [3, None, b"a"])
def test_a_prompt_is_a_string(prompt: Any, llm: LLM) -> None:
    kind = type(prompt).__name__
    with pytest.raises(LutraError, match=f"^a prompt must be a string, not {kind}$"):
        llm.generate(prompt)


@pytest.mark.parametrize("max_tokens", [2.5, "3", True])
def test_tokens_are_counted_in_whole_numbers(max_tokens: Any, llm: LLM) -> None:
    for start in (llm.generate, llm.stream):
        with pytest.raises(LutraError, match=r"^max_tokens must be a whole number, not "):
            start("abc", max_tokens)
    two: Any = np.int64(2)
    assert llm.generate("abc", two, GREEDY).stats.generated_tokens == 2


def test_logits_of_an_array(llm: LLM) -> None:
    tokens: Any = np.array([2, 3, 4])
    np.testing.assert_array_equal(llm.logits(tokens)[0], llm.logits([2, 3, 4])[0])
