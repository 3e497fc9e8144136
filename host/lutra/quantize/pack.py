"""From a quantised model to integers: every rounding that happens before the token path, once."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra.arguments import either
from lutra.checkpoints.weights import Dense, Encoded, Integers
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.models.layers import log_probabilities
from lutra.models.rope import Rope
from lutra.parallel import ahead, each_of, one_blas_thread
from lutra.quantize import (
    DEFAULT_GROUP,
    check_format,
    check_groups,
    default_format,
    float_bits,
    quantize_layer,
    stage_of,
)
from lutra.quantize.balance import balance
from lutra.quantize.reference import reference_layer
from lutra.quantize.vocabulary import pack_vocabulary
from lutra.quantize.widths import Widths
from lutra_golden.arith.quantize import ActivationGroups, q_max_of
from lutra_golden.arith.scale import SCALE, Scale, scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv, kv_pair
from lutra_golden.model.checks import check_numbers, sum_limit
from lutra_golden.model.limits import (
    FRAC_MAX,
    HEAD_MAX,
    LOGIT_ACC_MAX,
    RESIDUAL_FRAC_MAX,
    SCALE_EXPONENT_MAX,
    least_shift,
)
from lutra_golden.model.lowered import STACKS
from lutra_golden.model.packed import (
    CodedVocabulary,
    HeadNorms,
    PackedBias,
    PackedLayer,
    PackedLinear,
    PackedModel,
    PackedNorm,
)
from lutra_golden.model.shapes import LINEARS
from lutra_golden.vector.heads import EPS_FRAC, FIXED_FRAC
from lutra_golden.vector.residual import LOGIT_SHIFT
from lutra_golden.vector.rope import ROPE_FRAC

__all__ = ["Packer", "check_packing", "pack_decoder", "pack_model"]


_LOG = logging.getLogger(__name__)
_INT16_MAX = 32767
_ROW_BITS = 8  # of a row of the embedding, below which the packer says so
_WEIGHTS = 1 << 20  # of embedding and head, at a time: with fewer, threads wait for each other
_CALIBRATION = 64  # tokens that the residual stream's range is measured with
_LARGEST = 4  # of them, those with the largest rows of the embedding
_KEY_LOSS_MAX = 0.05  # nats by which keys of four bits may diverge from keys of eight
_LARGE = 1 << 28  # parameters from which on the range is measured in float32


def _fraction_bits(peak: float, limit: int) -> int:
    """Most fraction bits with which ``peak`` stays within ``limit``."""
    return min(FRAC_MAX, math.floor(math.log2(limit / peak))) if peak > 0 else FRAC_MAX


def _int16(
    values: NDArray[np.floating], what: str, max_frac: int = FRAC_MAX
) -> tuple[NDArray[np.int16], int]:
    """Values as int16 with as many fraction bits as they leave."""
    peak = float(np.abs(values).max(initial=0))
    frac = min(_fraction_bits(peak, _INT16_MAX), max_frac)
    if frac < 0:
        raise LutraError(f"{what} reaches {peak:.0f}, beyond int16: rescale it")
    return np.rint(values * 2.0**frac).astype(np.int16), frac


def _scale(value: float, what: str) -> Scale:
    """A scale whose exponent can be stored."""
    if math.isfinite(value):
        scale = scale_from_float(value)
        if abs(int(scale.e)) <= SCALE_EXPONENT_MAX:
            return scale
    least, most = (
        2.0 ** (e + SCALE.m_width - 1) for e in (-SCALE_EXPONENT_MAX, SCALE_EXPONENT_MAX)
    )
    raise LutraError(
        f"{what} is {value:.3g}, scales hold {least:.0e} to {most:.0e}: rescale the checkpoint"
    )


def _pack_norm(weight: NDArray[np.float32], name: str) -> PackedNorm:
    return PackedNorm(*_int16(weight, name))


def _pack_head(
    embedding: Dense | Encoded, peaks: NDArray[np.float32], q_max: int, *, shifted: bool
) -> tuple[NDArray[np.int8], NDArray[np.int16], int, float]:
    """The head's rows, their scales, the shift of its sums and what one of all is worth.

    ``peaks`` are those of its rows. Unless sums may be ``shifted``, steps are coarser where they
    would pass the accumulators.
    """
    (n, k), blocks = embedding.shape, _blocks(embedding)
    row = peaks.astype(np.float64) / HEAD_MAX
    least = np.zeros(n)
    if not shifted:
        # of a row's codes, before they are rounded
        max_sum = max(LOGIT_ACC_MAX // q_max - k // 2, 1)
        sums = each_of(
            lambda b: np.abs(embedding.dequantized(b)).sum(axis=1, dtype=np.float64), blocks
        )
        least = np.concatenate(sums) / max_sum
    top = float(np.maximum(row, least).max())
    if top == 0:
        raise LutraError("the embedding is all zeros: the checkpoint is empty, copy it again")
    rows = np.maximum(np.rint(row / top * _INT16_MAX), np.ceil(least / top * _INT16_MAX))
    rows = np.maximum(rows, 1).astype(np.int16)
    step = rows.astype(np.float64)[:, None] * (top / _INT16_MAX)
    head = np.empty((n, k), np.int8)

    def code(b: slice) -> int:
        codes = embedding.dequantized(b) / step[b]
        np.clip(np.rint(codes, out=codes), -HEAD_MAX, HEAD_MAX, out=codes)
        head[b] = codes
        return 2 * int(np.abs(codes, out=codes).sum(axis=1).max())

    shift = least_shift(max(each_of(code, blocks)), q_max, LOGIT_ACC_MAX, least=1)
    return head, rows, shift, top / _INT16_MAX * 2.0 ** (LOGIT_SHIFT + shift - 1)


def _blocks(embedding: Dense | Encoded) -> list[slice]:
    """Rows that are worked on at a time."""
    n, k = embedding.shape
    n_rows = max(_WEIGHTS // k, 1)
    return [slice(first, first + n_rows) for first in range(0, n, n_rows)]


def _row_peaks(embedding: Dense | Encoded) -> NDArray[np.float32]:
    """Largest magnitude of each row."""

    def peaks(b: slice) -> NDArray[np.float32]:
        if isinstance(embedding, Encoded):
            return embedding.codes(b).row_peaks()
        rows = embedding.dequantized(b)
        return np.maximum(rows.max(axis=1), -rows.min(axis=1))

    return np.concatenate(each_of(peaks, _blocks(embedding)))


def _pack_embedding(
    embedding: Dense | Encoded, peaks: NDArray[np.float32], residual_frac: int
) -> tuple[NDArray[np.int16], int]:
    """int16 rows and their fraction bits, no more than ``residual_frac``.

    The largest row decides on the fraction bits of all; it is named if most rows keep few.
    """
    n, k = embedding.shape
    peak, median = float(peaks.max()), float(np.median(peaks))
    by_largest = _fraction_bits(peak, _INT16_MAX)
    frac = min(residual_frac, by_largest)
    if frac < 0:
        raise LutraError(f"the embedding reaches {peak:.0f}, beyond int16: rescale the model")
    if frac == by_largest and median * 2.0**frac < 1 << (_ROW_BITS - 1):
        _LOG.warning(
            "the largest row of the embedding, of token %d, is %.0f times the median row, to which "
            "it leaves %.1f bits, fewer than %d: clip that row if the text suffers",
            peaks.argmax(), peak / max(median, 1e-38), math.log2(max(median * 2.0**frac, 0.5)) + 1,
            _ROW_BITS,
        )  # fmt: skip
    out = np.empty((n, k), np.int16)

    def code(b: slice) -> None:
        scaled = embedding.dequantized(b) * np.float32(2.0**frac)
        out[b] = np.rint(scaled, out=scaled)

    each_of(code, _blocks(embedding))
    return out, frac


def _pack_rope(rope: Rope, context: int, head_dim: int) -> NDArray[np.int16]:
    cos, sin = rope.table(context, head_dim, context)
    table = np.rint(np.concatenate([cos, sin], axis=1) * (1 << ROPE_FRAC))
    if np.abs(table).max() > _INT16_MAX:
        raise LutraError(
            f"the rotary table reaches {np.abs(table).max() / (1 << ROPE_FRAC):.2f}, beyond 2: "
            "the scaling's attention factor is too large"
        )
    return table.astype(np.int16)


def _peak(layer: DecoderLayer, name: str) -> int:
    weight = layer.linear(name)
    assert isinstance(weight, Integers)
    return weight.weights.peak


def _levelled(
    parts: Sequence[tuple[str, Integers, float]], peaks: Sequence[int]
) -> tuple[list[tuple[str, Integers, float]], list[int]]:
    """Matrices that share a shift and their peaks, ternary ones beside others multiplied by a
    power of two.

    The sums of the others are larger by the bits of their scales, and the shift that those take
    would leave next to nothing of sums without any.
    """
    most, top = max(matrix.weights.scale_bits for _, matrix, _ in parts), max(peaks)
    found, levels = list[tuple[str, Integers, float]](), list[int]()
    for (name, matrix, factor), peak in zip(parts, peaks, strict=True):
        w, by = matrix.weights, 0
        if w.ternary and peak:
            by = min(most - 1, (top // peak).bit_length() - 1)
        if by:
            matrix = Integers(replace(w, scale=w.scale << by), matrix.scale / (1 << by))
        found.append((name, matrix, factor))
        levels.append(peak << by)
    return found, levels


class Packer:
    """Packs a quantised decoder layer by layer, and measures the residual stream as it goes.

    Every layer's matrices are :class:`~lutra.checkpoints.weights.Integers`. Deterministic: the
    range is measured on a fixed sequence of tokens, which ends with those whose rows of the
    embedding are the largest. ``kv_bits`` says how keys and values are
    to be cached, ``head_bits`` and ``head_group`` what embedding and head are coded in, if they
    are, with the offsets of a file's groups if there are ``head_offsets``; the layers do not depend
    on them.
    """

    def __init__(
        self,
        model: Decoder,
        kv_bits: Kv = 8,
        head_bits: int | None = None,
        head_group: int = DEFAULT_GROUP,
        head_offsets: bool = False,
    ) -> None:
        c, self._kv_bits = model.config, kv_pair(kv_bits)
        n_weights = c.num_hidden_layers * sum(math.prod(c.shape_of(name)) for name in LINEARS)
        if n_weights >= _LARGE:
            model = replace(model, dtype=np.float32)
        self.model, self._head_bits, self._head_group = model, head_bits, head_group
        self._head_offsets = head_offsets
        assert model.activation_bits is not None, "the model must be quantised first"
        self.a_bits, self.a_groups = model.activation_bits, model.activation_groups
        n = min(_CALIBRATION, c.max_position_embeddings)
        tokens = np.random.default_rng(0).integers(0, c.vocab_size, n)
        if c.bos_token_id is not None:
            tokens[0] = c.bos_token_id
        # tokens with large rows are those that drive some channel far beyond all others
        self._row_peaks = _row_peaks(model.embed_tokens)
        largest = min(_LARGEST, n // 2)
        tokens[n - largest :] = np.argsort(-self._row_peaks, kind="stable")[:largest]
        self._x = model.embed(tokens)
        # the same stream with values of four bits, and with keys of four bits, too
        self._cached = [self._x, self._x] if self._kv_bits == (4, 4) else []
        self._peak = float(self._row_peaks.max())
        self._widths, self._scale_bits = Widths(), 1
        self._biased = self._head_normed = self._offsets = False
        # matrices in floating point of this layer, and of all, with the bits they were rounded to
        self._floats: list[str] = []
        self._rounded: list[int] = []
        self._integers = 0

    def balanced(self, layer: DecoderLayer) -> DecoderLayer:
        """The next layer of the checkpoint, before it is rounded: its queries and keys
        balanced on the fixed sequence (:mod:`.balance`)."""
        self._floats = [name for name in LINEARS if isinstance(layer.linear(name), Dense)]
        self._integers += len(LINEARS) - len(self._floats)
        return balance(layer, self._x, self.model.config)

    def layer(self, i: int, layer: DecoderLayer) -> PackedLayer:
        """Pack layer ``i``, the next one, as it is stored; the range is measured on it."""
        for name in self._floats:
            weight = layer.linear(name)
            assert isinstance(weight, Integers)
            self._rounded.append(weight.weights.bits)
        packed = self._pack_layer(layer, f"layer {i}", self.model.config.windows[i])
        self.follow(i, reference_layer(self.model.config, packed))

        def stored(name: str) -> PackedLinear:
            linear = packed.linear(name)
            return PackedLinear(linear.stored, linear.scale, linear.shift, linear.peak)

        # as codes, with numbers of eight bytes for each group, it would take twice the memory
        return replace(packed, **dict(zip(LINEARS, each_of(stored, LINEARS), strict=True)))

    def follow(self, i: int, layer: DecoderLayer) -> None:
        """Go through layer ``i`` without packing it: it has been packed before."""
        for name in LINEARS:
            weight = layer.linear(name)
            assert isinstance(weight, Integers), "the model must be quantised first"
            w = weight.weights
            self._widths.add(w)
            self._scale_bits = max(self._scale_bits, int(w.scale.max()).bit_length())
            self._offsets |= w.offset is not None
        self._biased |= layer.q_bias is not None
        self._head_normed |= layer.q_norm is not None
        window = self.model.config.windows[i]
        for n, key_bits in enumerate((None, 4)[: len(self._cached)]):
            cached = replace(self.model, key_bits=key_bits, value_bits=4)
            self._cached[n] = cached.layer(layer, self._cached[n], window)
        self._x = self.model.layer(layer, self._x, window)
        self._peak = max(self._peak, float(np.abs(self._x).max()))
        if not math.isfinite(self._peak):
            raise LutraError(
                f"layer {i} of {self.model.name} gives infinities or NaNs: copy the checkpoint "
                "again"
            )

    def _linears(
        self, parts: Sequence[tuple[str, Integers, float]], peaks: Sequence[int], where: str
    ) -> dict[str, PackedLinear]:
        """Matrices with a name, a factor and a peak each that share one shift."""
        parts, peaks = _levelled(parts, peaks)
        limit = min(sum_limit(self.model.config.gate, name) for name, _, _ in parts)
        # integer weights were doubled for nothing, which a shift of 1 undoes
        least = 1 if all(matrix.weights.ternary for _, matrix, _ in parts) else 0
        shift = least_shift(max(peaks), self._q_max, limit, least)
        packed: dict[str, PackedLinear] = {}
        for (name, matrix, factor), peak in zip(parts, peaks, strict=True):
            scale = _scale(
                matrix.scale * factor * 2.0 ** (shift - 1), f"the scale of {where} {name}"
            )
            packed[name] = PackedLinear(matrix.weights, scale, shift, peak, matrix.levels)
        return packed

    @property
    def _q_max(self) -> int:
        return q_max_of(self.a_bits) if self.a_groups is None else self.a_groups.peak

    def _pack_layer(self, layer: DecoderLayer, where: str, window: int) -> PackedLayer:
        softmax = math.log2(math.e) / math.sqrt(self.model.config.head_dim)
        normed = layer.q_norm is not None and layer.k_norm is not None
        linears: dict[str, PackedLinear] = {}
        found = each_of(lambda name: _peak(layer, name), LINEARS)
        peaks: dict[str, int] = dict(zip(LINEARS, found, strict=True))
        for stack in STACKS:
            parts: list[tuple[str, Integers, float]] = []
            for name in stack:
                weight = layer.linear(name)
                assert isinstance(weight, Integers)
                parts.append((name, weight, softmax if name == "q_proj" and not normed else 1.0))
            linears |= self._linears(parts, [peaks[name] for name in stack], where)

        def norm(name: str) -> PackedNorm | None:
            weight: NDArray[np.float32] | None = getattr(layer, name)
            return None if weight is None else _pack_norm(weight, f"{where} {name}")

        bias = None
        if layer.q_bias is not None and layer.k_bias is not None and layer.v_bias is not None:
            values = [layer.q_bias * (1 if normed else softmax), layer.k_bias, layer.v_bias]
            if layer.k_centre is not None:
                values.append(layer.k_centre)
            joined = np.concatenate(values).astype(np.float64)
            packed, frac = _int16(joined, f"{where} bias", FIXED_FRAC)
            n = sum(len(each) for each in values[:3])
            bias = PackedBias(packed[:n], frac, None if layer.k_centre is None else packed[n:])
        head_norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            both = np.stack([layer.q_norm * softmax, layer.k_norm]).astype(np.float64)
            (query, key), frac = _int16(both, f"{where} q_norm, k_norm")
            head_norms = HeadNorms(query, key, frac)
        return PackedLayer(
            input_norm=_pack_norm(layer.input_layernorm, f"{where} input_layernorm"),
            bias=bias,
            head_norms=head_norms,
            window=window,
            attention_norm=norm("attn_sub_norm"),
            ffn_input_norm=_pack_norm(
                layer.post_attention_layernorm, f"{where} post_attention_layernorm"
            ),
            ffn_norm=norm("ffn_sub_norm"),
            **linears,
        )

    def _check_keys(self) -> None:
        """Refuse keys of four bits where they cost a model too much."""
        if not self._cached:
            return
        eight, four = (log_probabilities(self.model.logits(x)) for x in self._cached)
        loss = float((np.exp(eight) * (eight - four)).sum(axis=1).mean())
        if loss > _KEY_LOSS_MAX:
            raise LutraError(
                f"keys of 4 bits diverge by {loss:.3f} nats from keys of 8 on the calibration "
                f"tokens, {_KEY_LOSS_MAX:g} are accepted: give --kv 8/4, or --kv 8"
            )

    def finish(self, layers: Sequence[PackedLayer]) -> PackedModel:
        """The packed model, when every layer was packed or followed.

        LutraError if its numbers can leave the range of the token path, or if keys of four bits
        cost it too much.
        """
        self._check_keys()
        model = self.model
        if self._integers and self._rounded:
            _LOG.warning(
                "%d of %d matrices of %s are in floating point, beside integers: they are rounded "
                "to %s bits",
                len(self._rounded), self._integers + len(self._rounded), model.name,
                either(sorted(set(self._rounded))),
            )  # fmt: skip
        c = model.config
        head_eps = round(c.rms_norm_eps * 2.0**EPS_FRAC)
        if self._head_normed and head_eps >= 1 << 16:
            raise LutraError(
                f"rms_norm_eps must be below {2.0**16 / 2.0**EPS_FRAC:.1e} for normalised heads, "
                f"not {c.rms_norm_eps}"
            )
        # leaves a factor of 16 above what the fixed sequence reaches
        residual_frac = min(RESIDUAL_FRAC_MAX, _fraction_bits(16 * self._peak, (1 << 31) - 1))
        tables = self._vocabulary(residual_frac)
        packed = PackedModel(
            name=model.name,
            architecture=model.architecture,
            format=self._widths.format(self.a_bits, self.a_groups),
            a_bits=self.a_bits,
            ternary=self._widths.ternary,
            w_bits=self._widths.w_bits,
            scale_bits=self._scale_bits,
            group=self._widths.group or None,
            biased=self._biased,
            head_normed=self._head_normed,
            key_bits=self._kv_bits[0],
            value_bits=self._kv_bits[1],
            gate=c.gate,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            n_heads=c.num_attention_heads,
            n_kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            vocab_size=c.vocab_size,
            context=c.max_position_embeddings,
            bos=c.bos_token_id,
            eos=c.eos_token_id,
            eps=_scale(c.rms_norm_eps, "rms_norm_eps"),
            head_eps=min(head_eps, (1 << 16) - 1),
            residual_frac=residual_frac,
            embedding=tables.embedding,
            embedding_frac=tables.embedding_frac,
            rope=_pack_rope(c.rope, c.max_position_embeddings, c.head_dim),
            layers=layers,
            norm=_pack_norm(model.norm, "norm"),
            head=tables.head,
            head_rows=tables.head_rows,
            head_shift=tables.head_shift,
            head_scale=tables.head_scale,
            a_groups=self.a_groups,
            offsets=self._offsets,
            vocabulary=tables.coded,
        )
        check_numbers(packed)
        return packed

    def _vocabulary(self, residual_frac: int) -> "_Tables":
        """Embedding and head, in codes or as int16 and five trits."""
        model, d = self.model, self.model.config.hidden_size
        if self._head_bits is not None:
            coded, worth = pack_vocabulary(
                model.embed_tokens, model.lm_head, self._head_bits, self._head_group, self._q_max,
                offsets=self._head_offsets,
            )  # fmt: skip
            return _Tables(
                embedding=np.zeros((0, d), np.int16),
                embedding_frac=residual_frac,
                head=np.zeros((0, d), np.int8),
                head_rows=np.zeros(0, np.int16),
                head_shift=coded.head.shift,
                head_scale=worth,
                coded=coded,
            )
        embedding, frac = _pack_embedding(model.embed_tokens, self._row_peaks, residual_frac)
        # the ternary engine, which such a model can run on, does not shift
        shifted = not (self._widths.ternary and self.a_bits == 8 and self.a_groups is None)
        own = model.lm_head
        peaks = self._row_peaks if own is None else _row_peaks(own)
        head = _pack_head(own or model.embed_tokens, peaks, self._q_max, shifted=shifted)
        return _Tables(embedding, frac, *head)


class _Tables(NamedTuple):
    """Embedding and head, fields as of a packed model."""

    embedding: NDArray[np.int16]
    embedding_frac: int
    head: NDArray[np.int8]
    head_rows: NDArray[np.int16]
    head_shift: int
    head_scale: float
    coded: CodedVocabulary | None = None


def pack_decoder(
    model: Decoder, progress: Callable[[str, float], None] | None = None, kv_bits: Kv = 8
) -> PackedModel:
    """Pack a quantised decoder, whole in memory."""
    return _pack(model, lambda _packer, layer: layer, progress, Packer(model, kv_bits))


def check_packing(
    model: Decoder, format: Format | None, a_groups: ActivationGroups | None
) -> Format:
    """The format that :func:`pack_model` packs a checkpoint in; LutraError if it has another kind
    of weights, or activations without such groups."""
    wanted = format or default_format(model)
    check_format(model, wanted)
    check_groups(wanted, a_groups)
    return wanted


def pack_model(
    model: Decoder,
    format: Format | None = None,
    group: int = DEFAULT_GROUP,
    progress: Callable[[str, float], None] | None = None,
    kv_bits: Kv = 8,
    a_groups: ActivationGroups | None = None,
    offsets: bool = False,
    head_bits: int | None = None,
) -> PackedModel:
    """Round a checkpoint to nearest in a format, and pack it; deterministic.

    Without a format weights that are integers keep their bits, others have eight. With ``offsets``
    those of a checkpoint's groups stay integers. Embedding and head are codes of ``head_bits`` if
    there are any.
    """
    wanted, float_width = check_packing(model, format, a_groups), float_bits(format)
    bits: dict[str, int] = dict.fromkeys(LINEARS, float_width)
    ternary = wanted.ternary and wanted.group is not None and float_width == wanted.w_bits

    def rounded(packer: Packer, layer: DecoderLayer) -> DecoderLayer:
        return quantize_layer(packer.balanced(layer), bits, group, offsets=offsets, ternary=ternary)

    source = model.replaced(model.layers, wanted.a_bits, a_groups)
    packer = Packer(source, kv_bits, head_bits, group, offsets)
    return _pack(source, rounded, progress, packer)


def _pack(
    model: Decoder,
    rounded: Callable[[Packer, DecoderLayer], DecoderLayer],
    progress: Callable[[str, float], None] | None,
    packer: Packer,
) -> PackedModel:
    layers: list[PackedLayer] = []
    stage, n = stage_of(model), len(model.layers)
    with one_blas_thread():
        for i, layer in enumerate(ahead(model.layers.__getitem__, range(n))):
            if progress:
                progress(stage, i / n)
            layers.append(packer.layer(i, rounded(packer, layer)))
    return packer.finish(layers)
