"""The device golden: its own passes, and lengths of layers that it runs by themselves."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutra.devices.base import Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.two_stage import MOST_BEST, likeliest


def loaded(model: PackedModel) -> GoldenDevice:
    device = GoldenDevice()
    device.load(model)
    return device


def test_a_pass_tells_its_own_saturation(packed: Callable[[str], PackedModel]) -> None:
    """Of the last layer's product, between tokens whose embedding is zero."""
    model = packed("least")
    layer, embedding = model.layers[-1], model.embedding.copy()
    embedding[2], scale = 0, layer.down_proj.scale
    loud = replace(layer.down_proj, scale=Scale(scale.m, scale.e + 24))
    layers = [*model.layers[:-1], replace(layer, down_proj=loud)]
    device = loaded(replace(model, embedding=embedding, layers=layers))
    for token, saturated in ((2, False), (1, True), (2, False)):
        (found,) = device.run([Step(session=device.session(), tokens=[token])])
        assert found.saturated is saturated


def test_logits_of_several_sequences(packed: Callable[[str], PackedModel]) -> None:
    device = loaded(packed("least"))
    parts = (([1, 2, 3], 1), ([4], 1), ([5, 6], 0))
    steps = [
        Step(session=device.session(), tokens=tokens, logits_from=first) for tokens, first in parts
    ]
    for result, (tokens, first) in zip(device.run(steps), parts, strict=True):
        (alone,) = device.run([Step(session=device.session(), tokens=tokens)])
        assert (result.logits == alone.logits[first:]).all()
        assert len(result.logits) == len(tokens) - first


def test_a_cut_leaves_shorter_layers(packed: Callable[[str], PackedModel]) -> None:
    device = loaded(packed("grouped"))
    session = device.session()
    device.run([Step(session=session, tokens=[1, 2, 3, 4], layers=range(1))])
    assert session.lengths == [4, 0]
    session.truncate(2)
    assert session.lengths == [2, 0]


PARTS = (([1, 2, 3], 1), ([4], 0), ([5, 6], 2), ([7, 8, 9], 2))
"""Tokens, and from which of them on there are logits."""


def both(device: GoldenDevice, *best: int) -> tuple[list[StepResult], list[StepResult]]:
    """Results of the same steps: with all logits, and with so many of the best each."""
    found = list[list[StepResult]]()
    for numbers in ((0,) * len(PARTS), best):
        steps = [
            Step(session=device.session(), tokens=tokens, logits_from=first, best=n)
            for (tokens, first), n in zip(PARTS, numbers, strict=True)
        ]
        found.append(device.run(steps))
    return found[0], found[1]


@pytest.mark.parametrize("pass_tokens", [1, 2, 64])
def test_the_best_tokens_alone(packed: Callable[[str], PackedModel], pass_tokens: int) -> None:
    """Each step has as many as it asks for, whatever passes and others there are."""
    device = loaded(packed("grouped"))
    device.pass_tokens = pass_tokens
    n_vocabulary, numbers = device.model.vocab_size, (3, 1, 0, MOST_BEST)
    for whole, result, n in zip(*both(device, *numbers), numbers, strict=True):
        assert (result.scale.tolist(), result.argmax.tolist()) == (
            whole.scale.tolist(),
            whole.argmax.tolist(),
        )
        head = result.head
        if not n:  # of the step that wants no logits
            assert result.best is None and result.logits.shape == (0, n_vocabulary)
            assert head.tokens == 0
            continue
        assert result.best is not None
        for row, tokens, logits in zip(whole.logits, result.best, result.logits, strict=True):
            assert tokens.tolist() == likeliest(row, n).tolist()
            assert logits.tolist() == row[tokens].tolist()
        assert (head.tokens, head.rows) == (len(whole.logits), len(whole.logits) * n_vocabulary)
        assert n * head.tokens <= head.rescored <= head.rows
        assert whole.best is None and whole.head.tokens == 0


@pytest.mark.parametrize("numbers", [(3, 0, 0, 3), (3, 1, 1, MOST_BEST + 1)])
def test_all_logits_where_one_step_needs_them(
    packed: Callable[[str], PackedModel], numbers: tuple[int, ...]
) -> None:
    for whole, result in zip(*both(loaded(packed("grouped")), *numbers), strict=True):
        assert result.best is None
        np.testing.assert_array_equal(result.logits, whole.logits)


def test_greedy_tokens_need_the_best_alone(packed: Callable[[str], PackedModel]) -> None:
    device = loaded(packed("grouped"))
    made = device.greedy(device.session(), 3, 4)
    assert made.head.tokens == 4 and made.head.rescored > 0
    session, token = device.session(), 3
    for expected in made.tokens:
        [result] = device.run([Step(session=session, tokens=[token])])
        token = int(result.argmax[0])
        assert token == expected


def test_fallbacks_are_counted(packed: Callable[[str], PackedModel]) -> None:
    """All rows of the head are equal, so that all of them could win."""
    model = packed("grouped")
    same = replace(
        model,
        head=model.head[:1].repeat(model.vocab_size, axis=0),
        head_rows=model.head_rows * 0 + 9,
    )
    device = loaded(same)
    [result] = device.run([Step(session=device.session(), tokens=[1, 2], best=2)])
    assert result.best is not None and result.best.tolist() == [[0, 1], [0, 1]]
    assert (result.head.fallbacks, result.head.rescored) == (2, 2 * model.vocab_size)


def test_fewer_than_none_are_refused(packed: Callable[[str], PackedModel]) -> None:
    device = loaded(packed("least"))
    with pytest.raises(LutraError, match=r"^best must be 0 \(all logits\) or more, not -1$"):
        device.run([Step(session=device.session(), tokens=[1], best=-1)])
