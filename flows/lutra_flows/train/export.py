"""Checkpoints in Hugging Face's layout, and back.

BitNet is packed as microsoft/bitnet-b1.58-2B-4T, Llama is bfloat16 as any ``LlamaForCausalLM``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lutra_flows.train.decoder import CausalLM, DecoderParams
from lutra_flows.train.llama import LlamaForCausalLM, LlamaParams
from lutra_flows.train.model import BitNetForCausalLM, BitNetParams, ternarize

__all__ = ["checkpoint_tensors", "export_checkpoint", "load_checkpoint", "pack", "unpack"]


def pack(ternary: Tensor) -> Tensor:
    """Pack ``[out, in]`` values -1, 0, 1 to uint8 ``[out / 4, in]``.

    Bits ``2i + 1 : 2i`` of row ``r`` hold row ``i * out / 4 + r``, plus one.
    """
    if ternary.shape[0] % 4:
        raise ValueError(f"out features must be a multiple of 4, not {ternary.shape[0]}")
    quarters = (ternary + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def unpack(packed: Tensor) -> Tensor:
    """Inverse of :func:`pack`; float32 ``[out, in]``."""
    return torch.cat([(packed >> shift & 3).float() - 1 for shift in (0, 2, 4, 6)])


def checkpoint_tensors(model: CausalLM) -> dict[str, Tensor]:
    """The tensors of ``model.safetensors``, by name; the head is tied to the embedding."""
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("_proj.weight") and isinstance(model, BitNetForCausalLM):
            ternary, scale = ternarize(tensor)
            out[name] = pack(ternary)
            out[f"{name}_scale"] = scale.reshape(1).bfloat16()
        else:
            out[name] = tensor.bfloat16()
    return {name: out[name].contiguous() for name in sorted(out)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_BITNET_CONFIG = {
    "architectures": ["BitNetForCausalLM"],
    "hidden_act": "relu2",
    "model_type": "bitnet",
    "quantization_config": {
        "linear_class": "autobitlinear",
        "quant_method": "bitnet",
        "quantization_mode": "offline",
    },
}
_LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_scaling": None,
}


def export_checkpoint(model: CausalLM, folder: Path, *, bos: int, eos: int) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``generation_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = save(checkpoint_tensors(model), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(tensors)
    config = {
        **vars(model.params),
        **(_LLAMA_CONFIG if isinstance(model, LlamaForCausalLM) else _BITNET_CONFIG),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    _write_json(folder / "config.json", config)
    generation = {"bos_token_id": bos, "do_sample": True, "eos_token_id": eos, "temperature": 0.7}
    _write_json(folder / "generation_config.json", generation)


def load_checkpoint(folder: Path) -> CausalLM:
    """Load an exported checkpoint, to be evaluated in float32.

    BitNet quantises its weights, so it is given weights that quantise to the stored ones:
    ternary values over their share of nonzeros have an absmean of one.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    sizes = {name: config[name] for name in DecoderParams.__dataclass_fields__}
    state: dict[str, Tensor] = {}
    if config["architectures"] == _LLAMA_CONFIG["architectures"]:
        model: CausalLM = LlamaForCausalLM(LlamaParams(**sizes))
        state = {name: tensor.float() for name, tensor in tensors.items()}
    else:
        model = BitNetForCausalLM(BitNetParams(**sizes))
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                ternary = unpack(tensor)
                scale = tensors[f"{name}_scale"].float()
                state[name] = ternary * (scale / ternary.abs().mean().clamp_min(1e-5))
            elif not name.endswith("_proj.weight_scale"):
                state[name] = tensor.float()
    model.load_state_dict(state)
    return model.eval()
