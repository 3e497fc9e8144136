"""Checkpoints in a GGUF file, as if they were a folder of Hugging Face's.

Names of tensors and of configuration fields become those that the architectures are written in. The
architecture ``llama`` has the rows of its query and key matrices in the order of a rotary embedding
that turns neighbours; they are put back into that of two halves, which the others have already.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.gguf_blocks import (
    read_dense,
    read_matrix,
    read_weight,
    ternary_or_dense,
)
from lutra.checkpoints.weights import Dense, Encoded, Grouped, Ternary, Weight
from lutra.formats.config_file import ConfigFile
from lutra.formats.gguf import GgufTensor, Metadata
from lutra.formats.gguf_split import GgufModel
from lutra.formats.gguf_vocabulary import end_tokens
from lutra_golden.errors import LutraError

__all__ = ["ARCHITECTURES", "GgufCheckpoint"]

_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_FREQUENCIES = "rope_freqs.weight"
_TERNARY_TYPES = ("TQ1_0", "TQ2_0", "I2_S")
_MODEL = "tokenizer.ggml.model"


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """Parts of a GGUF architecture beyond Llama's, and its name at Hugging Face."""

    name: str
    activation: str = "silu"
    norms: Mapping[str, str]
    biases: bool = False
    turns_neighbours: bool = False
    ternary: bool = False


_B158 = _Architecture(
    name="BitNetForCausalLM",
    activation="relu2",
    norms={"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
    ternary=True,
)
_LARGE = _Architecture(
    name="BitnetForCausalLM",
    norms={"attn_sub_norm": "self_attn.inner_attn_ln", "ffn_sub_norm": "mlp.ffn_layernorm"},
    ternary=True,
)
_LLAMA = _Architecture(name="LlamaForCausalLM", norms={}, turns_neighbours=True)
_QWEN3_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

ARCHITECTURES: Mapping[str, _Architecture] = {
    "llama": _LLAMA,
    "qwen2": _Architecture(name="Qwen2ForCausalLM", norms={}, biases=True),
    "qwen3": _Architecture(name="Qwen3ForCausalLM", norms=_QWEN3_NORMS),
    "bitnet": _LARGE,
    "bitnet-25": _B158,
    "bitnet-b1.58": _B158,
}
"""By ``general.architecture``. ``bitnet`` stands for both models of that name: squared ReLU is
taken for 2B-4T, whose vocabulary is ``gpt2``, SiLU for ``bitnet_b1_58``, whose is ``llama``."""

# keys of an architecture that are read, or change nothing
_KNOWN = (
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "hidden_activation", "tensor_data_layout", "expert_used_count",
)  # fmt: skip
# keys that change what a model computes unless they have this value
_NEUTRAL = {
    "expert_count": 0, "attention.causal": True, "use_parallel_residual": False,
    "attention.scale": 0.0, "attention.max_alibi_bias": 0.0, "attention.clamp_kqv": 0.0,
    "attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0, "logit_scale": 0.0,
    "embedding_scale": 0.0, "residual_scale": 0.0, "pooling_type": 0,
}  # fmt: skip
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2", "relu_sqr": "relu2"}

# a fork's keys, such as rotations of the weights; a reader that leaves them out gives wrong text
_FORKED = "prism."


class GgufCheckpoint:
    """A GGUF file, or any part of a split one, see :class:`~lutra.checkpoints.base.Checkpoint`.

    Matrices stay as the file has them, see :mod:`~lutra.checkpoints.gguf_blocks`.
    """

    def __init__(self, path: Path) -> None:
        self.file = GgufModel(path)
        self.path = path
        metadata = self.file.metadata
        kind = metadata.text("general.architecture")
        if kind not in ARCHITECTURES:
            raise LutraError(
                f"{path}: architecture {kind!r} is not supported; supported are "
                f"{', '.join(ARCHITECTURES)}: give a model of one of these"
            )
        self._architecture = ARCHITECTURES[kind]
        if kind == "bitnet" and metadata.text(_MODEL, "llama") == "gpt2":
            self._architecture = _B158
        n_layers = metadata.whole(f"{kind}.block_count")
        self._tensors = self._named(n_layers)
        self._head_dim = 0
        self.activation_bits = 8
        self.config = ConfigFile(path, self._config(metadata, kind, n_layers))

    def _named(self, n_layers: int) -> dict[str, GgufTensor]:
        """Tensors by Hugging Face's names; LutraError for one that no architecture here has."""
        of_layer = {f"{old}.weight": new for old, new in _LINEARS.items()}
        of_layer |= {f"{old}.scale": f"{new}.scale" for old, new in _LINEARS.items()}
        norms = _NORMS | dict(self._architecture.norms)
        of_layer |= {f"{old}.weight": new for old, new in norms.items()}
        if self._architecture.biases:
            biased = ("attn_q", "attn_k", "attn_v")
            of_layer |= {f"{old}.bias": f"{_LINEARS[old]}.bias" for old in biased}
        outer: dict[str, str] = {f"{old}.weight": new for old, new in _OUTER.items()}
        outer[_FREQUENCIES] = _FREQUENCIES
        found: dict[str, GgufTensor] = {}
        for name, tensor in self.file.tensors.items():
            new = outer.get(name)
            parts = name.split(".", 2)
            if parts[0] == "blk" and len(parts) == 3 and parts[2] in of_layer:
                number = parts[1]
                if number.isascii() and number.isdigit() and str(int(number[:9])) == number:
                    if int(number) < n_layers:
                        new = f"model.layers.{number}.{of_layer[parts[2]]}"
            if new is None:
                raise LutraError(
                    f"{self.path}: tensor {name} is not supported in a model of architecture "
                    f"{self._architecture.name} with {n_layers} layers: use another model"
                )
            found[new] = tensor
        return found

    def _config(self, metadata: Metadata, kind: str, n_layers: int) -> dict[str, object]:
        """The content of ``config.json``."""
        if forked := sorted(key for key in metadata.keys() if key.startswith(_FORKED)):
            raise LutraError(
                f"{self.path}: {forked[0]} is not supported, it changes what the model computes: "
                "use a model without it"
            )
        self._check_keys(metadata, kind)
        hidden_size = metadata.whole(f"{kind}.embedding_length")
        n_heads = metadata.same_number(f"{kind}.attention.head_count")
        head_dim = metadata.whole(
            f"{kind}.attention.key_length", default=max(hidden_size // n_heads, 1)
        )
        for key in (f"{kind}.attention.value_length", f"{kind}.rope.dimension_count"):
            if metadata.whole(key, default=head_dim) != head_dim:
                raise LutraError(
                    f"{self.path}: {key} must be the size of a head, {head_dim}, "
                    f"not {metadata.whole(key)}: use another model"
                )
        self._head_dim = head_dim
        name = self._architecture.name
        content: dict[str, object] = {
            "hidden_act": self._activation(metadata, kind),
            "vocab_size": self._vocab_size(),
            "hidden_size": hidden_size,
            "intermediate_size": metadata.same_number(f"{kind}.feed_forward_length"),
            "num_hidden_layers": n_layers,
            "num_attention_heads": n_heads,
            "num_key_value_heads": metadata.same_number(
                f"{kind}.attention.head_count_kv", default=n_heads
            ),
            "head_dim": head_dim,
            "max_position_embeddings": metadata.whole(f"{kind}.context_length"),
            "rms_norm_eps": metadata.real(f"{kind}.attention.layer_norm_rms_epsilon"),
            "rope_parameters": self._rope(metadata, kind),
            "eos_token_id": list(end_tokens(metadata)),
            "bos_token_id": None,
        }
        if "tokenizer.ggml.bos_token_id" in metadata:
            content["bos_token_id"] = metadata.whole("tokenizer.ggml.bos_token_id", minimum=0)
        if f"{kind}.attention.sliding_window" in metadata:
            name = "MistralForCausalLM"
            content["sliding_window"] = metadata.whole(f"{kind}.attention.sliding_window")
        if self._architecture.ternary or self._mostly_ternary():
            content["quantization_config"] = {"quant_method": "bitnet"}
        content["architectures"] = [name]
        return content

    def _check_keys(self, metadata: Metadata, kind: str) -> None:
        """Refuse keys of the architecture that are not known."""
        known = (*_KNOWN, *(["attention.sliding_window"] if kind == "llama" else []))
        for name in sorted(metadata.keys()):
            key = name.removeprefix(f"{kind}.")
            if key == name or key in known:
                continue
            value = metadata.value(name)
            if not isinstance(value, int | float) or value != _NEUTRAL.get(key):
                raise LutraError(
                    f"{self.path}: {name} is not supported, it may change what the model "
                    "computes: use a model without it"
                )

    def _activation(self, metadata: Metadata, kind: str) -> str:
        """The feed-forward part's, by its name in ``config.json``."""
        key = f"{kind}.hidden_activation"
        named = metadata.text(key, default=self._architecture.activation)
        if named not in _ACTIVATIONS:
            raise LutraError(
                f"{self.path}: {key} {named!r} is not supported; supported are "
                f"{', '.join(_ACTIVATIONS)}: use a model with one of these"
            )
        return _ACTIVATIONS[named]

    def _vocab_size(self) -> int:
        """Rows of the embedding, or of the head that serves as it."""
        only_head = "lm_head" in self._tensors and "model.embed_tokens" not in self._tensors
        return self.tensor("lm_head" if only_head else "model.embed_tokens").shape[0]

    def _mostly_ternary(self) -> bool:
        """True if most linear layers have a type of ternary weights: a model trained as such."""
        kinds = [
            tensor.kind.name for name, tensor in self._tensors.items() if name.endswith("_proj")
        ]
        return 2 * sum(kind in _TERNARY_TYPES for kind in kinds) > len(kinds)

    def _rope(self, metadata: Metadata, kind: str) -> dict[str, object]:
        """``rope_parameters``: scaling as the metadata has it, or factors in a tensor."""
        prefix = f"{kind}.rope.scaling"
        # a factor without a type is linear
        named = metadata.text(f"{prefix}.type", default="linear")
        old = metadata.real(f"{kind}.rope.scale_linear", default=1.0)
        factor = metadata.real(f"{prefix}.factor", default=old)
        if named not in ("none", "linear", "yarn"):
            raise LutraError(
                f"{self.path}: {prefix}.type {named!r} is not supported; supported are none, "
                "linear and yarn: use a model with one of these"
            )
        rope: dict[str, object] = {
            "rope_theta": metadata.real(f"{kind}.rope.freq_base", default=10000.0)
        }
        if named == "yarn":
            rope |= {"rope_type": "yarn", "factor": factor}
            rope["original_max_position_embeddings"] = metadata.whole(
                f"{prefix}.original_context_length"
            )
            for field in ("beta_fast", "beta_slow"):
                if f"{prefix}.yarn_{field}" in metadata:
                    rope[field] = metadata.real(f"{prefix}.yarn_{field}")
            sharper = 0.1 * math.log(max(factor, 1.0)) + 1
            rope["attention_factor"] = metadata.real(f"{prefix}.attn_factor", 1.0) * sharper
        elif named == "linear" and factor != 1:
            rope |= {"rope_type": "linear", "factor": factor}
        if _FREQUENCIES in self._tensors:
            if "rope_type" in rope:
                raise LutraError(
                    f"{self.path}: {_FREQUENCIES} together with {prefix}.type {named!r} is not "
                    "supported: use a model with one of them"
                )
            factors = self.vector(_FREQUENCIES, self._head_dim // 2)
            rope |= {"rope_type": "factors", "factors": factors.tolist()}
        return rope

    def tensor(self, name: str) -> GgufTensor:
        """The tensor of a matrix or vector, as the file has it."""
        if name not in self._tensors:
            parts = name.removeprefix("model.layers.").split(".", 1)
            number, rest = parts if name.startswith("model.layers.") else ("", name)
            old = {
                new: f"{old}.weight"
                for old, new in (
                    _LINEARS | _NORMS | _OUTER | dict(self._architecture.norms)
                ).items()
            }
            old |= {f"{_LINEARS[each]}.bias": f"{each}.bias" for each in _LINEARS}
            shown = f"blk.{number}.{old.get(rest, rest)}" if number else old.get(rest, rest)
            raise LutraError(f"{self.path} has no tensor {shown}: copy the model again")
        return self._tensors[name]

    def _take(self, name: str, *shape: int) -> tuple[GgufTensor, str]:
        """The tensor of this name and shape, and how messages about it begin."""
        tensor = self.tensor(name)
        where = f"{self.path}: {tensor.name}"
        if tensor.shape != shape:
            raise LutraError(
                f"{where} must be {list(shape)}, not {list(tensor.shape)}: "
                "metadata and tensors are of different models"
            )
        return tensor, where

    def names(self) -> Collection[str]:
        """Names of all tensors that are weights of their own."""
        suffixes = (".scale", _FREQUENCIES)
        return [name for name in self._tensors if not name.endswith(suffixes)]

    def expect(self, name: str, *shape: int) -> None:
        """Refuse what is missing or has another shape."""
        self._take(name, *shape)

    def linear(self, name: str, n: int, k: int) -> Weight:
        """The matrix of a linear layer, as the file has it."""
        tensor, where = self._take(name, n, k)
        weight = read_weight(tensor.kind, self.file.bytes(tensor), n, k, where)
        if isinstance(weight, Dense) and self._architecture.ternary:
            weight = ternary_or_dense(weight)
        if f"{name}.scale" in self._tensors:
            scale = float(self.vector(f"{name}.scale", 1)[0])
            if scale <= 0:
                raise LutraError(
                    f"{self.path}: {self._tensors[f'{name}.scale'].name} must be positive, "
                    f"not {scale}: convert the model again"
                )
            weight = _scaled(weight, scale)
        turned = name.endswith(("q_proj", "k_proj")) and self._architecture.turns_neighbours
        return _take_rows(weight, halves(n, self._head_dim)) if turned else weight

    def matrix(self, name: str, n: int, k: int) -> Dense | Encoded:
        """A matrix in floating point."""
        tensor, where = self._take(name, n, k)
        return read_matrix(tensor.kind, self.file.bytes(tensor), n, k, where)

    def vector(self, name: str, n: int) -> NDArray[np.float32]:
        """A norm's weights, or a bias."""
        tensor, where = self._take(name, n)
        values = read_dense(tensor.kind, self.file.bytes(tensor), 1, n, where).values[0]
        return values.astype(np.float32)


def halves(n: int, head_dim: int) -> NDArray[np.int64]:
    """Rows of heads whose neighbours turn together, in the order of heads whose halves do."""
    if head_dim % 2 or n % head_dim:
        raise LutraError(f"{n} rows cannot be heads of {head_dim}: the sizes contradict each other")
    return np.arange(n).reshape(-1, head_dim // 2, 2).swapaxes(1, 2).ravel()


def _take_rows(weight: Weight, order: NDArray[np.int64]) -> Weight:
    if isinstance(weight, Dense):
        return Dense(weight.values[order])
    if isinstance(weight, Ternary):
        return Ternary(weight.codes[order], weight.scale)
    if isinstance(weight, Grouped):
        return weight.rows(order)
    return replace(weight, weights=weight.weights.rows(order))


def _scaled(weight: Weight, scale: float) -> Weight:
    if isinstance(weight, Dense):
        return Dense(weight.values.astype(np.float32) * np.float32(scale))
    if isinstance(weight, Grouped):
        return weight.scaled(np.float32(scale))
    return replace(weight, scale=weight.scale * scale)
