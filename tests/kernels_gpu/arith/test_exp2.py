import numpy as np
import pytest

pytest.importorskip("triton")

import triton.language as tl

from lutra_golden.arith import exp2
from lutra_kernels.arith.exp2 import exp2_neg
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import download, empty, upload
from lutra_kernels.jit import jit

pytestmark = pytest.mark.interpreted

BLOCK = 1 << 12


@jit
def exp2_kernel(d_ptr, tables_ptr, p_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_ptr + i, exp2_neg(tl.load(d_ptr + i), tables_ptr))


def test_all_that_leave_something_and_some_that_do_not() -> None:
    rng = np.random.default_rng(7)
    far = rng.integers(17 << 12, 1 << 25, BLOCK - 2)
    d = np.concatenate([np.arange(18 << 12), far, [(1 << 25) - 1, 33 << 12]])
    d = np.resize(d, -(-d.size // BLOCK) * BLOCK)
    p = empty([d.size], np.int32)
    exp2_kernel[(d.size // BLOCK,)](upload(d.astype(np.int32)), upload(tables()), p, BLOCK=BLOCK)
    assert np.array_equal(download(p), exp2.exp2_neg(d))
