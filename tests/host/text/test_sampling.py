"""Sampling: greedy, biases, penalties, temperature, top-k, top-p, min-p, and the seed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from lutra.text.sampling import Sampler, SamplingParams, log_probabilities
from lutra_golden.errors import LutraError
from lutra_golden.model.two_stage import likeliest

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


# -- min-p


def test_min_p_keeps_shares_of_the_likeliest() -> None:
    shares = np.exp((LOGITS - 500) * SCALE)  # 1, 0.61, 0.37, 0.14, 0.007, 0.002
    order = np.argsort(-LOGITS)
    for keep in range(1, 7):
        min_p = float(shares[order[keep - 1]]) - 1e-9
        found = draw(4000, temperature=1.0, min_p=min_p, **ALL)
        likely = {int(t) for t in order[:keep] if shares[t] > 0.01}
        assert likely <= set(found) <= set(order[:keep])


def test_min_p_counts_after_temperature_and_beside_top_p() -> None:
    """A share of the likeliest at that temperature, whatever the others left."""
    assert set(draw(3000, temperature=1.0, min_p=0.3, **ALL)) == {2, 5, 3}
    assert set(draw(3000, temperature=5.0, min_p=0.3, **ALL)) == set(range(6))
    assert set(draw(3000, temperature=1.0, min_p=0.3, top_k=2, top_p=1.0)) == {2, 5}
    assert set(draw(3000, temperature=1.0, min_p=0.3, top_k=0, top_p=0.7)) == {2, 5}
    found = draw(20000, temperature=1.0, min_p=0.3, **ALL)
    p = softmax(LOGITS[[2, 5, 3]], 1.0)
    assert np.abs(np.mean(found == 2) - p[0]) < 4 * np.sqrt(0.25 / 20000)


def test_min_p_of_one_keeps_the_largest_only() -> None:
    assert set(draw(300, np.array([1, 7, 7, 3]), temperature=9.0, min_p=1.0, **ALL)) == {1, 2}


# -- biases and penalties


def changed(
    logits: Sequence[int], bias: dict[int, float], penalty: float, seen: set[int]
) -> list[int]:
    """The logits after bias and penalty, one by one; values are such that no rounding of floating
    point shows."""
    out = list(logits)
    for token, value in bias.items():
        out[token] += round(Fraction(value) / Fraction(SCALE))
    for token in seen:
        x, p = Fraction(out[token]), Fraction(penalty)
        out[token] = round(x / p if x > 0 else x * p)
    return out


def test_a_greedy_token_is_the_arg_max_of_the_changed_logits() -> None:
    rng = np.random.default_rng(4)
    moved = 0
    for _ in range(200):
        logits = rng.integers(-400, 400, 30)
        bias = {int(t): float(rng.integers(-20, 20)) / 8 for t in rng.choice(30, 4, replace=False)}
        penalty = float(rng.choice([0.5, 1.0, 1.25, 1.5, 4.0]))
        seen = set(rng.integers(0, 30, 6).tolist())
        params = SamplingParams(temperature=0, logit_bias=bias, repetition_penalty=penalty)
        before, sampler = logits.copy(), Sampler(params, list(seen))
        for _ in range(5):
            expected = int(np.argmax(changed(logits.tolist(), bias, penalty, seen)))
            assert sampler(logits, SCALE) == expected
            moved += expected != int(logits.argmax())
            seen.add(expected)
        np.testing.assert_array_equal(logits, before)
    assert moved > 300


def test_a_drawn_token_is_that_of_the_changed_logits() -> None:
    bias, seen = {0: 2.5, 2: -1.25, 4: 3.0}, {1, 2, 5}
    options = {"temperature": 1.5, "seed": 3, **ALL}
    params = SamplingParams(logit_bias=bias, repetition_penalty=2.0, **options)
    there = Sampler(SamplingParams(**options))
    sampler, tokens = Sampler(params, [1, 2, 2, 5]), set[int]()
    for _ in range(200):
        logits = np.array(changed(LOGITS.tolist(), bias, 2.0, seen | tokens), np.int64)
        token = sampler(LOGITS, SCALE)
        assert token == there(logits, SCALE)
        tokens.add(token)
    assert len(tokens) == 6


def test_logits_stay_whole() -> None:
    """Ties that rounding makes are resolved as others are: by the first token."""
    logits = np.array([3, -7, 5], np.int64)  # halves: 2 (1.5), -14, 2 (2.5), so the first
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    assert Sampler(params, [0, 1, 2])(logits, 1.0) == 0
    # 0.4 of a logit is none
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: 0.4}))(logits - 5, 1.0) == 2
    bias = SamplingParams(temperature=0, logit_bias={0: 2.4})
    assert Sampler(bias)(logits, 1.0) == 0  # 3 + 2 and 5


def test_the_bias_comes_before_the_penalty() -> None:
    logits = np.array([-100, 90], np.int64)
    # (-100 + 300) / 2 is 100; -100 * 2 + 300 would be 100, too, so a penalty of 4 tells
    params = SamplingParams(temperature=0, logit_bias={0: 3.0}, repetition_penalty=4.0)
    assert Sampler(params, [0])(logits, SCALE) == 1
    assert Sampler(params, [])(logits, SCALE) == 0


def test_a_penalty_below_one_repeats() -> None:
    logits = np.array([100, 90, -5], np.int64)
    params = SamplingParams(temperature=0, repetition_penalty=0.5)
    assert Sampler(params, [1])(logits, SCALE) == 1


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-7])
def test_a_large_bias_forces(scale: float) -> None:
    logits = np.array([2**31 - 1, 0, -(2**31)], np.int64) // 8
    assert Sampler(SamplingParams(temperature=0, logit_bias={2: 100}))(logits, scale) == 2


def test_a_large_bias_bans() -> None:
    assert set(draw(300, temperature=2.0, logit_bias={2: -100, 5: -100}, **ALL)) == {0, 1, 3, 4}


@pytest.mark.parametrize("penalty", [1e-308, 1e308])
def test_an_extreme_penalty(penalty: float) -> None:
    logits = np.array([2**31 - 1, 5, -(2**31)], np.int64)
    params = SamplingParams(temperature=0, repetition_penalty=penalty)
    assert Sampler(params, [0, 2])(logits, SCALE) == (0 if penalty < 1 else 1)


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, False),
        ({"min_p": 0.5, "stop": "x", "n": 3, "top_k": 2}, False),
        ({"logit_bias": {3: 0.0}, "repetition_penalty": 1}, False),
        ({"temperature": 0.1}, True),
        ({"logit_bias": {3: 0.1}}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"logprobs": 0}, True),
    ],
)
def test_when_the_arg_max_is_enough(options: dict[str, Any], needs: bool) -> None:
    params: dict[str, Any] = {"temperature": 0} | options
    assert Sampler(SamplingParams(**params)).needs_logits == needs


# -- logarithms of probabilities


def test_log_probabilities_are_those_of_the_softmax() -> None:
    found = log_probabilities(LOGITS, SCALE)
    total = math.fsum(math.exp(x * SCALE) for x in LOGITS.tolist())
    expected = [x * SCALE - math.log(total) for x in LOGITS.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_array_equal(found, log_probabilities(LOGITS + 2**40, SCALE))
    far = log_probabilities(np.array([2**31 - 1, -(2**31)]), 1.0)
    assert far.tolist() == [0.0, 1.0 - 2.0**32]


# -- from the best tokens


@pytest.mark.parametrize(
    ("options", "n"),
    [
        ({}, 40),
        ({"top_k": 7, "top_p": 0.5, "min_p": 0.1, "seed": 3}, 7),
        ({"top_k": 0}, 0),
        ({"temperature": 0}, 1),
        ({"temperature": 0, "top_k": 0}, 1),
        ({"temperature": 0, "repetition_penalty": 1.1}, 0),
        ({"logit_bias": {3: 1.0}}, 0),
        ({"logit_bias": {3: 0.0}}, 40),
        ({"logprobs": 0}, 0),
        ({"temperature": 0, "logprobs": 2}, 0),
        ({"regex": "a"}, 0),
    ],
)
def test_how_many_of_the_best_are_enough(options: dict[str, Any], n: int) -> None:
    params = SamplingParams(**options)
    assert params.n_best == n
    assert "regex" in options or Sampler(params).n_best == n


@pytest.mark.parametrize("more", [0, 1, 30])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_k": 5, "top_p": 1.0},
        {"top_k": 12, "top_p": 0.9},
        {"top_k": 12, "min_p": 0.2},
        {"top_k": 300},
    ],
)
def test_the_best_give_the_token_of_all_logits(options: dict[str, Any], more: int) -> None:
    """Of logits with ties, with no more of them than are enough, and with more."""
    rng, params = np.random.default_rng(4), SamplingParams(temperature=3.0, seed=8, **options)
    one, other = Sampler(params), Sampler(params)
    for _ in range(50):
        logits = rng.integers(-10, 10, 200)
        best = likeliest(logits, params.n_best + more)
        assert other.draw_best(best, logits[best], 0.3) == one(logits, 0.3)


# -- what is refused, and what is kept


def test_a_mapping_and_a_list_are_copied() -> None:
    bias, stop = {3: 1}, ["a", "b"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[4] = 2
    stop.append("c")
    assert (params.logit_bias, params.stops) == ({3: 1.0}, ("a", "b"))
    assert SamplingParams(stop="end").stops == ("end",)
    assert SamplingParams().stops == ()
    again = replace(params, seed=4)
    assert (again.logit_bias, again.stops) == (params.logit_bias, params.stops)
    assert hash(params) != hash(again)


def test_a_vocabulary_bounds_tokens() -> None:
    params = SamplingParams(logit_bias={9: 1.0}, logprobs=10)
    params.check_vocabulary(10)
    message = r"^logit_bias has token 9, outside the vocabulary: give ids from 0 to 8$"
    with pytest.raises(LutraError, match=message):
        params.check_vocabulary(9)
    message = r"^logprobs must be at most 9, the size of the vocabulary, not 10$"
    with pytest.raises(LutraError, match=message):
        SamplingParams(logprobs=10).check_vocabulary(9)


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_p": -0.1}, r"min_p must be 0 \(off\) to 1, not -0\.1"),
        ({"min_p": 1.5}, r"min_p must be 0 \(off\) to 1, not 1\.5"),
        ({"min_p": NAN}, r"min_p must be 0 \(off\) to 1, not nan"),
        ({"min_p": "0"}, "min_p must be a number, not '0'"),
        ({"repetition_penalty": 0}, r"repetition_penalty must be above 0 \(1 is off\), not 0"),
        ({"repetition_penalty": NAN}, r"repetition_penalty must be above 0 .*, not nan"),
        ({"repetition_penalty": math.inf}, r"repetition_penalty must be above 0 .*, not inf"),
        ({"n": 0}, "n must be 1 or more, not 0"),
        ({"n": 1.0}, r"n must be a whole number, not 1\.0"),
        ({"logprobs": -1}, r"logprobs must be 0 \(own\) or more, not -1"),
        ({"logprobs": True}, "logprobs must be a whole number, not True"),
        ({"logit_bias": [3]}, "logit_bias must be a mapping of token ids to .*, not list"),
        ({"logit_bias": {"a": 1}}, "a token id of logit_bias must be a whole number, not 'a'"),
        ({"logit_bias": {-1: 1}}, "a token id of logit_bias must be 0 or more, not -1"),
        ({"logit_bias": {3: "x"}}, "logit_bias of token 3 must be a number, not 'x'"),
        ({"logit_bias": {3: NAN}}, "logit_bias of token 3 must be -100 to 100 nats, not nan"),
        ({"logit_bias": {3: -101}}, r"logit_bias of token 3 must be -100 to .*, not -101\.0"),
        ({"stop": 5}, "stop must be a string or several in a list, not int"),
        ({"stop": [5]}, "stop must be strings, not 5"),
        ({"stop": ["a", ""]}, "a stop string must not be empty: leave it out"),
        ({"stop": ""}, "a stop string must not be empty: leave it out"),
        ({"stop": "\udcf6"}, "a stop string holds bytes that are not UTF-8: give it in UTF-8"),
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
