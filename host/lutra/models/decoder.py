"""Parts common to the architectures: a decoder's sizes, its layers, its float forward pass.

The forward pass is the yardstick of the integer path and what quantisers measure; it is never on
the token path. An architecture's file says where in a checkpoint each part is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.base import Checkpoint
from lutra.checkpoints.exact_grids import on_grid
from lutra.checkpoints.weights import Dense, Encoded, Integers, Weight
from lutra.formats.config_file import ConfigFile
from lutra.models.layers import (
    Float,
    causal_attention,
    rms_norm,
    rotation,
    round_activations,
    split_heads,
)
from lutra.models.rope import Rope, read_rope
from lutra.parallel import each_of
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.model.shapes import LINEARS, Gate, linear_shapes

__all__ = [
    "CONTEXT",
    "LAYERS",
    "OUTER",
    "Decoder",
    "DecoderConfig",
    "DecoderLayer",
    "LayerReader",
    "LazyLayers",
    "Tap",
    "matrix_name",
    "read_config",
    "read_decoder",
]

_PATHS = {name: "self_attn" if name[0] in "qkvo" else "mlp" for name in LINEARS}
OUTER = ("model.embed_tokens", "lm_head")
"""Names of embedding and head; a file may have one of them for both."""
LAYERS = "model.layers."
"""How the names of layers' tensors begin."""

Tap = Callable[[str, Float], None]
"""Called with the name of a matrix and its input ``[T, K]``; those that share one share a call."""
_Vector = NDArray[np.float32]
CONTEXT = 4096
"""Positions of the KV cache, unless more are asked for or the model has fewer."""
_ROWS = 8192  # of the head, at a time
_WEIGHTS = 1 << 20  # that are dequantised at a time: with fewer, threads wait for each other
_EPS_MAX = 1.0  # models have 1e-5 or less


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and constants, named as in ``config.json``.

    ``eos_token_id`` are all tokens that end a text; ``bos_token_id`` may be missing. ``windows``
    has for each layer the number of latest positions that it attends to, 0 for all.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: Rope
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    gate: Gate
    windows: tuple[int, ...]

    @property
    def q_size(self) -> int:
        """Width of all queries together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys together, and of all values."""
        return self.num_key_value_heads * self.head_dim

    def shape_of(self, linear: str) -> tuple[int, int]:
        """Rows and depth of a layer's matrix."""
        return linear_shapes(self.hidden_size, self.intermediate_size, self.q_size, self.kv_size)[
            linear
        ]


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """One decoder layer; a part that an architecture does not have is None.

    Biases are those of queries, keys and values; ``q_norm`` and ``k_norm`` normalise each head.
    ``k_centre`` is taken from keys that are rotated, before they are rounded: no softmax changes.
    ``exempt`` names matrices that a checkpoint of ternary layers leaves in floating point, whose
    inputs are not rounded either, until they are integers.
    """

    q_proj: Weight
    k_proj: Weight
    v_proj: Weight
    o_proj: Weight
    gate_proj: Weight
    up_proj: Weight
    down_proj: Weight
    input_layernorm: _Vector
    post_attention_layernorm: _Vector
    q_bias: _Vector | None = None
    k_bias: _Vector | None = None
    v_bias: _Vector | None = None
    k_centre: _Vector | None = None
    q_norm: _Vector | None = None
    k_norm: _Vector | None = None
    attn_sub_norm: _Vector | None = None
    ffn_sub_norm: _Vector | None = None
    exempt: frozenset[str] = frozenset()

    @classmethod
    def of(cls, matrices: Mapping[str, Weight], vectors: Mapping[str, _Vector]) -> "DecoderLayer":
        """A layer of matrices and vectors by their names; those in :data:`LINEARS`, and the two
        norms, must be there."""
        layer = cls(
            q_proj=matrices["q_proj"],
            k_proj=matrices["k_proj"],
            v_proj=matrices["v_proj"],
            o_proj=matrices["o_proj"],
            gate_proj=matrices["gate_proj"],
            up_proj=matrices["up_proj"],
            down_proj=matrices["down_proj"],
            input_layernorm=vectors["input_layernorm"],
            post_attention_layernorm=vectors["post_attention_layernorm"],
        )
        return replace(layer, **vectors)

    def linear(self, name: str) -> Weight:
        """A matrix by its name in :data:`LINEARS`."""
        weight: Weight = getattr(self, name)
        return weight


LayerReader = Callable[[int], DecoderLayer]


class LazyLayers(Sequence[DecoderLayer]):
    """Layers that are read when they are asked for, and not kept."""

    def __init__(self, read: LayerReader, n: int) -> None:
        self._read, self._n = read, n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> DecoderLayer: ...
    @overload
    def __getitem__(self, index: slice) -> list[DecoderLayer]: ...
    def __getitem__(self, index: int | slice) -> DecoderLayer | list[DecoderLayer]:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._n))]
        if not 0 <= index < self._n:
            raise IndexError(f"layer must be in 0..{self._n - 1}, not {index}")
        return self._read(index)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A whole model. ``lm_head`` is None if the embedding is also the head.

    ``activation_bits`` rounds the inputs of the layers' matrices per token, as on an accelerator;
    ``head_bits`` rounds the input of the head, both in ``activation_groups`` if there are any;
    ``made_for_a_bits`` are the bits of activations that the checkpoint was quantised for.
    ``query_bits``, ``key_bits`` and ``value_bits`` round each head of queries, keys and values.
    """

    name: str
    architecture: str
    config: DecoderConfig
    layers: Sequence[DecoderLayer]
    embed_tokens: Dense | Encoded  # [V, D]
    norm: _Vector
    lm_head: Dense | Encoded | None = None
    activation_bits: int | None = None
    head_bits: int | None = None
    activation_groups: ActivationGroups | None = None
    query_bits: int | None = None
    key_bits: int | None = None
    value_bits: int | None = None
    dtype: type[np.floating] = field(default=np.float64)
    made_for_a_bits: int = 8

    def forward(self, tokens: NDArray[np.int64]) -> Float:
        """Logits ``[T, V]`` of a window of tokens, in ``dtype``."""
        return self.logits(self.stream(tokens))

    def stream(self, tokens: NDArray[np.int64]) -> Float:
        """The residual stream ``[T, D]`` after the last layer."""
        x = self.embed(tokens)
        for layer, window in zip(self.layers, self.config.windows, strict=True):
            x = self.layer(layer, x, window)
        return x

    def embed(self, tokens: NDArray[np.int64]) -> Float:
        """The residual stream ``[T, D]`` before the first layer."""
        x: Float = self.embed_tokens.take(tokens).astype(self.dtype)  # pyright: ignore[reportAssignmentType]
        return x

    def layer(
        self, layer: DecoderLayer, x: Float, window: int = 0, tap: Tap | None = None
    ) -> Float:
        """The residual stream ``[T, D]`` after a layer; ``tap`` sees the matrices' inputs."""
        c, record = self.config, tap or _no_tap
        cos, sin = c.rope.table(len(x), c.head_dim, c.max_position_embeddings)
        rotate = rotation(cos.astype(x.dtype), sin.astype(x.dtype))
        h = rms_norm(x, layer.input_layernorm, c.rms_norm_eps)
        record("q_proj", h)
        rounded = self._activations(h, self.activation_bits)
        q, k, v = (
            split_heads(_biased(self._product(layer, name, h, rounded), bias), c.head_dim)
            for name, bias in (
                ("q_proj", layer.q_bias),
                ("k_proj", layer.k_bias),
                ("v_proj", layer.v_bias),
            )
        )  # [H, T, Dh] each
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rms_norm(q, layer.q_norm, c.rms_norm_eps)
            k = rms_norm(k, layer.k_norm, c.rms_norm_eps)
        q = np.multiply(*self._rounded(rotate(q), self.query_bits))
        k = rotate(k)
        if layer.k_centre is not None and self.key_bits is not None:
            k = k - layer.k_centre.reshape(len(k), 1, c.head_dim).astype(k.dtype)
        k = np.multiply(*self._rounded(k, self.key_bits))
        v = np.multiply(*self._rounded(v, self.value_bits))
        h = causal_attention(q, k, v, window)
        if layer.attn_sub_norm is not None:
            h = rms_norm(h, layer.attn_sub_norm, c.rms_norm_eps)
        record("o_proj", h)
        rounded = self._activations(h, self.activation_bits, c.head_dim)
        x = x + self._product(layer, "o_proj", h, rounded)

        h = rms_norm(x, layer.post_attention_layernorm, c.rms_norm_eps)
        record("gate_proj", h)
        rounded = self._activations(h, self.activation_bits)
        gate = self._product(layer, "gate_proj", h, rounded)
        if c.gate is Gate.RELU2:
            gate = np.maximum(gate, 0) ** 2
        else:
            # far below zero the power is infinite and the gate zero, as it should be
            with np.errstate(over="ignore"):
                gate = gate / (1 + np.exp(-gate))
        h = gate * self._product(layer, "up_proj", h, rounded)
        if layer.ffn_sub_norm is not None:
            h = rms_norm(h, layer.ffn_sub_norm, c.rms_norm_eps)
        record("down_proj", h)
        rounded = self._activations(h, self.activation_bits)
        return x + self._product(layer, "down_proj", h, rounded)

    def logits(self, x: Float) -> Float:
        """Logits ``[T, V]`` of the residual stream ``[T, D]`` after the last layer."""
        x = rms_norm(x, self.norm, self.config.rms_norm_eps)
        x, unit = self._activations(x, self.head_bits)
        head = self.lm_head or self.embed_tokens
        parts = [
            x @ head.take(slice(first, first + _ROWS)).astype(self.dtype, copy=False).T
            for first in range(0, self.config.vocab_size, _ROWS)
        ]
        return np.concatenate(parts, axis=1) * unit

    def residual_peak(self, tokens: NDArray[np.int64]) -> float:
        """Largest magnitude of the residual stream over a window (calibration)."""
        x = self.embed(tokens)
        peak = float(np.abs(x).max())
        for layer, window in zip(self.layers, self.config.windows, strict=True):
            x = self.layer(layer, x, window)
            peak = max(peak, float(np.abs(x).max()))
        return peak

    def _activations(self, x: Float, bits: int | None, run: int = 0) -> tuple[Float, Float]:
        if bits is None or self.activation_groups is None:
            return self._rounded(x, bits)
        return round_activations(x, bits, self.activation_groups, run)

    def _rounded(self, x: Float, bits: int | None) -> tuple[Float, Float]:
        if bits is None:
            return x, np.ones((1, 1), x.dtype)
        return round_activations(x, bits)

    def _product(
        self, layer: DecoderLayer, name: str, h: Float, rounded: tuple[Float, Float]
    ) -> Float:
        """``h`` times a matrix of the layer: rounded, unless the matrix is exempt from it."""
        weight = layer.linear(name)
        exact = name in layer.exempt and not isinstance(weight, Integers)
        x, unit = self._rounded(h, None) if exact else rounded
        if isinstance(weight, Dense):
            return x @ weight.dequantized().T.astype(self.dtype, copy=False) * unit
        n, k = weight.shape
        out: Float = np.empty((len(x), n), self.dtype)  # pyright: ignore[reportAssignmentType]

        def part(rows: slice) -> None:
            out[:, rows] = x @ weight.dequantized(rows).T.astype(self.dtype, copy=False)

        n_rows = max(_WEIGHTS // k, 1)
        each_of(part, [slice(first, first + n_rows) for first in range(0, n, n_rows)])
        out *= unit
        return out

    def limited(self, context: int | None) -> "Decoder":
        """The same model with at most ``context`` positions (default 4,096)."""
        if context is not None and context < 1:
            raise LutraError(f"the context must be 1 position or more, not {context}")
        maximum = self.config.max_position_embeddings
        if context is not None and context > maximum:
            raise LutraError(
                f"the context must be at most {maximum}, the limit of {self.name}, not {context}"
            )
        n = min(maximum, CONTEXT) if context is None else context
        return replace(self, config=replace(self.config, max_position_embeddings=n))

    def replaced(
        self,
        layers: Sequence[DecoderLayer],
        activation_bits: int,
        activation_groups: ActivationGroups | None = None,
    ) -> "Decoder":
        """The same model with other weights, and activations rounded."""
        return replace(
            self,
            layers=layers,
            activation_bits=activation_bits,
            activation_groups=activation_groups,
        )


def _no_tap(_name: str, _x: Float) -> None:
    pass


def _biased(x: Float, bias: _Vector | None) -> Float:
    return x if bias is None else x + bias


def matrix_name(layer: int, name: str) -> str:
    """A checkpoint's name of a layer's matrix."""
    return f"{LAYERS}{layer}.{_PATHS[name]}.{name}"


def read_config(file: ConfigFile, gate: Gate) -> DecoderConfig:
    """The sizes that every architecture has, checked against each other."""
    advice = "use a model whose tokens see only those before them"
    file.require("is_causal", file.get("is_causal"), None, True, advice=advice)
    hidden_size = file.whole("hidden_size")
    n_heads = file.whole("num_attention_heads", maximum=1 << 12)
    n_kv_heads = file.whole("num_key_value_heads", default=n_heads)
    n_layers = file.whole("num_hidden_layers", maximum=1 << 12)
    bos = file.tokens("bos_token_id", skip_unknown=True)
    eps = file.real("rms_norm_eps")
    if eps > _EPS_MAX:
        raise LutraError(f"{file.path}: rms_norm_eps must be at most {_EPS_MAX:g}, not {eps:g}")
    config = DecoderConfig(
        hidden_size=hidden_size,
        intermediate_size=file.whole("intermediate_size"),
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=file.whole("head_dim", default=max(hidden_size // n_heads, 1), maximum=1 << 12),
        vocab_size=file.whole("vocab_size"),
        max_position_embeddings=file.whole("max_position_embeddings"),
        rms_norm_eps=eps,
        rope=read_rope(file),
        bos_token_id=bos[0] if bos else None,
        eos_token_id=file.tokens("eos_token_id", skip_unknown=True),
        gate=gate,
        windows=(0,) * n_layers,
    )
    for name, divisor in (("head_dim", 4), ("num_attention_heads", n_kv_heads)):
        if getattr(config, name) % divisor:
            raise LutraError(
                f"{file.path}: {name} must be a multiple of {divisor}, not {getattr(config, name)}"
            )
    return config


def read_decoder(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    *,
    name: str,
    sub_norms: tuple[str, str] | None = None,
    biases: bool = False,
    qk_norm: bool = False,
    activation_bits: int | None = None,
) -> Decoder:
    """A decoder whose tensors have the names that Llama gave them.

    ``sub_norms`` are the names, within a layer, of the norms before the output and the down
    projection.
    """
    c, vector, linear = config, checkpoint.vector, checkpoint.linear
    # vectors of a layer by the names here, with those in the checkpoint and their sizes
    vectors: dict[str, tuple[str, int]] = {
        each: (each, c.hidden_size) for each in ("input_layernorm", "post_attention_layernorm")
    }
    if sub_norms is not None:
        vectors["attn_sub_norm"] = sub_norms[0], c.q_size
        vectors["ffn_sub_norm"] = sub_norms[1], c.intermediate_size
    if biases:
        for each, n in (("q", c.q_size), ("k", c.kv_size), ("v", c.kv_size)):
            vectors[f"{each}_bias"] = f"self_attn.{each}_proj.bias", n
    if qk_norm:
        vectors |= {each: (f"self_attn.{each}", c.head_dim) for each in ("q_norm", "k_norm")}
    _refuse_others(checkpoint, config, [part for part, _ in vectors.values()])
    for i in range(c.num_hidden_layers):
        for each in LINEARS:
            checkpoint.expect(matrix_name(i, each), *c.shape_of(each))
        for part, n in vectors.values():
            checkpoint.expect(f"{LAYERS}{i}.{part}", n)

    def layer(i: int) -> DecoderLayer:
        prefix = f"{LAYERS}{i}"

        def matrix(each: str) -> Weight:
            return linear(matrix_name(i, each), *c.shape_of(each))

        held: dict[str, Weight] = dict(zip(LINEARS, each_of(matrix, LINEARS), strict=True))
        exempt = frozenset[str]()
        if activation_bits is not None:
            exempt = frozenset(each for each in LINEARS if isinstance(held[each], Dense))
        found = each_of(lambda each: on_grid(held[each]), LINEARS)
        parts: dict[str, Weight] = dict(zip(LINEARS, found, strict=True))
        extra = {each: vector(f"{prefix}.{part}", n) for each, (part, n) in vectors.items()}
        return replace(DecoderLayer.of(parts, extra), exempt=exempt)

    embedding, head = _outer(checkpoint, c)
    return Decoder(
        name=name,
        architecture=checkpoint.config.architecture,
        config=c,
        layers=LazyLayers(layer, c.num_hidden_layers),
        embed_tokens=embedding,
        norm=vector("model.norm", c.hidden_size),
        lm_head=head,
        activation_bits=activation_bits,
        made_for_a_bits=checkpoint.activation_bits,
    )


def _outer(
    checkpoint: Checkpoint, config: DecoderConfig
) -> tuple[Dense | Encoded, Dense | Encoded | None]:
    """Embedding and head; of a checkpoint with one of them, that one and None.

    What the file holds decides, not ``tie_word_embeddings``: programs leave a head of its own
    beside that flag when they train or rotate it, and store shared weights under either name.
    """
    held = [name for name in OUTER if name in checkpoint.names()] or OUTER[:1]
    matrices = [checkpoint.matrix(name, config.vocab_size, config.hidden_size) for name in held]
    return matrices[0], matrices[1] if len(matrices) > 1 else None


def _refuse_others(checkpoint: Checkpoint, config: DecoderConfig, parts: Sequence[str]) -> None:
    """Refuse tensors that the forward pass would leave out; biases of nothing are let pass."""
    matrices = {f"{path}.{name}": config.shape_of(name)[0] for name, path in _PATHS.items()}
    indices = {str(i) for i in range(config.num_hidden_layers)}
    for name in sorted(checkpoint.names()):
        index, _, part = name.removeprefix(LAYERS).partition(".")
        if name.startswith(LAYERS) and index in indices:
            known = part in matrices or part in parts
        else:
            known = name in (*OUTER, "model.norm")
        if known or name.endswith("rotary_emb.inv_freq"):
            continue
        rows = matrices.get(part.removesuffix(".bias"))
        # GPTQ's programs write a bias of zeros for every layer
        if rows and index in indices and not checkpoint.vector(name, rows).any():
            continue
        raise LutraError(
            f"{checkpoint.path}: tensor {name} is not supported; supported of the "
            f"{config.num_hidden_layers} layers of {checkpoint.config.architecture} are "
            f"{', '.join([*matrices, *parts])}: use a model without it"
        )
