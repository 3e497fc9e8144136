"""Qwen2 and Qwen2.5, with biases on queries, keys and values; Qwen3, with normalised heads instead.

Sources: "Qwen2 Technical Report" (arXiv 2407.10671), section 2.2; "Qwen3 Technical Report" (arXiv
2505.09388), section 2. Names and layout are those of transformers' ``Qwen2ForCausalLM`` and
``Qwen3ForCausalLM``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from lutra.checkpoints.base import Checkpoint
from lutra.formats.config_file import ConfigFile
from lutra.models.decoder import Decoder, DecoderConfig, read_config, read_decoder
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import Gate

__all__ = ["QWEN2", "QWEN2_DEFAULTS", "QWEN3", "QWEN3_DEFAULTS", "read_qwen2", "read_qwen3"]

QWEN2 = "Qwen2ForCausalLM"
QWEN3 = "Qwen3ForCausalLM"
QWEN2_DEFAULTS: Mapping[str, object] = {
    "hidden_act": "silu", "max_position_embeddings": 32768, "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28, "layer_types": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
"""Values of fields that the ``config.json`` of a Qwen2 leaves out."""
QWEN3_DEFAULTS: Mapping[str, object] = {
    **QWEN2_DEFAULTS, "head_dim": 128, "attention_bias": False
}  # fmt: skip
"""Values of fields that the ``config.json`` of a Qwen3 leaves out."""
_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_qwen2(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a Qwen2 or Qwen2.5 checkpoint."""
    config = _config(checkpoint.config.with_defaults(QWEN2_DEFAULTS))
    return read_decoder(checkpoint, config, name=name, biases=True)


def read_qwen3(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a Qwen3 checkpoint (dense; mixtures of experts have another architecture)."""
    file = checkpoint.config.with_defaults(QWEN3_DEFAULTS)
    advice = "use a model without these biases"
    file.require("attention_bias", file.flag("attention_bias"), False, advice=advice)
    return read_decoder(checkpoint, _config(file), name=name, qk_norm=True)


def _config(file: ConfigFile) -> DecoderConfig:
    file.require("hidden_act", file.get("hidden_act"), "silu", advice="use a SwiGLU model")
    config = read_config(file, Gate.SILU)
    if not file.flag("use_sliding_window"):
        return config
    window, n = file.whole("sliding_window"), config.num_hidden_layers
    kinds = file.get("layer_types")
    if kinds is None:
        first = file.get("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise LutraError(
                f"{file.path}: max_window_layers must be a number of layers, not {first!r}"
            )
        kinds = [_SLIDING if i >= first else _FULL for i in range(n)]
    if not isinstance(kinds, list) or len(cast("list[object]", kinds)) != n:
        raise LutraError(f"{file.path}: layer_types must have {n} entries, one per layer")
    for kind in cast("list[object]", kinds):
        advice = "use a model with these kinds of attention"
        file.require("layer_types", kind, _SLIDING, _FULL, advice=advice)
    windows = tuple(window if kind == _SLIDING else 0 for kind in cast("list[object]", kinds))
    return replace(config, windows=windows)
