import numpy as np
import pytest

pytest.importorskip("triton")

import triton.language as tl

from lutra_golden.arith import fixed
from lutra_kernels.arith.fixed import round_shift, round_shift_right, saturate
from lutra_kernels.arrays import download, empty, upload
from lutra_kernels.jit import jit

pytestmark = pytest.mark.interpreted


@jit
def fixed_kernel(x_ptr, n_ptr, rounded_ptr, right_ptr, clamped_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, n = tl.load(x_ptr + i), tl.load(n_ptr + i)
    tl.store(rounded_ptr + i, round_shift(x, n))
    tl.store(right_ptr + i, round_shift_right(x, tl.maximum(n, 0)))
    tl.store(clamped_ptr + i, saturate(x, 28))


def test_roundings() -> None:
    rng = np.random.default_rng(1)
    corners = [0, 1, -1, 2, -2, 3, -3, 1 << 27, (1 << 27) - 1, -(1 << 27), -(1 << 27) - 1, 1 << 62]
    x = np.concatenate([np.repeat(corners, 8), rng.integers(-(1 << 62), 1 << 62, 160)])
    n = np.concatenate([np.resize([0, 1, 2, 24, 62, 63, -1, -62], 96), rng.integers(-20, 63, 160)])
    outputs = [empty([256], np.int64) for _ in range(3)]
    fixed_kernel[(1,)](upload(x), upload(n), *outputs, BLOCK=256)
    rounded, right, clamped = (download(output) for output in outputs)
    assert (rounded == fixed.round_shift(x, n)).all()
    assert (right == fixed.round_shift(x, np.maximum(n, 0))).all()
    assert (clamped == fixed.saturate(x, 28)).all()
