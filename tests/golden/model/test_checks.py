"""Numbers that leave the token path are refused with the figure."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.errors import LutraError
from lutra_golden.model.checks import check_numbers, sum_bits
from lutra_golden.model.packed import PackedModel


@pytest.mark.parametrize("shift", [-1, 17])
def test_embedding(shift: int, packed: Callable[[str], PackedModel]) -> None:
    model = packed("odd")
    check_numbers(model)
    broken = replace(model, residual_frac=model.embedding_frac + shift)
    with pytest.raises(LutraError, match=rf"^embeddings are shifted by {shift} bits, 0 to 16 fit"):
        check_numbers(broken)


def test_head(packed: Callable[[str], PackedModel]) -> None:
    """Sums of up to 24 bits, so that no logit is clamped; the largest row counts."""
    model = packed("odd")
    n = model.hidden_size
    head = np.zeros_like(model.head)
    head[-1] = -121
    fits = replace(model, head=head, head_shift=1)
    assert sum_bits(fits, 2 * 121 * n, 1) <= 24
    check_numbers(fits)
    wide = replace(fits, hidden_size=640, head=np.full((304, 640), -121, np.int8))
    with pytest.raises(LutraError, match=r"^sums of the head need 25 bits, there are 24: pack"):
        check_numbers(wide)
    wide.head[:, 1:] = 0
    check_numbers(wide)
