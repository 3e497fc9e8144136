import numpy as np
import pytest

from lutra_kernels.layout import LOW_OFFSET, group_sums, padded_depth, to_bytes


def test_bytes_of_eight_bits() -> None:
    a = np.random.default_rng(1).integers(-127, 128, (3, 130))
    rows = to_bytes(a)
    assert rows.shape == (3, 256) == (3, padded_depth(130))
    assert (rows[:, :130] == a).all() and not rows[:, 130:].any()


def test_bytes_of_sixteen_bits() -> None:
    corners = np.array(
        [-32767, -32640, -129, -128, -1, 0, 1, 127, 128, 255, 256, 32639, 32640, 32767]
    )
    a = np.resize(corners, (2, 128))
    low, high = to_bytes(a, 16).reshape(2, 2, 128).astype(np.int64)
    assert (256 * high + low + LOW_OFFSET == a).all()


@pytest.mark.parametrize(
    ("a", "bits", "message"),
    [
        ([[-128]], 8, "activations must be within +-127"),
        ([[32768]], 16, "activations must be within +-32767"),
        ([[0]], 4, "a_bits must be 8 or 16, not 4"),
    ],
)
def test_what_is_refused(a: list[list[int]], bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('+', '[+]')}$"):
        to_bytes(np.array(a), bits)


def test_group_sums() -> None:
    a = np.arange(-6, 6).reshape(1, 12)
    assert group_sums(a, 4).tolist() == [[-18, -2, 14]]
    assert group_sums(a, 0).tolist() == [[-6]]
    with pytest.raises(ValueError, match=r"^depth must be a multiple of group \(5\), not 12$"):
        group_sums(a, 5)
