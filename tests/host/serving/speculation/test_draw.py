"""Tokens of a pass: each from its own row, up to the first draft that was not drawn."""

import numpy as np
import pytest

from lutra.devices.base import StepResult
from lutra.serving.speculation.draw import draw
from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.model.two_stage import likeliest

GREEDY = SamplingParams(temperature=0)


def result(*likeliest: int) -> StepResult:
    logits = np.zeros((len(likeliest), 9), np.int64)
    logits[np.arange(len(likeliest)), likeliest] = 100
    return StepResult(
        logits=logits, scale=np.arange(1.0, len(likeliest) + 1), argmax=np.array(likeliest)
    )


@pytest.mark.parametrize(
    ("drafts", "expected"),
    [
        ([], [3]),
        ([3], [3, 5]),
        ([4], [3]),
        ([3, 5, 7], [3, 5, 7, 1]),
        ([3, 5, 1], [3, 5, 7]),
        ([3, 4, 7], [3, 5]),
        ([5, 5, 7], [3]),
    ],
)
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=1e-6)])
def test_up_to_the_first_wrong_draft(
    params: SamplingParams, drafts: list[int], expected: list[int]
) -> None:
    rows = (3, 5, 7, 1)[: len(drafts) + 1]
    made = draw(result(*rows), Sampler(params), drafts)
    assert [token for token, _ in made] == expected
    for i, (_, row) in enumerate(made):
        assert row.logits.shape == (1, 9) and row.logits[0].argmax() == rows[i]
        assert row.scale.tolist() == [i + 1] and row.argmax.tolist() == [rows[i]]


def test_the_sampler_sees_what_it_sees_without_drafts() -> None:
    """Its random numbers and what it has seen, also behind drafts that were wrong."""
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=3.0, seed=4, repetition_penalty=1.5)
    rows = StepResult(
        logits=rng.integers(-50, 50, (40, 9)),
        scale=np.full(40, 0.1),
        argmax=np.zeros(40, np.int64),
    )
    one, other = Sampler(params), Sampler(params)
    plain = [one(rows.logits[i], 0.1) for i in range(40)]
    made, at = list[int](), 0
    while at < 40:
        n = min(int(rng.integers(0, 5)), 39 - at)
        drafts = [t if rng.random() < 0.8 else (t + 1) % 9 for t in plain[at : at + n]]
        part = StepResult(
            logits=rows.logits[at : at + n + 1],
            scale=rows.scale[at : at + n + 1],
            argmax=rows.argmax[at : at + n + 1],
        )
        made += [token for token, _ in draw(part, other, drafts)]
        at = len(made)
    assert made == plain


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=2.0, top_k=4, seed=3)])
def test_from_the_best_tokens(params: SamplingParams) -> None:
    """The same tokens as from all logits, each from its own row."""
    rng = np.random.default_rng(7)
    logits = rng.integers(-5, 5, (8, 30))
    best = np.stack([likeliest(row, 4) for row in logits])
    whole = StepResult(logits=logits, scale=np.ones(8), argmax=logits.argmax(axis=1))
    few = StepResult(
        logits=np.take_along_axis(logits, best, axis=1),
        scale=whole.scale,
        argmax=whole.argmax,
        best=best,
    )
    sampler = Sampler(params)
    plain = [sampler(row, 1.0) if sampler.needs_logits else int(row.argmax()) for row in logits]
    for drafts in ([], plain[:7], [*plain[:3], plain[3] + 1, *plain[4:7]]):
        expected = [token for token, _ in draw(whole, Sampler(params), drafts)]
        assert [token for token, _ in draw(few, Sampler(params), drafts)] == expected


def test_a_copy_draws_what_the_sampler_would() -> None:
    params = SamplingParams(temperature=3.0, seed=4, repetition_penalty=1.5)
    rng, sampler = np.random.default_rng(1), Sampler(params, [2])
    logits = [rng.integers(-50, 50, 9) for _ in range(30)]
    for i in range(0, 20, 5):
        copy = sampler.copy()
        expected = [copy(each, 0.1) for each in logits[i : i + 5]]
        assert [sampler(each, 0.1) for each in logits[i : i + 5]] == expected
