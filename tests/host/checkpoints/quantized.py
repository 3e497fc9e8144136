"""One quantised matrix, and a slow packer of its parts, written from the layouts' descriptions."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lutra.checkpoints import open_checkpoint
from lutra.checkpoints.weights import Weight

__all__ = ["Matrix", "read", "string_of_bits", "write"]

NAME = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Integers of a matrix ``[N, K]``; ``index`` is the group of each column."""

    codes: NDArray[np.int64]
    zero: NDArray[np.int64]  # [N, groups]
    scale: NDArray[np.float16]  # [N, groups]
    index: NDArray[np.int64]  # [K]
    bits: int

    @classmethod
    def random(
        cls, n: int, k: int, groups: int, bits: int, *, shuffled: bool = False, seed: int = 0
    ) -> "Matrix":
        """Random codes, zero points and scales; the groups' columns in any order if so said."""
        rng = np.random.default_rng(seed)
        index = np.arange(k) // (k // groups)
        return cls(
            codes=rng.integers(0, 1 << bits, (n, k)),
            zero=rng.integers(1, 1 << bits, (n, groups)),
            scale=rng.uniform(0.01, 0.1, (n, groups)).astype(np.float16),
            index=rng.permutation(index) if shuffled else index,
            bits=bits,
        )

    def dense(self) -> NDArray[np.float32]:
        """The weights, one after the other."""
        n, k = self.codes.shape
        w = np.zeros((n, k), np.float32)
        for i in range(n):
            for j in range(k):
                g = self.index[j]
                w[i, j] = np.float32(self.scale[i, g]) * (self.codes[i, j] - self.zero[i, g])
        return w


def string_of_bits(values: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """One row of values as words: a string of bits, the least significant first."""
    whole = 0
    for i, value in enumerate(values):
        whole |= int(value) << (bits * i)
    n_words = -(-len(values) * bits // 32)
    words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(n_words)]
    return np.array(words, np.uint32).view(np.int32)


def write(
    folder: Path,
    parts: dict[str, NDArray[np.generic]],
    quantization: dict[str, object],
) -> Path:
    """A folder with the parts of one matrix."""
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{NAME}.{part}": np.ascontiguousarray(value) for part, value in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def read(folder: Path, n: int, k: int) -> Weight:
    """The matrix of a folder."""
    return open_checkpoint(folder).linear(NAME, n, k)
