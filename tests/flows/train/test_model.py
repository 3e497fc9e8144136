"""The quantised linear and the model around it."""

import pytest

pytest.importorskip("torch")

import torch

from lutra_flows.train.model import (
    BitNetForCausalLM,
    BitNetParams,
    quantize_activation,
    ternarize,
)

SMALL = BitNetParams(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be positive, not 0"),
        ({"num_attention_heads": 3}, r"a multiple of num_key_value_heads \(2\), not 3"),
        ({"head_dim": 63}, "head_dim must be even, not 63"),
    ],
)
def test_bad_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        BitNetParams(**change)


def test_ternarize_is_absmean():
    values, scale = ternarize(torch.tensor([[0.1, -0.4], [2.0, -0.5]]))
    assert scale == pytest.approx(0.75)
    assert values.tolist() == [[0, -1], [1, -1]]


def test_activations_are_quantised_per_token():
    values, step = quantize_activation(torch.tensor([[0.5, -1.0], [0.0, 0.0], [254.0, 3.0]]))
    assert values.tolist() == [[64, -127], [0, 0], [127, 2]]
    assert step[[0, 2], 0].tolist() == pytest.approx([1 / 127, 2.0])


def test_gradients_pass_straight_through():
    from lutra_flows.train.model import _BitLinear

    torch.manual_seed(0)
    x = torch.randn(3, 5, 8, requires_grad=True)
    weights = [torch.randn(4, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)]
    grad = torch.randn(3, 5, 10)
    _BitLinear.apply(x, torch.float32, *weights).backward(grad)
    got = [x.grad, *(w.grad for w in weights)]

    values, step = quantize_activation(x.detach())
    x_hat = (values * step).requires_grad_()
    w_hat = [(t * s).requires_grad_() for t, s in (ternarize(w.detach()) for w in weights)]
    (x_hat @ torch.cat(w_hat).T).backward(grad)
    for a, b in zip(got, [x_hat.grad, *(w.grad for w in w_hat)], strict=True):
        torch.testing.assert_close(a, b)


def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    model = BitNetForCausalLM(SMALL).eval()
    tokens = torch.randint(0, 64, (1, 12))
    changed = tokens.clone()
    changed[0, 7:] = 1
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :7], model(changed)[:, :7])
