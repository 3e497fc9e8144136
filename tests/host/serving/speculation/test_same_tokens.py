"""Tokens with drafts are those without, whatever is drafted, drawn and asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.serving.speculation.oracle import Oracle
from tests.host.serving.speculation.same import check_requests

from lutra import LLM, Completion, SamplingParams
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.base import Chunk, Device, PassResult
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice
from lutra.serving.speculation.adaptive import AdaptiveSpeculation
from lutra.serving.speculation.ngrams import NgramDrafter
from lutra_golden.model.packed import PackedModel

GREEDY = SamplingParams(temperature=0)
DEVICES: dict[str, Callable[[], Device]] = {
    "golden": GoldenDevice,
    "cpu": lambda: CpuDevice(2),
    "interpreted": lambda: AcceleratorDevice(InterpretedTransport()),
}


@pytest.fixture(params=DEVICES)
def device(
    request: pytest.FixtureRequest, packed: Callable[[str], PackedModel]
) -> Iterator[Device]:
    found = DEVICES[request.param]()
    found.load(packed("least"))
    yield found
    found.close()


@pytest.mark.parametrize(("n_drafts", "wrong_every"), [(1, 2), (3, 4), (3, 99), (7, 3), (7, 8)])
def test_requests_at_once(device: Device, n_drafts: int, wrong_every: int) -> None:
    """With so many drafts of each at a time, of which every so many are wrong."""
    check_requests(device, 19, n_drafts, min(wrong_every, 9))


# -- single texts


def told(llm: LLM, plain: Completion, n: int, wrong_every: int) -> Oracle:
    """Have the tokens of a completion drafted."""
    loaded = llm._running()
    n_prompt = plain.stats.prompt_tokens
    loaded.speculation = Oracle({n_prompt: plain.tokens}, n, wrong_every, llm.packed.vocab_size)
    return loaded.speculation


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("least")


TEXTS = [
    GREEDY,
    SamplingParams(temperature=2.0, seed=3, logprobs=2),
    SamplingParams(temperature=1.5, seed=5, repetition_penalty=1.4, logit_bias={7: 9.0}),
    replace(GREEDY, logprobs=3, repetition_penalty=1.2),
]


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 22])
@pytest.mark.parametrize("sampling", TEXTS, ids=["greedy", "drawn", "changed", "penalty"])
@pytest.mark.parametrize("check", [False, True], ids=["", "checked"])
def test_a_text(sampling: SamplingParams, n_tokens: int, check: bool, folder: Path) -> None:
    """Pieces, logarithms of probabilities and figures are the same."""
    with LLM(folder, "golden", check=check) as llm:
        plain = llm.generate("a king", n_tokens, sampling)
        for n, wrong_every in ((1, 3), (4, 3), (6, 9), (40, 99)):
            oracle = told(llm, plain, n, wrong_every)
            stream = llm.stream("a king", n_tokens, sampling)
            pieces = list(stream)
            (found,) = stream.completions
            assert [piece.token for piece in pieces] == plain.tokens
            assert (found.text, found.finish_reason) == (plain.text, plain.finish_reason)
            assert found.logprobs == plain.logprobs
            assert found.stats.decode_steps == n_tokens - 1
            assert found.stats.bit_exact == plain.stats.bit_exact
            assert oracle.begun[0].closed
            if n_tokens > 5:
                assert 0 < found.stats.accepted_tokens <= found.stats.drafted_tokens
                assert sum(made for _, _, made in oracle.passes) == n_tokens - 1


def test_at_every_token_a_wrong_draft(folder: Path) -> None:
    """Greedy tokens that the device makes by itself, and such with drafts, in turns."""
    with LLM(folder, "golden") as llm:
        plain = llm.generate("a king", 20, GREEDY)
        for n in range(1, 7):
            for wrong_every in range(2, 9):
                told(llm, plain, n, wrong_every)
                assert llm.generate("a king", 20, GREEDY).tokens == plain.tokens


def test_a_stop_string_among_drafts(folder: Path) -> None:
    """Nothing behind it is told, however many drafts were right."""
    with LLM(folder, "golden") as llm:
        sampling = SamplingParams(temperature=2.0, seed=8)
        plain = llm.generate("a king", 20, sampling)
        for first in range(3, len(plain.text) - 2):
            stopped = replace(sampling, stop=plain.text[first : first + 2])
            expected = LLM(folder, "golden").generate("a king", 20, stopped)
            told(llm, plain, 6, 99)
            found = llm.generate("a king", 20, stopped)
            assert (found.text, found.tokens) == (expected.text, expected.tokens)
            assert found.finish_reason == expected.finish_reason


def test_a_stream_that_is_closed_among_drafts_can_go_on(folder: Path) -> None:
    with LLM(folder, "golden") as llm:
        plain = llm.generate("a king had", 16, GREEDY)
        for n in range(1, 12):
            oracle = told(llm, plain, 5, 4)
            with llm.stream("a king had", 16, GREEDY) as stream:
                assert [next(stream).token for _ in range(n)] == plain.tokens[:n]
            assert oracle.begun[0].closed
            assert llm.generate("a king had", 16, GREEDY).tokens == plain.tokens


def test_several_completions(folder: Path) -> None:
    """Each is drafted for itself."""
    sampling = SamplingParams(temperature=2.0, seed=5, n=3)
    expected = LLM(folder, "golden").generate("a king had", 12, sampling)
    with LLM(folder, "golden", speculation="ngram") as llm:
        found = llm.generate("a king had", 12, sampling)
    pairs = zip([expected, *expected.alternatives], [found, *found.alternatives], strict=True)
    assert all(one.tokens == other.tokens for one, other in pairs)


class Noted(GoldenDevice):
    """Notes the tokens of its passes; those that begin at a position saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []
        self.saturates = -1

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        self.seen += [list(chunk.tokens) for chunk in chunks]
        result = super()._pass(chunks)
        return replace(result, saturated=any(c.position == self.saturates for c in chunks))


def test_the_context_bounds_drafts(folder: Path) -> None:
    device = Noted()
    with LLM(folder, device) as llm:
        plain = llm.generate("a king had three", None, GREEDY)
        told(llm, plain, 9, 99)
        assert llm.generate("a king had three", None, GREEDY).tokens == plain.tokens
        told(llm, plain, 9, 99)
        [found] = llm.generate(["a king had three"], None, GREEDY)
        assert found.tokens == plain.tokens and found.finish_reason == "length"


def test_saturation_is_that_of_the_passes(folder: Path) -> None:
    device = Noted()
    with LLM(folder, device) as llm:
        plain = llm.generate("a king", 9, GREEDY)
        device.saturates = plain.stats.prompt_tokens + 2
        told(llm, plain, 1, 9)
        found = llm.generate("a king", 9, GREEDY)
        assert found.tokens == plain.tokens and found.stats.saturated


def test_prompts_of_others_come_first(folder: Path) -> None:
    """Where a prompt is under way a pass has no drafts."""
    device = Noted()
    with LLM(folder, device) as llm:
        llm._running().speculation = AdaptiveSpeculation(NgramDrafter())
        texts = ["a a a a a", "b b b"]
        alone = [LLM(folder, "golden").generate(text, 18, GREEDY).tokens for text in texts]
        assert [each.tokens for each in llm.generate(texts, 18, GREEDY)] == alone


# -- the choice


@pytest.mark.parametrize(
    ("device", "given", "adaptive"),
    [
        ("golden", None, False),
        ("golden", "off", False),
        ("golden", "ngram", True),
        ("cpu", None, True),
        ("cpu", "off", False),
    ],
)
def test_what_guesses(device: str, given: str | None, adaptive: bool, folder: Path) -> None:
    with LLM(folder, device, speculation=given) as llm:
        assert isinstance(llm._running().speculation, AdaptiveSpeculation) == adaptive
