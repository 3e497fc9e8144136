"""BitNet b1.58: ternary weights, 8-bit activations, norms before the output and down projections.

Sources: "BitNet b1.58 2B4T Technical Report" (arXiv 2504.12285), section 2, which has squared
ReLU; "The Era of 1-bit LLMs" (arXiv 2402.17764), whose ``bitnet_b1_58-large`` has SiLU, other names
for its norms, and master weights in floating point that are made ternary as they are read.
"""

from lutra.checkpoints.base import Checkpoint
from lutra.models.decoder import Decoder, read_config, read_decoder
from lutra_golden.model.shapes import Gate

__all__ = ["BITNET", "BITNET_LARGE", "read_bitnet"]

BITNET = "BitNetForCausalLM"
BITNET_LARGE = "BitnetForCausalLM"
_GATES = {"relu2": Gate.RELU2, "silu": Gate.SILU}


def read_bitnet(checkpoint: Checkpoint, name: str) -> Decoder:
    """Read a BitNet checkpoint; its linear layers are ternary whatever the file holds."""
    file = checkpoint.config
    act = file.get("hidden_act")
    file.require("hidden_act", act, *_GATES, advice="use a BitNet model with one of these")
    for bits, expected in (("weight_bits", 1), ("input_bits", 8)):
        file.require(bits, file.get(bits), None, expected, advice="use a b1.58 model")
    large = file.architecture == BITNET_LARGE
    names = ("self_attn.inner_attn_ln", "mlp.ffn_layernorm")
    return read_decoder(
        checkpoint,
        read_config(file, _GATES[str(act)]),
        name=name,
        sub_norms=names if large else ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
        activation_bits=8,
    )
