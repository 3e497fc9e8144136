"""Numbers that leave the token path are refused with the figure."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.checks import check_numbers, sum_bits
from lutra_golden.model.packed import CodedVocabulary, PackedLinear, PackedModel


@pytest.mark.parametrize("shift", [-1, 17])
def test_embedding(shift: int, packed: Callable[[str], PackedModel]) -> None:
    model = packed("odd")
    check_numbers(model)
    broken = replace(model, residual_frac=model.embedding_frac + shift)
    with pytest.raises(LutraError, match=rf"^embeddings are shifted by {shift} bits, 0 to 16 fit"):
        check_numbers(broken)


def coded(model: PackedModel, scale: float, shift: int = 9) -> PackedModel:
    """``model`` with an embedding and a head of four bits."""
    n, k = model.vocab_size, model.hidden_size
    weights = GroupedWeights(
        codes=np.full((n, k), 15, np.uint8),
        scale=np.full((n, 1), 60_000),
        zero=np.full((n, 1), 15),
        bits=4,
        group=k,
    )
    rows = PackedLinear(weights, scale_from_float(scale), 0)
    vocabulary = CodedVocabulary(rows, PackedLinear(weights, scale_from_float(1.0), shift))
    return replace(model, vocabulary=vocabulary, embedding=model.embedding[:0], head=model.head[:0])


def test_embedding_and_head_in_codes(packed: Callable[[str], PackedModel]) -> None:
    model, one = packed("odd"), 2.0 ** -packed("odd").residual_frac
    largest = 60_000 * 15
    check_numbers(coded(model, one))
    check_numbers(coded(model, one * 2**31 / largest * 0.9999))
    with pytest.raises(LutraError, match=r"^rows of the embedding need 33 bits, there are 32: pa"):
        check_numbers(coded(model, one * 2**31 / largest * 1.0001))
    with pytest.raises(LutraError, match=r"^rows of the embedding are shifted by -1 bits, 0 to 63"):
        check_numbers(coded(model, one * 2**16))
    with pytest.raises(LutraError, match=r"^rows of the embedding are shifted by 64 bits, 0 to 63"):
        check_numbers(coded(model, one * 2**-49))
    check_numbers(coded(model, one * 2**-48))
    needed = sum_bits(model, largest * model.hidden_size, 0)
    check_numbers(coded(model, one, needed - 28))
    with pytest.raises(LutraError, match=r"^sums of the head need 29 bits, there are 28: pack the"):
        check_numbers(coded(model, one, needed - 29))


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
