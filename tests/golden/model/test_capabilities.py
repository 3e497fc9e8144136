"""A runner refuses what it has not, in one line."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lutra_golden.errors import LutraError
from lutra_golden.model.capabilities import check_vocabulary
from lutra_golden.model.packed import CodedVocabulary, PackedModel


def test_embedding_and_head_in_codes(packed: Callable[[str], PackedModel]) -> None:
    model = packed("least")
    check_vocabulary(model, "device cuda")
    codes = model.layers[0].o_proj
    model = replace(model, vocabulary=CodedVocabulary(codes, codes))
    with pytest.raises(
        LutraError,
        match=r"^device cuda has no embedding and head of 2 bits yet: run the model with -dev cpu "
        r"or golden, or pack it again without --head$",
    ):
        check_vocabulary(model, "device cuda")
