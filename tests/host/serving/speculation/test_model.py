"""Drafts of a small model: which they are, when there are none, and that tokens stay the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.host.random_model import SHAPES, write_model

from lutra import LLM, LutraError, SamplingParams
from lutra.devices.golden import GoldenDevice
from lutra.serving.loaded import LoadedModel
from lutra.serving.sequence import TokenSequence
from lutra.serving.speculation.adaptive import AdaptiveSpeculation
from lutra.serving.speculation.model import ModelDrafter
from lutra.text.sampling import Sampler
from lutra_golden.model.packed import PackedModel

GREEDY, DRAWN = SamplingParams(temperature=0), SamplingParams(temperature=2.0, seed=9)
PROMPT = [3, 200, 7, 90]


@dataclass
class Clock:
    """Goes on by a second whenever it is read."""

    now: float = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def loaded(packed: Callable[[str], PackedModel]) -> Iterator[LoadedModel]:
    device = GoldenDevice()
    device.load(packed("least"))
    yield LoadedModel(device.model, device, None, 1 << 20)
    device.close()


def answer(loaded: LoadedModel, n: int, params: SamplingParams) -> list[int]:
    """Tokens that the model itself gives."""
    sequence, sampler, made = TokenSequence.open(loaded.device, None), Sampler(params), list[int]()
    tokens = PROMPT
    while len(made) < n:
        result, _ = sequence.run(tokens, len(tokens) - 1)
        made.append(sampler(result.logits[-1], float(result.scale[-1])))
        tokens = made[-1:]
    sequence.close()
    return made


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_model_drafts_what_it_would_say(loaded: LoadedModel, params: SamplingParams) -> None:
    """Also when they are drawn, and after drafts that were not taken; the sampler stays as it
    is."""
    made, sampler = answer(loaded, 20, params), Sampler(params)
    drafter = ModelDrafter(loaded, loaded.device.model.vocab_size)
    drafts = drafter.begin(PROMPT, sampler, ())
    at, taken = 0, [1, 3, 0, 2, 4, 0]
    for n in taken:
        assert len(drafts.chances(5)) == 5
        assert drafts.draft(5) == made[at : at + 5]
        # as many as were right, and one of the large model
        logits = np.zeros(loaded.device.model.vocab_size, np.int64)
        for token in made[at : at + n]:
            sampler(logits, 1.0)
            drafts.go_on([token])
        at += n
    drafts.close()
    assert len(loaded.known) == 1


def test_other_tokens_than_the_drafts(loaded: LoadedModel) -> None:
    """The model goes on from what came, and takes its drafts for less likely."""
    drafts = ModelDrafter(loaded, loaded.device.model.vocab_size).begin(PROMPT, Sampler(GREEDY), ())
    before = drafts.chances(1)[0]
    text = [*PROMPT]
    for token in (5, 6, 8):
        [draft, *_] = drafts.draft(3)
        assert draft != token
        drafts.go_on([token])
        text.append(token)
    assert drafts.chances(1)[0] < 0.8 * before
    sequence = TokenSequence.open(loaded.device, None)
    result, _ = sequence.run(text)
    assert drafts.draft(1) == [int(result.argmax[-1])]


def test_drafts_that_are_not_made_become_likely_again(loaded: LoadedModel) -> None:
    drafts = ModelDrafter(loaded, loaded.device.model.vocab_size).begin(PROMPT, Sampler(GREEDY), ())
    for _ in range(4):
        wrong = drafts.draft(1)[0] ^ 1
        drafts.go_on([wrong])
    low = drafts.chances(1)[0]
    later = [drafts.chances(1)[0] for _ in range(200)]
    assert later[-1] > 1.2 * low


def test_no_drafts_behind_an_end_or_the_context(loaded: LoadedModel) -> None:
    made, size = answer(loaded, 9, GREEDY), loaded.device.model.vocab_size
    ends = [made[3]]
    drafts = ModelDrafter(loaded, size).begin(PROMPT, Sampler(GREEDY), ends)
    assert drafts.draft(9) == made[: made.index(made[3])]
    context = loaded.device.model.context
    drafts = ModelDrafter(loaded, size).begin([5] * (context - 2), Sampler(GREEDY), ())
    assert len(drafts.chances(9)) == 2
    assert len(drafts.draft(2)) == 2
    drafts.go_on([1, 2, 3])
    assert drafts.chances(9) == []


def test_no_drafts_without_room(packed: Callable[[str], PackedModel]) -> None:
    """Of a text that the small model's device has no memory for, or that is longer than its
    context, or once it is closed."""
    device = GoldenDevice(memory_limit=1)
    device.load(packed("least"))
    loaded, size = LoadedModel(device.model, device, None, 0), device.model.vocab_size
    assert ModelDrafter(loaded, size).begin(PROMPT, Sampler(GREEDY), ()).chances(9) == []
    device = GoldenDevice()
    device.load(packed("least"))
    loaded = LoadedModel(device.model, device, None, 0)
    long = [5] * (device.model.context + 9)
    assert ModelDrafter(loaded, size).begin(long, Sampler(GREEDY), ()).chances(9) == []
    drafts = ModelDrafter(loaded, size).begin(PROMPT, Sampler(GREEDY), ())
    assert len(drafts.chances(9)) == 9
    loaded.close()
    assert drafts.draft(9) == [] and drafts.chances(9) == []
    drafts.close()


def test_the_time_of_drafts(loaded: LoadedModel) -> None:
    drafter = ModelDrafter(loaded, loaded.device.model.vocab_size, clock=Clock())
    drafts = drafter.begin(PROMPT, Sampler(GREEDY), ())
    assert drafter.seconds_per_draft == 0
    drafts.draft(4)
    assert drafter.seconds_per_draft == 0.25
    drafts.draft(1)
    assert drafter.seconds_per_draft == pytest.approx(0.25 + 0.2 * 0.75)


@pytest.mark.parametrize("size", [280, 400])
def test_vocabularies_of_other_sizes(loaded: LoadedModel, size: int) -> None:
    """Tokens that the large model has not are not drafted; biases of those that the small one has
    not do nothing."""
    params = SamplingParams(temperature=0, logit_bias={size - 1: 9.0}, repetition_penalty=1.1)
    drafts = ModelDrafter(loaded, size).begin(PROMPT, Sampler(params, [*PROMPT, size - 1]), ())
    assert all(token < min(size, 304) for token in drafts.draft(9))
    for seed in range(6):
        any_token = Sampler(SamplingParams(temperature=100, top_k=0, top_p=1, seed=seed), PROMPT)
        drafts = ModelDrafter(loaded, size).begin(PROMPT, any_token, ())
        assert all(token < min(size, 304) for token in drafts.draft(9))


# -- of an LLM


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("least")


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_model_that_drafts_for_itself(params: SamplingParams, folder: Path) -> None:
    plain = LLM(folder, "golden").generate("a king", 20, params)
    with LLM(folder, "golden", speculation=folder) as llm:
        assert isinstance(llm._running().speculation, AdaptiveSpeculation)
        for _ in range(3):
            assert llm.generate("a king", 20, params).tokens == plain.tokens
            [found] = llm.generate(["a king"], 20, params)
            assert found.tokens == plain.tokens
        llm.load()
        assert llm.generate("a king", 20, params).tokens == plain.tokens
        draft = llm._draft
    assert draft is not None and draft._loaded is None


def test_a_model_of_its_own_stays_loaded(folder: Path) -> None:
    with LLM(folder, "golden") as small:
        plain = small.generate("a king", 9, GREEDY)
        with LLM(folder, "golden", speculation=small) as llm:
            assert llm.generate("a king", 9, GREEDY).tokens == plain.tokens
        assert small.generate("a king", 9, GREEDY).tokens == plain.tokens


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LutraError, match=r"^speculation must be ngram or off, or a model, not int"):
        LLM(folder, "golden", speculation=3)  # type: ignore[arg-type]
    with pytest.raises(LutraError, match="no-such-model"):
        LLM(folder, "golden", speculation="no-such-model")
    with pytest.raises(LutraError) as error:
        LLM(folder, "golden", speculation="tales")
    assert str(error.value) == (
        "the model tales has another vocabulary than least and cannot guess its tokens: give a "
        "smaller model of the same family, or ngram"
    )
    other = write_model(tmp_path / "closed", SHAPES["least"])
    small = LLM(other, "golden", load=False)
    with pytest.raises(LutraError, match="is not loaded: call load"):
        LLM(folder, "golden", speculation=small)
