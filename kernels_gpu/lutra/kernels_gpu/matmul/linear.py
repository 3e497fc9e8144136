"""One entrance to the products: the kernel that suits the number of tokens."""

from lutra.kernels_gpu.arrays import Array
from lutra.kernels_gpu.config import expands
from lutra.kernels_gpu.layout import Activations
from lutra.kernels_gpu.matmul.expand import expanded_product
from lutra.kernels_gpu.matmul.gemm import Workspace, gemm
from lutra.kernels_gpu.matmul.gemv import M_MAX, gemv
from lutra.kernels_gpu.matmul.matrix import Matrix
from lutra.kernels_gpu.matmul.operands import architecture

__all__ = ["linear"]


def linear(
    a: Activations, w: Matrix, out: Array | None = None, workspace: Workspace | None = None
) -> Array:
    """``acc`` int32 ``[M, N]``, exact whichever kernel computes it."""
    if a.m <= M_MAX:
        return gemv(a, w, out=out)
    shape = {"bits": w.bits, "group": w.group, "n": w.n, "k": w.k}
    if a.a_bits == 8 and expands(arch=architecture(), m=a.m, **shape):
        return expanded_product(a, w, out=out)
    return gemm(a, w, out=out, workspace=workspace)
