"""Packed models of real shapes with random weights, made in memory: ``random:bitnet-2b-4t``.

For measuring: shapes, bytes and instructions are those of a real model, what it says means nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.formats.config_file import ConfigFile
from lutra.models import RANDOM
from lutra.models.bitnet import BITNET, BITNET_LARGE
from lutra.models.decoder import CONTEXT, DecoderConfig, read_config
from lutra.models.qwen import QWEN2, QWEN3
from lutra.models.random import RANDOM_SHAPES
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import scale_from_float, scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.b128 import row_bytes
from lutra_golden.model.cache import Kv, kv_pair
from lutra_golden.model.checks import sum_limit
from lutra_golden.model.limits import ACC_MAX, LOGIT_ACC_MAX, least_shift
from lutra_golden.model.packed import (
    CodedVocabulary,
    HeadNorms,
    PackedBias,
    PackedLayer,
    PackedLinear,
    PackedModel,
    PackedNorm,
    format_name,
)
from lutra_golden.model.shapes import Gate, linear_shapes
from lutra_golden.model.stored import StoredWeights
from lutra_golden.vector.heads import EPS_FRAC
from lutra_golden.vector.residual import LOGIT_SHIFT
from lutra_golden.vector.rope import ROPE_FRAC

__all__ = [
    "random_config",
    "random_format",
    "random_head_bits",
    "random_numbers",
    "random_packed",
]

_RESIDUAL_FRAC, _GAMMA_FRAC, _BIAS_FRAC = 14, 14, 12
_SCALE_MAX = 255
_HEAD_DEVIATION = 30.0
_POOL = 1 << 22  # random numbers that are drawn once and cut from
_BITNETS = (BITNET, BITNET_LARGE)
# weights, embedding and head of one bit, in groups of 128
_BONSAI = "bonsai"
_BONSAI_FORMAT, _BONSAI_HEAD_BITS = "W1g128A8", 1


def random_numbers(name: str) -> tuple[str, DecoderConfig]:
    """Architecture and numbers of the model ``random:SHAPE``, with all positions that it has."""
    file = _sizes(name)
    gate = Gate.RELU2 if file.get("hidden_act") == "relu2" else Gate.SILU
    return file.architecture, read_config(file, gate)


def random_format(name: str) -> Format:
    """The format of the packed model ``random:SHAPE``, unless another is asked for."""
    if _is_bonsai(name):
        return Format.parse(_BONSAI_FORMAT)
    return Format.parse("W1.58A8" if _sizes(name).architecture in _BITNETS else "W4A8")


def random_head_bits(name: str) -> int:
    """Bits of embedding and head of ``random:SHAPE``, unless others are asked for; 0 is none."""
    return _BONSAI_HEAD_BITS if _is_bonsai(name) else 0


def random_config(name: str, context: int | None = None) -> DecoderConfig:
    """Numbers of the model ``random:SHAPE`` with ``context`` positions (default 4,096 at most)."""
    _, c = random_numbers(name)
    maximum = c.max_position_embeddings
    n = min(maximum, CONTEXT) if context is None else context
    if not 1 <= n <= maximum:
        raise LutraError(f"the context must be in 1..{maximum}, not {n}")
    return replace(c, max_position_embeddings=n)


def _is_bonsai(name: str) -> bool:
    return name.removeprefix(RANDOM).startswith(_BONSAI)


def _sizes(name: str) -> ConfigFile:
    shape = name.removeprefix(RANDOM)
    if shape not in RANDOM_SHAPES:
        choice = ", ".join(RANDOM + each for each in RANDOM_SHAPES)
        raise LutraError(f"a random model must be one of {choice}, not {name!r}")
    return ConfigFile(Path(name), RANDOM_SHAPES[shape])


def random_packed(
    name: str,
    format: Format | None = None,
    group: int = 128,
    context: int | None = None,
    *,
    kv_bits: Kv = 8,
    a_groups: ActivationGroups | None = None,
    head_bits: int | None = None,
    n_layers: int | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> PackedModel:
    """The packed model ``random:SHAPE``; BitNet's shapes are ternary, Bonsai's W1A8, others W4A8
    unless said.

    ``a_groups`` are groups of its activations, ``head_bits`` the bits of embedding and head if they
    are codes, 0 if not, ``n_layers`` makes it shallower, ``vocab_size`` its vocabulary smaller.
    """
    file = _sizes(name)
    bitnet = file.architecture in _BITNETS
    c = random_config(name, context)
    c = replace(c, vocab_size=vocab_size or c.vocab_size)
    format = format or random_format(name)
    one_scale = format.ternary and format.group is None
    if bitnet and not one_scale:
        raise LutraError(
            f"{name} has ternary weights, which are not rounded to {format}: leave --format out"
        )
    if one_scale and not bitnet:
        raise LutraError(
            f"{name} has no ternary weights of one scale: give another format than {format}, such "
            "as W1.58g128A8"
        )
    group = format.group or group
    key_bits, value_bits = kv_pair(kv_bits)
    q_max = format.q_max if a_groups is None else a_groups.peak
    maker = _Maker(c, format, group, q_max, np.random.default_rng(seed))
    architecture = file.architecture
    total = n_layers or c.num_hidden_layers
    layers: list[PackedLayer] = []
    for i in range(total):
        if progress:
            progress(f"making {name}", i / (total + 1))
        layers.append(
            maker.layer(
                sub_norms=bitnet, biased=architecture == QWEN2, normed=architecture == QWEN3
            )
        )
    coded, worth = None, 0.0
    head_bits = random_head_bits(name) if head_bits is None else head_bits
    if not head_bits:
        embedding = maker.pool(np.dtype(np.int16), c.vocab_size, c.hidden_size)
        head, rows, shift = maker.head()
        worth = 2.0 ** (LOGIT_SHIFT + shift - 31)
    else:
        coded = maker.vocabulary(head_bits, file.flag("tie_word_embeddings"))
        embedding = np.zeros((0, c.hidden_size), np.int16)
        head = np.zeros((0, c.hidden_size), np.int8)
        rows, shift = np.zeros(0, np.int16), coded.head.shift
        worth = float(scale_to_float(coded.head.scale))
    n_positions = c.max_position_embeddings
    cos, sin = c.rope.table(n_positions, c.head_dim, n_positions)
    rope = np.rint(np.concatenate([cos, sin], axis=1) * (1 << ROPE_FRAC)).astype(np.int16)
    return PackedModel(
        name=name,
        architecture=architecture,
        format=format_name(
            format.w_bits,
            format.a_bits,
            ternary=format.ternary,
            group=group if not one_scale and (format.ternary or format.w_bits == 1) else None,
            a_groups=a_groups,
        ),
        a_bits=format.a_bits,
        ternary=one_scale,
        w_bits=format.w_bits,
        scale_bits=1 if one_scale else _SCALE_MAX.bit_length(),
        group=None if one_scale else group,
        biased=architecture == QWEN2,
        head_normed=architecture == QWEN3,
        gate=c.gate,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        n_heads=c.num_attention_heads,
        n_kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        key_bits=key_bits,
        value_bits=value_bits,
        vocab_size=c.vocab_size,
        context=n_positions,
        bos=None,
        eos=(),
        eps=scale_from_float(c.rms_norm_eps),
        head_eps=round(c.rms_norm_eps * 2.0**EPS_FRAC),
        residual_frac=_RESIDUAL_FRAC,
        embedding=embedding,
        embedding_frac=_RESIDUAL_FRAC,
        rope=rope,
        layers=layers,
        norm=maker.norm(c.hidden_size),
        head=head,
        head_rows=rows,
        head_shift=shift,
        head_scale=worth,
        a_groups=a_groups,
        vocabulary=coded,
    )


class _Maker:
    """Draws the parts of a model."""

    def __init__(
        self,
        config: DecoderConfig,
        format: Format,
        group: int,
        q_max: int,
        rng: np.random.Generator,
    ) -> None:
        self._config, self._format, self._group, self._rng = config, format, group, rng
        self._q_max, self._one_scale = q_max, format.ternary and format.group is None
        # every byte whose four fields are 0, 1 or 2
        valid = [b for b in range(256) if all(b >> s & 3 < 3 for s in (0, 2, 4, 6))]
        trits = np.array(valid, np.uint8)[rng.integers(0, len(valid), _POOL, np.uint8)]
        self._bytes = rng.integers(0, 256, _POOL, np.uint8)
        self._codes = trits if format.ternary else self._bytes
        self._int16 = rng.integers(-8192, 8192, _POOL, np.int16)

    def _cut(self, pool: NDArray[np.generic], n: int) -> NDArray[np.generic]:
        """``n`` numbers of a pool, from a place of its own on."""
        out = np.empty(n, pool.dtype)
        start = int(self._rng.integers(0, len(pool)))
        first = min(n, len(pool) - start)
        out[:first] = pool[start : start + first]
        for at in range(first, n, len(pool)):
            part = out[at : at + len(pool)]
            part[:] = pool[: len(part)]
        return out

    def pool(self, dtype: np.dtype[np.int16], *shape: int) -> NDArray[np.int16]:
        """Small int16 numbers."""
        return self._cut(self._int16, int(np.prod(shape))).astype(dtype, copy=False).reshape(shape)

    def norm(self, n: int) -> PackedNorm:
        """Gammas from 0.5 to 1.5."""
        one = 1 << _GAMMA_FRAC
        gamma = self._rng.integers(one // 2, one + one // 2, n, np.int16)
        return PackedNorm(gamma, _GAMMA_FRAC)

    def _linear(self, name: str, factor: float = 1.0) -> PackedLinear:
        c = self._config
        n, k = linear_shapes(c.hidden_size, c.intermediate_size, c.q_size, c.kv_size)[name]
        bits = self._format.w_bits
        codes = self._cut(self._codes, n * row_bytes(k, bits)).reshape(n, -1)
        codes = codes.view(np.uint8)
        if self._one_scale:
            weights = StoredWeights(codes=codes, depth=k, bits=bits)
            return PackedLinear(weights, scale_from_float(1.1 * factor / np.sqrt(k)), 1)
        if k % self._group:
            raise LutraError(
                f"groups of {self._group} do not divide a depth of {k}: use another --group"
            )
        middle = 2 if self._format.ternary else (1 << bits) - 1
        sides = n, k // self._group
        weights = StoredWeights(
            codes=codes,
            depth=k,
            bits=bits,
            group=self._group,
            scale=self._rng.integers(100, _SCALE_MAX + 1, sides, np.uint8),
            zero=np.full(sides, middle, np.uint16),
        )
        limit = sum_limit(c.gate, name)
        shift = least_shift(_SCALE_MAX * middle * k, self._q_max, limit)
        unit = 0.7 / np.sqrt(k) / (180 * middle / np.sqrt(3)) * 2.0**shift
        return PackedLinear(weights, scale_from_float(factor * unit), shift)

    def layer(self, *, sub_norms: bool, biased: bool, normed: bool) -> PackedLayer:
        """One layer."""
        c = self._config
        softmax = float(np.log2(np.e) / np.sqrt(c.head_dim))
        bias = None
        if biased:
            n = c.q_size + 2 * c.kv_size
            bias = PackedBias(self.pool(np.dtype(np.int16), n) >> 2, _BIAS_FRAC)
        norms = None
        if normed:
            query, key = self.norm(c.head_dim), self.norm(c.head_dim)
            scaled = np.rint(query.gamma * softmax).astype(np.int16)
            norms = HeadNorms(scaled, key.gamma, _GAMMA_FRAC)
        return PackedLayer(
            input_norm=self.norm(c.hidden_size),
            q_proj=self._linear("q_proj", 1.0 if normed else softmax),
            k_proj=self._linear("k_proj"),
            v_proj=self._linear("v_proj"),
            bias=bias,
            head_norms=norms,
            window=0,
            attention_norm=self.norm(c.q_size) if sub_norms else None,
            o_proj=self._linear("o_proj"),
            ffn_input_norm=self.norm(c.hidden_size),
            gate_proj=self._linear("gate_proj"),
            up_proj=self._linear("up_proj"),
            ffn_norm=self.norm(c.intermediate_size) if sub_norms else None,
            down_proj=self._linear("down_proj"),
        )

    def vocabulary(self, bits: int, tied: bool) -> CodedVocabulary:
        """Embedding and head in codes of ``bits``, one if they are ``tied``."""
        c, levels = self._config, (1 << bits) - 1
        if c.hidden_size % self._group:
            raise LutraError(
                f"groups of {self._group} do not divide a depth of {c.hidden_size}: use another "
                "--group"
            )
        sides, found = (c.vocab_size, c.hidden_size // self._group), list[StoredWeights]()
        for _ in range(1 if tied else 2):
            codes = self._cut(self._bytes, c.vocab_size * row_bytes(c.hidden_size, bits))
            found.append(
                StoredWeights(
                    codes=codes.view(np.uint8).reshape(c.vocab_size, -1),
                    depth=c.hidden_size,
                    bits=bits,
                    group=self._group,
                    scale=self._rng.integers(100, _SCALE_MAX + 1, sides, np.uint8),
                    zero=np.broadcast_to(np.uint16(levels), sides),
                )
            )
        unit = scale_from_float(0.5 / (_SCALE_MAX * levels))
        shift = least_shift(found[-1].peak_bound, self._q_max, ACC_MAX, least=1)
        worth = scale_from_float(2.0 ** (shift - 31))
        return CodedVocabulary(
            PackedLinear(found[0], unit, 0), PackedLinear(found[-1], worth, shift)
        )

    def head(self) -> tuple[NDArray[np.int8], NDArray[np.int16], int]:
        """Rows of the head whose sums the ternary engine can hold, their scales, the shift."""
        c, q_max = self._config, self._q_max
        deviation = _HEAD_DEVIATION
        if self._one_scale:
            # a mean magnitude is 0.8 deviations; the rest is room for the largest row
            deviation = min(deviation, 0.7 * LOGIT_ACC_MAX / q_max / c.hidden_size / 0.8)
        drawn = self._rng.standard_normal(_POOL, np.float32) * np.float32(deviation)
        pool = np.clip(np.rint(drawn), -121, 121).astype(np.int8)
        head = self._cut(pool, c.vocab_size * c.hidden_size).view(np.int8)
        head = head.reshape(c.vocab_size, c.hidden_size)
        step = 4096
        peak = max(
            int(np.abs(head[i : i + step]).sum(axis=1, dtype=np.int64).max())
            for i in range(0, c.vocab_size, step)
        )
        rows = self._rng.integers(20000, 32767, c.vocab_size, np.int16)
        return head, rows, least_shift(2 * peak, q_max, LOGIT_ACC_MAX, least=1)
