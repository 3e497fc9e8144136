"""Llama 2 and 3, and models of their architecture: SmolLM, Falcon3 (also ternary), and others.

Sources: "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288); "The Llama 3 Herd
of Models" (arXiv 2407.21783). Names and layout are those of transformers' ``LlamaForCausalLM``.
"""

from collections.abc import Mapping

from lutra.checkpoints.base import Checkpoint
from lutra.models.decoder import Decoder, read_config, read_decoder
from lutra_golden.model.shapes import Gate

__all__ = ["DEFAULTS", "LLAMA", "read_llama"]

LLAMA = "LlamaForCausalLM"
DEFAULTS: Mapping[str, object] = {
    "hidden_act": "silu", "max_position_embeddings": 2048, "num_key_value_heads": None,
    "head_dim": None, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": False,
    "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Values of fields that ``config.json`` leaves out."""


def read_llama(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a Llama checkpoint."""
    file = checkpoint.config.with_defaults(DEFAULTS)
    file.require("hidden_act", file.get("hidden_act"), "silu", advice="use a SwiGLU model")
    for field in ("attention_bias", "mlp_bias"):
        advice = "use a model without these biases"
        file.require(field, file.flag(field), False, advice=advice)
    ternary = file.get("quant_method", "quantization_config") == "bitnet"
    return read_decoder(
        checkpoint,
        read_config(file, Gate.SILU),
        name=name,
        activation_bits=8 if ternary else None,
    )
