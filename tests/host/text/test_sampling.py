"""Sampling: greedy, temperature, top-k, top-p, and what follows from the seed."""

from typing import Any

import numpy as np
import pytest

from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.errors import LutraError

LOGITS = np.array([300, -100, 500, 400, 0, 450], np.int64)
SCALE = 0.01
ALL: dict[str, Any] = {"top_k": 0, "top_p": 1.0}


def draw(n: int, logits: np.ndarray = LOGITS, **options: Any) -> np.ndarray:
    sampler = Sampler(SamplingParams(**options))
    return np.array([sampler(logits, SCALE) for _ in range(n)])


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    p = np.exp(logits * SCALE / temperature)
    return p / p.sum()


def test_temperature_zero_takes_the_first_largest() -> None:
    assert set(draw(20, temperature=0)) == {2}
    assert set(draw(5, np.array([1, 7, 7, 3]), temperature=0)) == {1}


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 0, "top_p": 1e-9}])
def test_the_narrowest_choice_is_greedy(options: dict[str, Any]) -> None:
    assert set(draw(20, temperature=5.0, **options)) == {2}


@pytest.mark.parametrize("temperature", [1e-300, 1e-12, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    with np.errstate(all="raise", under="ignore", over="ignore"):
        assert set(draw(20, temperature=temperature, **ALL)) == {2}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    n = 20000
    counts = np.bincount(draw(n, temperature=temperature, **ALL), minlength=6)
    expected = softmax(LOGITS, temperature)
    assert np.abs(counts / n - expected).max() < 4 * np.sqrt(0.25 / n)


def test_top_k_keeps_the_likeliest() -> None:
    found = draw(3000, temperature=2.0, top_k=3, top_p=1.0)
    assert set(found) == {2, 5, 3}
    p = softmax(LOGITS[[2, 5, 3]], 2.0)
    assert np.abs(np.mean(found == 2) - p[0]) < 0.04


def test_top_k_beyond_the_vocabulary_keeps_everything() -> None:
    assert (draw(50, top_k=1000, top_p=1.0) == draw(50, **ALL)).all()


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    p = np.sort(softmax(LOGITS, 1.0))[::-1]
    order = np.argsort(-LOGITS)
    for keep in range(1, 7):
        top_p = min(p[:keep].sum() - 1e-6, 1.0)
        found = draw(4000, temperature=1.0, top_k=0, top_p=top_p)
        likely = {int(t) for t, share in zip(order[:keep], p, strict=False) if share > 0.002}
        assert likely <= set(found) <= set(order[:keep])


def test_equal_logits_are_ordered_by_token() -> None:
    assert set(draw(200, np.zeros(50, np.int64), top_k=3, top_p=1.0)) == {0, 1, 2}


def test_the_seed_decides() -> None:
    a = draw(100, temperature=3.0, seed=7, **ALL)
    assert (a == draw(100, temperature=3.0, seed=7, **ALL)).all()
    assert (a != draw(100, temperature=3.0, seed=8, **ALL)).any()


def test_only_differences_of_logits_count() -> None:
    a = draw(200, LOGITS, temperature=1.5, **ALL)
    assert (a == draw(200, LOGITS + 2**30, temperature=1.5, **ALL)).all()


def test_extreme_logits() -> None:
    logits = np.array([-(2**31), 2**31 - 1, 0], np.int64)
    assert set(draw(20, logits, temperature=1.0, **ALL)) == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be 0 or more, not -0\.1"),
        ({"temperature": "0"}, "temperature must be a number, not '0'"),
        ({"top_p": None}, "top_p must be a number, not None"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({"temperature": float("inf")}, "temperature must be 0 or more, not inf"),
        ({"top_k": -1}, r"top_k must be 0 \(off\) or more, not -1"),
        ({"top_k": 1.5}, r"top_k must be a whole number, not 1\.5"),
        ({"top_p": 0.0}, r"top_p must be above 0 and at most 1, not 0\.0"),
        ({"top_p": 1.5}, r"top_p must be above 0 and at most 1, not 1\.5"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, not nan"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"seed": "1"}, "seed must be a whole number, not '1'"),
    ],
)
def test_parameters_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LutraError, match=f"^{message}$"):
        SamplingParams(**options)


@pytest.mark.parametrize("top_k", [1, 2, 5, 40, 99, 100, 101])
def test_the_first_of_equals_are_kept_whatever_is_sorted(top_k: int) -> None:
    rng = np.random.default_rng(top_k)
    logits = rng.integers(0, 12, 100)  # many ties
    first = np.argsort(-logits, kind="stable")[:top_k]
    sampler = Sampler(SamplingParams(temperature=50.0, top_k=top_k, top_p=1.0))
    drawn = {sampler(logits, 1.0) for _ in range(600)}
    assert drawn <= set(first.tolist())
    assert len(drawn) >= 0.9 * min(top_k, 100)
