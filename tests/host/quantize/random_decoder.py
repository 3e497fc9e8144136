"""Small decoders with random weights, in memory: every part that an architecture can have."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Encoded, Grouped, Rows
from lutra.models.decoder import Decoder, DecoderConfig, DecoderLayer
from lutra.models.rope import Rope
from lutra_golden.model.shapes import Gate

__all__ = ["GROUP", "VARIANTS", "encoded", "random_decoder", "random_tokens"]

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
    seed: int = 1,
) -> Decoder:
    """Heavy-tailed weights, and norms that make some channels much larger than others."""
    rng = np.random.default_rng(seed)
    d, f, head_dim, vocab = 64, 96, 16, 96
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


def random_tokens(model: Decoder, n: int, length: int, seed: int = 2) -> NDArray[np.int64]:
    """Windows of tokens."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.config.vocab_size, (n, length))
