"""Facts that devices derive from a packed model: epsilon, means and bits where heads are padded."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.scale import scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.model.lowered import common_kv_bits, lower_norm, padded_head_eps
from lutra_golden.model.packed import PackedModel, PackedNorm


@pytest.mark.parametrize(("head_dim", "eps"), [(64, 1003), (48, 752), (32, 1003), (96, 752)])
def test_epsilon_of_padded_heads(
    head_dim: int, eps: int, packed: Callable[[str], PackedModel]
) -> None:
    """Heads of 48 and 96 get a third more of zeros: 1,003 * 3 / 4."""
    model = replace(packed("least"), head_dim=head_dim, head_eps=1003)
    assert padded_head_eps(model) == eps


def test_a_mean_is_over_what_there_is() -> None:
    gamma = np.arange(128, dtype=np.int16)
    norm, none = lower_norm(PackedNorm(gamma, 11), 96, 128), lower_norm(None, 96, 128)
    assert norm.inv_n == none.inv_n == scale_from_float(1 / 96)
    assert (norm.frac, norm.normalise, none.normalise) == (11, True, False)
    np.testing.assert_array_equal(norm.gamma, gamma)
    assert none.gamma.tolist() == [1 << none.frac] * 128
    assert len(lower_norm(None, 96).gamma) == 96


def test_bits_of_keys_and_values(packed: Callable[[str], PackedModel]) -> None:
    model = packed("least")
    for bits in (8, 4):
        assert common_kv_bits(replace(model, key_bits=bits, value_bits=bits), "it") == bits
    for key_bits, value_bits in ((8, 4), (4, 8)):
        mixed = replace(model, key_bits=key_bits, value_bits=value_bits)
        with pytest.raises(
            LutraError, match=r"^device cpu caches keys and values with the same num"
        ):
            common_kv_bits(mixed, "device cpu")
