"""Losses by each rounding alone: those that are there, and how they compare."""

from collections.abc import Mapping

import pytest
from tests.host.quantize.random_decoder import GROUP, random_decoder, random_tokens

from lutra.evaluate.divergence import Divergence
from lutra.evaluate.losses import ALL, losses
from lutra.models import find_model, load_model
from lutra.models.decoder import Decoder
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv

PARTS = ["activations", "queries and keys", "values", "head", ALL]
WINDOWS = [random_tokens(random_decoder(), 1, n)[0].tolist() for n in (24, 12)]


def found(
    format: str,
    source: Decoder | None = None,
    kv: Kv = 8,
    a_groups: ActivationGroups | None = None,
) -> Mapping[str, Divergence]:
    wanted = Format.parse(format)
    model = pack_model(random_decoder(), wanted, GROUP, kv_bits=kv, a_groups=a_groups)
    return losses(model, WINDOWS, source)


def test_what_is_rounded_more_coarsely_loses_more() -> None:
    fine, coarse = found("W8A16"), found("W8A8", kv=(8, 4))
    assert list(fine) == list(coarse) == PARTS
    for name in ("activations", "values", ALL):
        assert 0 <= fine[name].kl < coarse[name].kl
    assert fine["queries and keys"].kl == pytest.approx(coarse["queries and keys"].kl, rel=1e-3)
    assert all(each.tokens == 23 + 11 for each in fine.values())
    assert coarse[ALL].kl > coarse["activations"].kl


def test_groups_of_activations_are_those_that_run() -> None:
    plain, grouped = found("W8A8"), found("W8A8", a_groups=ActivationGroups(size=32))
    assert grouped["activations"].kl != plain["activations"].kl
    assert grouped["values"] == plain["values"]


def test_the_weights_are_compared_with_the_checkpoint() -> None:
    two, eight = found("W2A16", random_decoder()), found("W8A16", random_decoder())
    assert list(two) == ["weights", *PARTS]
    assert two["weights"].kl > 30 * eight["weights"].kl > 0
    # all together contain the weights' loss only where the checkpoint is there
    assert two[ALL].kl > 0.5 * two["weights"].kl
    assert found("W2A16")[ALL].kl < 0.1 * two["weights"].kl


def test_a_model_that_was_trained_with_rounded_activations_loses_nothing_by_them() -> None:
    source = load_model(find_model("tales")).limited(32)
    model = pack_model(source)
    tokens = [[0, 5, 9, 33, 70, 12]]
    for checkpoint in (source, None):
        parts = losses(model, tokens, checkpoint)
        assert "activations" not in parts
    assert losses(model, tokens, source)["weights"].kl < 1e-3


def test_there_must_be_something_to_predict() -> None:
    model = pack_model(random_decoder(), Format.parse("W8A8"), GROUP)
    with pytest.raises(LutraError, match="too short to predict anything"):
        losses(model, [[1]])
    stages: list[str] = []
    losses(model, [[1, 2]], progress=lambda stage, _: stages.append(stage))
    assert set(stages) == {"rounding one by one"}


def test_layers_have_their_sliding_windows() -> None:
    model = pack_model(random_decoder(window=5), Format.parse("W8A16"), GROUP)
    seen, unseen = (losses(model, WINDOWS, random_decoder(window=n)) for n in (5, 0))
    assert seen["weights"].kl < unseen["weights"].kl
