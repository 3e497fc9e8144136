"""Numbers that leave the token path are refused with the figure."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.checks import check_numbers, sum_bits
from lutra_golden.model.packed import (
    CodedVocabulary,
    HeadNorms,
    PackedBias,
    PackedLinear,
    PackedModel,
)


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


def test_centres_of_keys(packed: Callable[[str], PackedModel]) -> None:
    """Where keys can be, and of keys that have no norm."""
    model = packed("odd")
    layer, kv = model.layers[0], model.n_kv_heads * model.head_dim
    values = np.zeros(model.n_heads * model.head_dim + 2 * kv, np.int16)

    def with_centre(peak: int, frac: int, norms: HeadNorms | None = None) -> PackedModel:
        bias = PackedBias(values, frac, np.full(kv, -peak, np.int16))
        first = replace(layer, bias=bias, head_norms=norms)
        return replace(model, layers=[first, *model.layers[1:]], biased=True)

    check_numbers(with_centre(1 << 14, 3))
    with pytest.raises(
        LutraError, match=r"^the centre of keys of layer 0 reaches 4096, keys reach 2048: pack the"
    ):
        check_numbers(with_centre(1 << 14, 2))
    gamma = np.ones(model.head_dim, np.int16)
    with pytest.raises(LutraError, match=r"^layer 0 has a centre of keys, which keys with a norm"):
        check_numbers(with_centre(1, 3, HeadNorms(gamma, gamma, 0)))
