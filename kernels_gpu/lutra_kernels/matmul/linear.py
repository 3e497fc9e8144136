"""One entrance to the products: the kernel that suits the number of tokens."""

from lutra_kernels.arrays import Array
from lutra_kernels.launch import expands
from lutra_kernels.layout import Activations
from lutra_kernels.matmul.expand import expanded_product
from lutra_kernels.matmul.gemm import Workspace, gemm
from lutra_kernels.matmul.gemv import M_MAX, gemv
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.matmul.operands import architecture

__all__ = ["linear"]


def linear(
    a: Activations, w: Matrix, out: Array | None = None, workspace: Workspace | None = None
) -> Array:
    """``acc`` int32 ``[M, N]``, exact whichever kernel computes it."""
    if a.m <= M_MAX:
        return gemv(a, w, out=out)
    shape = {"bits": w.bits, "group": w.group, "n": w.n, "k": w.k}
    if a.a_bits == 8 and w.minimum is None and expands(arch=architecture(), m=a.m, **shape):
        return expanded_product(a, w, out=out)
    return gemm(a, w, out=out, workspace=workspace)
