"""Random operands made on the device, and their product by other means: for timing and tuning."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from lutra_kernels import arrays
from lutra_kernels.layout import BLOCK, Activations
from lutra_kernels.matmul.fields import PLANES
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.shapes import Width

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RandomMatrix", "decode", "product", "random_activations", "random_matrix"]


@dataclass(frozen=True, kw_only=True)
class RandomMatrix:
    """A matrix and its doubled weights, int32 ``[n, k]``; these of the first copy only."""

    matrix: Matrix
    doubled: "Tensor | None"
    n_bytes: int


def decode(codes: "Tensor", bits: int) -> "Tensor":
    """B128 bytes ``[N, row bytes]`` to codes int32 ``[N, K]``, by the layout's definition."""
    torch = import_module("torch")
    n = codes.shape[0]
    blocks = codes.reshape(n, -1, 16 * bits).int()
    result, first, low = 0, 0, 0
    for width in PLANES[bits]:
        data = blocks[:, :, first : first + 16 * width]
        if width == 4:
            halves = data.reshape(n, -1, 2, 1, 32)
            plane = torch.cat([halves & 15, halves >> 4], 3)
        else:
            shifts = range(8 - width, -1, -width)
            plane = torch.stack([(data >> shift) & ((1 << width) - 1) for shift in shifts], 2)
        result = result + (plane.reshape(n, -1, BLOCK) << low)
        first, low = first + 16 * width, low + width
    return result.reshape(n, -1)


def random_matrix(n: int, k: int, width: Width, seed: int, reference: bool) -> RandomMatrix:
    """Random codes; the zero points are the middle ones, as symmetric weights have them."""
    torch = import_module("torch")
    if k % BLOCK:
        raise ValueError(f"depth must be a multiple of {BLOCK}, not {k}")
    generator = torch.Generator(device=arrays.DEVICE).manual_seed(seed)

    def integers(low: int, high: int, shape: tuple[int, ...]) -> "Tensor":
        return torch.randint(low, high, shape, device=arrays.DEVICE, generator=generator).to(
            torch.uint8
        )

    bits, group = width.bits, width.group
    codes = integers(0, 256, (n, k * bits // 8))
    scale = zero = None
    if group:
        scale = integers(64, 256, (n, k // group))
        zero = torch.full((n, k // group), (1 << bits) - 1, device=arrays.DEVICE, dtype=torch.uint8)
    else:
        # 3 is no code: clear the upper bit where both are set
        codes = codes & ~((codes & (codes << 1)) & 0xAA)
    doubled = 2 * decode(codes, bits)
    if scale is not None and zero is not None:
        doubled = doubled - zero.int().repeat_interleave(group, 1)
        doubled *= scale.int().repeat_interleave(group, 1)
    else:
        doubled -= 2
    peak = int(doubled.abs().sum(1).max())
    shift = max(0 if group else 1, (peak * 127).bit_length() - 27)
    matrix = Matrix(
        codes=codes, n=n, k=k, bits=bits, shift=shift, peak=peak, group=group, scale=scale,
        zero=zero,
    )  # fmt: skip
    sides = 0 if scale is None else 2 * scale.numel()
    return RandomMatrix(
        matrix=matrix, doubled=doubled if reference else None, n_bytes=codes.numel() + sides
    )


def random_activations(m: int, k: int, group: int, seed: int) -> Activations:
    """Activations of 8 bits."""
    torch = import_module("torch")
    generator = torch.Generator(device=arrays.DEVICE).manual_seed(seed)
    rows = torch.randint(-127, 128, (m, k), device=arrays.DEVICE, generator=generator).to(
        torch.int8
    )
    sums = rows.int().reshape(m, -1, group or k).sum(2).to(torch.int32).contiguous()
    return Activations(rows=rows, sums=sums, m=m, k=k, group=group)


def product(a: Activations, doubled: "Tensor", shift: int, tokens: "Tensor") -> "Tensor":
    """``round_shift`` of some tokens' products, in float64, which holds every sum exactly."""
    torch = import_module("torch")
    rows = cast("Tensor", a.rows)[tokens]
    total = (rows.double() @ doubled.double().t()).to(torch.int64)
    half = (total >> (shift - 1)) & 1 if shift else 0
    return (total >> shift) + half
