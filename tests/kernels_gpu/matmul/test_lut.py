import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import random_activations, random_case

from lutra_kernels.arrays import download
from lutra_kernels.layout import upload_activations
from lutra_kernels.matmul.lut import lut_gemv

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(("bits", "group"), [(2, 0), (1, 128), (2, 128), (4, 128), (4, 256)])
@pytest.mark.parametrize("extreme", [False, True])
def test_products(bits: int, group: int, extreme: bool) -> None:
    case = random_case(19, 256, bits, group, seed=bits, extreme=extreme)
    a = np.full((1, 256), -127) if extreme else random_activations(1, 256, 8, 2)
    acc = download(lut_gemv(upload_activations(a, group), case.matrix))
    assert (acc == case.expected(a)).all()


@pytest.mark.parametrize(
    ("bits", "group", "m", "message"),
    [
        (8, 128, 1, "lut_gemv takes codes of 1, 2 or 4 bits, not 8"),
        (4, 64, 1, "lut_gemv takes groups of multiples of 128, not 64"),
        (4, 128, 2, "lut_gemv takes one token of 8 bits, not 2 of 8"),
    ],
)
def test_what_is_refused(bits: int, group: int, m: int, message: str) -> None:
    case = random_case(4, 128, bits, group, seed=1)
    a = upload_activations(random_activations(m, 128, 8, 1), group)
    with pytest.raises(ValueError, match=f"^{message}$"):
        lut_gemv(a, case.matrix)
