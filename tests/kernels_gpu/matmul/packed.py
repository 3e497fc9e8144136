"""Random packed matrices and what the golden model makes of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int, round_shift
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.b128 import to_b128
from lutra_kernels.matmul.fields import PLANES
from lutra_kernels.matmul.matrix import Q_MAX, Matrix, upload_matrix

FORMATS = [(2, 0), (1, 128), (2, 128), (3, 64), (4, 128), (6, 64), (8, 128)]
"""Bits and group, 0 for ternary."""


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """B128 of any width; where the host knows the width, the host's."""
    if bits not in (5, 7):
        return to_b128(codes, bits)
    planes, low = [], 0
    for width in PLANES[bits]:
        plane = to_b128(codes >> np.uint8(low) & np.uint8((1 << width) - 1), width)
        planes.append(plane.reshape(len(codes), -1, 16 * width))
        low += width
    return np.concatenate(planes, axis=2).reshape(len(codes), -1)


@dataclass(frozen=True)
class Case:
    matrix: Matrix
    weights: GroupedWeights
    shift: int

    def expected(self, a: NDArray[np.integer]) -> Int:
        return round_shift(a.astype(np.int64) @ self.weights.doubled().T, self.shift)


def random_case(
    n: int,
    k: int,
    bits: int,
    group: int,
    seed: int,
    *,
    a_bits: int = 8,
    extreme: bool = False,
    scale_bits: int = 8,
    offset_bits: int = 0,
) -> Case:
    """``extreme``: every weight as far from zero as there is. ``offset_bits``: of the offsets."""
    rng = np.random.default_rng(seed)
    if group == 0:
        codes = rng.integers(0, 3, (n, k)).astype(np.uint8)
        if extreme:
            codes = np.where(codes == 1, 0, codes).astype(np.uint8)
        weights = GroupedWeights(
            codes=codes,
            scale=np.ones((n, 1), np.int64),
            zero=np.full((n, 1), 2, np.int64),
            bits=2,
            group=k,
        )
        shift = 1
        arrays = {}
    else:
        top = (1 << bits) - 1
        codes = rng.integers(0, top + 1, (n, k)).astype(np.uint8)
        scale = rng.integers(0, 1 << scale_bits, (n, k // group))
        zero = rng.integers(0, 2 * top + 1, (n, k // group))
        if extreme:
            codes[:] = top
            scale[:] = (1 << scale_bits) - 1
            zero[:] = 0
        offset = None
        if offset_bits:
            top = (1 << offset_bits) - 1
            offset = rng.integers(-top, top + 1, scale.shape)
        weights = GroupedWeights(
            codes=codes, scale=scale, zero=zero, bits=bits, group=group, offset=offset
        )
        shift = max(0, (weights.peak * Q_MAX[a_bits]).bit_length() - 27)
        arrays = {"scale": scale, "zero": zero, "minimum": offset}
    sums = codes.reshape(n, -1, group or k).sum(axis=2, dtype=np.int64)
    matrix = upload_matrix(
        pack(codes, weights.bits),
        k=k,
        bits=weights.bits,
        shift=shift,
        group=group,
        peak=weights.peak,
        code_sums=sums,
        **arrays,
    )
    return Case(matrix, weights, shift)


def random_activations(m: int, k: int, a_bits: int, seed: int) -> Int:
    """Any values, with the largest of both signs among them."""
    q_max = (1 << (a_bits - 1)) - 1
    a = np.random.default_rng(seed).integers(-q_max, q_max + 1, (m, k))
    a[:, 0], a[:, -1] = q_max, -q_max
    return a
