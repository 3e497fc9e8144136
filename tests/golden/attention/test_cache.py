"""Keys and values as bytes."""

import numpy as np
import pytest

from lutra_golden.attention.cache import kv_bytes, kv_elements


def test_two_elements_to_a_byte() -> None:
    row = np.array([1, 2, -1, -7, 7, 0, -8, 3])
    assert kv_bytes(row, 4).tolist() == [0x21, 0x9F, 0x07, 0x38]
    assert kv_bytes(row, 8).view(np.int8).tolist() == row.tolist()


@pytest.mark.parametrize("width", [4, 8])
def test_an_element_begins_at_its_bit(width: int) -> None:
    row = np.random.default_rng(1).integers(-(1 << (width - 1)), 1 << (width - 1), 32)
    word = int.from_bytes(kv_bytes(row, width).tobytes(), "little")
    mask = (1 << width) - 1
    assert [word >> width * d & mask for d in range(32)] == (row & mask).tolist()


@pytest.mark.parametrize("width", [4, 8])
def test_every_element_comes_back(width: int) -> None:
    limit = 1 << (width - 1)
    values = np.stack(np.meshgrid(*[np.arange(-limit, limit)] * 2), axis=-1)  # all pairs
    data = kv_bytes(values, width)
    assert data.dtype == np.uint8 and data.shape == (*values.shape[:2], 2 * width // 8)
    np.testing.assert_array_equal(kv_elements(data, width), values)
