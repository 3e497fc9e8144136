"""Small random models as GGUF files, by the package that defines them, and a float reference."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

__all__ = [
    "ENCODERS",
    "MODELS",
    "GgufModel",
    "field_bytes",
    "gguf_bytes",
    "i2_s_bytes",
    "old_name",
    "random_floats",
    "reference_logits",
    "write_gguf",
]

Float = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Tensors = dict[str, Float]

# -- a file by hand: what the package does not write, and what is wrong

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def field_bytes(key: str | bytes, kind: int, value: object) -> bytes:
    """A key-value pair; ``value`` of an array is its type and its values."""

    def one(kind: int, value: object) -> bytes:
        if isinstance(value, bytes) and kind != 8:
            return value
        if kind == 8:
            assert isinstance(value, str | bytes)
            return _string(value)
        return struct.pack(f"<{_SCALARS[kind]}", value)

    head = _string(key) + struct.pack("<I", kind)
    if kind != 9 or isinstance(value, bytes):
        return head + one(kind, value)
    assert isinstance(value, tuple)
    inner, values = value
    return head + struct.pack("<IQ", inner, len(values)) + b"".join(one(inner, x) for x in values)


def gguf_bytes(
    fields: Sequence[bytes],
    tensors: Sequence[tuple[str, Sequence[int], int, bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
    offsets: Mapping[str, int] | None = None,
) -> bytes:
    """A file of these pairs and of tensors: name, dimensions innermost first, type, data."""
    n_tensors, n_fields = counts or (len(tensors), len(fields))
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + b"".join(fields)
    data = b""
    for name, dims, kind, raw in tensors:
        offset = (offsets or {}).get(name, len(data))
        shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        header += _string(name) + shape + struct.pack("<IQ", kind, offset)
        data += raw + bytes(-len(raw) % alignment)
    return header + bytes(-len(header) % alignment) + data


# -- encoders: bytes of a matrix, and the float32 that they stand for


def _by_package(kind: Kind) -> Callable[[Float], tuple[Bytes, Float]]:
    def encode(w: Float) -> tuple[Bytes, Float]:
        raw = gguf.quantize(w, kind)
        return raw.view(np.uint8), gguf.dequantize(raw, kind).reshape(w.shape).astype(np.float32)

    return encode


def _half(x: NDArray[np.floating]) -> Bytes:
    return np.ascontiguousarray(x.astype("<f2")).view(np.uint8)


def _q4_k(w: Float) -> tuple[Bytes, Float]:
    """Steps and offsets of each 32 weights from their range."""
    groups = w.reshape(-1, 8, 32).astype(np.float64)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    step = (high - low) / 15
    d = (step.max(axis=1) / 63).astype(np.float16).astype(np.float64)[:, None]
    d_min = (-low.min(axis=1) / 63).astype(np.float16).astype(np.float64)[:, None]
    scale = np.clip(np.rint(step / d), 1, 63).astype(np.uint8)
    least = np.clip(np.rint(-low / d_min), 0, 63).astype(np.uint8)
    codes = np.rint((groups + (d_min * least)[..., None]) / (d * scale)[..., None])
    codes = np.clip(codes, 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)
    a, b = scale[:, :4] | (scale[:, 4:] >> 4) << 6, least[:, :4] | (least[:, 4:] >> 4) << 6
    c = (scale[:, 4:] & 15) | (least[:, 4:] & 15) << 4
    blocks = np.concatenate([_half(d), _half(d_min), a, b, c, packed], axis=1).astype(np.uint8)
    raw = blocks.reshape(len(w), -1)
    return raw, gguf.dequantize(raw, Kind.Q4_K).reshape(w.shape)


def _q6_k(w: Float) -> tuple[Bytes, Float]:
    """Steps of each 16 weights from their peak, every second one negative."""
    groups = w.reshape(-1, 16, 16).astype(np.float64)
    step = np.abs(groups).max(axis=2) / 31
    d = (step.max(axis=1) / 127).astype(np.float16).astype(np.float64)[:, None]
    scale = np.clip(np.rint(step / d), 1, 127).astype(np.int8)
    scale[:, ::2] *= -1
    codes = np.clip(np.rint(groups / (d * scale)[..., None]), -32, 31).astype(np.int8) + 32
    codes = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([codes[:, :, i] & 15 | (codes[:, :, i + 2] & 15) << 4 for i in (0, 1)], 2)
    high = np.bitwise_or.reduce([(codes[:, :, i] >> 4) << 2 * i for i in range(4)])
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), scale.view(np.uint8), _half(d)]
    raw = np.concatenate(parts, axis=1).astype(np.uint8).reshape(len(w), -1)
    return raw, gguf.dequantize(raw, Kind.Q6_K).reshape(w.shape)


def _ternary(w: Float) -> tuple[NDArray[np.int8], float]:
    scale = float(np.float16(np.abs(w).mean()))
    return np.clip(np.rint(w / scale), -1, 1).astype(np.int8), scale


def _of_ternary(kind: Kind) -> Callable[[Float], tuple[Bytes, Float]]:
    """Types of ternary weights get weights that are ternary already, as converters give them."""

    def encode(w: Float) -> tuple[Bytes, Float]:
        codes, scale = _ternary(w)
        return _by_package(kind)((codes * np.float32(scale)).astype(np.float32))

    return encode


def i2_s_bytes(codes: NDArray[np.int8], scale: float) -> bytes:
    """Ternary codes as I2_S, value after value."""
    flat = codes.ravel()
    packed = bytearray(flat.size // 4)
    for i, code in enumerate(flat.tolist()):
        block, within = divmod(i, 128)
        field, byte = divmod(within, 32)
        packed[32 * block + byte] |= (code + 1) << (6 - 2 * field)
    return bytes(packed) + struct.pack("<f", scale) + bytes(28)


def _i2_s(w: Float) -> tuple[Bytes, Float]:
    codes, scale = _ternary(w)
    raw = np.frombuffer(i2_s_bytes(codes, scale), np.uint8)
    return raw, codes.astype(np.float32) * np.float32(scale)


def _q1_0(w: Float) -> tuple[Bytes, Float]:
    """Signs in blocks of 128, with the mean of the magnitudes."""
    blocks = w.reshape(-1, 128)
    d = np.abs(blocks).mean(axis=1, keepdims=True).astype("<f2")
    bits = np.packbits(blocks >= 0, axis=1, bitorder="little")
    values = np.where(blocks >= 0, 1, -1) * d.astype(np.float32)
    raw = np.concatenate([_half(d), bits], axis=1).reshape(len(w), -1)
    return raw, values.astype(np.float32).reshape(w.shape)


def _of_2_bits(block: int) -> Callable[[Float], tuple[Bytes, Float]]:
    """Ternary blocks, two bits a weight."""

    def encode(w: Float) -> tuple[Bytes, Float]:
        blocks = w.reshape(-1, block)
        d = np.abs(blocks).mean(axis=1, keepdims=True).astype("<f2")
        step = d.astype(np.float32)
        codes = np.clip(np.rint(blocks / step), -1, 1) + 1
        fields = codes.astype(np.uint8).reshape(len(blocks), -1, 4)
        packed = np.bitwise_or.reduce(fields << np.array([0, 2, 4, 6], np.uint8), axis=2)
        raw = np.concatenate([_half(d), packed], axis=1).reshape(len(w), -1)
        return raw, ((codes - 1) * step).astype(np.float32).reshape(w.shape)

    return encode


def _of_codebook(kind: Kind) -> Callable[[Float], tuple[Bytes, Float]]:
    """Any numbers of a codebook, for there is no encoder, in blocks with one scale: weights as
    large as those that were asked for."""

    def encode(w: Float) -> tuple[Bytes, Float]:
        rng = np.random.default_rng(int(w.ravel()[:1].view(np.uint32)[0]))
        size, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (len(w), w.shape[1] // size, n_bytes)).astype(np.uint8)
        raw[..., :2] = _half(np.ones(1))
        above = w.std() / gguf.dequantize(raw.reshape(len(w), -1), kind).std()
        raw[..., :2] = _half(np.array([above]))
        raw = raw.reshape(len(w), -1)
        return raw, gguf.dequantize(raw, kind).reshape(w.shape)

    return encode


ENCODERS: Mapping[str, tuple[int, Callable[[Float], tuple[Bytes, Float]]]] = {
    "F32": (0, _by_package(Kind.F32)),
    "F16": (1, _by_package(Kind.F16)),
    "BF16": (30, _by_package(Kind.BF16)),
    "Q4_0": (2, _by_package(Kind.Q4_0)),
    "Q4_1": (3, _by_package(Kind.Q4_1)),
    "Q5_0": (6, _by_package(Kind.Q5_0)),
    "Q5_1": (7, _by_package(Kind.Q5_1)),
    "Q8_0": (8, _by_package(Kind.Q8_0)),
    "Q4_K": (12, _q4_k),
    "Q6_K": (14, _q6_k),
    "IQ2_XS": (17, _of_codebook(Kind.IQ2_XS)),
    "IQ3_XXS": (18, _of_codebook(Kind.IQ3_XXS)),
    "IQ1_S": (19, _of_codebook(Kind.IQ1_S)),
    "IQ3_S": (21, _of_codebook(Kind.IQ3_S)),
    "TQ1_0": (34, _of_ternary(Kind.TQ1_0)),
    "TQ2_0": (35, _of_ternary(Kind.TQ2_0)),
    "TQ2_0 by block": (35, _by_package(Kind.TQ2_0)),
    "I2_S": (36, _i2_s),
    "MXFP4": (39, _by_package(Kind.MXFP4)),
    "Q1_0": (41, _q1_0),
    "Q2_0": (42, _of_2_bits(64)),
    "PQ2_0": (142, _of_2_bits(128)),
}
"""Number and encoder of each type."""

# -- models


@dataclass(frozen=True, kw_only=True)
class GgufModel:
    """Sizes of a random model, named as in ``config.json``."""

    arch: str
    reference: str
    """Name of transformers' class."""
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    vocab_size: int = 96
    tied: bool = False
    biases: bool = False
    qk_norm: bool = False
    sub_norms: bool = False
    relu2: bool = False
    window: int = 0
    factors: tuple[float, ...] = ()
    extra: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Vectors that the file holds beyond the rest."""
    fields: dict[str, object] = field(default_factory=dict[str, object])
    """Metadata beyond or against the sizes, keys without the architecture; None leaves one out."""


MODELS = {
    "llama": GgufModel(arch="llama", reference="Llama"),
    "mistral": GgufModel(arch="llama", reference="Mistral", window=5),
    "qwen2": GgufModel(arch="qwen2", reference="Qwen2", biases=True, tied=True),
    "qwen3": GgufModel(arch="qwen3", reference="Qwen3", qk_norm=True, num_attention_heads=8),
    "bitnet": GgufModel(
        arch="bitnet-b1.58", reference="BitNet", sub_norms=True, relu2=True, tied=True
    ),
}
_EPS, _THETA = 1e-5, 20000.0
_OLD_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def random_floats(model: GgufModel, seed: int = 1) -> Tensors:
    """Weights under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    d, f, dh = model.hidden_size, model.intermediate_size, model.head_dim
    q, kv = model.num_attention_heads * dh, model.num_key_value_heads * dh
    tensors: Tensors = {}

    def put(name: str, values: NDArray[np.float64]) -> None:
        tensors[name] = values.astype(np.float32)

    def linear(name: str, n: int, k: int) -> None:
        put(f"{name}.weight", rng.standard_t(5, (n, k)) * 0.8 / np.sqrt(k))

    def norm(name: str, n: int) -> None:
        put(f"{name}.weight", rng.uniform(0.5, 1.5, n))

    put("model.embed_tokens.weight", rng.normal(0, 0.4, (model.vocab_size, d)))
    for i in range(model.num_hidden_layers):
        layer = f"model.layers.{i}"
        for part, n, k in (
            ("self_attn.q_proj", q, d), ("self_attn.k_proj", kv, d), ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q), ("mlp.gate_proj", f, d), ("mlp.up_proj", f, d),
            ("mlp.down_proj", d, f),
        ):  # fmt: skip
            linear(f"{layer}.{part}", n, k)
        norms = {"input_layernorm": d, "post_attention_layernorm": d}
        norms |= {"self_attn.q_norm": dh, "self_attn.k_norm": dh} if model.qk_norm else {}
        if model.sub_norms:
            norms |= {"self_attn.attn_sub_norm": q, "mlp.ffn_sub_norm": f}
        for part, n in norms.items():
            norm(f"{layer}.{part}", n)
        if model.biases:
            for part, n in (("q", q), ("k", kv), ("v", kv)):
                put(f"{layer}.self_attn.{part}_proj.bias", rng.normal(0, 0.5, n))
    norm("model.norm", d)
    if not model.tied:
        linear("lm_head", model.vocab_size, d)
    return tensors


def old_name(name: str) -> str:
    """A tensor's name in GGUF files."""
    head, suffix = name.rsplit(".", 1)
    if head.startswith("model.layers."):
        number, part = head.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{_OLD_NAMES[part]}.{suffix}"
    return f"{_OLD_NAMES[head]}.{suffix}"


def _neighbours(w: Float, head_dim: int, back: bool = False) -> Float:
    """Rows in the order that Llama's files have, or back, row after row."""
    out = np.empty_like(w)
    for head in range(0, len(w), head_dim):
        for i in range(head_dim // 2):
            for stored, plain in ((2 * i, i), (2 * i + 1, i + head_dim // 2)):
                one, other = (plain, stored) if back else (stored, plain)
                out[head + one] = w[head + other]
    return out


def write_gguf(
    path: Path,
    model: GgufModel,
    kind: str = "Q8_0",
    *,
    kinds: Mapping[str, str] | None = None,
    outer: str = "F16",
    seed: int = 1,
    floats: Tensors | None = None,
    split_max_tensors: int = 0,
) -> Tensors:
    """Write a model whose linear layers are of one type and whose embedding and head are of
    another, cut into parts of so many tensors if that is given; return the weights that the file
    holds, under Hugging Face's names. ``kinds`` are types of single matrices by parts of their
    names."""
    tensors = random_floats(model, seed) if floats is None else floats
    fields: list[bytes] = []
    a = model.arch
    sizes = {
        "block_count": model.num_hidden_layers,
        "context_length": 32,
        "embedding_length": model.hidden_size,
        "feed_forward_length": model.intermediate_size,
        "attention.head_count": model.num_attention_heads,
        "attention.head_count_kv": model.num_key_value_heads,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "rope.dimension_count": model.head_dim,
    }
    if model.window:
        sizes["attention.sliding_window"] = model.window
    reals = {"attention.layer_norm_rms_epsilon": _EPS, "rope.freq_base": _THETA}
    numbers = {ENCODERS[each][0] for each in (kind, outer, *(kinds or {}).values())}
    by_package = numbers <= set(Kind) - {36}
    writer = gguf.GGUFWriter(path, a, split_max_tensors=split_max_tensors)
    fields.append(field_bytes("general.architecture", 8, a))
    for key in model.fields:
        sizes.pop(key, None)
    for key, value in sizes.items():
        writer.add_uint32(f"{a}.{key}", value)
        fields.append(field_bytes(f"{a}.{key}", 4, value))
    for key, value in reals.items():
        writer.add_float32(f"{a}.{key}", value)
        fields.append(field_bytes(f"{a}.{key}", 6, value))
    for key, value in model.fields.items():
        name = key if key.startswith(("tokenizer.", "prism.", "split.")) else f"{a}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            assert isinstance(value, int)
            writer.add_uint32(name, value)
    held: Tensors = {}
    by_hand: list[tuple[str, Sequence[int], int, bytes]] = []
    for name, w in tensors.items():
        turned = a == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))
        stored = _neighbours(w, model.head_dim) if turned else w
        outermost = name in ("model.embed_tokens.weight", "lm_head.weight")
        used = "F32" if w.ndim == 1 else outer if outermost else kind
        for part, other in (kinds or {}).items():
            used = other if part in name and w.ndim == 2 else used
        number, encode = ENCODERS[used]
        raw, values = encode(stored)
        held[name] = _neighbours(values, model.head_dim, back=True) if turned else values
        by_hand.append((old_name(name), w.shape[::-1], number, raw.tobytes()))
        if by_package:
            writer.add_tensor(old_name(name), raw, raw_dtype=Kind(number))
    extra = model.extra | ({"rope_freqs.weight": list(model.factors)} if model.factors else {})
    for name, values in extra.items():
        writer.add_tensor(name, np.array(values, np.float32))
    if by_package:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    else:
        path.write_bytes(gguf_bytes(fields, by_hand))
    writer.close()
    return held


# -- the reference


def reference_logits(
    model: GgufModel, tensors: Tensors, tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Logits ``[T, V]``, position after position and head after head."""
    c, n = model, len(tokens)
    w = {name: values.astype(np.float64) for name, values in tensors.items()}
    turns = _THETA ** -(np.arange(c.head_dim // 2) / (c.head_dim // 2))
    turns = turns / np.array(c.factors) if c.factors else turns
    half = c.head_dim // 2

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x / np.sqrt(np.mean(x * x) + _EPS) * w[f"{name}.weight"]

    def rotate(x: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * turns)
        return np.concatenate([z.real, z.imag])

    xs = [w["model.embed_tokens.weight"][token] for token in tokens]
    for i in range(c.num_hidden_layers):
        layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        heads: dict[str, list[list[NDArray[np.float64]]]] = {"q": [], "k": [], "v": []}
        for position in range(n):
            h = norm(xs[position], f"{layer}.input_layernorm")
            for part, rows in heads.items():
                y = w[f"{attention}.{part}_proj.weight"] @ h
                y = y + w.get(f"{attention}.{part}_proj.bias", 0)
                split = list(y.reshape(-1, c.head_dim))
                if part != "v":
                    if c.qk_norm:
                        split = [norm(each, f"{attention}.{part}_norm") for each in split]
                    split = [rotate(each, position) for each in split]
                rows.append(split)
        share = c.num_attention_heads // c.num_key_value_heads
        for position in range(n):
            first = max(0, position + 1 - c.window) if c.window else 0
            parts = []
            for head in range(c.num_attention_heads):
                query, kv = heads["q"][position][head], head // share
                seen = range(first, position + 1)
                score = np.array([query @ heads["k"][j][kv] for j in seen]) / np.sqrt(c.head_dim)
                p = np.exp(score - score.max())
                values = np.array([heads["v"][j][kv] for j in seen])
                parts.append((p / p.sum()) @ values)
            h = np.concatenate(parts)
            if c.sub_norms:
                h = norm(h, f"{attention}.attn_sub_norm")
            x = xs[position] + w[f"{attention}.o_proj.weight"] @ h
            h = norm(x, f"{layer}.post_attention_layernorm")
            gate = w[f"{layer}.mlp.gate_proj.weight"] @ h
            gate = np.maximum(gate, 0) ** 2 if c.relu2 else gate / (1 + np.exp(-gate))
            h = gate * (w[f"{layer}.mlp.up_proj.weight"] @ h)
            if c.sub_norms:
                h = norm(h, f"{layer}.mlp.ffn_sub_norm")
            xs[position] = x + w[f"{layer}.mlp.down_proj.weight"] @ h
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.array([head @ norm(x, "model.norm") for x in xs])
