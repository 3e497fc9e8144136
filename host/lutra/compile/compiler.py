"""Lowering: a packed model becomes one program and one memory image for a configuration."""

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from lutra.compile.assembler import RESIDUAL, Operation, Region, assemble
from lutra.compile.fit import (
    check_fit,
    check_layer,
    head_weights,
    padded_vocabulary,
    round_up,
    row_unit,
    stream_elements,
)
from lutra.compile.program import Parts, Program, Segment, SegmentKind
from lutra.compile.ranges import HALF_BITS, residual_halves
from lutra_golden.arith.scale import Scale, pack_scale
from lutra_golden.control.isa import (
    ADDRESS_UNIT,
    FLAG_BIAS,
    FLAG_CENTRE,
    FLAG_FIRST,
    FLAG_LOGITS,
    FLAG_LOW,
    FLAG_PLAIN,
    FLAG_QK_NORM,
    NormSource,
    Opcode,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import LANES, GroupedWeights
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.lowered import (
    LoweredNorm,
    embedding_shift,
    layer_norms,
    lower_layer,
    lower_norm,
    lower_rope,
    padded_head_eps,
    residual_unit,
)
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.shapes import Gate
from lutra_golden.model.stacks import stack
from lutra_golden.vector.residual import LOGIT_SHIFT, embedded

__all__ = ["compile_model"]

Progress = Callable[[str, float], None]
_ROWS = 4096  # of an embedding in codes, unpacked at a time


def _silent(_stage: str, _fraction: float) -> None:
    pass


_ACTIVATIONS: Region = ("activations", 0, 1)
_ROPE: Region = ("rope", 0, 1)
_QUERIES: Region = ("queries", 0, 1)
_ATTENTION: Region = ("attention", 0, 1)


def _acc(first: int, count: int) -> Region:
    return ("acc", first, first + count)


class _Image:
    """The weight segments: matrices, parameter vectors and tables at aligned offsets."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.n_bytes = 0

    def add(self, data: bytes, align: int) -> int:
        offset = round_up(self.n_bytes, max(align, ADDRESS_UNIT))
        # the gap is filled, so that bursts may run over it
        self._append(bytes(offset - self.n_bytes) + data if offset > self.n_bytes else data)
        if self.n_bytes > ADDRESS_UNIT << 32:
            raise LutraError(
                f"the packed model takes more than {ADDRESS_UNIT * 4} GiB, beyond the offsets of "
                "instructions: use a smaller model"
            )
        return offset

    def pad(self, align: int) -> None:
        """Fill up the end, of which beats are read whole."""
        if self.n_bytes % align:
            self._append(bytes(-self.n_bytes % align))

    def _append(self, data: bytes) -> None:
        self.segments.append(Segment(kind=SegmentKind.WEIGHTS, offset=self.n_bytes, data=data))
        self.n_bytes += len(data)


def compile_model(
    model: PackedModel, config: AcceleratorConfig, progress: Progress | None = None
) -> Program:
    """Lower ``model`` to a program for ``config``; LutraError if it does not fit."""
    check_numbers(model)
    check_fit(model, config)
    report = progress or _silent
    context = min(model.context, config.max_context)
    image = _Image()
    lowering = _Lowering(model, config, image)
    embed, rope, layers = lowering.embed(), lowering.rope(), list[Sequence[Operation]]()
    for i, layer in enumerate(model.layers):
        report("packing the weights", i / (len(model.layers) + 1))
        layers.append(lowering.layer(layer, i * config.kv_layer_bytes))
    report("packing the weights", len(model.layers) / (len(model.layers) + 1))
    head = lowering.head()
    image.pad(config.align_bytes)
    code = assemble(chain(embed, rope, *layers, head), config.alignment(Purpose.FETCH))
    segments = [Segment(kind=SegmentKind.CODE, offset=0, data=code), *image.segments]
    elements = max(padded_vocabulary(model, config), stream_elements(model.hidden_size, config))
    align = max(config.align_bytes, ADDRESS_UNIT)
    stream, half = (
        round_up(size, align)
        for size in (image.n_bytes, 2 * model.hidden_size * config.pass_tokens)
    )
    # read by whole beats before all of a beat is written: scales, keys and values that share one
    first = config.kv_zeroed_from
    digest = hashlib.sha256(config.fingerprint.to_bytes(8, "little"))
    for segment in segments:
        digest.update(segment.data)
    return Program(
        model=model.name,
        config=config,
        segments=segments,
        kv_bytes=len(model.layers) * config.kv_layer_bytes,
        zeros=[
            (i * config.kv_layer_bytes + first, config.kv_layer_bytes - first)
            for i in range(len(model.layers))
        ],
        halves=(stream, stream + half),
        parts=Parts(embed=embed, rope=rope, layers=layers, head=head),
        logits_stride=round_up(4 * elements, config.alignment(Purpose.WRITE)),
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        context=context,
        head_scale=model.head_scale,
        format=model.format,
        n_layers=len(model.layers),
        fingerprint=digest.hexdigest()[:16],
    )


class _Lowering:
    """Emits the operations of a model, part by part, and lays out its weights."""

    def __init__(self, model: PackedModel, config: AcceleratorConfig, image: _Image) -> None:
        self._model, self._config, self._image = model, config, image
        self._part: list[Operation] = []
        self._param_next = 0
        self._head_dim = config.head_dim
        self._unit = residual_unit(model)

    # -- pieces

    def _emit(
        self,
        opcode: Opcode,
        *,
        reads: Sequence[Region],
        writes: Sequence[Region],
        flags: int = 0,
        **args: int,
    ) -> None:
        operation = Operation(opcode=opcode, reads=reads, writes=writes, flags=flags, args=args)
        self._part.append(operation)

    def _take(self) -> Sequence[Operation]:
        """Operations emitted since the last part."""
        part, self._part = self._part, []
        return part

    def _params(self, values: NDArray[np.int16]) -> tuple[int, Region]:
        """Load a parameter vector; return its first word in the buffer and its region."""
        config = self._config
        beat_words = config.load_word_bytes // (2 * LANES)
        n_words = round_up(len(values) // LANES, beat_words)
        if self._param_next + n_words > config.vector.param_words:
            self._param_next = 0
        word, self._param_next = self._param_next, self._param_next + n_words
        data = values.astype("<i2").tobytes()
        data += bytes(n_words * 2 * LANES - len(data))
        region: Region = ("params", word, word + n_words)
        self._emit(
            Opcode.LDPARAM,
            reads=[],
            writes=[region],
            address=self._image.add(data, config.alignment(Purpose.LOAD)),
            param_word=word,
            n_words=n_words,
        )
        return word, region

    def _norm(
        self,
        norm: LoweredNorm,
        source: NormSource,
        reads: list[Region],
        scale_a: Scale,
        scale_b: Scale | None = None,
        flags: int = 0,
    ) -> None:
        """Normalise as many values as there are in ``gamma`` and quantise them."""
        if not norm.normalise:
            flags |= FLAG_PLAIN
        word, region = self._params(norm.gamma)
        self._emit(
            Opcode.NORMQ,
            reads=[*reads, region],
            writes=[_ACTIVATIONS],
            flags=flags,
            source=source,
            n_words=len(norm.gamma) // LANES,
            param_word=word,
            gamma_frac=norm.frac,
            inv_n=_word(norm.inv_n),
            eps=_word(self._model.eps),
            scale_a=_word(scale_a),
            scale_b=_word(scale_b) if scale_b is not None else 0,
        )

    def _matmul(
        self, weights: GroupedWeights, shift: int, acc_base: int = 0, flags: int = 0
    ) -> Region:
        """A matrix product. If words are used again for other tokens it is cut by rows, so that
        those of a pass fit half of the weight buffer and the other half fills meanwhile."""
        config, params = self._config, self._config.matmul
        # of weights times a power of two the same sums are shifted by more
        more = max(0, params.shift_min - shift)
        weights, shift = weights.scaled(more), shift + more
        planes, unit = params.planes(weights), row_unit(params)
        blocks = round_up(len(weights.codes) // LANES, params.block_rows)
        per_unit = params.pass_words(unit, planes)
        max_blocks = max(1, params.weight_buffer_words // 2 // per_unit) * unit
        if not params.replays:
            max_blocks = max(1, blocks)
        for first in range(0, blocks, max_blocks):
            count = min(max_blocks, blocks - first)
            part = weights.rows(slice(first * LANES, (first + count) * LANES))
            try:
                words = params.pack(part, planes)
            except ValueError as error:
                raise LutraError(f"configuration {config.name}: {error}") from None
            data = config.weight_image(words).tobytes()
            self._emit(
                Opcode.LMMA,
                reads=[_ACTIVATIONS],
                writes=[_acc(acc_base + first, count)],
                flags=flags,
                address=self._image.add(data, config.alignment(Purpose.WEIGHTS)),
                depth_tiles=-(-weights.codes.shape[1] // params.tile_depth(planes)),
                row_blocks=count,
                planes=planes,
                acc_base=acc_base + first,
                n_words=len(words),
                # an engine without groups computes with the weights, not with twice the weights
                shift=shift if params.grouped else shift - 1,
            )
        return _acc(acc_base, blocks)

    def _residual_add(self, scale: Scale, acc: Region) -> None:
        self._emit(
            Opcode.RESADD,
            reads=[RESIDUAL, acc],
            writes=[RESIDUAL],
            scale_w=_word(scale),
            n_words=self._model.hidden_size // LANES,
            frac=self._model.residual_frac,
        )

    # -- the model

    def embed(self) -> Sequence[Operation]:
        """Embedding rows of the tile; those in codes as what they are in the residual stream."""
        model = self._model
        if model.vocabulary is None:
            self._rows(model.embedding, embedding_shift(model))
        else:
            high, low = _embedded_halves(model, model.vocabulary.embedding)
            self._rows(high, HALF_BITS)
            self._rows(low, 0, FLAG_LOW)
        return self._take()

    def _rows(
        self, table: NDArray[np.int16] | NDArray[np.uint16], shift: int, flags: int = 0
    ) -> None:
        """Fetch each token's row of a table ``[V, hidden_size]`` into the residual stream."""
        data = table.astype("<u2", copy=False).tobytes()
        self._emit(
            Opcode.EMBED,
            reads=[],
            writes=[RESIDUAL],
            flags=flags,
            address=self._image.add(data, self._config.alignment(Purpose.LOAD)),
            n_words=self._model.hidden_size // LANES,
            shift=shift,
        )

    def rope(self) -> Sequence[Operation]:
        """Rotary tables of the tile."""
        model, config = self._model, self._config
        rope = lower_rope(model)[: config.max_context]
        address = self._image.add(rope.astype("<i2").tobytes(), config.alignment(Purpose.LOAD))
        self._emit(Opcode.LDROPE, reads=[], writes=[_ROPE], address=address)
        return self._take()

    def layer(self, layer: PackedLayer, kv_offset: int) -> Sequence[Operation]:
        """One decoder layer."""
        model = self._model
        layer = lower_layer(model, layer)
        check_layer(model, layer, self._config)
        norms = layer_norms(model, layer)
        self._norm(norms.input, NormSource.RESIDUAL, [RESIDUAL], self._unit)
        acc = self._heads(layer)
        kv: Region = ("kv", kv_offset, kv_offset + 1)
        flags, fields, params = self._head_params(layer)
        self._emit(
            Opcode.ROPEQ,
            reads=[acc, _ROPE, *params],
            writes=[_QUERIES, kv],
            flags=flags,
            kv_offset=kv_offset,
            scale_q=_word(layer.q_proj.scale),
            scale_k=_word(layer.k_proj.scale),
            scale_v=_word(layer.v_proj.scale),
            **fields,
        )
        self._emit(
            Opcode.ATTEND,
            reads=[_QUERIES, kv],
            writes=[_ATTENTION],
            kv_offset=kv_offset,
            frac=model.residual_frac,
            # a window that is never left is none
            window=layer.window
            if layer.window < min(model.context, self._config.max_context)
            else 0,
        )
        self._norm(norms.attention, NormSource.ATTENTION, [_ATTENTION], self._unit)
        acc = self._matmul(layer.o_proj.weights, layer.o_proj.shift)
        self._residual_add(layer.o_proj.scale, acc)

        self._norm(norms.ffn_input, NormSource.RESIDUAL, [RESIDUAL], self._unit)
        gate, up = layer.gate_proj, layer.up_proj
        f = len(gate.weights.codes)
        both = stack((gate.weights, up.weights)).rows(_interleave(f, LANES))
        acc = self._matmul(both, gate.shift)
        source = NormSource.GATE if model.gate is Gate.RELU2 else NormSource.SWIGLU
        self._norm(norms.ffn, source, [acc], gate.scale, up.scale)
        acc = self._matmul(layer.down_proj.weights, layer.down_proj.shift)
        self._residual_add(layer.down_proj.scale, acc)
        return self._take()

    def _heads(self, layer: PackedLayer) -> Region:
        """Queries, keys and values: one product, or one each if their weights differ in bits."""
        lanes, unit = LANES, row_unit(self._config.matmul)
        parts = [
            (part, part.weights.rows(_pair_halves(len(part.weights.codes), self._head_dim, lanes)))
            for part in (layer.q_proj, layer.k_proj, layer.v_proj)
        ]
        planes = {self._config.matmul.planes(weights) for _, weights in parts}
        blocks = [len(weights.codes) // lanes for _, weights in parts]
        if len(planes) == 1 or any(n % unit for n in blocks):
            return self._matmul(stack(weights for _, weights in parts), layer.q_proj.shift)
        base = 0
        for (part, weights), n in zip(parts, blocks, strict=True):
            self._matmul(weights, part.shift, base)
            base += n
        return _acc(0, base)

    def _head_params(self, layer: PackedLayer) -> tuple[int, dict[str, int], list[Region]]:
        """Flags and fields of ROPEQ for biases, centres and norms of heads, and where they were
        loaded."""
        fields = {"param_word": 0, "bias_frac": 0, "gamma_frac": 0, "eps": 0}
        flags, vectors = 0, list[NDArray[np.int16]]()
        lanes, d = LANES, self._head_dim
        if layer.bias is not None:
            flags |= FLAG_BIAS
            fields["bias_frac"] = layer.bias.frac
            vectors.append(layer.bias.values[_pair_halves(len(layer.bias.values), d, lanes)])
            if layer.bias.centre is not None:
                flags |= FLAG_CENTRE
                vectors.append(layer.bias.centre[_pair_halves(len(layer.bias.centre), d, lanes)])
        if layer.head_norms is not None:
            flags |= FLAG_QK_NORM
            eps = padded_head_eps(self._model)
            fields |= {"gamma_frac": layer.head_norms.frac, "eps": eps}
            order = _pair_halves(d, d, lanes)
            vectors += [layer.head_norms.query[order], layer.head_norms.key[order]]
        if not vectors:
            return 0, fields, []
        fields["param_word"], region = self._params(np.concatenate(vectors))
        return flags, fields, [region]

    def head(self) -> Sequence[Operation]:
        """Final norm, and the head in chunks that alternate between halves of the accumulators."""
        model, config = self._model, self._config
        flags, params = FLAG_LOGITS, config.matmul
        unit = max(row_unit(params), config.logits_blocks)
        norm = lower_norm(model.norm, model.hidden_size)
        self._norm(norm, NormSource.RESIDUAL, [RESIDUAL], self._unit, flags=flags)
        n = padded_vocabulary(model, config)
        # rows that fill up the last block repeat the last row: the arg-max is the first of equals
        rows_of = np.minimum(np.arange(n), model.vocab_size - 1)
        weights, shift = head_weights(model)
        in_codes = model.vocabulary is not None
        # accumulators of codes are logits already: all rows have a scale of 1
        row_scales = np.full(n, 1 << LOGIT_SHIFT, np.int16)
        if not in_codes:
            row_scales = model.head_rows[rows_of]
        # half of each buffer, so that one chunk is computed while another is loaded and stored
        half = params.acc_blocks // 2 // unit * unit
        fit = params.weight_buffer_words // 2 // params.n_words(1, unit, params.planes(weights))
        blocks = min(half, fit * unit, config.vector.param_words // 2)
        part = max(8, unit)
        rows = LANES * max(unit, blocks // part * part)
        base = 0
        word, region = self._params(row_scales[:rows])
        for first in range(0, n, rows):
            chunk = slice(first, min(first + rows, n))
            if first > 0 and not in_codes:
                word, region = self._params(row_scales[chunk])
            acc = self._matmul(weights.rows(rows_of[chunk]), shift, base, flags)
            self._emit(
                Opcode.LOGITS,
                reads=[acc, region],
                writes=[],
                flags=flags | (FLAG_FIRST if first == 0 else 0),
                row_first=first,
                n_words=(chunk.stop - chunk.start) // LANES,
                param_word=word,
                acc_base=base,
            )
            base = half - base
        return self._take()


def _embedded_halves(
    model: PackedModel, embedding: PackedLinear
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """High and low halves ``[V, hidden_size]`` of what rows of codes are in the residual stream."""
    stored, shape = embedding.stored, (model.vocab_size, model.hidden_size)
    high, low = np.empty(shape, np.uint16), np.empty(shape, np.uint16)
    for first in range(0, model.vocab_size, _ROWS):
        rows = slice(first, first + _ROWS)
        doubled = stored.rows(rows).unpack().doubled()
        x = embedded(doubled, embedding.scale, model.residual_frac)
        high[rows], low[rows] = residual_halves(x)
    return high, low


def _word(scale: Scale) -> int:
    return int(pack_scale(scale))


def _pair_halves(n_rows: int, head_dim: int, lanes: int) -> NDArray[np.int64]:
    """Order of rows in which a pair of blocks holds the two halves of a head that rotate."""
    order = np.arange(n_rows).reshape(-1, 2, head_dim // (2 * lanes), lanes)
    return order.transpose(0, 2, 1, 3).reshape(-1)


def _interleave(n_rows: int, lanes: int) -> NDArray[np.int64]:
    """Order of two times ``n_rows`` rows in which a pair of blocks holds some of either."""
    return np.arange(2 * n_rows).reshape(2, -1, lanes).transpose(1, 0, 2).reshape(-1)
