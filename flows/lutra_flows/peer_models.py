"""Random models as GGUF files, for a comparison with llama.cpp at sizes that no file here has.

Each has the sizes of a released model and the types of a file of it. Rates do not depend on the
values of weights, so codes are random and the scales of a matrix the same. Layouts of the types:
``ggml-common.h`` of ggml, and the package ``gguf``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.formats.config_file import ConfigFile
from lutra.models.random import RANDOM_SHAPES
from lutra_golden.model.shapes import linear_shapes

__all__ = ["PEER_MODELS", "PeerModel", "write_gguf"]

_Progress = Callable[[str, float], None]
_Bytes = NDArray[np.uint8]
_Blocks = Callable[[np.random.Generator, int, int], _Bytes]
"""Rows of a matrix ``[N, K]`` in a type, from a generator, N and K."""

_GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
_EMBEDDING, _HEAD = "token_embd", "output"
_POOL = 1 << 24
"""Random bytes of a matrix repeat after so many."""


def _random(rng: np.random.Generator, n_blocks: int, n_bytes: int, valid: _Bytes) -> _Bytes:
    """Bytes ``[n_blocks, n_bytes]``, each one of the valid ones."""
    total = n_blocks * n_bytes
    pool = valid[rng.integers(0, len(valid), min(total, _POOL), np.uint8)]
    return np.resize(pool, (n_blocks, n_bytes))


_ANY = np.arange(256, dtype=np.uint8)
_TERNARY = np.array([b for b in range(256) if all(b >> s & 3 < 3 for s in (0, 2, 4, 6))], np.uint8)
"""Four fields of two bits, each 0, 1 or 2, for -1, 0 and 1."""


def _half(value: float) -> _Bytes:
    return np.array([value], np.float16).view(np.uint8)


def _tq2_0(rng: np.random.Generator, n: int, k: int) -> _Bytes:
    """Blocks of 256: codes of two bits, and a scale."""
    blocks = np.empty((n * k // 256, 66), np.uint8)
    blocks[:, :64] = _random(rng, len(blocks), 64, _TERNARY)
    blocks[:, 64:] = _half(1.1 / np.sqrt(k))
    return blocks.reshape(n, -1)


def _q1_0(rng: np.random.Generator, n: int, k: int) -> _Bytes:
    """Blocks of 128: a scale, and signs."""
    blocks = np.empty((n * k // 128, 18), np.uint8)
    blocks[:, :2] = _half(0.9 / np.sqrt(k))
    blocks[:, 2:] = _random(rng, len(blocks), 16, _ANY)
    return blocks.reshape(n, -1)


def _q2_0(rng: np.random.Generator, n: int, k: int) -> _Bytes:
    """Blocks of 64: a scale, and codes of two bits."""
    blocks = np.empty((n * k // 64, 18), np.uint8)
    blocks[:, :2] = _half(1.1 / np.sqrt(k))
    blocks[:, 2:] = _random(rng, len(blocks), 16, _TERNARY)
    return blocks.reshape(n, -1)


def _q4_k(rng: np.random.Generator, n: int, k: int) -> _Bytes:
    """Blocks of 256: a scale of steps and one of offsets, six bits for each of eight groups, the
    same for steps and offsets."""
    blocks = np.empty((n * k // 256, 144), np.uint8)
    step = 0.2 / np.sqrt(k) / 32
    blocks[:, :2], blocks[:, 2:4] = _half(step), _half(7.5 * step)
    multiples = rng.integers(1, 64, (len(blocks), 8), np.uint8)
    first, last = multiples[:, :4], multiples[:, 4:]
    # six bits of the first groups, and above them the upper two of the last ones
    blocks[:, 4:8] = blocks[:, 8:12] = first | last >> 4 << 6
    blocks[:, 12:16] = (last & 15) * 17
    blocks[:, 16:] = _random(rng, len(blocks), 128, _ANY)
    return blocks.reshape(n, -1)


def _q6_k(rng: np.random.Generator, n: int, k: int) -> _Bytes:
    """Blocks of 256: codes of six bits, sixteen scales, and one above them."""
    blocks = np.empty((n * k // 256, 210), np.uint8)
    blocks[:, :192] = _random(rng, len(blocks), 192, _ANY)
    blocks[:, 192:208] = rng.integers(-127, 128, (len(blocks), 16), np.int8).view(np.uint8)
    blocks[:, 208:] = _half(5e-5)
    return blocks.reshape(n, -1)


_TYPES: Mapping[str, tuple[int, _Blocks]] = {
    "Q4_K": (12, _q4_k),
    "Q6_K": (14, _q6_k),
    "TQ2_0": (35, _tq2_0),
    "Q1_0": (41, _q1_0),
    "Q2_0": (42, _q2_0),
}
"""Number and blocks of each type."""


def _all(kind: str) -> Callable[[str, int, int], str]:
    return lambda name, layer, layers: kind


def _tq2_0_mix(name: str, layer: int, layers: int) -> str:
    """Ternary layers, and an embedding as llama.cpp stores it with them."""
    return "Q6_K" if name == _EMBEDDING else "TQ2_0"


def _q4_k_m(name: str, layer: int, layers: int) -> str:
    """llama.cpp's mix of that name: six bits for values and down projections of half the layers."""
    if name in (_EMBEDDING, _HEAD):
        return "Q6_K"
    eighth = layers // 8
    more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return "Q6_K" if more and name in ("attn_v", "ffn_down") else "Q4_K"


@dataclass(frozen=True, kw_only=True)
class PeerModel:
    """A file's sizes, by the shape's name, and the type of each matrix.

    ``type_of`` takes a tensor's name, its layer and the number of layers. ``arch`` is the
    architecture that llama.cpp is told.
    """

    shape: str
    arch: str
    type_of: Callable[[str, int, int], str]

    @property
    def config(self) -> Mapping[str, object]:
        """``config.json`` of the shape."""
        return RANDOM_SHAPES[self.shape]


PEER_MODELS: Mapping[str, PeerModel] = {
    # with ternary layers llama.cpp has Llama's architecture, not this one
    "bitnet-2b-4t": PeerModel(shape="bitnet-2b-4t", arch="llama", type_of=_tq2_0_mix),
    "bonsai-8b": PeerModel(shape="qwen3-8b", arch="qwen3", type_of=_all("Q1_0")),
    "ternary-bonsai-8b": PeerModel(shape="qwen3-8b", arch="qwen3", type_of=_all("Q2_0")),
    "qwen2.5-1.5b": PeerModel(shape="qwen2.5-1.5b", arch="qwen2", type_of=_q4_k_m),
}
"""The models, by the name for ``--shape``."""


def _matrices(file: ConfigFile, head_dim: int) -> Iterator[tuple[str, int, str, int, int]]:
    """Name, layer, part, N and K of each matrix, in the order of the file."""
    d, vocab = file.whole("hidden_size"), file.whole("vocab_size")
    heads, kv_heads = file.whole("num_attention_heads"), file.whole("num_key_value_heads")
    shapes = linear_shapes(
        d, file.whole("intermediate_size"), heads * head_dim, kv_heads * head_dim
    )
    yield f"{_EMBEDDING}.weight", 0, _EMBEDDING, vocab, d
    if not file.flag("tie_word_embeddings"):
        yield f"{_HEAD}.weight", 0, _HEAD, vocab, d
    for layer in range(file.whole("num_hidden_layers")):
        for name, (n, k) in shapes.items():
            part = _GGUF_NAMES[name]
            yield f"blk.{layer}.{part}.weight", layer, part, n, k


def write_gguf(
    path: Path,
    model: PeerModel = PEER_MODELS["bitnet-2b-4t"],
    shape: Mapping[str, object] | None = None,
    progress: _Progress | None = None,
) -> None:
    """Write a model of random weights; ``shape`` are other sizes than its own."""
    import gguf

    file, rng = ConfigFile(path, shape or model.config), np.random.default_rng(0)
    layers, d = file.whole("num_hidden_layers"), file.whole("hidden_size")
    heads, kv_heads = file.whole("num_attention_heads"), file.whole("num_key_value_heads")
    head_dim = file.whole("head_dim", default=d // heads)
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_context_length(4096)
    writer.add_embedding_length(d)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(file.whole("intermediate_size"))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(file.whole("vocab_size"))
    writer.add_tokenizer_model("none")
    norms, vectors = {"attn_norm": d, "ffn_norm": d}, dict[str, tuple[int, float]]()
    if model.arch == "qwen3":
        norms |= {"attn_q_norm": head_dim, "attn_k_norm": head_dim}
    vectors["output_norm.weight"] = d, 1.0
    for layer in range(layers):
        vectors |= {f"blk.{layer}.{name}.weight": (n, 1.0) for name, n in norms.items()}
        if model.arch == "qwen2":
            sizes = {"attn_q": heads * head_dim, "attn_k": kv_heads * head_dim}
            sizes["attn_v"] = sizes["attn_k"]
            vectors |= {f"blk.{layer}.{name}.bias": (n, 0.1) for name, n in sizes.items()}
    matrices = [
        (name, n, k, *_TYPES[model.type_of(part, layer, layers)])
        for name, layer, part, n, k in _matrices(file, head_dim)
    ]
    for name, (n, _value) in vectors.items():
        writer.add_tensor_info(name, (n,), np.dtype(np.float32), 4 * n)
    for name, n, k, number, blocks in matrices:
        size = n * blocks(rng, 1, k).nbytes
        # the package may know no name of the type; it writes its number
        writer.add_tensor_info(name, (n, k), np.dtype(np.int8), size, raw_dtype=number)  # type: ignore[arg-type]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for n, value in vectors.values():
        writer.write_tensor_data(np.full(n, value, np.float32))
    for i, (_name, n, k, _number, blocks) in enumerate(matrices):
        if progress:
            progress("writing the peer's model", i / len(matrices))
        writer.write_tensor_data(blocks(rng, n, k))
    writer.close()
