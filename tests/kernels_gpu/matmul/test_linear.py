import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import random_activations, random_case

from lutra_kernels import launch
from lutra_kernels.arrays import download, empty
from lutra_kernels.layout import upload_activations
from lutra_kernels.matmul.linear import linear

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("m", [1, 4, 5, 20])
@pytest.mark.parametrize(("bits", "group"), [(2, 0), (4, 128)])
def test_every_number_of_tokens(
    bits: int, group: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_EXPAND_FROM", 20)
    case = random_case(24, 256, bits, group, seed=m)
    a = random_activations(m, 256, 8, m)
    x = upload_activations(a, group)
    assert (download(linear(x, case.matrix)) == case.expected(a)).all()
    out = empty([m, 24], np.int32)
    assert linear(x, case.matrix, out=out) is out
    assert (download(out) == case.expected(a)).all()


def test_sixteen_bits_are_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_EXPAND_FROM", 6)
    case = random_case(24, 128, 4, 128, seed=6, a_bits=16)
    a = random_activations(6, 128, 16, 6)
    x = upload_activations(a, 128, 16)
    assert (download(linear(x, case.matrix)) == case.expected(a)).all()
