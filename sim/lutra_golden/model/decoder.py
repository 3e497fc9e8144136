"""The integer path of a whole packed model, which every device computes bit for bit.

No configuration, no program: a model of any size that can be packed runs here as it is specified.
Rows are tokens, of one sequence or of several; only attention looks at which sequence a row is of.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int, Saturation, exact_matmul, round_shift, saturate
from lutra_golden.arith.quantize import Q_MAX, q_max_of
from lutra_golden.arith.scale import Scale
from lutra_golden.attention.attention import AttentionParams, attend
from lutra_golden.model.cache import LayerCache
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.lowered import (
    LoweredNorm,
    embedding_shift,
    layer_norms,
    lower_norm,
    padded_head_eps,
    residual_unit,
)
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.padding import built_head_dim, head_places, pad_head_gamma
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.model.shares import Party
from lutra_golden.model.two_stage import Best, TwoStageHead
from lutra_golden.vector.heads import HeadBias, HeadNorm
from lutra_golden.vector.norm import gate_scale, norm_quantize, relu2_gate, swiglu, swiglu_scale
from lutra_golden.vector.residual import RESIDUAL_WIDTH, embedded, logits, residual_sum
from lutra_golden.vector.rope import rope_quantize, rope_quantize_fixed

__all__ = ["Decoder", "Rows"]

_KEPT = 1 << 28  # weights of a model whose matrices stay in floating point once made
_ROWS = 2048  # of a matrix, made floating point at a time


@dataclass(frozen=True)
class Rows:
    """Successive tokens of one sequence: its caches, one a layer, and the rows they stand in."""

    caches: Sequence[LayerCache]
    rows: slice
    position: int

    @property
    def positions(self) -> Int:
        """Position of each row."""
        return np.arange(self.rows.stop - self.rows.start, dtype=np.int64) + self.position


class Decoder:
    """The integer path of ``model``.

    Model of nothing else: this is the specification, and the device ``golden``. LutraError if the
    model's numbers can leave the range of the path.
    """

    def __init__(self, model: PackedModel) -> None:
        check_numbers(model)
        self.model = model
        self.saturation = Saturation()
        """Set by every value that leaves its range between embedding and logits."""
        n_layers = len(model.layers)
        first = model.layers[0] if n_layers else None
        size = sum(first.linear(n).n_rows * first.linear(n).depth for n in LINEARS) if first else 0
        self._keeps = size * n_layers + model.vocab_size * model.hidden_size <= _KEPT
        self._kept: dict[tuple[int, str], list[tuple[slice, NDArray[np.floating]]]] = {}
        self._q_max = q_max_of(model.a_bits)
        self._unit = residual_unit(model)
        self._norm_out = lower_norm(model.norm, model.hidden_size)

    def caches(self) -> list[LayerCache]:
        """Empty caches of a sequence, one a layer."""
        m = self.model
        return [LayerCache(m.n_kv_heads, m.head_dim, m.context) for _ in range(len(m.layers))]

    def embed(self, tokens: Sequence[int]) -> Int:
        """Residual stream ``[M, hidden_size]`` of tokens."""
        m, at = self.model, np.asarray(tokens, np.int64)
        if m.vocabulary is not None:
            coded = m.vocabulary.embedding
            rows = coded.stored.rows(at).unpack().doubled()
            return embedded(rows, coded.scale, m.residual_frac)
        return m.embedding[at].astype(np.int64) << embedding_shift(m)

    def layer(self, i: int, x: Int, sequences: Sequence[Rows], party: Party | None = None) -> Int:
        """Layer ``i``: the residual stream ``[M, hidden_size]`` after it.

        Keys and values are written into the caches of the sequences; their lengths do not change.
        Of a ``party`` only the share of rows is computed here: others have the rest.
        """
        m, layer = self.model, self.model.layers[i]
        norms = layer_norms(m, layer)
        own = _Own(self, i, party)

        a, s = self._norm(x, self._units(x), norms.input)
        products = own.columns("heads", a, ("q_proj", "k_proj", "v_proj"))
        (q, qs), (k, ks), (v, vs) = self._heads(layer, products, s, sequences)
        h = np.zeros((len(x), m.n_heads * m.head_dim), np.int64)
        for each in sequences:
            at = each.rows
            cache, position = each.caches[i], each.position
            cache.write(position, k[at], _at(ks, at), v[at], _at(vs, at))
            h[at] = self._attend(layer, q[at], _at(qs, at), cache, position)
        h = own.attended(h)
        a, s = self._norm(h, self._units(h), norms.attention)
        [o] = own.columns("hidden", a, ("o_proj",))
        x = self._residual(x, o, s, layer.o_proj)

        a, s = self._norm(x, self._units(x), norms.ffn_input)
        gate, up = own.columns("inner", a, ("gate_proj", "up_proj"))
        if m.gate is Gate.RELU2:
            u = relu2_gate(gate, up)
            us = gate_scale(s, layer.gate_proj.scale, layer.up_proj.scale)
        else:
            u = swiglu(gate, up, s, layer.gate_proj.scale, self.saturation)
            us = swiglu_scale(s, layer.up_proj.scale)
        a, s = self._norm(u, us, norms.ffn)
        [down] = own.columns("hidden", a, ("down_proj",))
        return self._residual(x, down, s, layer.down_proj)

    def head(self, x: Int, rows: range | None = None) -> tuple[Int, Scale]:
        """Logits ``[M, vocab_size]`` of the residual stream, and the activation scale ``[M]``; of
        some ``rows`` of the head ``[M, rows]`` alone.

        A logit is worth its row's scale times the model's ``head_scale``.
        """
        m = self.model
        rows = range(m.vocab_size) if rows is None else rows
        if not len(x):
            return np.zeros((0, len(rows)), np.int64), Scale(*np.zeros((2, 0), np.int64))
        a, s = self._norm(x, self._units(x), self._norm_out)
        acc = self._sums(-1, "head", a, rows)
        if m.vocabulary is not None:
            return round_shift(acc, m.vocabulary.head.shift), s
        weights = m.head_rows[rows.start : rows.stop].astype(np.int64)
        return logits(round_shift(acc, m.head_shift), weights), s

    def best(self, x: Int, n: int) -> tuple[list[Best], Scale]:
        """The ``n`` best tokens behind each row ``[M, hidden_size]`` of the residual stream, those
        of :meth:`head`, and the activation scale ``[M]``.

        ValueError if the head cannot be divided: see :class:`.TwoStageHead`.
        """
        if not len(x):
            return [], Scale(*np.zeros((2, 0), np.int64))
        a, s = self._norm(x, self._units(x), self._norm_out)
        return self._two_stages.best(a, n), s

    @cached_property
    def _two_stages(self) -> TwoStageHead:
        return TwoStageHead(self.model)

    # -- pieces

    def _units(self, x: Int) -> Scale:
        return Scale(np.full(len(x), self._unit.m), np.full(len(x), self._unit.e))

    def _norm(self, v: Int, scale: Scale, norm: LoweredNorm) -> tuple[Int, Scale]:
        gamma = norm.gamma.astype(np.int64)
        return norm_quantize(
            v,
            scale,
            gamma,
            norm.frac,
            norm.inv_n,
            self.model.eps,
            normalise=norm.normalise,
            q_max=self._q_max,
            groups=self.model.a_groups,
            run=norm.run,
        )

    def _heads(
        self, layer: PackedLayer, products: Sequence[Int], s: Scale, sequences: Sequence[Rows]
    ) -> list[tuple[Int, Scale]]:
        """Queries, keys and values ``[M, heads, head_dim]`` with their scales ``[M, heads]``, from
        ``products`` of their matrices."""
        m, out, first = self.model, list[tuple[Int, Scale]](), 0
        positions = np.concatenate([each.positions for each in sequences])
        rope = m.rope[positions].astype(np.int64)
        for name, product, q_max in zip(
            ("q_proj", "k_proj", "v_proj"),
            products,
            (Q_MAX, q_max_of(m.key_bits), q_max_of(m.value_bits)),
            strict=True,
        ):
            linear = layer.linear(name)
            h = product.reshape(len(product), -1, m.head_dim)
            table = None if name == "v_proj" else rope
            bias = None
            if layer.bias is not None:
                values = layer.bias.values.astype(np.int64).reshape(-1, m.head_dim)
                centre = layer.bias.centre if name == "k_proj" else None
                if centre is not None:
                    centre = centre.astype(np.int64).reshape(-1, m.head_dim)
                bias = HeadBias(values[first : first + h.shape[1]], layer.bias.frac, centre)
                first += h.shape[1]
            if layer.head_norms is not None and name != "v_proj":
                gamma = layer.head_norms.query if name == "q_proj" else layer.head_norms.key
                norm = (gamma, layer.head_norms.frac)
                out.append(self._normed_heads(h, s, linear, rope, bias, norm, q_max))
            elif layer.bias is not None or layer.head_norms is not None:
                out.append(
                    rope_quantize_fixed(
                        h, s, linear.scale, table, bias, None, q_max, self.saturation
                    )
                )
            else:
                out.append(rope_quantize(h, s, linear.scale, table, q_max))
        return out

    def _normed_heads(
        self,
        h: Int,
        s: Scale,
        linear: PackedLinear,
        rope: Int,
        bias: HeadBias | None,
        norm: tuple[NDArray[np.int16], int],
        q_max: int,
    ) -> tuple[Int, Scale]:
        """Heads with a norm of their own, whose mean is taken over a power of two of elements."""
        d = built_head_dim(self.model.head_dim)
        places = head_places(1, self.model.head_dim, d, True)
        gamma, frac = norm
        if bias is not None:
            bias = HeadBias(_spread(bias.values, places, d), bias.frac)
        q, scale = rope_quantize_fixed(
            _spread(h, places, d),
            s,
            linear.scale,
            _spread(rope, places, d),
            bias,
            HeadNorm(pad_head_gamma(gamma, d).astype(np.int64), frac, padded_head_eps(self.model)),
            q_max,
            self.saturation,
        )
        return q[..., places], scale

    def _attend(
        self, layer: PackedLayer, q: Int, q_scale: Scale, cache: LayerCache, position: int
    ) -> Int:
        m, n = self.model, position + len(q)
        params = AttentionParams(
            head_dim=m.head_dim,
            n_heads=m.n_heads,
            n_kv_heads=m.n_kv_heads,
            pass_tokens=len(q),
            max_context=m.context,
        )
        kv = cache.first(n)
        h = attend(
            params,
            q,
            q_scale,
            kv.keys.astype(np.int64),
            kv.key_scale,
            kv.values.astype(np.int64),
            kv.value_scale,
            position,
            m.residual_frac,
            layer.window,
            self.saturation,
        )
        return h.reshape(len(q), -1)

    def _residual(self, x: Int, acc: Int, s: Scale, linear: PackedLinear) -> Int:
        frac = self.model.residual_frac
        exact = residual_sum(x, acc, s, linear.scale, frac, self.saturation)
        return saturate(exact, RESIDUAL_WIDTH)

    def product(self, i: int, name: str, a: Int, rows: range | None = None) -> Int:
        """Accumulators ``[M, rows]`` of a matrix of layer ``i``, of all rows if left out."""
        linear = self.model.layers[i].linear(name)
        sums = self._sums(i, name, a, range(linear.n_rows) if rows is None else rows)
        return round_shift(sums, linear.shift)

    def _sums(self, i: int, name: str, a: Int, rows: range) -> Int:
        """Sums ``[M, rows]`` before the shift; see :meth:`_blocks`."""
        out = np.empty((len(a), len(rows)), np.int64)
        for block, w in self._blocks(i, name):
            first, last = max(block.start, rows.start), min(block.stop, rows.stop)
            if first < last:
                part = w[:, first - block.start : last - block.start]
                out[:, first - rows.start : last - rows.start] = exact_matmul(a, part)
        return out

    def _blocks(self, i: int, name: str) -> Iterator[tuple[slice, NDArray[np.floating]]]:
        """Twice the weights ``[K, rows]`` of some rows at a time, in floating point.

        float32 carries the sums exactly if none can reach ``2**24``, float64 all that are.
        """
        if (i, name) in self._kept:
            yield from self._kept[i, name]
            return
        made: list[tuple[slice, NDArray[np.floating]]] = []
        weights, vocabulary = None, self.model.vocabulary
        if name != "head":
            linear = self.model.layers[i].linear(name)
            # unpacked codes of a large model are not kept either
            weights = linear.weights if self._keeps else linear.unpacked()
        n = self.model.vocab_size if weights is None else len(weights.codes)
        for first in range(0, n, _ROWS):
            rows = slice(first, min(first + _ROWS, n))
            if weights is None and vocabulary is not None:
                part = vocabulary.head.stored.rows(rows).unpack().doubled()
            elif weights is None:
                part = 2 * self.model.head[rows].astype(np.int64)
            else:
                part = weights.rows(rows).doubled()
            peak = int(np.abs(part).sum(axis=1).max()) * (self.model.a_peak + 1)
            w = np.ascontiguousarray(part.T, np.float32 if peak < 1 << 24 else np.float64)
            if self._keeps:
                made.append((rows, w))
            yield rows, w
        if self._keeps:
            self._kept[i, name] = made


@dataclass(frozen=True)
class _Own:
    """The rows of layer ``i`` that are computed here: all of them, or those of a ``party``."""

    decoder: Decoder
    i: int
    party: Party | None

    def columns(self, what: str, a: Int, names: Sequence[str]) -> list[Int]:
        """Accumulators ``[M, N]`` of each matrix, wherever they are computed."""
        layer = self.decoder.model.layers[self.i]
        if self.party is None:
            return [self.decoder.product(self.i, name, a) for name in names]
        share, first = self.party.share, 0
        found, columns = list[Int](), list[range]()
        for name in names:
            rows = share.rows(name)
            found.append(self.decoder.product(self.i, name, a, rows))
            columns.append(range(first + rows.start, first + rows.stop))
            first += layer.linear(name).n_rows
        whole = self.party.exchange.whole(what, np.concatenate(found, axis=1), columns)
        ends = np.cumsum([layer.linear(name).n_rows for name in names])
        return np.split(whole, ends[:-1], axis=1)

    def attended(self, h: Int) -> Int:
        """Attention ``[M, heads * head_dim]`` of all heads, of which ``h`` has those of here."""
        if self.party is None:
            return h
        d, heads = self.decoder.model.head_dim, self.party.share.heads
        columns = range(heads.start * d, heads.stop * d)
        part = h[:, columns.start : columns.stop]
        return self.party.exchange.whole("attention", part, [columns])


def _at(scale: Scale, rows: slice) -> Scale:
    return Scale(scale.m[rows], scale.e[rows])


def _spread(x: Int, places: NDArray[np.int64], to: int) -> Int:
    """``x`` ``[..., head_dim]`` with its last axis at ``places`` of ``to`` elements."""
    out = np.zeros((*x.shape[:-1], to), np.int64)
    out[..., places] = x
    return out
