from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import FORMATS, Case, random_activations, random_case

from lutra_kernels.arrays import download, empty
from lutra_kernels.launch import Tile
from lutra_kernels.layout import upload_activations
from lutra_kernels.matmul.gemv import gemv

pytestmark = pytest.mark.interpreted
SMALL = Tile(block_n=8, block_b=2, num_warps=1)


def _check(case: Case, a: np.ndarray, a_bits: int = 8, tile: Tile | None = SMALL) -> None:
    x = upload_activations(a, case.matrix.group, a_bits)
    acc = download(gemv(x, case.matrix, tile))
    assert acc.dtype == np.int32
    assert (acc == case.expected(a)).all()


@pytest.mark.parametrize(("bits", "group"), [*FORMATS, (5, 64), (7, 128)])
def test_formats(bits: int, group: int) -> None:
    _check(random_case(13, 512, bits, group, seed=bits), random_activations(1, 512, 8, 1))


@pytest.mark.parametrize(("bits", "group"), [(2, 0), (4, 128), (8, 64)])
@pytest.mark.parametrize("m", [2, 4])
def test_tokens(bits: int, group: int, m: int) -> None:
    _check(random_case(8, 256, bits, group, seed=m), random_activations(m, 256, 8, m))


@pytest.mark.parametrize(("bits", "group"), [(2, 0), (1, 128), (4, 128), (6, 64)])
@pytest.mark.parametrize("m", [1, 3])
def test_sixteen_bit_activations(bits: int, group: int, m: int) -> None:
    case = random_case(8, 256, bits, group, seed=7, a_bits=16)
    _check(case, random_activations(m, 256, 16, 3), 16)


@pytest.mark.parametrize(("bits", "group"), [(2, 0), (1, 16), (2, 16), (3, 96), (4, 32), (4, 192)])
def test_depths_that_hang_over_and_any_group(bits: int, group: int) -> None:
    _check(random_case(9, 576, bits, group, seed=3), random_activations(1, 576, 8, 4))


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums(bits: int, group: int, sign: int) -> None:
    case = random_case(4, 512, bits, group, seed=1, extreme=True)
    _check(case, np.full((1, 512), sign * 127))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (6, 16), (8, 128)])
@pytest.mark.parametrize(("offset_bits", "a_bits"), [(12, 8), (31, 8), (20, 16)])
def test_offsets_of_groups(bits: int, group: int, offset_bits: int, a_bits: int) -> None:
    depth = 64 if offset_bits == 31 else 384
    if depth < group:
        depth = group
    case = random_case(9, depth, bits, group, seed=4, a_bits=a_bits, offset_bits=offset_bits)
    _check(case, random_activations(2, depth, a_bits, 2), a_bits)


def test_sums_that_need_64_bits() -> None:
    case = random_case(8, 512, 8, 64, seed=1, scale_bits=16)
    assert case.matrix.is_wide(8)
    _check(case, random_activations(2, 512, 8, 5))


def test_the_rules_tile_and_a_prepared_output() -> None:
    case = random_case(37, 640, 2, 0, seed=2)
    a = random_activations(1, 640, 8, 6)
    out = empty([1, 37], np.int64)
    assert gemv(upload_activations(a, 0), case.matrix, out=out) is out
    assert (download(out) == case.expected(a)).all()


def test_what_is_refused() -> None:
    case = random_case(4, 128, 4, 64, seed=1)
    a = random_activations(5, 128, 8, 1)
    with pytest.raises(ValueError, match=r"^gemv takes at most 4 tokens, not 5$"):
        gemv(upload_activations(a, 64), case.matrix)
    with pytest.raises(ValueError, match=r"^activation sums must be of groups of 64, not 128$"):
        gemv(upload_activations(a[:1], 128), case.matrix)
    with pytest.raises(ValueError, match=r"^activation sums must be of groups of 64, not 32$"):
        gemv(upload_activations(a[:1], 32), case.matrix)
    with pytest.raises(ValueError, match=r"^16-bit activations need a matrix that was uploaded wi"):
        gemv(upload_activations(a[:1], 64, 16), replace(case.matrix, offset=None))
    with pytest.raises(ValueError, match=r"^activations must have the matrix's depth 128, not 64$"):
        gemv(upload_activations(a[:1, :64], 64), case.matrix)
