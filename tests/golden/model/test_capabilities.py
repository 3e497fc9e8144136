"""A runner refuses what it does not name, in one line."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.model.capabilities import check_capabilities
from lutra_golden.model.packed import CodedVocabulary, PackedModel


def test_activations_in_groups(packed: Callable[[str], PackedModel]) -> None:
    model = packed("least")
    check_capabilities(model, "an accelerator")
    grouped = replace(model, a_groups=ActivationGroups(size=64))
    check_capabilities(grouped, "device cpu", activation_groups=True)
    with pytest.raises(
        LutraError,
        match=r"^an accelerator has no activations in groups yet, the model's are in groups of 64: "
        r"run it with -dev cpu, cuda or golden, or pack it again without --a-group$",
    ):
        check_capabilities(grouped, "an accelerator", offsets=True)


def test_embedding_and_head_in_codes(packed: Callable[[str], PackedModel]) -> None:
    model = packed("least")
    codes = model.layers[0].o_proj
    model = replace(model, vocabulary=CodedVocabulary(codes, codes))
    check_capabilities(model, "device cpu", vocabulary=True)
    with pytest.raises(
        LutraError,
        match=r"^device cuda has no embedding and head of 2 bits yet: run the model with -dev cpu "
        r"or golden, or pack it again without --head$",
    ):
        check_capabilities(model, "device cuda", activation_groups=True, offsets=True)


def test_offsets(packed: Callable[[str], PackedModel]) -> None:
    model = replace(packed("least"), offsets=True)
    check_capabilities(model, "device cpu", offsets=True)
    with pytest.raises(
        LutraError,
        match=r"^an accelerator has no groups of weights with offsets yet: run the model with "
        r"-dev cpu, cuda or golden, or pack it again without --offsets$",
    ):
        check_capabilities(model, "an accelerator", activation_groups=True)
