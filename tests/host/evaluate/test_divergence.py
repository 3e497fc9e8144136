"""Divergence: its means and their errors, on distributions that can be computed by hand."""

import math

import numpy as np
import pytest

from lutra.evaluate.divergence import DivergenceSum

HALVES, QUARTERS = np.log([0.5, 0.5]), np.log([0.25, 0.75])


def test_means_and_their_errors() -> None:
    found = DivergenceSum()
    found.add(np.array([HALVES, QUARTERS]), np.array([QUARTERS, QUARTERS]), np.array([0, 1]))
    found.add(np.array([HALVES]), np.array([HALVES]), np.array([1]))
    result = found.result()
    each = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert result.tokens == 3
    assert result.kl == pytest.approx(each / 3)
    assert result.kl_stderr == pytest.approx(math.sqrt(2) / 3 * each / math.sqrt(2))
    assert result.ppl == pytest.approx((1 / 0.25 / 0.75 / 0.5) ** (1 / 3))
    # of the three predictions the first alone is worse, by a factor of two
    assert result.change == pytest.approx(2 ** (1 / 3) - 1)
    apart = math.sqrt(2) / 3 * math.log(2) / math.sqrt(2)
    assert result.change_stderr == pytest.approx(2 ** (1 / 3) * apart)
    assert result.top1 == pytest.approx(2 / 3)


def test_the_same_does_not_diverge() -> None:
    found = DivergenceSum()
    found.add(np.array([QUARTERS]), np.array([QUARTERS]), np.array([0]))
    result = found.result()
    assert (result.kl, result.kl_stderr, result.change, result.top1) == (0, 0, 0, 1)
    assert result.ppl == pytest.approx(4)
