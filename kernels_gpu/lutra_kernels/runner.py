"""A model that runs tiles of tokens: prefill in large ones, decode one token at a time.

Between the embedding and the logits everything stays on the device. Decode of one token is recorded
as a CUDA graph once and replayed from then on; its token and position lie in device memory. Under
the interpreter every launch is made as it comes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.scale import Scale, unpack_scale
from lutra_kernels.activations import Quantized
from lutra_kernels.arrays import (
    INTERPRETED,
    Array,
    assign,
    download,
    empty,
    rows_of,
    upload,
    zeros,
)
from lutra_kernels.attention.decode import split_attention
from lutra_kernels.attention.prefill import attention
from lutra_kernels.attention.step import attention_step
from lutra_kernels.cache import KvCache, Queries
from lutra_kernels.errors import naming_memory
from lutra_kernels.layout import cdiv
from lutra_kernels.matmul.gemm import Workspace
from lutra_kernels.matmul.head import head_logits
from lutra_kernels.matmul.linear import linear
from lutra_kernels.matmul.matrix import Matrix
from lutra_kernels.model import Layer, Model
from lutra_kernels.vector.norm import Source, norm_quantize
from lutra_kernels.vector.rope import rope_kv

__all__ = ["Runner", "TileOutput"]

_PROGRAMS = 3  # that a split attention runs under the interpreter
_KEPT = 2  # sizes of tiles whose memory is kept


@dataclass(frozen=True)
class TileOutput:
    """Logits ``[n, V]`` int32, the scale of each token's activations, and the arg-max, ``[n]``.

    ``saturated`` tells that the residual stream reached the end of its range somewhere.
    """

    logits: NDArray[np.int32]
    scale: Scale
    argmax: NDArray[np.int64]
    saturated: bool


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


@dataclass(frozen=True)
class _Buffers:
    """Memory of a tile of ``m`` tokens, used by all layers; its last ``n_logits`` have logits.

    Activations are by the groups of the matrix that takes them, whose sums alone differ.
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
    last: Quantized | None
    skipped: Quantized | None
    logits: Array | None


class Runner:
    """Runs ``model`` for one sequence of up to ``context`` tokens, in tiles of up to ``m_max``.

    From position ``split_from`` on, single tokens' attention is split over the keys.
    """

    def __init__(
        self,
        model: Model,
        *,
        context: int | None = None,
        m_max: int = 512,
        page: int = 128,
        split_from: int = 256,
    ) -> None:
        shape = model.shape
        self.context = min(context or shape.context, shape.context)
        self.m_max, self.split_from = m_max, split_from
        self._model = model
        self._n_pages = cdiv(self.context, page)
        self._programs = _PROGRAMS
        if not INTERPRETED:
            properties = import_module("torch").cuda.get_device_properties(0)
            self._programs = 2 * properties.multi_processor_count
        self._buffers: dict[tuple[int, int], _Buffers] = {}
        self._graphs: dict[bool, _Graph] = {}
        advice = "use a shorter context (-c) or a smaller model"
        with naming_memory(f"a KV cache of {self.context} positions", advice):
            self._caches = [
                KvCache.new(
                    self._n_pages, shape.n_kv_heads, shape.head_dim, page=page, bits=shape.kv_bits
                )
                for _ in model.layers
            ]
            self._flag = zeros([1], np.int32)
            self._workspace = Workspace(1, 1)

    def run(self, tokens: Sequence[int], position: int, logits_from: int) -> TileOutput:
        """Process ``tokens`` from ``position``; logits of those from index ``logits_from`` on."""
        m = len(tokens)
        if not 1 <= m <= self.m_max:
            raise ValueError(f"a tile has 1 to {self.m_max} tokens, not {m}")
        if position < 0 or position + m > self.context:
            raise ValueError(
                f"positions must be in 0..{self.context - 1}, not {position}..{position + m - 1}"
            )
        if not 0 <= logits_from <= m:
            raise ValueError(f"logits_from must be in 0..{m}, not {logits_from}")
        vocabulary = self._model.shape.vocab_size
        if not all(0 <= token < vocabulary for token in tokens):
            raise ValueError(f"tokens must be in 0..{vocabulary - 1}, not {list(tokens)}")
        with naming_memory(f"a tile of {m} tokens", "use smaller tiles or a shorter context (-c)"):
            buffers = self._buffers_of(m, m - logits_from)
            assign(buffers.tokens, np.asarray(tokens, np.int32))
            assign(buffers.positions, np.arange(position, position + m, dtype=np.int32))
            split = m == 1 and position >= self.split_from
            if m == 1 and logits_from == 0:
                self._decode(buffers, split)
            else:
                self._launch(buffers, split)
        return self._output(buffers)

    # -- memory

    def _buffers_of(self, m: int, n_logits: int) -> _Buffers:
        found = self._buffers.pop((m, n_logits), None)
        if found is None:
            # decode's stays: its graphs hold the addresses
            others = [size for size in self._buffers if size != (1, 1)]
            for size in others[: max(0, len(others) - _KEPT + 1)]:
                del self._buffers[size]
            found = self._new_buffers(m, n_logits)
        self._buffers[m, n_logits] = found
        return found

    def _new_buffers(self, m: int, n_logits: int) -> _Buffers:
        shape, layers = self._model.shape, self._model.layers
        d, f, bits = shape.hidden_size, shape.intermediate_size, shape.a_bits
        q = shape.n_heads * shape.head_dim
        skip = m - n_logits
        return _Buffers(
            m=m,
            n_logits=n_logits,
            tokens=empty([m], np.int32),
            positions=empty([m], np.int32),
            pages=upload(np.tile(np.arange(self._n_pages, dtype=np.int32), (m, 1))),
            x=empty([m, d], np.int32),
            hidden=_by_group(m, d, bits, [layer.qkv for layer in layers]),
            qkv=empty([m, q + 2 * shape.n_kv_heads * shape.head_dim], np.int32),
            queries=Queries.new(
                m,
                shape.n_heads,
                shape.head_dim,
                m_split=1,
                context=self._n_pages * self._caches[0].page,
            ),
            attended=_by_group(m, q, bits, [layer.o for layer in layers]),
            o=empty([m, d], np.int32),
            ffn_input=_by_group(m, d, bits, [layer.gate_up for layer in layers]),
            gate_up=empty([m, 2 * f], np.int32),
            gated=_by_group(m, f, bits, [layer.down for layer in layers]),
            down=empty([m, d], np.int32),
            last=Quantized.new(n_logits, d, bits, 0) if n_logits else None,
            skipped=Quantized.new(skip, d, bits, 0) if skip else None,
            logits=empty([n_logits, shape.vocab_size], np.int32) if n_logits else None,
        )

    # -- launches

    def _decode(self, buffers: _Buffers, split: bool) -> None:
        """One token: as a graph, once it has been run without."""
        graph = self._graphs.get(split)
        if graph is not None:
            graph.replay()
            return
        self._launch(buffers, split)
        if not INTERPRETED:
            cuda = import_module("torch").cuda
            cuda.synchronize()
            graph = cuda.CUDAGraph()
            with cuda.graph(graph):
                self._launch(buffers, split)
            self._graphs[split] = cast(_Graph, graph)

    def _launch(self, b: _Buffers, split: bool) -> None:
        """Every launch of a tile."""
        model = self._model
        scale: Array | None = None
        for layer, cache in zip(model.layers, self._caches, strict=True):
            self._layer(b, layer, cache, scale, split)
            scale = b.gated[layer.down.group].scale
        assert scale is not None, "a model has layers"
        self._head(b, scale)

    def _layer(
        self, b: _Buffers, layer: Layer, cache: KvCache, scale: Array | None, split: bool
    ) -> None:
        """One layer; ``scale`` is that of the product that is still to be added, None before the
        first one."""
        model, tables = self._model, self._model.tables
        hidden = b.hidden[layer.qkv.group]
        embedded = scale is None
        norm_quantize(
            layer.input_norm, hidden, tables, x=b.x, acc=model.embedding if embedded else b.down,
            tokens=b.tokens, scales=scale, flag=self._flag,
        )  # fmt: skip
        self._product(hidden, layer.qkv, b.qkv)
        attended, step = b.attended[layer.o.group], layer.attention_norm
        heads = layer.rope, b.m, b.qkv, hidden.scale, b.positions, b.pages, b.queries, cache, tables
        if split:
            rope_kv(*heads, split=True)
            split_attention(
                b.m, b.queries, cache, b.positions, b.pages, tables, n_programs=self._programs,
                window=layer.window,
            )  # fmt: skip
            norm_quantize(
                replace(step, source=Source.SUMS), attended, tables, acc=b.queries.sums,
                den=b.queries.den, exponent=b.queries.exponent,
            )  # fmt: skip
        else:
            frac = model.shape.residual_frac
            if b.m == 1:
                attention_step(*heads, frac=frac, window=layer.window)
            else:
                rope_kv(*heads, split=False)
                attention(
                    b.m, b.queries, cache, b.positions, b.pages, tables, frac=frac,
                    window=layer.window,
                )  # fmt: skip
            norm_quantize(step, attended, tables, x=b.queries.out)
        self._product(attended, layer.o, b.o)
        ffn_input = b.ffn_input[layer.gate_up.group]
        norm_quantize(
            layer.ffn_input_norm, ffn_input, tables, x=b.x, acc=b.o, scales=attended.scale,
            flag=self._flag,
        )  # fmt: skip
        self._product(ffn_input, layer.gate_up, b.gate_up)
        gated = b.gated[layer.down.group]
        norm_quantize(layer.ffn_norm, gated, tables, acc=b.gate_up, scales=ffn_input.scale)
        self._product(gated, layer.down, b.down)

    def _product(self, a: Quantized, w: Matrix, out: Array) -> None:
        linear(a.a, w, out=out, workspace=self._workspace)

    def _head(self, b: _Buffers, scale: Array) -> None:
        """The end of the residual stream, and logits of those tokens that have some."""
        skip = b.m - b.n_logits
        for out, first, last in ((b.skipped, 0, skip), (b.last, skip, b.m)):
            if out is not None:
                norm_quantize(
                    self._model.norm, out, self._model.tables, x=rows_of(b.x, first, last),
                    acc=rows_of(b.down, first, last), scales=rows_of(scale, first, last),
                    flag=self._flag,
                )  # fmt: skip
        if b.last is not None:
            head_logits(b.last.a, self._model.head, out=b.logits)

    def _output(self, b: _Buffers) -> TileOutput:
        saturated = bool(download(self._flag)[0])
        if saturated:
            self._flag.zero_()
        v = self._model.shape.vocab_size
        if b.logits is None or b.last is None:
            none = np.zeros(0, np.int64)
            return TileOutput(np.zeros((0, v), np.int32), Scale(none, none), none, saturated)
        logits = cast("NDArray[np.int32]", download(b.logits))
        scale = unpack_scale(download(b.last.scale))
        return TileOutput(logits, scale, logits.argmax(axis=1), saturated)
