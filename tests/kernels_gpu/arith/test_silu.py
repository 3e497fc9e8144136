import numpy as np
import pytest

pytest.importorskip("triton")

import triton.language as tl

from lutra_golden.arith import silu
from lutra_kernels.arith import silu as device
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import download, empty, upload
from lutra_kernels.jit import jit

pytestmark = pytest.mark.interpreted

BLOCK = 1 << 12
LIMIT = 1 << (silu.SILU.x_width - 1)


@jit
def silu_kernel(x_ptr, tables_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, device.silu(tl.load(x_ptr + i), tables_ptr))


def test_every_segment_and_both_ends() -> None:
    one = 1 << silu.SILU.x_frac
    near = np.arange(-17 * one, 17 * one, 61)
    knots = (np.arange(-1100, 1101) * (one // 64))[:, None] + np.array([-1, 0, 1])
    ends = np.array([-LIMIT, 1 - LIMIT, LIMIT - 1, LIMIT - 2])
    x = np.concatenate([near, knots.reshape(-1), np.arange(-LIMIT, LIMIT, 9973), ends])
    x = np.resize(x, -(-x.size // BLOCK) * BLOCK)
    y = empty([x.size], np.int32)
    silu_kernel[(x.size // BLOCK,)](upload(x.astype(np.int32)), upload(tables()), y, BLOCK=BLOCK)
    assert np.array_equal(download(y), silu.silu(x))
