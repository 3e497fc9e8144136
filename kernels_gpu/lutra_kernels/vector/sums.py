"""Sums of activations by groups that the norm's own launch does not give."""

import triton.language as tl

from lutra_kernels.arrays import Array, check
from lutra_kernels.jit import jit
from lutra_kernels.layout import Activations, cdiv, padded_depth

__all__ = ["group_sums", "group_sums_kernel"]


@jit
def group_sums_kernel(
    q_ptr, sums_ptr, M,
    K: tl.constexpr, N_GROUPS: tl.constexpr, GROUP: tl.constexpr, A_BITS: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums int32 ``[M, N_GROUPS]`` of activations ``q`` as the layout says, some groups each."""
    m = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    within = tl.arange(0, BLOCK_K)
    offs = groups[:, None] * GROUP + within[None, :]
    mask = (groups[:, None] < N_GROUPS) & (within[None, :] < GROUP)
    a = tl.load(q_ptr + m * K + offs, mask=mask, other=0).to(tl.int32)  # [BLOCK_G, BLOCK_K]
    if A_BITS == 16:
        high = tl.load(q_ptr + (M + m) * K + offs, mask=mask, other=0).to(tl.int32)
        a = tl.where(mask, high * 256 + a + 128, 0)
    tl.store(sums_ptr + m * N_GROUPS + groups, tl.sum(a, 1), mask=groups < N_GROUPS)


def group_sums(a: Activations, group: int, sums: Array) -> None:
    """Write the sums of groups of ``group`` to ``sums``."""
    group = group or a.k
    if a.k % group:
        raise ValueError(f"depth must be a multiple of group ({group}), not {a.k}")
    n_groups, block_k = a.k // group, 1 << (group - 1).bit_length()
    check("sums", sums, (a.m, n_groups), "int32")
    block_g = max(1, 2048 // block_k)
    group_sums_kernel[(a.m, cdiv(n_groups, block_g))](
        a.rows, sums, a.m, padded_depth(a.k), n_groups, group, a.a_bits, block_g, block_k
    )
