"""The packed checkpoint: names, shapes, bytes, and the model read back from it."""

import json

import pytest

pytest.importorskip("torch")

import torch

from lutra_flows.train.export import (
    checkpoint_tensors,
    export_checkpoint,
    load_checkpoint,
    pack,
    unpack,
)
from lutra_flows.train.llama import LlamaForCausalLM, LlamaParams
from lutra_flows.train.model import BitNetForCausalLM, BitNetParams, ternarize

PARAMS = BitNetParams(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=16,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return BitNetForCausalLM(PARAMS).eval()


def test_packing_strides_rows_by_a_quarter():
    ternary = torch.tensor([[-1], [0], [1], [0], [1], [1], [-1], [1]])
    # Row 0 holds rows 0, 2, 4, 6; row 1 holds rows 1, 3, 5, 7; two bits each, lowest first.
    assert pack(ternary).tolist() == [[0b00_10_10_00], [0b10_10_01_01]]


@pytest.mark.parametrize("shape", [(4, 1), (12, 7), (256, 33)])
def test_packing_round_trip(shape):
    ternary = torch.randint(-1, 2, shape).float()
    packed = pack(ternary)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed), ternary)


def test_rows_that_do_not_pack_are_refused():
    with pytest.raises(ValueError, match="out features must be a multiple of 4, not 6"):
        pack(torch.zeros(6, 2))


def test_names_shapes_and_types_are_those_of_the_published_checkpoint(model):
    found = {name: (t.dtype, tuple(t.shape)) for name, t in checkpoint_tensors(model).items()}
    bf16, u8 = torch.bfloat16, torch.uint8
    expected = {"model.embed_tokens.weight": (bf16, (64, 32)), "model.norm.weight": (bf16, (32,))}
    for i in range(2):
        layer = f"model.layers.{i}"
        for name, n in {
            "input_layernorm": 32,
            "post_attention_layernorm": 32,
            "self_attn.attn_sub_norm": 32,
            "mlp.ffn_sub_norm": 48,
        }.items():
            expected[f"{layer}.{name}.weight"] = (bf16, (n,))
        for name, shape in {
            "self_attn.q_proj": (8, 32),
            "self_attn.k_proj": (4, 32),
            "self_attn.v_proj": (4, 32),
            "self_attn.o_proj": (8, 32),
            "mlp.gate_proj": (12, 32),
            "mlp.up_proj": (12, 32),
            "mlp.down_proj": (8, 48),
        }.items():
            expected[f"{layer}.{name}.weight"] = (u8, shape)
            expected[f"{layer}.{name}.weight_scale"] = (bf16, (1,))
    assert found == expected


def test_export_is_deterministic_and_loads(model, tmp_path):
    for name in ("a", "b"):
        export_checkpoint(model, tmp_path / name, bos=0, eos=1)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["architectures"] == ["BitNetForCausalLM"]
    assert config["quantization_config"]["linear_class"] == "autobitlinear"
    assert config["tie_word_embeddings"] is True

    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.params == PARAMS
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        if name.endswith("_proj.weight"):
            (ternary, scale), (ternary_b, scale_b) = ternarize(a), ternarize(b)
            assert torch.equal(ternary, ternary_b)
            torch.testing.assert_close(scale_b, scale.bfloat16().float(), rtol=1e-6, atol=0)
        else:
            assert torch.equal(a.bfloat16().float(), b)


def test_llama_is_exported_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaParams(**vars(PARAMS))).eval()
    export_checkpoint(model, tmp_path, bos=0, eos=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_act"] == "silu"
    assert "quantization_config" not in config
    loaded = load_checkpoint(tmp_path)
    assert isinstance(loaded, LlamaForCausalLM)
    assert loaded.params == model.params
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a.bfloat16().float(), b), name
