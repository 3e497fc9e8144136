"""Rows of an embedding in codes, beside golden's."""

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.matmul.packed import random_case

from lutra_golden.arith.scale import Scale
from lutra_golden.vector.residual import embedded
from lutra_kernels.arrays import download, empty, upload
from lutra_kernels.matmul.embedding import CodedRows, embed_rows

pytestmark = pytest.mark.interpreted

FRAC = 12
TOKENS = np.array([5, 0, 6, 5], np.int32)


@pytest.mark.parametrize(
    ("bits", "group", "k", "offset_bits"),
    [
        (1, 32, 160, 0),
        (2, 0, 96, 0),
        (3, 16, 1040, 0),
        (4, 128, 256, 0),
        (5, 32, 288, 0),
        (6, 16, 1152, 0),
        (7, 48, 144, 0),
        (8, 32, 128, 0),
        (4, 32, 160, 31),
        (8, 160, 160, 12),
    ],
)
@pytest.mark.parametrize(("mantissa", "kept_bits"), [(40_001, 31), (1 << 15, 31), (1 << 15, 3)])
def test_rows_are_goldens(
    bits: int, group: int, k: int, offset_bits: int, mantissa: int, kept_bits: int
) -> None:
    """Down to where nearly all rounds, and many rows are ties."""
    wide = 16 if bits in (4, 6) else 8
    case = random_case(7, k, bits, group, k, scale_bits=wide, offset_bits=offset_bits)
    doubled = case.weights.doubled()[TOKENS]
    largest = int(np.abs(doubled).max()) * mantissa
    shift = max(0, largest.bit_length() - kept_bits)
    scale = Scale(np.asarray(mantissa), np.asarray(-FRAC - shift))
    rows = CodedRows.of(case.matrix, scale, FRAC)
    assert (rows.mantissa, rows.shift) == (mantissa, shift)
    x = empty([len(TOKENS), k], np.int32)
    embed_rows(rows, upload(TOKENS), x)
    np.testing.assert_array_equal(download(x), embedded(doubled, scale, FRAC))


def test_what_is_refused() -> None:
    rows = CodedRows(matrix=random_case(7, 96, 2, 0, 1).matrix, mantissa=1 << 15, shift=15)
    x = empty([4, 96], np.int32)
    with pytest.raises(TypeError, match=r"^tokens must be int32, not int64$"):
        embed_rows(rows, upload(TOKENS.astype(np.int64)), x)
    with pytest.raises(ValueError, match=r"^x must be \[4, 96\], not \[4, 95\]$"):
        embed_rows(rows, upload(TOKENS), empty([4, 95], np.int32))
