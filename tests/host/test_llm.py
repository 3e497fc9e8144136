"""The Python interface: generation, streaming, limits, and the comparison with the golden model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.host.random_model import (
    EOS,
    LLAMAS,
    SHAPES,
    Shape,
    config_for,
    write_model,
    write_tokenizer,
)

from lutra import LLM, LutraError, SamplingParams
from lutra.compile.program import Program
from lutra.devices.base import Limits, TileResult, check_tile
from lutra.devices.golden import GoldenDevice
from lutra.llm import Mismatch
from lutra_golden.core.config import NANO, AcceleratorConfig

GREEDY = SamplingParams(temperature=0)


class Script:
    """A device whose likeliest token is the next of a script, whatever it is given."""

    name = "script"

    def __init__(self, tokens: Sequence[int]) -> None:
        self.script, self.tiles = list(tokens), list[tuple[list[int], int, int]]()
        self.program: Program | None = None

    def load(self, program: Program) -> None:
        self.program = program

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        assert self.program is not None
        check_tile(Limits.of(self.program), tokens, position, logits_from)
        self.tiles.append((list(tokens), position, logits_from))
        n = len(tokens) - logits_from
        logits = np.zeros((n, self.program.vocab_size), np.int64)
        if n:
            logits[-1, self.script.pop(0)] = 1000
        return TileResult(logits, np.ones(n), logits.argmax(axis=1), 10 * len(tokens))

    def counters(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self.program = None


class Broken(GoldenDevice):
    """The golden device with one wrong value from a position on."""

    name = "broken"

    def __init__(self, what: str, position: int) -> None:
        super().__init__()
        self._what, self._position = what, position

    def run_tile(self, tokens: Sequence[int], position: int, logits_from: int) -> TileResult:
        result = super().run_tile(tokens, position, logits_from)
        if position >= self._position and len(result.logits):
            values = getattr(result, self._what).copy()
            values.flat[-1] += 1
            result = replace(result, **{self._what: values})
        return result


@pytest.fixture
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("least")


@pytest.fixture
def config() -> AcceleratorConfig:
    return config_for(SHAPES["least"])


@pytest.fixture
def llm(folder: Path, config: AcceleratorConfig) -> LLM:
    return LLM(folder, "golden", config=config)


# -- generation


def test_generation_is_the_devices_greedy_choice(llm: LLM) -> None:
    """By hand, token after token, on another device."""
    prompt = "a king had three sons"
    tokens = llm.tokenizer.encode(prompt)
    device = GoldenDevice()
    device.load(llm.program)
    expected: list[int] = []
    for position in range(len(tokens) + 5):
        token = tokens[position] if position < len(tokens) else expected[-1]
        result = device.run_tile([token], position, 0)
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


def test_prompts_are_cut_into_tiles(folder: Path, config: AcceleratorConfig) -> None:
    device = Script([7, 8, 9])
    llm = LLM(folder, device, config=config)
    tokens = llm.tokenizer.encode("abcdefgh")
    assert len(tokens) == 9
    llm.generate("abcdefgh", 3, GREEDY)
    assert device.tiles == [
        (tokens[:4], 0, 4),
        (tokens[4:8], 4, 4),
        (tokens[8:], 8, 0),
        ([7], 9, 0),
        ([8], 10, 0),
    ]


def test_only_the_last_logits_of_a_prompt_are_asked_for(
    folder: Path, config: AcceleratorConfig
) -> None:
    device = Script([7])
    LLM(folder, device, config=config).generate("abcdef", 1, GREEDY)
    assert [(len(tokens), first) for tokens, _, first in device.tiles] == [(4, 4), (3, 2)]


def test_the_end_of_the_story_ends_it(folder: Path, config: AcceleratorConfig) -> None:
    llm = LLM(folder, Script([100, EOS, 101]), config=config)
    completion = llm.generate("a", 10, GREEDY)
    assert completion.tokens == [100, EOS]
    assert completion.text == llm.tokenizer.decode([100])
    assert completion.stats.generated_tokens == 2
    assert completion.stats.decode_steps == 1


def test_an_empty_prompt_begins_a_story(llm: LLM) -> None:
    assert len(llm.generate("", 3, GREEDY).tokens) <= 3
    assert llm.stats.prompt_tokens == 1


def test_characters_are_streamed_whole(folder: Path, config: AcceleratorConfig) -> None:
    text = "ü\N{OTTER}the日"
    ids = LLM(folder, "golden", config=config).tokenizer.encode(text, add_bos=False)
    llm = LLM(folder, Script(ids), config=config)
    pieces = list(llm.stream("a", len(ids), GREEDY))
    assert [piece.token for piece in pieces] == ids
    texts = [piece.text for piece in pieces]
    assert texts == ["", "ü", "", "", "", "\N{OTTER}", "the", "", "", "日"]


def test_a_story_cut_inside_a_character_says_so_at_the_end(
    folder: Path, config: AcceleratorConfig
) -> None:
    ids = LLM(folder, "golden", config=config).tokenizer.encode("x\N{OTTER}", add_bos=False)
    llm = LLM(folder, Script(ids), config=config)
    texts = [piece.text for piece in llm.stream("a", 3, GREEDY)]
    assert texts == ["x", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert llm.stats.tokens == ids[:3]


def test_tokens_without_text_are_generated_too(folder: Path, config: AcceleratorConfig) -> None:
    """A model may have more tokens than its tokenizer."""
    llm = LLM(folder, Script([303, 100]), config=config)
    completion = llm.generate("a", 2, GREEDY)
    assert completion.tokens == [303, 100]
    assert completion.text == llm.tokenizer.decode([100])


# -- figures


def test_stats_of_a_device_with_a_clock(folder: Path, config: AcceleratorConfig) -> None:
    llm = LLM(folder, Script([7, 8, 9]), config=config)
    stats = llm.generate("abcdef", 3, GREEDY).stats
    assert stats is llm.stats
    assert (stats.prompt_tokens, stats.generated_tokens, stats.decode_steps) == (7, 3, 2)
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
    assert llm.stats.generated_tokens == 2
    del stream
    assert llm.generate("ab", 1, GREEDY).stats.generated_tokens == 1


# -- limits


def test_the_context_can_be_filled(llm: LLM) -> None:
    room = llm.context - 2
    filled = llm.generate("a", room, SamplingParams(temperature=5.0, top_k=0, top_p=1.0, seed=5))
    assert llm.context == 32
    assert len(filled.tokens) == room or filled.tokens[-1] == EOS


def test_without_a_limit_the_context_is_filled(folder: Path, config: AcceleratorConfig) -> None:
    device = Script([100] * 40)
    llm = LLM(folder, device, config=config)
    assert len(llm.generate("a").tokens) == llm.context - 2
    assert device.tiles[-1][1] == llm.context - 2


def test_the_longest_prompt_leaves_room_for_one_token(llm: LLM) -> None:
    prompt = "a" * 30
    assert len(llm.tokenizer.encode(prompt)) == llm.context - 1
    assert len(llm.generate(prompt).tokens) == 1
    message = "^31 tokens can|^2 tokens can not be generated: the prompt takes 31 of 32 positions, "
    with pytest.raises(LutraError, match=message + "so -n must be 1 to 1$"):
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
        f"^{n} tokens can not be generated: the prompt takes 2 of 32 positions, "
        "so -n must be 1 to 30$"
    )
    with pytest.raises(LutraError, match=message):
        llm.stream("a", n)


def test_logits_of_a_sequence(llm: LLM, folder: Path, config: AcceleratorConfig) -> None:
    tokens = list(range(10))
    values, scale = llm.logits(tokens)
    assert values.shape == (10, 304)
    assert scale.shape == (10,)
    single = LLM(folder, "golden", config=replace(config, pass_tokens=1)).logits(tokens)
    np.testing.assert_array_equal(values, single[0])
    np.testing.assert_array_equal(scale, single[1])
    with pytest.raises(LutraError, match=r"^there are no tokens to evaluate: give at least one$"):
        llm.logits([])
    with pytest.raises(LutraError, match=r"^token id 304 is outside the vocabulary of 304$"):
        llm.logits([1, 304])
    with pytest.raises(LutraError, match=r"^positions 32\.\.35 exceed the context of 32"):
        llm.logits([1] * 36)


# -- comparison


def test_a_device_that_is_exact(folder: Path, config: AcceleratorConfig) -> None:
    llm = LLM(folder, "golden", config=config, check=True)
    assert llm.generate("abcdef", 3, GREEDY).stats.bit_exact is True


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("logits", r"in 1 of 304 logits, first at position 7, logit 303"),
        ("argmax", r"in 0 of 304 logits, in the scale, the arg-max or the saturation flag"),
        ("scale", r"in 0 of 304 logits, in the scale, the arg-max or the saturation flag"),
    ],
)
def test_a_difference_is_found_where_it_is(
    what: str, place: str, folder: Path, config: AcceleratorConfig
) -> None:
    llm = LLM(folder, Broken(what, 7), config=config, check=True)
    pieces: list[str] = []
    message = f"^device broken differs from the golden model {place}: this is a bug in "
    with pytest.raises(Mismatch, match=message):
        pieces.extend(piece.text for piece in llm.stream("abcdef", 3, GREEDY))
    assert llm.stats.bit_exact is False
    assert llm.stats.generated_tokens == 1


def test_a_difference_in_the_prompt_is_found(folder: Path, config: AcceleratorConfig) -> None:
    llm = LLM(folder, Broken("logits", 4), config=config, check=True)
    with pytest.raises(Mismatch, match="first at position 6, logit 303"):
        llm.generate("abcdef", 3, GREEDY)


def test_without_a_check_nothing_is_compared(folder: Path, config: AcceleratorConfig) -> None:
    llm = LLM(folder, Broken("logits", 0), config=config)
    assert llm.generate("abcdef", 3, GREEDY).stats.bit_exact is None


# -- construction


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device must be auto, .*, golden or rtl, not 'gpu'"),
        ({"config": "giant"}, r"configuration must be one of nano, .*, not 'giant'"),
        ({"wave": Path("x.vcd")}, "a waveform needs the RTL: add --device rtl"),
        (
            {"wave": Path("x.png"), "device": "rtl"},
            r"a waveform file must end in \.vcd or \.fst, not 'x\.png'",
        ),
        (
            {"config": NANO},
            (
                "configuration nano is built for head_dim 64, the model has 32: "
                "use a configuration with head_dim=32"
            ),
        ),
    ],
)
def test_options_that_can_not_be(options: dict[str, Any], message: str, folder: Path) -> None:
    arguments: dict[str, Any] = {
        "device": "golden",
        "config": config_for(SHAPES["least"]),
    } | options
    with pytest.raises(LutraError, match=f"^{message}$"):
        LLM(folder, **arguments)


@pytest.mark.parametrize(
    ("model", "options", "engine", "format", "a_width"),
    [
        ("tales", {}, "ternary", "W1.58A8", 8),
        ("tales", {"engine": "mac"}, "mac", "W1.58A8", 8),
        ("tales-llama", {}, "lut", "W4A8", 8),
        ("tales-llama", {"format": "w4a16"}, "lut", "W4A16", 16),
        ("tales-llama", {"format": "W8A8", "engine": "mixpe"}, "mixpe", "W8A8", 8),
    ],
)
def test_engine_and_format_of_a_model(
    model: str, options: dict[str, Any], engine: str, format: str, a_width: int
) -> None:
    llm = LLM(model, "golden", config="nano-wide", **options)
    config = llm.program.config
    assert (config.engine, llm.program.format, config.a_width) == (engine, format, a_width)
    assert config.pass_tokens == 64


def test_a_group_is_that_of_the_weights(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llama-whole")
    config = config_for(LLAMAS["llama-whole"], "lut", depth_tile=64)
    found = LLM(folder, "golden", config=config, format="W2A8", group=64)
    assert found.packed.group == LLM(folder, "golden", config=config).packed.group == 64
    with pytest.raises(LutraError, match=r"^groups of 128 do not divide a depth of 64: choose an"):
        LLM(folder, "golden", config=config, group=128)


def test_formats_differ_and_engines_do_not() -> None:
    prompt, texts = "Once upon a time", dict[tuple[str, str], list[int]]()
    for engine in ("lut", "mixpe"):
        for format in ("W1A8", "W4A8"):
            llm = LLM("tales-llama", "golden", engine=engine, format=format, check=True)
            texts[engine, format] = llm.generate(prompt, 6, GREEDY).tokens
            assert llm.stats.bit_exact is True
    assert texts["lut", "W1A8"] == texts["mixpe", "W1A8"]
    assert texts["lut", "W4A8"] == texts["mixpe", "W4A8"]
    assert texts["lut", "W1A8"] != texts["lut", "W4A8"]


def test_the_rounded_model_is_what_is_run(folder: Path, config: AcceleratorConfig) -> None:
    llm = LLM("tales-llama", "golden", format="W2A8")
    rounded = llm.rounded
    assert rounded.activation_bits == 8
    # four values per group of 64
    assert np.unique(rounded.layers[0].q_proj.dequantized()[3, :64]).size <= 4
    ternary = LLM(folder, "golden", config=config)
    assert ternary.source is not None
    expected = ternary.source.layers[0].q_proj.dequantized()
    np.testing.assert_allclose(ternary.rounded.layers[0].q_proj.dequantized(), expected, 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "gpu"}, "engine must be one of ternary, lut, mixpe, mac, not 'gpu'"),
        ({"format": "W5A8"}, "format must be one of W1A8, .*, not 'W5A8'"),
        ({"group": 48}, "group must be 32 or 64 or 128, not 48"),
        (
            {"engine": "ternary"},
            (
                "engine ternary does not run W4A8, only ternary weights with 8-bit activations: "
                "use --engine lut or mixpe or mac"
            ),
        ),
        (
            {"engine": "ternary", "format": "W4A16"},
            "engine ternary does not run W4A16, only .*: use --engine lut or mixpe or mac",
        ),
        ({"format": "W1.58A8"}, "the weights of tales-llama are not ternary, W1.58A8 is only .*"),
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
        LLM("tales-llama", "golden", **options)


def test_a_ternary_model_has_one_format() -> None:
    message = r"^the weights of tales are ternary .*: use --format W1\.58A8, not W4A8$"
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


def test_closing_releases_the_device(folder: Path, config: AcceleratorConfig) -> None:
    device = Script([7])
    LLM(folder, device, config=config).close()
    assert device.program is None


def test_the_shipped_model_tells_a_tale() -> None:
    llm = LLM("tales", "golden", check=True)
    completion = llm.generate("Once upon a", 8, GREEDY)
    assert len(completion.text) >= 8
    assert completion.stats.bit_exact is True
