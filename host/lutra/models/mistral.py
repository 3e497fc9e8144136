"""Mistral: Llama with attention to a window of latest positions.

Source: "Mistral 7B" (arXiv 2310.06825), section 2. Names and layout are those of transformers'
``MistralForCausalLM``.
"""

from collections.abc import Mapping
from dataclasses import replace

from lutra.checkpoints.base import Checkpoint
from lutra.models.decoder import Decoder, read_config, read_decoder
from lutra_golden.model.shapes import Gate

__all__ = ["DEFAULTS", "MISTRAL", "read_mistral"]

MISTRAL = "MistralForCausalLM"
DEFAULTS: Mapping[str, object] = {
    "hidden_act": "silu", "max_position_embeddings": 131072, "num_key_value_heads": 8,
    "head_dim": None, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Values of fields that ``config.json`` leaves out."""


def read_mistral(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a Mistral checkpoint; ``sliding_window`` is null in models that see everything."""
    file = checkpoint.config.with_defaults(DEFAULTS)
    file.require("hidden_act", file.get("hidden_act"), "silu", advice="use a SwiGLU model")
    config = read_config(file, Gate.SILU)
    if file.get("sliding_window") is not None:
        window = file.whole("sliding_window")
        config = replace(config, windows=(window,) * config.num_hidden_layers)
    return read_decoder(checkpoint, config, name=name)
