"""Prints a digest of the logits of a small model that is made of integers here.

A program that needs golden and NumPy alone: ``PYTHONPATH=sim python tests/golden/digest.py``. Every
Python and NumPy has to print the same.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import scale_from_int
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.limits import least_shift
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel, PackedNorm
from lutra_golden.model.shapes import Gate

__all__ = ["digest", "model"]

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB, CONTEXT = 64, 96, 4, 2, 16, 40, 32


class _Numbers:
    """Numbers of Knuth's linear congruential generator, which no library defines."""

    def __init__(self) -> None:
        self._state = 1

    def take(self, low: int, high: int, *shape: int) -> Int:
        """Integers of ``low..high`` in an array of this shape."""
        found: list[int] = []
        for _ in range(int(np.prod(shape))):
            self._state = (self._state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            found.append(low + (self._state >> 33) % (high - low + 1))
        return np.array(found, np.int64).reshape(shape)


def _linear(numbers: _Numbers, n: int, k: int, bits: int) -> PackedLinear:
    if bits == 2:
        weights = GroupedWeights.from_integers(numbers.take(-1, 1, n, k).astype(np.int8))
    else:
        weights = GroupedWeights(
            codes=numbers.take(0, (1 << bits) - 1, n, k).astype(np.uint8),
            scale=numbers.take(1, 255, n, k // 32),
            zero=numbers.take(0, 2 * ((1 << bits) - 1), n, k // 32),
            bits=bits,
            group=32,
        )
    shift = least_shift(weights.peak, 127, (1 << 27) - 1, 1)
    # the deeper sums of scaled codes are worth less
    return PackedLinear(weights, scale_from_int(1 << 15, shift - (24 if bits == 2 else 36)), shift)


def model(bits: int, gate: Gate) -> PackedModel:
    """Two layers, of ternary weights for ``bits`` of 2, else in groups of 32."""
    numbers = _Numbers()

    def norm(n: int) -> PackedNorm:
        return PackedNorm(numbers.take(2000, 6000, n).astype(np.int16), 12)

    def linear(n: int, k: int) -> PackedLinear:
        return _linear(numbers, n, k, bits)

    width = HEADS * HEAD_DIM
    layers: list[PackedLayer] = []
    for _ in range(2):
        q, k, v = (linear(n * HEAD_DIM, HIDDEN) for n in (HEADS, KV_HEADS, KV_HEADS))
        gate_proj, up_proj = linear(INTERMEDIATE, HIDDEN), linear(INTERMEDIATE, HIDDEN)
        shift = max(x.shift for x in (q, k, v))
        q, k, v = (PackedLinear(x.source, x.scale, shift) for x in (q, k, v))
        shift = max(gate_proj.shift, up_proj.shift)
        gate_proj, up_proj = (PackedLinear(x.source, x.scale, shift) for x in (gate_proj, up_proj))
        layers.append(
            PackedLayer(
                input_norm=norm(HIDDEN),
                q_proj=q,
                k_proj=k,
                v_proj=v,
                bias=None,
                head_norms=None,
                window=0,
                attention_norm=norm(width),
                o_proj=linear(HIDDEN, width),
                ffn_input_norm=norm(HIDDEN),
                gate_proj=gate_proj,
                up_proj=up_proj,
                ffn_norm=norm(INTERMEDIATE),
                down_proj=linear(HIDDEN, INTERMEDIATE),
            )
        )

    def table(low: int, high: int, n: int, k: int) -> NDArray[np.int16]:
        return numbers.take(low, high, n, k).astype(np.int16)

    return PackedModel(
        name="digest",
        architecture="llama",
        format="W1.58A8" if bits == 2 else f"W{bits}A8",
        a_bits=8,
        ternary=bits == 2,
        w_bits=bits,
        scale_bits=1 if bits == 2 else 8,
        group=None if bits == 2 else 32,
        biased=False,
        head_normed=False,
        key_bits=8,
        value_bits=8 if bits == 2 else 4,
        gate=gate,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=VOCAB,
        context=CONTEXT,
        bos=None,
        eos=(),
        eps=scale_from_int(1 << 15, -32),
        head_eps=1,
        residual_frac=16,
        embedding=table(-20000, 20000, VOCAB, HIDDEN),
        embedding_frac=14,
        rope=table(-16000, 16000, CONTEXT, HEAD_DIM),
        layers=layers,
        norm=norm(HIDDEN),
        head=numbers.take(-127, 127, VOCAB, HIDDEN).astype(np.int8),
        head_rows=numbers.take(20000, 32767, VOCAB).astype(np.int16),
        head_shift=1,
        head_scale=1.0,
    )


def digest() -> str:
    """Digest of every logit and scale of a prompt in two pieces, of two models."""
    found = hashlib.sha256()
    for packed in (model(2, Gate.RELU2), model(4, Gate.SILU)):
        decoder = Decoder(packed)
        caches, position = decoder.caches(), 0
        for size in (9, 1, 3):
            x = decoder.embed([(7 * i + 3) % VOCAB for i in range(position, position + size)])
            for i in range(len(caches)):
                x = decoder.layer(i, x, [Rows(caches, slice(0, size), position)])
            logits, scale = decoder.head(x)
            position += size
            for part in (logits, scale.m, scale.e):
                found.update(np.asarray(part).astype("<i8").tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(digest())
