"""Small decoders with random weights, in memory: every part that an architecture can have."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Encoded, Grouped, Products, Rows, Weight
from lutra.models.decoder import Decoder, DecoderConfig, DecoderLayer
from lutra.models.rope import Rope
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.model.two_levels import SUPER

__all__ = [
    "GROUP",
    "VARIANTS",
    "as_products",
    "encoded",
    "in_products",
    "random_decoder",
    "random_tokens",
]

GROUP = 32
VARIANTS = {
    "llama": {"n_heads": 2, "n_kv_heads": 2},
    "grouped": {"n_heads": 4, "n_kv_heads": 2},
    "biases": {"n_heads": 4, "n_kv_heads": 1, "biases": True},
    "qk-norm": {"n_heads": 4, "n_kv_heads": 2, "qk_norm": True},
    "sub-norms": {"n_heads": 4, "n_kv_heads": 2, "sub_norms": True, "gate": Gate.RELU2},
    "window": {"n_heads": 4, "n_kv_heads": 2, "window": 5},
}
"""Arguments of :func:`random_decoder`, by what is special."""


def random_decoder(
    *,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    biases: bool = False,
    qk_norm: bool = False,
    sub_norms: bool = False,
    gate: Gate = Gate.SILU,
    window: int = 0,
    n_layers: int = 2,
    sizes: tuple[int, int] = (64, 96),
    seed: int = 1,
) -> Decoder:
    """Heavy-tailed weights, and norms that make some channels much larger than others."""
    rng = np.random.default_rng(seed)
    (d, f), head_dim, vocab = sizes, 16, 96
    config = DecoderConfig(
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=48,
        rms_norm_eps=1e-6,
        rope=Rope(),
        bos_token_id=0,
        eos_token_id=(1,),
        gate=gate,
        windows=(window,) * n_layers,
    )

    def linear(n: int, k: int) -> Dense:
        return Dense((rng.standard_t(5, (n, k)) * 0.5 / np.sqrt(k)).astype(np.float32))

    def norm(n: int) -> NDArray[np.float32]:
        return np.exp(rng.normal(0, 0.5, n)).astype(np.float32)

    def bias(n: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.5, n).astype(np.float32)

    q, kv = config.q_size, config.kv_size
    layers: list[DecoderLayer] = []
    for _ in range(n_layers):
        layer = DecoderLayer(
            q_proj=linear(q, d),
            k_proj=linear(kv, d),
            v_proj=linear(kv, d),
            o_proj=linear(d, q),
            gate_proj=linear(f, d),
            up_proj=linear(f, d),
            down_proj=linear(d, f),
            input_layernorm=norm(d),
            post_attention_layernorm=norm(d),
        )
        if biases:
            layer = replace(layer, q_bias=bias(q), k_bias=bias(kv), v_bias=bias(kv))
        if qk_norm:
            layer = replace(layer, q_norm=norm(head_dim), k_norm=norm(head_dim))
        if sub_norms:
            layer = replace(layer, attn_sub_norm=norm(q), ffn_sub_norm=norm(f))
        layers.append(layer)
    return Decoder(
        name="random",
        architecture="RandomForCausalLM",
        config=config,
        layers=layers,
        embed_tokens=Dense(rng.normal(0, 0.5, (vocab, d)).astype(np.float32)),
        norm=norm(d),
    )


def encoded(bits: int, *, affine: bool = False, n: int = 96, k: int = 64, seed: int = 4) -> Encoded:
    """An embedding in the codes of a file, in groups of 32: symmetric about the middle with scales
    of both signs, or with offsets."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (n, k)).astype(np.uint8)
    size, levels = (n, k // GROUP), (1 << bits) - 1
    step = rng.uniform(0.5, 1, size) / levels
    signs = 1 if affine else rng.choice([-1, 1], size)
    scale = (step * signs).astype(np.float16).astype(np.float32)
    whole = Grouped(
        codes=codes,
        scale=scale,
        zero=np.full_like(scale, 0 if affine else 1 << (bits - 1)),
        bits=bits,
        group=GROUP,
        offset=(-scale * levels * rng.uniform(0.4, 0.6, size)).astype(np.float32)
        if affine
        else None,
    )

    def some(rows: Rows) -> Grouped:
        offset = None if whole.offset is None else whole.offset[rows]
        return replace(
            whole,
            codes=codes[rows],
            scale=whole.scale[rows],
            zero=whole.zero[rows],
            offset=offset,
        )

    return Encoded((n, k), lambda rows: some(rows).dequantized(), some, bits, affine)


def as_products(
    n: int, n_super: int, most: int, *, affine: bool, spread: float = 4.0, seed: int = 7
) -> Grouped:
    """Weights as K-quants have them: float16 factors of 256 weights, ``spread`` between the largest
    and the smallest, and integers of groups up to ``most``, of either sign without offsets."""
    rng, groups = np.random.default_rng(seed), 8 if affine else 16

    def products(peak: float, least: int) -> Products:
        factor = peak * spread ** -rng.uniform(0, 1, (n, n_super))
        factor[0, 0] = peak
        multiple = rng.integers(least, most + 1, (n, n_super * groups))
        multiple[0, 0] = least or most
        return Products(factor.astype(np.float16).astype(np.float32), multiple.astype(np.int8))

    bits, scales = 4 if affine else 6, products(0.8 / 15 / 63, 0 if affine else -most - 1)
    offsets = products(-0.4 / 63, 0) if affine else None
    return Grouped(
        codes=rng.integers(0, 1 << bits, (n, n_super * SUPER)).astype(np.uint8),
        scale=scales.values(),
        zero=np.full(scales.multiple.shape, 0 if affine else 32, np.float32),
        bits=bits,
        group=SUPER // groups,
        offset=None if offsets is None else offsets.values(),
        scales=scales,
        offsets=offsets,
    )


def in_products() -> Decoder:
    """A checkpoint of K-quants: codes of four bits with offsets, of six bits in two matrices and in
    embedding and head."""
    model = random_decoder(n_heads=16, sizes=(SUPER, SUPER))
    layers = list[DecoderLayer]()
    for i, layer in enumerate(model.layers):
        parts = dict[str, Weight]()
        for j, name in enumerate(LINEARS):
            (n, k), six = layer.linear(name).shape, name in ("v_proj", "down_proj")
            parts[name] = as_products(
                n, k // SUPER, 127 if six else 63, affine=not six, seed=10 * i + j
            )
        layers.append(replace(layer, **parts))
    n, k = model.embed_tokens.shape
    rows = as_products(n, k // SUPER, 127, affine=False, seed=99)

    def decode(some: Rows) -> NDArray[np.float32]:
        return rows.rows(some).dequantized()

    coded = Encoded((n, k), decode, rows.rows, rows.bits, affine=False)
    return replace(model, layers=layers, embed_tokens=coded)


def random_tokens(model: Decoder, n: int, length: int, seed: int = 2) -> NDArray[np.int64]:
    """Windows of tokens."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.config.vocab_size, (n, length))
