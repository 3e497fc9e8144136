import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import FORMATS, Case, random_activations, random_case

from lutra_kernels.arrays import download
from lutra_kernels.launch import Tile
from lutra_kernels.layout import upload_activations
from lutra_kernels.matmul.gemm import Workspace, gemm

pytestmark = pytest.mark.interpreted
SMALL = Tile(block_n=16, block_m=8, block_b=2, num_warps=1)


def _check(case: Case, a: np.ndarray, a_bits: int = 8, tile: Tile | None = SMALL) -> None:
    x = upload_activations(a, case.matrix.group, a_bits)
    acc = download(gemm(x, case.matrix, tile))
    assert acc.dtype == np.int32
    assert (acc == case.expected(a)).all()


@pytest.mark.parametrize(("bits", "group"), [*FORMATS, (5, 64), (7, 128)])
def test_formats(bits: int, group: int) -> None:
    _check(random_case(21, 256, bits, group, seed=bits), random_activations(9, 256, 8, 1))


@pytest.mark.parametrize(("bits", "group"), [(2, 0), (1, 128), (4, 128), (8, 64)])
def test_sixteen_bit_activations(bits: int, group: int) -> None:
    case = random_case(16, 256, bits, group, seed=7, a_bits=16)
    _check(case, random_activations(5, 256, 16, 3), 16)


@pytest.mark.parametrize(
    ("bits", "group"), [(2, 0), (1, 16), (2, 16), (3, 96), (4, 32), (4, 192), (8, 576)]
)
def test_depths_that_hang_over_and_any_group(bits: int, group: int) -> None:
    _check(random_case(9, 576, bits, group, seed=3), random_activations(3, 576, 8, 4))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 0), (4, 128), (8, 256)])
def test_split_depths(bits: int, group: int, wide: bool) -> None:
    case = random_case(18, 768, bits, group, seed=5, scale_bits=16 if wide else 8)
    tile = Tile(block_n=16, block_m=8, block_b=1, num_warps=1, split=4)
    a = random_activations(10, 768, 8, 2)
    workspace = Workspace(1, 1)
    x = upload_activations(a, group)
    for _ in range(2):  # the workspace is left as it was found
        acc = download(gemm(x, case.matrix, tile, workspace=workspace))
        assert (acc == case.expected(a)).all()
    sums, tickets = workspace.arrays(10 * 18, 4)
    assert not download(sums).any() and not download(tickets).any()


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums(bits: int, group: int, sign: int) -> None:
    case = random_case(4, 256, bits, group, seed=1, extreme=True)
    _check(case, np.full((2, 256), sign * 127))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (6, 16), (8, 128)])
@pytest.mark.parametrize(("offset_bits", "a_bits"), [(12, 8), (31, 8), (20, 16)])
def test_offsets_of_groups(bits: int, group: int, offset_bits: int, a_bits: int) -> None:
    depth = 64 if offset_bits == 31 else 384
    if depth < group:
        depth = group
    case = random_case(9, depth, bits, group, seed=4, a_bits=a_bits, offset_bits=offset_bits)
    _check(case, random_activations(7, depth, a_bits, 2), a_bits)


def test_sums_that_need_64_bits() -> None:
    case = random_case(8, 512, 8, 64, seed=1, scale_bits=16)
    assert case.matrix.is_wide(8)
    _check(case, random_activations(6, 512, 8, 5))


def test_the_rules_tile() -> None:
    case = random_case(37, 640, 2, 0, seed=2)
    _check(case, random_activations(17, 640, 8, 6), tile=None)
