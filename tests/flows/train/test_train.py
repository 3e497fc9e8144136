"""The training loop: the same twice, and the same when it is interrupted."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from lutra_flows.train.model import BitNetParams
from lutra_flows.train.train import TALES, TrainParams, learning_rate, train

MODEL = BitNetParams(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=16,
)
PARAMS = TrainParams(model=MODEL, n_steps=8, batch_size=4, warmup_steps=2, seed=5)


def windows(epoch: int):
    starts = np.random.default_rng(epoch).integers(0, 32, (20, 1))
    return (starts + np.arange(17)) % 32


@pytest.mark.parametrize("bfloat16", [False, True])
def test_two_runs_give_the_same_losses(bfloat16):
    params = replace(PARAMS, bfloat16=bfloat16)
    first, second = train(params, windows), train(params, windows)
    assert len(first.losses) == 8
    assert first.losses == second.losses


def test_loss_falls():
    losses = train(replace(PARAMS, n_steps=30, dropout=0.0), windows).losses
    assert losses[-1] < 0.9 * losses[0]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    def stop_at_5(epoch: int):
        if epoch == 1:
            raise KeyboardInterrupt
        return windows(epoch)

    whole = train(PARAMS, windows)
    with pytest.raises(KeyboardInterrupt):
        train(PARAMS, stop_at_5, run=tmp_path, checkpoint_every=3)
    rest = train(PARAMS, windows, run=tmp_path, checkpoint_every=3)
    assert rest.losses == whole.losses[3:]
    assert train(PARAMS, windows, run=tmp_path).losses == []


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(TALES, step) for step in range(TALES.n_steps + 1)]
    assert max(rates) == rates[TALES.warmup_steps] == TALES.peak_learning_rate
    assert rates[0] == TALES.peak_learning_rate / TALES.warmup_steps
    assert rates[-1] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "n_steps must be positive, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
    ],
)
def test_bad_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        TrainParams(**change)
