import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import FORMATS, random_activations, random_case

from lutra_kernels.arrays import download
from lutra_kernels.layout import upload_activations
from lutra_kernels.matmul.expand import expand, expanded_product, n_digits, scale_peak

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(("bits", "group"), [*FORMATS, (5, 64), (4, 192)])
def test_digits_are_the_doubled_weights(bits: int, group: int) -> None:
    k = 576 if group == 192 else 256
    case = random_case(35, k, bits, group, seed=bits, extreme=False)
    digits = n_digits(case.matrix, scale_peak(case.matrix))
    values = download(expand(case.matrix, digits)).astype(np.int64)
    total = sum(values[i] << (8 * i) for i in range(digits))
    doubled = case.weights.doubled()
    assert (total[:35, :k] * (2 if group == 0 else 1) == doubled).all()
    assert not values[:, 35:].any()


@pytest.mark.parametrize(
    ("bits", "group", "digits"), [(2, 0, 1), (4, 128, 2), (6, 128, 2), (7, 128, 3), (8, 128, 3)]
)
def test_products(bits: int, group: int, digits: int) -> None:
    case = random_case(20, 256, bits, group, seed=bits)
    assert n_digits(case.matrix) == digits
    a = random_activations(18, 256, 8, 2)
    acc = download(expanded_product(upload_activations(a, group), case.matrix))
    assert acc.dtype == np.int32
    assert (acc == case.expected(a)).all()


def test_wide_scales() -> None:
    case = random_case(5, 128, 8, 64, seed=2, scale_bits=16, extreme=True)
    a = random_activations(17, 128, 8, 3)
    acc = download(expanded_product(upload_activations(a, 64), case.matrix))
    assert (acc == case.expected(a)).all()


def test_what_is_refused() -> None:
    case = random_case(4, 128, 2, 0, seed=1)
    a = random_activations(16, 128, 8, 1)
    with pytest.raises(ValueError, match=r"^an expanded product takes 17 tokens or more, not 16$"):
        expanded_product(upload_activations(a, 0), case.matrix)
    with pytest.raises(ValueError, match=r"^an expanded product takes activations of 8 bits"):
        expanded_product(upload_activations(a, 0, 16), case.matrix)
