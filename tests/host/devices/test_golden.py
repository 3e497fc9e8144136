"""The device golden: its own passes, and lengths of layers that it runs by themselves."""

from collections.abc import Callable
from dataclasses import replace

from lutra.devices.base import Step
from lutra.devices.golden import GoldenDevice
from lutra_golden.arith.scale import Scale
from lutra_golden.model.packed import PackedModel


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
