"""Mistral: Llama with attention to a window of latest positions.

Source: "Mistral 7B" (arXiv 2310.06825), section 2. Names and layout are those of transformers'
``MistralForCausalLM``.
"""

from dataclasses import replace

from lutra.checkpoints.base import Checkpoint
from lutra.models.decoder import Decoder, read_config, read_decoder
from lutra_golden.model.shapes import Gate

__all__ = ["MISTRAL", "read_mistral"]

MISTRAL = "MistralForCausalLM"


def read_mistral(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a Mistral checkpoint; ``sliding_window`` is null in models that see everything."""
    file = checkpoint.config
    file.require("hidden_act", file.get("hidden_act"), "silu", None, advice="use a SwiGLU model")
    config = read_config(file, Gate.SILU)
    if file.get("sliding_window") is not None:
        window = file.whole("sliding_window")
        config = replace(config, windows=(window,) * config.num_hidden_layers)
    return read_decoder(checkpoint, config, name=name)
