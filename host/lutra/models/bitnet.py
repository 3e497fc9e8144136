"""BitNet b1.58: ternary weights, 8-bit activations, norms before the output and down projections.

Sources: "BitNet b1.58 2B4T Technical Report" (arXiv 2504.12285), section 2, which has squared
ReLU; "The Era of 1-bit LLMs" (arXiv 2402.17764), whose ``bitnet_b1_58-large`` has SiLU, other names
for its norms, and master weights in floating point that are made ternary as they are read, without
saying so in its ``config.json``.
"""

from collections.abc import Mapping

from lutra.checkpoints.base import Checkpoint
from lutra.models.decoder import Decoder, read_config, read_decoder
from lutra.models.llama import DEFAULTS as LLAMA_DEFAULTS
from lutra_golden.model.shapes import Gate

__all__ = ["BITNET", "BITNET_LARGE", "DEFAULTS", "read_bitnet"]

BITNET = "BitNetForCausalLM"
BITNET_LARGE = "BitnetForCausalLM"
DEFAULTS: Mapping[str, object] = {
    "hidden_act": "relu2", "max_position_embeddings": 2048, "num_key_value_heads": 5,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "attention_bias": False,
    "bos_token_id": 128000, "eos_token_id": 128001,
}  # fmt: skip
"""Values of fields that the ``config.json`` of a 2B4T leaves out; the other has Llama's."""
_GATES = {"relu2": Gate.RELU2, "silu": Gate.SILU}


def read_bitnet(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a BitNet checkpoint: ternary where it says so, in floating point where it does not."""
    large = checkpoint.config.architecture == BITNET_LARGE
    file = checkpoint.config.with_defaults(LLAMA_DEFAULTS if large else DEFAULTS)
    act = file.get("hidden_act")
    file.require("hidden_act", act, *_GATES, advice="use a BitNet model with one of these")
    for bits, expected in (("weight_bits", 1), ("input_bits", 8)):
        file.require(bits, file.get(bits), None, expected, advice="use a b1.58 model")
    advice = "use a model without these biases"
    file.require("attention_bias", file.flag("attention_bias"), False, advice=advice)
    ternary = large or file.get("quant_method", "quantization_config") == "bitnet"
    names = ("self_attn.inner_attn_ln", "mlp.ffn_layernorm")
    return read_decoder(
        checkpoint,
        read_config(file, _GATES[str(act)]),
        name=name,
        sub_norms=names if large else ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
        activation_bits=8 if ternary else None,
    )
