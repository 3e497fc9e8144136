"""A packed model on a device: every matrix, vector and number of its layers, ready to launch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.scale import Scale
from lutra_golden.model.b128 import from_b128
from lutra_golden.model.lowered import (
    STACKS,
    LoweredNorm,
    embedding_shift,
    layer_norms,
    lower_layer,
    lower_norm,
    lower_rope,
    padded_head_eps,
    residual_unit,
)
from lutra_golden.model.packed import (
    CodedVocabulary,
    PackedLayer,
    PackedLinear,
    PackedModel,
)
from lutra_golden.model.padding import built_head_dim
from lutra_golden.model.shapes import Gate
from lutra_golden.model.stacks import unify_formats
from lutra_golden.model.stored import StoredWeights
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import Array, upload
from lutra_kernels.errors import GpuUnavailable, naming_memory, require_gpu
from lutra_kernels.matmul.embedding import CodedRows
from lutra_kernels.matmul.head import Head, upload_head
from lutra_kernels.matmul.matrix import ALIGNMENT, Q_MAX, Matrix, upload_matrix
from lutra_kernels.vector.norm import ZERO, NormStep, Source
from lutra_kernels.vector.rope import RopeStep

__all__ = ["Layer", "Model", "product_bits", "upload_model"]

Progress = Callable[[float], None]
_ROWS = 4096  # whose codes are unpacked at a time


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer: four products and the step before each of them."""

    input_norm: NormStep
    qkv: Matrix
    rope: RopeStep
    window: int
    attention_norm: NormStep
    o: Matrix
    ffn_input_norm: NormStep
    gate_up: Matrix
    ffn_norm: NormStep
    down: Matrix


@dataclass(frozen=True, kw_only=True)
class Model:
    """``packed`` on a device, its heads padded to ``head_dim``, a power of two.

    Embedding and head are int16 and int8 rows, or both in codes.
    """

    packed: PackedModel
    head_dim: int
    embedding: Array | CodedRows
    layers: list[Layer]
    norm: NormStep
    head: Head | Matrix
    tables: Array


def _code_sums(stored: StoredWeights) -> NDArray[np.int64]:
    """Sums of codes by row and group, which 16-bit activations need."""
    n_groups = stored.depth // (stored.group or stored.depth)
    sums = np.empty((stored.n_rows, n_groups), np.int64)
    for first in range(0, stored.n_rows, _ROWS):
        rows = slice(first, first + _ROWS)
        codes = from_b128(stored.codes[rows], stored.bits, stored.depth)
        codes.reshape(len(codes), n_groups, -1).sum(axis=2, dtype=np.int64, out=sums[rows])
    return sums


def _minimum(stored: StoredWeights) -> NDArray[np.int32]:
    """Offsets of groups in doubled weights, zeros where there are none."""
    assert stored.scale is not None, "weights are in groups"
    if stored.offset is None:
        return np.zeros(stored.scale.shape, np.int32)
    return (stored.offset.astype(np.int64) << stored.offset_shift).astype(np.int32)


def product_bits(model: PackedModel) -> int:
    """Bits of the activations that matrices are multiplied by: those in groups are integers of more
    than 8 bits."""
    return model.a_bits if model.a_groups is None else 16


def _peak(linear: PackedLinear, stored: StoredWeights, a_bits: int) -> int:
    """Largest sum of a row's doubled weights: an exact one, which takes long to find, is worth it
    where sums of 32 bits may do."""
    bound = stored.peak_bound
    return bound if bound * Q_MAX[a_bits] < 1 << 31 else linear.peak


def _stacked(layer: PackedLayer, names: Sequence[str], a_bits: int) -> Matrix:
    """The rows of several matrices, which share their input, as one matrix."""
    linears = [layer.linear(name) for name in names]
    shifts = [linear.shift for linear in linears]
    if len(set(shifts)) > 1:
        raise ValueError(f"{', '.join(names)} must have one shift, not {shifts}")
    parts = unify_formats(linears)
    peak = max(_peak(*each, a_bits) for each in zip(linears, parts, strict=True))
    return _matrix(parts, names, shifts[0], peak, a_bits)


def _matrix(
    parts: Sequence[StoredWeights], names: Sequence[str], shift: int, peak: int, a_bits: int
) -> Matrix:
    """The rows of several matrices of one format as one matrix; an error names them."""
    parts = [part.one_level() for part in parts]
    group = parts[0].group or 0
    if group % ALIGNMENT:
        raise GpuUnavailable(
            f"groups of {group} weights in {', '.join(names)} are not a multiple of {ALIGNMENT}, "
            "which the GPU's kernels need: pack with larger groups or use another device"
        )
    minimum = None
    if any(part.offset is not None for part in parts):
        minimum = np.concatenate([_minimum(part) for part in parts])
    scales = [part.scale for part in parts if part.scale is not None]
    zeros = [part.zero for part in parts if part.zero is not None]
    sums = [_code_sums(part) for part in parts] if a_bits == 16 else []
    return upload_matrix(
        np.concatenate([part.codes for part in parts]),
        k=parts[0].depth,
        bits=parts[0].bits,
        shift=shift,
        group=group,
        scale=np.concatenate(scales) if scales else None,
        zero=np.concatenate(zeros) if zeros else None,
        minimum=minimum,
        peak=peak,
        code_sums=np.concatenate(sums) if sums else None,
    )


def _vocabulary(model: PackedModel, coded: CodedVocabulary) -> tuple[CodedRows, Matrix]:
    """Embedding and head in codes; of tied ones the codes are there once."""
    last, scale = coded.head, coded.embedding.scale
    # exact peaks would take a look at all codes of the largest matrix
    head = _matrix([last.stored], ["the head"], last.shift, last.peak_bound, product_bits(model))
    if coded.tied:
        return CodedRows.of(head, scale, model.residual_frac), head
    first = coded.embedding.stored
    # nothing is multiplied by the embedding: least shift, no sums for activations of 16 bits
    embedding = _matrix([first], ["the embedding"], 1, first.peak_bound, 8)
    return CodedRows.of(embedding, scale, model.residual_frac), head


class _Uploader:
    """Uploads layers one after another; each begins with the end of the one before."""

    def __init__(self, model: PackedModel) -> None:
        self.model, self.head_dim = model, built_head_dim(model.head_dim)
        self._rope_table = upload(lower_rope(model))
        self._down: Scale | None = None

    def norm(self, norm: LoweredNorm, source: Source, a: Scale = ZERO, b: Scale = ZERO) -> NormStep:
        """A norm of ``source``, which weights of the scales ``a`` and ``b`` gave."""
        return NormStep(
            source=source,
            n=len(norm.gamma),
            gamma=upload(norm.gamma),
            gamma_frac=norm.frac,
            unit=residual_unit(self.model),
            frac=self.model.residual_frac,
            inv_n=norm.inv_n,
            eps=self.model.eps,
            scale_a=a,
            scale_b=b,
            head_dim=self.head_dim,
            normalise=norm.normalise,
            groups=self.model.a_groups,
            run=norm.run,
        )

    def after_layer(self, norm: LoweredNorm) -> NormStep:
        """A norm of the residual stream, to which the layer before is still to be added."""
        if self._down is None and self.model.vocabulary is not None:
            return self.norm(norm, Source.RESIDUAL)
        if self._down is None:
            step = self.norm(norm, Source.EMBED)
            return replace(step, frac=embedding_shift(self.model))
        return self.norm(norm, Source.ADD, self._down)

    def layer(self, layer: PackedLayer) -> Layer:
        """The next layer."""
        layer = lower_layer(self.model, layer)
        norms, bits = layer_norms(self.model, layer), product_bits(self.model)
        qkv, o, gate_up, down = (_stacked(layer, names, bits) for names in STACKS)
        gated = Source.RELU2 if self.model.gate is Gate.RELU2 else Source.SWIGLU
        gate_scale, up_scale = layer.gate_proj.scale, layer.up_proj.scale
        input_norm = self.after_layer(norms.input)
        self._down = layer.down_proj.scale
        return Layer(
            input_norm=input_norm,
            qkv=qkv,
            rope=self._rope(layer),
            window=layer.window,
            attention_norm=self.norm(norms.attention, Source.ATTENTION),
            o=o,
            ffn_input_norm=self.norm(norms.ffn_input, Source.ADD, layer.o_proj.scale),
            gate_up=gate_up,
            ffn_norm=self.norm(norms.ffn, gated, gate_scale, up_scale),
            down=down,
        )

    def _rope(self, layer: PackedLayer) -> RopeStep:
        bias, norms, biases = layer.bias, layer.head_norms, None
        if bias is not None:
            none = np.zeros(self.model.n_kv_heads * self.head_dim, np.int16)
            centre = none if bias.centre is None else bias.centre
            biases = upload(np.concatenate([bias.values, centre]))
        return RopeStep(
            scale_q=layer.q_proj.scale,
            scale_k=layer.k_proj.scale,
            scale_v=layer.v_proj.scale,
            rope=self._rope_table,
            bias=biases,
            bias_frac=0 if bias is None else bias.frac,
            gamma=None if norms is None else upload(np.stack([norms.query, norms.key])),
            gamma_frac=0 if norms is None else norms.frac,
            eps=padded_head_eps(self.model),
        )


def upload_model(model: PackedModel, progress: Progress | None = None) -> Model:
    """Put a model on the device; ``progress`` takes the share of layers that are there."""
    require_gpu()
    with naming_memory("the model's weights", "use a smaller model or fewer bits"):
        uploader = _Uploader(model)
        layers: list[Layer] = []
        for i in range(len(model.layers)):
            if progress is not None:
                progress(i / len(model.layers))
            layers.append(uploader.layer(model.layers[i]))
        embedding: Array | CodedRows
        head: Head | Matrix
        if model.vocabulary is not None:
            embedding, head = _vocabulary(model, model.vocabulary)
        else:
            embedding = upload(model.embedding)
            head = upload_head(model.head, model.head_rows, model.head_shift)
        return Model(
            packed=model,
            head_dim=uploader.head_dim,
            embedding=embedding,
            layers=layers,
            norm=uploader.after_layer(lower_norm(model.norm, model.hidden_size)),
            head=head,
            tables=upload(tables()),
        )
