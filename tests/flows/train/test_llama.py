"""The float model: causal, and the one that transformers calls Llama."""

import pytest

pytest.importorskip("torch")

import torch

from lutra_flows.train.evaluate import load_checkpoint
from lutra_flows.train.export import export_checkpoint
from lutra_flows.train.llama import LlamaForCausalLM, LlamaParams

SMALL = LlamaParams(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16,
)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="head_dim must be even, not 7"):
        LlamaParams(head_dim=7)


def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    model = LlamaForCausalLM(SMALL).eval()
    tokens = torch.randint(0, 64, (1, 12))
    changed = tokens.clone()
    changed[0, 7:] = 1
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :7], model(changed)[:, :7])


def test_it_is_the_llama_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    export_checkpoint(LlamaForCausalLM(SMALL), tmp_path, bos=0, eos=1)
    ours = load_checkpoint(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 64, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
