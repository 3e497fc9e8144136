"""Perplexity windows, perplexity of a model that knows nothing, and the model card."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from lutra_flows.train.card import model_card
from lutra_flows.train.evaluate import perplexity, sample, text_windows
from lutra_flows.train.model import BitNetForCausalLM, BitNetParams
from lutra_flows.train.tokenizer import train_tokenizer
from lutra_flows.train.train import TALES

TEXT = "The fox and the goose went to the mill.\n" * 5
PARAMS = BitNetParams(
    vocab_size=270,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=16,
)


@pytest.mark.parametrize("n_tokens", [1, 7, 8, 14, 15])
def test_every_token_is_predicted_once(n_tokens):
    tokens = np.arange(1, n_tokens + 1)
    windows, n_filled = text_windows(tokens, window=8, bos=0)
    assert windows.shape[1] == 8
    assert (windows[:, 0] == 0).all()
    body = windows[:, 1:].flatten()
    assert np.array_equal(body[: len(body) - n_filled], tokens)


def test_perplexity_of_uniform_logits_is_the_vocabulary():
    tokenizer = train_tokenizer([TEXT], vocab_size=270)
    model = BitNetForCausalLM(PARAMS)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    result = perplexity(model, tokenizer, TEXT)
    assert result.perplexity == pytest.approx(270, rel=1e-5)
    assert result.n_tokens == len(tokenizer.encode(TEXT, add_special_tokens=False).ids)
    assert result.bits_per_char == pytest.approx(np.log2(270) * result.n_tokens / len(TEXT))


def test_a_sample_follows_from_its_seed_and_begins_with_the_prompt():
    tokenizer = train_tokenizer([TEXT], vocab_size=270)
    torch.manual_seed(0)
    model = BitNetForCausalLM(PARAMS)
    first, second = (sample(model, tokenizer, "The fox", seed=4) for _ in range(2))
    assert first == second
    assert first.startswith("The fox")


def test_the_card_states_the_measurement():
    tokenizer = train_tokenizer([TEXT], vocab_size=270)
    measured = perplexity(BitNetForCausalLM(PARAMS), tokenizer, TEXT)
    card = model_card(TALES, measured, "Once upon\na time", seconds=3600, threads=2)
    assert f"| {measured.perplexity:.3f} +/-" in card
    assert "60 minutes" in card
    assert "> Once upon\n>\n> a time" in card
