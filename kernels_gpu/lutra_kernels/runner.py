"""Passes over a model: rows of one sequence or of several, which share every read of the weights.

Between the embedding and the logits everything stays on the device. A pass that decodes one token
of each of a few sequences is recorded as a CUDA graph once and replayed from then on; its tokens,
positions and pages lie in device memory. Under the interpreter every launch is made as it comes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import Scale, unpack_scale
from lutra_golden.model.shares import LayerShare, Party
from lutra_kernels.activations import Quantized
from lutra_kernels.arrays import (
    INTERPRETED,
    Array,
    assign,
    download,
    empty,
    rows_of,
    take_rows,
)
from lutra_kernels.attention.decode import split_attention
from lutra_kernels.attention.prefill import attention
from lutra_kernels.attention.step import attention_step
from lutra_kernels.cache import KvCache, Queries
from lutra_kernels.errors import naming_memory
from lutra_kernels.matmul.embedding import CodedRows, embed_rows
from lutra_kernels.matmul.gemm import Workspace
from lutra_kernels.matmul.head import head_logits
from lutra_kernels.matmul.linear import linear
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.model import Layer, Model, product_bits
from lutra_kernels.pool import KvPool
from lutra_kernels.vector.norm import Source, norm_quantize
from lutra_kernels.vector.rope import rope_kv

__all__ = ["Part", "PassOutput", "Runner"]

_PROGRAMS = 3  # that a split attention runs under the interpreter
_KEPT = 2  # sizes of passes whose memory is kept
_FEW = 8  # sequences whose decode step is a graph, and whose attention may be split


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tokens of one sequence in a pass, from ``position`` on; the last ``n_logits`` have logits.

    ``pages`` are those of the sequence, in the order of its positions, up to the last token's.
    ``residual`` int32 ``[n, hidden_size]`` is where they begin unless that is the first layer.
    """

    pages: Sequence[int]
    tokens: Sequence[int]
    position: int
    n_logits: int = 0
    residual: NDArray[np.int32] | None = None

    @property
    def n(self) -> int:
        """Rows of the pass."""
        return len(self.tokens)


@dataclass(frozen=True, kw_only=True)
class PassOutput:
    """Logits int32 ``[n_logits, V]`` and the scales of those rows' activations, part after part.

    ``saturated`` says that a value of some row has left its range;
    ``residual`` ``[n, hidden_size]`` is that stream if the pass ended before the last layer.
    """

    logits: NDArray[np.int32]
    scale: Scale
    saturated: bool
    residual: NDArray[np.int32] | None = None


def _by_group(m: int, k: int, a_bits: int, matrices: Iterable[Matrix]) -> dict[int, Quantized]:
    """Activations for matrices of several groups: the same bytes and scales, sums of their own."""
    found: dict[int, Quantized] = {}
    for group in sorted({matrix.group for matrix in matrices}):
        new = Quantized.new(m, k, a_bits, group)
        first = next(iter(found.values()), new)
        found[group] = Quantized(replace(new.a, rows=first.a.rows), first.scale)
    return found


class _Graph(Protocol):
    def replay(self) -> None: ...


@dataclass(kw_only=True)
class _Buffers:
    """Memory of a pass of ``m`` rows, used by all layers; ``n_logits`` of them have logits.

    Activations are by the groups of the matrix that takes them, whose sums alone differ. ``wanted``
    are the rows that have logits, ``x_wanted`` their residual stream, unless all have some.
    ``table`` is what ``pages`` hold. ``graphs`` of decode steps, which hold the addresses,
    are by how attention is done and by the generation of the caches.
    """

    m: int
    n_logits: int
    tokens: Array
    positions: Array
    pages: Array
    x: Array
    hidden: dict[int, Quantized]
    qkv: Array
    queries: Queries
    attended: dict[int, Quantized]
    o: Array
    ffn_input: dict[int, Quantized]
    gate_up: Array
    gated: dict[int, Quantized]
    down: Array
    ended: Quantized
    wanted: Array
    x_wanted: Array
    last: Quantized | None
    logits: Array | None
    workspace: Workspace
    table: NDArray[np.int32] | None = None
    graphs: dict[tuple[bool, int], _Graph] = field(default_factory=dict[tuple[bool, int], _Graph])


@dataclass(frozen=True)
class _Shared:
    """A ``party`` of a pass, whose exchange has the pass's rows in the order of the caller:
    ``places`` of them here."""

    party: Party
    places: NDArray[np.intp]

    @classmethod
    def of(cls, party: Party, parts: Sequence[Part], order: Sequence[int]) -> "_Shared":
        """Of ``parts`` that a pass has in another ``order``."""
        ends = np.cumsum([part.n for part in parts])
        spans = [np.arange(end - part.n, end) for part, end in zip(parts, ends, strict=True)]
        return cls(party, np.concatenate([spans[i] for i in order]))

    def complete(self, what: str, part: NDArray[np.generic], columns: Sequence[range]) -> Int:
        """All columns of what is exchanged, of which ``part`` has some."""
        sorted_part = np.empty(part.shape, np.int64)
        sorted_part[self.places] = part
        return self.party.exchange.whole(what, sorted_part, columns)[self.places]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Rows of a pass: ``n_single`` sequences of one row each, then ``spans`` of several.

    ``split`` says that attention is split over the keys, ``shared`` who has other rows of it.
    """

    layers: range
    n_single: int
    spans: Sequence[tuple[int, int]]
    split: bool
    shared: _Shared | None = None


class Runner:
    """Runs ``model`` in passes of up to ``pass_tokens`` rows.

    From position ``split_from`` on, the attention of few sequences is split over the keys. Keys and
    values are in ``pool``.
    """

    def __init__(
        self,
        model: Model,
        *,
        pass_tokens: int = 512,
        page: int = 128,
        split_from: int = 256,
    ) -> None:
        self.pass_tokens, self.split_from = pass_tokens, split_from
        self._model = model
        self.pool = KvPool(model, page=page)
        self._programs = _PROGRAMS
        if not INTERPRETED:
            properties = import_module("torch").cuda.get_device_properties(0)
            self._programs = 2 * properties.multi_processor_count
        self._buffers: dict[tuple[int, int], _Buffers] = {}

    def run(
        self,
        parts: Sequence[Part],
        layers: range | None = None,
        party: Party | None = None,
    ) -> PassOutput:
        """One pass of ``layers`` (all of them if left out) over the rows of ``parts``.

        No two parts are of the same sequence. Logits come from the last layer only. Of a ``party``
        only the share of rows is computed here, but attention of all heads.
        """
        layers = layers or range(len(self._model.layers))
        m = sum(part.n for part in parts)
        if not 1 <= m <= self.pass_tokens:
            raise ValueError(f"a pass has 1 to {self.pass_tokens} rows, not {m}")
        # rows of sequences that have one only come first
        order = sorted(range(len(parts)), key=lambda i: parts[i].n > 1)
        ordered = [parts[i] for i in order]
        try:
            with naming_memory(f"a pass of {m} rows", "close a session or use a smaller model"):
                buffers = self._buffers_of(m, sum(part.n_logits for part in parts))
                plan = self._fill(buffers, ordered, layers)
                if party is not None:
                    plan = replace(plan, split=False, shared=_Shared.of(party, parts, order))
                    self._launch(buffers, plan)
                    return self._output(buffers, ordered, order, layers, party.share.vocabulary)
                decode = plan.n_single == m == buffers.n_logits <= _FEW
                if decode and len(layers) == len(self._model.layers):
                    self._decode(buffers, plan)
                else:
                    self._launch(buffers, plan)
                return self._output(buffers, ordered, order, layers)
        except BaseException:
            # what was interrupted may have left sums in a workspace
            self._buffers.clear()
            raise

    # -- memory

    @property
    def pass_bytes(self) -> int:
        """Memory of the largest pass, about."""
        packed = self._model.packed
        heads = (packed.n_heads + 2 * packed.n_kv_heads) * self._model.head_dim
        words = 6 * packed.hidden_size + 4 * packed.intermediate_size + 4 * heads
        return 4 * self.pass_tokens * (words + packed.vocab_size)

    def _buffers_of(self, m: int, n_logits: int) -> _Buffers:
        found = self._buffers.get((m, n_logits))
        if found is None:
            plain = [size for size, each in self._buffers.items() if not each.graphs]
            for size in plain[: max(0, len(plain) - _KEPT + 1)]:
                del self._buffers[size]
            found = self._buffers[m, n_logits] = self._new_buffers(m, n_logits)
        return found

    def _new_buffers(self, m: int, n_logits: int) -> _Buffers:
        packed, layers = self._model.packed, self._model.layers
        d, f, bits = packed.hidden_size, packed.intermediate_size, product_bits(packed)
        head_dim, head = self._model.head_dim, self._model.head
        last = head.group if isinstance(head, Matrix) else 0
        q, kv = packed.n_heads * head_dim, packed.n_kv_heads * head_dim
        queries = Queries.new(
            m,
            packed.n_heads,
            head_dim,
            m_split=m if m <= _FEW else 1,
            context=self.pool.positions,
        )
        return _Buffers(
            m=m,
            n_logits=n_logits,
            tokens=empty([m], np.int32),
            positions=empty([m], np.int32),
            pages=empty([m, self.pool.n_pages], np.int32),
            x=empty([m, d], np.int32),
            hidden=_by_group(m, d, bits, [layer.qkv for layer in layers]),
            qkv=empty([m, q + 2 * kv], np.int32),
            queries=queries,
            attended=_by_group(m, q, bits, [layer.o for layer in layers]),
            o=empty([m, d], np.int32),
            ffn_input=_by_group(m, d, bits, [layer.gate_up for layer in layers]),
            gate_up=empty([m, 2 * f], np.int32),
            gated=_by_group(m, f, bits, [layer.down for layer in layers]),
            down=empty([m, d], np.int32),
            ended=Quantized.new(m, d, bits, 0),
            wanted=empty([n_logits], np.int32),
            x_wanted=empty([n_logits, d], np.int32),
            last=Quantized.new(n_logits, d, bits, last) if n_logits else None,
            logits=empty([n_logits, packed.vocab_size], np.int32) if n_logits else None,
            workspace=Workspace(1, 1),
        )

    def _fill(self, b: _Buffers, parts: Sequence[Part], layers: range) -> _Plan:
        """Put what a pass begins with into its memory."""
        ends = np.cumsum([part.n for part in parts])
        firsts = ends - [part.n for part in parts]
        positions = np.concatenate([part.position + np.arange(part.n) for part in parts])
        assign(b.positions, positions.astype(np.int32))
        if layers.start == 0:
            tokens = np.concatenate([np.asarray(part.tokens, np.int32) for part in parts])
            assign(b.tokens, tokens)
        else:
            residuals = [part.residual for part in parts if part.residual is not None]
            assign(b.x, np.concatenate(residuals))
        table = np.zeros((b.m, self.pool.n_pages), np.int32)
        for part, first, end in zip(parts, firsts, ends, strict=True):
            table[first:end, : len(part.pages)] = part.pages
        if b.table is None or not np.array_equal(table, b.table):
            b.table = None
            assign(b.pages, table)
            b.table = table
        if b.n_logits < b.m:
            wanted = [
                np.arange(end - part.n_logits, end) for part, end in zip(parts, ends, strict=True)
            ]
            assign(b.wanted, np.concatenate(wanted).astype(np.int32))
        n_single = sum(part.n == 1 for part in parts)
        spans = list(zip(firsts.tolist(), ends.tolist(), strict=True))[n_single:]
        few = n_single == b.m <= _FEW
        split = few and int(positions.max()) >= self.split_from
        return _Plan(layers=layers, n_single=n_single, spans=spans, split=split)

    # -- launches

    def _decode(self, buffers: _Buffers, plan: _Plan) -> None:
        """One token of each of a few sequences: as a graph, once it has been run without."""
        key = plan.split, self.pool.generation
        graph = buffers.graphs.get(key)
        if graph is not None:
            graph.replay()
            return
        self._launch(buffers, plan)
        if not INTERPRETED:
            cuda = import_module("torch").cuda
            cuda.synchronize()
            graph = cuda.CUDAGraph()
            with cuda.graph(graph):
                self._launch(buffers, plan)
            for old in [each for each in buffers.graphs if each[1] != self.pool.generation]:
                del buffers.graphs[old]
            buffers.graphs[key] = cast(_Graph, graph)

    def _launch(self, b: _Buffers, plan: _Plan) -> None:
        """Every launch of a pass."""
        model, layers = self._model, plan.layers
        b.queries.flag.zero_()
        scale: Array | None = None
        for i in layers:
            self._layer(b, i, plan, scale)
            scale = b.gated[model.layers[i].down.group].scale
        assert scale is not None, "a pass has layers"
        if layers.stop == len(model.layers):
            self._head(b, scale)
            return
        # the next layer's norm adds this one's product to the residual stream
        following = model.layers[layers.stop]
        norm_quantize(
            following.input_norm, b.hidden[following.qkv.group], model.tables, x=b.x, acc=b.down,
            scales=scale, flag=b.queries.flag,
        )  # fmt: skip

    def _layer(self, b: _Buffers, i: int, plan: _Plan, scale: Array | None) -> None:
        """Layer ``i``; ``scale`` is that of the product that is still to be added, None before the
        first one of a pass."""
        model, tables = self._model, self._model.tables
        layer, cache = model.layers[i], self.pool.caches[i]
        hidden, step = b.hidden[layer.qkv.group], layer.input_norm
        if scale is None and i > 0:
            step = replace(step, source=Source.RESIDUAL)
        acc = b.down
        if i == 0 and isinstance(model.embedding, CodedRows):
            embed_rows(model.embedding, b.tokens, b.x)
        elif i == 0:
            acc = model.embedding
        norm_quantize(
            step, hidden, tables, x=b.x, acc=acc, tokens=b.tokens, scales=scale,
            flag=b.queries.flag,
        )  # fmt: skip
        self._product(b, hidden, layer.qkv, b.qkv, "heads", plan.shared)
        attended = b.attended[layer.o.group]
        self._attend(b, layer, cache, plan, hidden.scale, attended)
        self._product(b, attended, layer.o, b.o, "hidden", plan.shared)
        ffn_input = b.ffn_input[layer.gate_up.group]
        norm_quantize(
            layer.ffn_input_norm, ffn_input, tables, x=b.x, acc=b.o, scales=attended.scale,
            flag=b.queries.flag,
        )  # fmt: skip
        self._product(b, ffn_input, layer.gate_up, b.gate_up, "inner", plan.shared)
        gated = b.gated[layer.down.group]
        norm_quantize(
            layer.ffn_norm, gated, tables, acc=b.gate_up, scales=ffn_input.scale,
            flag=b.queries.flag,
        )  # fmt: skip
        self._product(b, gated, layer.down, b.down, "hidden", plan.shared)

    def _attend(
        self,
        b: _Buffers,
        layer: Layer,
        cache: KvCache,
        plan: _Plan,
        scale: Array,
        attended: Quantized,
    ) -> None:
        """Heads of a layer's product, their keys and values into the cache, and attention."""
        tables, step = self._model.tables, layer.attention_norm
        heads = layer.rope, b.m, b.qkv, scale, b.positions, b.pages, b.queries, cache, tables
        options = {"frac": self._model.packed.residual_frac, "window": layer.window}
        if plan.split:
            rope_kv(*heads, split=True)
            split_attention(
                b.m, b.queries, cache, b.positions, b.pages, tables, n_programs=self._programs,
                window=layer.window,
            )  # fmt: skip
            norm_quantize(
                replace(step, source=Source.SUMS), attended, tables, acc=b.queries.sums,
                den=b.queries.den, exponent=b.queries.exponent, flag=b.queries.flag,
            )  # fmt: skip
            return
        if plan.n_single == b.m:
            attention_step(*heads, **options)
        else:
            rope_kv(*heads, split=False)
            for together, spans in ((False, [(0, plan.n_single)]), (True, plan.spans)):
                for first, last in spans:
                    if first == last:
                        continue
                    attention(
                        last - first, b.queries.rows(first, last), cache,
                        rows_of(b.positions, first, last), rows_of(b.pages, first, last), tables,
                        together=together, **options,
                    )  # fmt: skip
        if plan.shared is not None:
            d, heads = self._model.head_dim, plan.shared.party.share.heads
            columns = range(heads.start * d, heads.stop * d)
            found = download(b.queries.out).reshape(b.m, -1)[:, columns.start : columns.stop]
            whole = plan.shared.complete("attention", found, [columns])
            assign(b.queries.out, whole.astype(np.int32).reshape(b.queries.out.shape))
        norm_quantize(step, attended, tables, x=b.queries.out)

    def _product(
        self, b: _Buffers, a: Quantized, w: Matrix, out: Array, what: str, shared: _Shared | None
    ) -> None:
        """A product, of which others may have some rows."""
        if shared is None:
            linear(a.a, w, out=out, workspace=b.workspace)
            return
        columns = self._columns(what, shared.party.share)
        own = [
            download(linear(a.a, w.rows(rows), workspace=b.workspace)) for rows in columns if rows
        ]
        part = np.concatenate(own, axis=1) if own else np.empty((b.m, 0), np.int32)
        assign(out, shared.complete(what, part, columns).astype(np.int32))

    def _columns(self, what: str, share: LayerShare) -> list[range]:
        """Columns of a share in what is exchanged: rows of matrices that lie behind each other."""
        packed = self._model.packed
        q, kv = packed.n_heads * self._model.head_dim, packed.n_kv_heads * self._model.head_dim
        parts = {
            "heads": ((0, share.queries), (q, share.keys), (q + kv, share.keys)),
            "hidden": ((0, share.hidden),),
            "inner": ((0, share.inner), (packed.intermediate_size, share.inner)),
        }
        return [range(at + rows.start, at + rows.stop) for at, rows in parts[what]]

    def _head(self, b: _Buffers, scale: Array) -> None:
        """The end of the residual stream, and logits of those rows that have some."""
        norm, tables, head = self._model.norm, self._model.tables, self._model.head
        out = b.last if b.last is not None and b.n_logits == b.m else b.ended
        norm_quantize(norm, out, tables, x=b.x, acc=b.down, scales=scale, flag=b.queries.flag)
        if b.last is None:
            return
        if b.n_logits < b.m:
            take_rows(b.x, b.wanted, b.x_wanted)
            norm = replace(norm, source=Source.RESIDUAL)
            norm_quantize(norm, b.last, tables, x=b.x_wanted)
        if isinstance(head, Matrix):
            linear(b.last.a, head, out=b.logits, workspace=b.workspace)
        else:
            head_logits(b.last.a, head, out=b.logits)

    def _output(
        self,
        b: _Buffers,
        parts: Sequence[Part],
        order: Sequence[int],
        layers: range,
        rows: range | None = None,
    ) -> PassOutput:
        """Results of ``parts``, sorted from the given ``order`` back to the caller's; logits of
        some ``rows`` of the head, of all if left out."""
        rows = range(self._model.packed.vocab_size) if rows is None else rows
        logits = np.zeros((0, len(rows)), np.int32)
        words: NDArray[np.generic] = np.zeros(0, np.int32)
        if b.logits is not None and b.last is not None:
            counts = [part.n_logits for part in parts]
            found = download(b.logits)[:, rows.start : rows.stop]
            logits = cast("NDArray[np.int32]", _sorted(found, counts, order))
            words = _sorted(download(b.last.scale), counts, order)
        residual = None
        if layers.stop < len(self._model.layers):
            rows = _sorted(download(b.x), [part.n for part in parts], order)
            residual = cast("NDArray[np.int32]", rows)
        return PassOutput(
            logits=logits,
            scale=unpack_scale(words),
            saturated=bool(download(b.queries.flag)[0]),
            residual=residual,
        )


def _sorted(
    rows: NDArray[np.generic], counts: Sequence[int], order: Sequence[int]
) -> NDArray[np.generic]:
    """``rows``, of which each part has some, with part ``i`` at place ``order[i]``."""
    pieces = np.split(rows, np.cumsum(counts)[:-1])
    return np.concatenate([pieces[i] for i in np.argsort(order)])
