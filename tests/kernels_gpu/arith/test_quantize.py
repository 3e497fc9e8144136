import numpy as np
import pytest

pytest.importorskip("triton")

import triton.language as tl

from lutra_golden.arith import quantize
from lutra_golden.arith.fixed import Int, round_shift
from lutra_golden.arith.scale import Scale
from lutra_kernels.arith import quantize as device
from lutra_kernels.arrays import download, empty, upload
from lutra_kernels.jit import jit

pytestmark = pytest.mark.interpreted

ROWS, WIDTH = 64, 64


@jit
def quantize_kernel(
    y_ptr, q_ptr, scale_ptr, Q_MAX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    rows = tl.arange(0, ROWS)
    offs = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    y = tl.load(y_ptr + offs)
    y_max = tl.max(tl.abs(y), 1)
    f_m, f_e = device.quantize_factor(y_max, Q_MAX)
    s_m, s_e = device.quantize_step(y_max, Q_MAX)
    tl.store(q_ptr + offs, device.quantize(y, f_m[:, None], f_e[:, None], Q_MAX))
    tl.store(scale_ptr + rows, f_m)
    tl.store(scale_ptr + ROWS + rows, f_e)
    tl.store(scale_ptr + 2 * ROWS + rows, s_m)
    tl.store(scale_ptr + 3 * ROWS + rows, s_e)


def check(y: Int, q_max: int) -> Int:
    """Codes and scales of rows are golden's; returns the codes."""
    q, words = empty([ROWS, WIDTH], np.int64), empty([4, ROWS], np.int32)
    quantize_kernel[(1,)](upload(y), q, words, Q_MAX=q_max, ROWS=ROWS, WIDTH=WIDTH)
    y_max = np.abs(y).max(axis=1)
    factor = quantize.quantize_factor(y_max, q_max)
    step = quantize.quantize_step(y_max, q_max)
    assert np.array_equal(download(words), [factor.m, factor.e, step.m, step.e])
    expected = quantize.quantize(y, Scale(factor.m[:, None], factor.e[:, None]), q_max)
    assert np.array_equal(download(q), expected)
    return expected


@pytest.mark.parametrize("q_max", [7, 127, 32767])
def test_rows_of_every_size(q_max: int) -> None:
    rng = np.random.default_rng(6)
    bits = np.arange(ROWS) % 47 + 1
    y = rng.integers(-(1 << 47) + 1, 1 << 47, (ROWS, WIDTH)) >> (47 - bits)[:, None]
    y[0], y[1, :] = 0, -1
    assert np.abs(check(y, q_max)).max() == q_max


def test_the_most_negative_code_is_never_given() -> None:
    """At 16 bits the factor's error alone reaches it, so only the clamp keeps it out."""
    y_max = np.arange(1 << 15, 1 << 16)
    factor = quantize.quantize_factor(y_max, 32767)
    beyond = y_max[round_shift(-y_max * factor.m, -factor.e) < -32767][:ROWS]
    assert len(beyond) == ROWS
    y = beyond[:, None] * np.resize([-1, 1], WIDTH)
    assert check(y, 32767).min() == -32767
