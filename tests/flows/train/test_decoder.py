"""The decoder that both models share keeps the names of their checkpoints."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from safetensors import safe_open

from lutra_flows.train.decoder import DecoderParams, RMSNorm, rope_tables, rotate
from lutra_flows.train.export import load_checkpoint
from lutra_flows.train.llama import LlamaForCausalLM
from lutra_flows.train.model import BitNetForCausalLM

DATA = Path(__file__).resolve().parents[3] / "host/lutra/models/data"


@pytest.mark.parametrize(
    ("name", "kind"), [("tales", BitNetForCausalLM), ("tales-llama", LlamaForCausalLM)]
)
def test_shipped_checkpoints_have_the_names_of_the_modules(name, kind):
    folder = DATA / name
    model = load_checkpoint(folder)
    assert isinstance(model, kind)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        names = {key for key in file.keys() if not key.endswith("_scale")}
    assert set(model.state_dict()) == names
    config = json.loads((folder / "config.json").read_text())
    assert model.params == type(model.params)(
        **{key: config[key] for key in DecoderParams.__dataclass_fields__}
    )


def test_norm_divides_by_the_root_of_the_mean_square():
    norm = RMSNorm(2, 0.0)
    torch.testing.assert_close(
        norm(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 4.0]]) / 12.5**0.5
    )


def test_rotating_keeps_lengths_and_the_first_position():
    cos, sin = rope_tables(DecoderParams(head_dim=8, max_position_embeddings=4))
    heads = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(heads, cos, sin)
    assert torch.equal(turned[0], heads[0])
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1))
