"""Bounds of exponents hold for every operation and whole models; what leaves them is refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import Scale, scale_add, scale_from_int, scale_mul, scale_rsqrt
from lutra_golden.errors import LutraError
from lutra_golden.model import decoder as module
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.exponents import Exponents, head_exponents, layer_exponents
from lutra_golden.model.packed import PackedModel

CORNERS = (1 << 15, (1 << 15) + 1, 46340, 46341, 65534, 65535)


def scales(rng: np.random.Generator, low: int, high: int) -> Scale:
    m = np.concatenate([CORNERS, rng.integers(1 << 15, 1 << 16, 2000)])
    return Scale(m, rng.integers(low, high + 1, len(m)))


def within(scale: Scale, bounds: Exponents) -> bool:
    live = scale.m != 0
    e: Int = scale.e[live]
    return bool((e >= bounds.low).all() and (e <= bounds.high).all())


def reached(scale: Scale, bounds: Exponents) -> bool:
    """True if both bounds are met: they are not wider than they must be."""
    return bool(scale.e.min() == bounds.low and scale.e.max() == bounds.high)


def test_operations() -> None:
    rng = np.random.default_rng(0)
    a, b = scales(rng, -7, 4), scales(rng, -3, 9)
    a_bounds, b_bounds = (Exponents(s.e.min(), s.e.max()) for s in (a, b))
    product = scale_mul(*(Scale(x.m[:, None], x.e[:, None]) if x is a else x for x in (a, b)))
    assert within(product, a_bounds.times(b_bounds))
    assert reached(product, a_bounds.times(b_bounds))
    zeroed = Scale(np.where(a.e == 0, 0, a.m), np.where(a.e == 0, 0, a.e))
    total = scale_add(Scale(zeroed.m[:, None], zeroed.e[:, None]), b)
    assert within(total, a_bounds.plus(b_bounds))
    assert within(scale_rsqrt(a), a_bounds.rsqrt())
    ints = np.concatenate([np.arange(3, 40), [(1 << 20) - 1, (1 << 20) - 17]])
    bounds = Exponents.of_ints(3, 20, -5)
    assert within(scale_from_int(ints, -5), bounds)
    assert reached(scale_from_int(ints, -5), bounds)
    assert within(Scale(a.m, a.e + 3), a_bounds.shifted(3))


def observed(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> list[Scale]:
    """Scales of all activations of a few tokens, norm after norm."""
    found = list[Scale]()
    normed = module.norm_quantize

    def kept(*args: object, **options: object) -> tuple[Int, Scale]:
        q, scale = normed(*args, **options)  # pyright: ignore
        found.append(scale)
        return q, scale

    monkeypatch.setattr(module, "norm_quantize", kept)
    decoder = Decoder(model)
    caches = decoder.caches()
    x = decoder.embed([1, 2, 3, 0, 5])
    for i in range(len(model.layers)):
        x = decoder.layer(i, x, [Rows(caches, slice(0, 5), 0)])
    decoder.head(x)
    return found


@pytest.mark.parametrize("name", ["odd", "grouped"])
def test_models_stay_within(
    name: str, packed: Callable[[str], PackedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed(name)
    found = iter(observed(model, monkeypatch))
    for i, layer in enumerate(model.layers):
        bounds = layer_exponents(model, i, layer)
        for norm in ("input norm", "attention norm", "ffn input norm", "ffn norm"):
            assert within(next(found), bounds[f"the {norm}'s output"])
    assert within(next(found), head_exponents(model)["the last norm's output"])
    assert next(found, None) is None


def changed(model: PackedModel, **exponents: int) -> PackedModel:
    """``model`` with other exponents of the scales of its first layer's matrices."""
    layer = model.layers[0]
    parts = {
        name: replace(layer.linear(name), scale=Scale(layer.linear(name).scale.m, np.asarray(e)))
        for name, e in exponents.items()
    }
    return replace(model, layers=[replace(layer, **parts), *model.layers[1:]])


@pytest.mark.parametrize(
    ("exponents", "what"),
    [
        ({"gate_proj": 85, "up_proj": 85}, "the square of the ffn norm's input"),
        ({"gate_proj": -115, "up_proj": -115}, "the square of the ffn norm's input"),
        ({"gate_proj": 500}, "gate_proj's sums"),
        ({"q_proj": 250, "k_proj": 250}, "scores"),
        ({"down_proj": -500}, "down_proj's sums"),
    ],
)
def test_refuses(
    exponents: dict[str, int], what: str, packed: Callable[[str], PackedModel]
) -> None:
    model = changed(packed("odd"), **exponents)
    message = rf"^layer 0: the exponent of {what} can reach -?\d+, scales hold -512\.\.511: rescale"
    with pytest.raises(LutraError, match=message):
        layer_exponents(model, 0, model.layers[0])
    with pytest.raises(LutraError, match=message):
        Decoder(model)


def test_refuses_the_last_norm(packed: Callable[[str], PackedModel]) -> None:
    model = replace(packed("odd"), eps=Scale(np.asarray(1 << 15), np.asarray(700)))
    with pytest.raises(
        LutraError, match=r"^the last norm: the exponent of the last norm's mean sq"
    ):
        head_exponents(model)
