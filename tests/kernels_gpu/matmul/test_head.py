import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import random_activations

from lutra_golden.arith.fixed import Int, round_shift
from lutra_golden.vector.residual import logits
from lutra_kernels.arrays import download
from lutra_kernels.layout import upload_activations
from lutra_kernels.matmul.head import head_logits, head_top, split_keys, upload_head

pytestmark = pytest.mark.interpreted


def _head(v: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-121, 122, (v, k)).astype(np.int8), rng.integers(
        -(1 << 15), 1 << 15, v
    ).astype(np.int16)


def _expected(a: Int, rows: np.ndarray, scale: np.ndarray, shift: int) -> Int:
    acc = round_shift(2 * (a @ rows.astype(np.int64).T), shift)
    return logits(acc, scale.astype(np.int64))


@pytest.mark.parametrize("a_bits", [8, 16])
@pytest.mark.parametrize(
    ("v", "k", "m", "shift"), [(37, 64, 1, 1), (50, 144, 5, 3), (16, 576, 2, 4)]
)
def test_logits_and_largest(v: int, k: int, m: int, shift: int, a_bits: int) -> None:
    rows, scale = _head(v, k, seed=v)
    head = upload_head(rows, scale, shift)
    a = random_activations(m, k, a_bits, 1)
    x = upload_activations(a, 0, a_bits)
    expected = _expected(a, rows, scale, shift)
    found = download(head_logits(x, head))
    assert found.dtype == np.int32
    assert (found == expected).all()
    index, value = split_keys(download(head_top(x, head)))
    assert (index[:, 0] == expected.argmax(axis=1)).all()
    assert (value[:, 0] == expected.max(axis=1)).all()


def test_of_equal_logits_the_first() -> None:
    rows = np.ones((40, 16), np.int8)
    scale = np.zeros(40, np.int16)
    scale[[7, 21, 39]] = 5
    a = np.full((1, 16), 127)
    keys = download(head_top(upload_activations(a, 0), upload_head(rows, scale, 1), top=5))
    index, value = split_keys(keys)
    assert index.tolist() == [[7, 21, 39, 0, 1]]
    assert (value == np.sort(_expected(a, rows, scale, 1))[:, ::-1][:, :5]).all()


def test_more_than_a_program_has_and_negative_ones() -> None:
    rows, scale = _head(1100, 16, seed=3)
    scale = -np.abs(scale)
    a = np.abs(random_activations(1, 16, 8, 4))
    x, head = upload_activations(a, 0), upload_head(np.abs(rows), scale, 1)
    expected = _expected(a, np.abs(rows), scale, 1)[0]
    index, value = split_keys(download(head_top(x, head, top=20)))
    order = np.argsort(-expected, kind="stable")[:20]
    assert (index[0] == order).all() and (value[0] == expected[order]).all()


def test_saturation() -> None:
    rows = np.full((16, 2048), 121, np.int8)
    scale = np.resize(np.array([32767, -32768], np.int16), 16)
    a = np.full((1, 2048), 127)
    found = download(head_logits(upload_activations(a, 0), upload_head(rows, scale, 1)))
    assert found[0, :2].tolist() == [(1 << 31) - 1, -(1 << 31)]
    assert (found == _expected(a, rows, scale, 1)).all()


def test_what_is_refused() -> None:
    rows, scale = _head(8, 32, seed=1)
    with pytest.raises(ValueError, match=r"^depth must be a multiple of 16, not 24$"):
        upload_head(rows[:, :24], scale, 1)
    with pytest.raises(TypeError, match=r"^rows must be int8, not int64$"):
        upload_head(rows.astype(np.int64), scale, 1)
    head = upload_head(rows, scale, 1)
    a = upload_activations(random_activations(1, 64, 8, 1), 0)
    with pytest.raises(ValueError, match=r"^activations must have the head's depth 32, not 64$"):
        head_logits(a, head)
    with pytest.raises(ValueError, match=r"^top must be in 1\.\.8, not 9$"):
        head_top(a, head, 9)
