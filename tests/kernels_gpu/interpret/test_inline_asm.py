import numpy as np
import pytest

pytest.importorskip("triton")

import triton.language as tl

from lutra_kernels.arrays import INTERPRETED, download, empty, upload
from lutra_kernels.jit import jit

pytestmark = pytest.mark.interpreted


@jit
def bytes_kernel(x_ptr, o_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    asm: tl.constexpr = "{ .reg .b32 t; shr.u32 t, $1, 4; and.b32 $0, t, 0x0f0f0f0f; }"
    high = tl.inline_asm_elementwise(asm, "=r,r", [x], dtype=tl.int8, is_pure=True, pack=4)
    tl.store(o_ptr + i, high)


@jit
def pair_kernel(x_ptr, y_ptr, sum_ptr, difference_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    both = tl.inline_asm_elementwise(
        "add.s32 $0, $2, $3; sub.s32 $1, $2, $3;",
        "=r,=r,r,r",
        [x, y],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )
    tl.store(sum_ptr + i, both[0])
    tl.store(difference_ptr + i, both[1])


@jit
def wrong_kernel(x_ptr, BLOCK: tl.constexpr, CONSTRAINTS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", CONSTRAINTS, [x], dtype=tl.int32, is_pure=True, pack=1
    )


def test_four_bytes_share_a_register() -> None:
    x = np.random.default_rng(1).integers(0, 256, 64).astype(np.uint8).view(np.int8)
    out = empty([64], np.int8)
    bytes_kernel[(1,)](upload(x), out, BLOCK=64)
    assert (download(out) == x.view(np.uint8) >> 4).all()


def test_several_results() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(-(1 << 31), 1 << 31, (2, 32)).astype(np.int32)
    total, difference = empty([32], np.int32), empty([32], np.int32)
    pair_kernel[(1,)](upload(x), upload(y), total, difference, BLOCK=32)
    assert (download(total) == x + y).all()
    assert (download(difference) == x - y).all()


@pytest.mark.skipif(not INTERPRETED, reason="a compiler has its own words")
@pytest.mark.parametrize("constraints", ["=r", "=r,r,r"])
def test_operands_must_fit_their_constraints(constraints: str) -> None:
    with pytest.raises(Exception, match="must name 1 inputs"):
        wrong_kernel[(1,)](upload(np.zeros(4, np.int32)), BLOCK=4, CONSTRAINTS=constraints)
