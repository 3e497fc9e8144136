"""A packed model on a device: every matrix, vector and number of its layers, ready to launch.

Layers come as the packed format has them: arrays and, beside them, numbers, by the names of
:data:`MATRICES` and of the norms. The matrices of a stack (queries, keys and values; gate and up)
become one, so they must have the same bits, groups and shift.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lutra_golden.arith.scale import SCALE, Scale, scale_from_float
from lutra_golden.vector.norm import ONE_FRAC
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import Array, upload
from lutra_kernels.errors import naming_memory, require_gpu
from lutra_kernels.matmul.head import Head, upload_head
from lutra_kernels.matmul.matrix import Matrix, upload_matrix
from lutra_kernels.vector.norm import NormStep, Source
from lutra_kernels.vector.rope import RopeStep

__all__ = ["MATRICES", "Layer", "Model", "ModelShape", "PackedArrays", "upload_model"]

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""A layer's matrices, by their names in a checkpoint."""


class PackedArrays(NamedTuple):
    """A layer or what surrounds the layers: arrays by name, and numbers beside them.

    Of a matrix: ``codes`` in B128 and, if it is grouped, ``scale`` and ``zero``, after its name and
    a dot; for 16-bit activations ``code_sums`` too, each row's sums of codes by group. Its numbers
    are ``bits``, ``group`` (None if ternary), ``scale`` as ``[m, e]``, ``shift`` and, if it is
    known, ``peak``. A norm's array is gamma, its number the fraction bits; None if there is none.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    numbers: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes and number formats of a model.

    ``head_dim`` is a power of two, of which ``head_dim_used`` elements are not padding. ``relu2``
    tells a squared ReLU from SiLU. ``head_eps`` is the epsilon of heads' norms in ``2**-32``.
    """

    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    head_dim_used: int
    vocab_size: int
    context: int
    a_bits: int
    kv_bits: int
    relu2: bool
    eps: Scale
    head_eps: int
    residual_frac: int
    embedding_frac: int
    head_shift: int

    @property
    def unit(self) -> Scale:
        """What one of the residual stream is worth."""
        exponent = 1 - SCALE.m_width - self.residual_frac
        return Scale(np.asarray(1 << (SCALE.m_width - 1)), np.asarray(exponent))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer: four products and what is done before each of them."""

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
    """A model on a device."""

    shape: ModelShape
    embedding: Array
    layers: list[Layer]
    norm: NormStep
    head: Head
    tables: Array


def _scale(numbers: Mapping[str, object], name: str) -> Scale:
    fields = cast("Mapping[str, object]", numbers[name])
    m, e = cast("list[int]", fields["scale"])
    return Scale(np.asarray(m), np.asarray(e))


def _matrix(packed: PackedArrays, names: tuple[str, ...], k: int, a_bits: int) -> Matrix:
    """The rows of several matrices as one."""
    arrays = packed.arrays
    fields = [cast("Mapping[str, object]", packed.numbers[name]) for name in names]
    for key in ("bits", "group", "shift"):
        found = [field[key] for field in fields]
        if any(value != found[0] for value in found):
            raise ValueError(f"{', '.join(names)} must have one {key}, not {found}")
    bits, group, shift = (cast("int | None", fields[0][key]) for key in ("bits", "group", "shift"))

    def joined(part: str) -> NDArray[np.generic]:
        return np.concatenate([arrays[f"{name}.{part}"] for name in names])

    peaks = [cast("int | None", field.get("peak")) for field in fields]
    return upload_matrix(
        cast("NDArray[np.uint8]", joined("codes")),
        k=k,
        bits=bits or 0,
        shift=shift or 0,
        group=group or 0,
        scale=cast("NDArray[np.integer]", joined("scale")) if group else None,
        zero=cast("NDArray[np.integer]", joined("zero")) if group else None,
        peak=None if None in peaks else max(cast("list[int]", peaks)),
        code_sums=cast("NDArray[np.integer]", joined("code_sums")) if a_bits == 16 else None,
    )


class _Uploader:
    """Uploads layers one after another; each begins with the end of the one before."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._down: Scale | None = None

    def norm(
        self, packed: PackedArrays, name: str, n: int, source: Source, mean_of: int = 0
    ) -> NormStep:
        """The norm called ``name`` of ``n`` elements, ones if there is none."""
        shape, frac = self.shape, packed.numbers[name]
        plain = frac is None
        gamma = np.full(n, 1 << ONE_FRAC) if plain else packed.arrays[name]
        return NormStep(
            source=source,
            n=n,
            gamma=upload(gamma.astype(np.int16)),
            gamma_frac=ONE_FRAC if plain else cast("int", frac),
            unit=shape.unit,
            frac=shape.residual_frac,
            inv_n=scale_from_float(1 / (mean_of or n)),
            eps=shape.eps,
            head_dim=shape.head_dim,
            normalise=not plain,
        )

    def after_layer(self, packed: PackedArrays, name: str) -> NormStep:
        """A norm of the residual stream, to which the layer before is still to be added."""
        step = self.norm(packed, name, self.shape.hidden_size, Source.ADD)
        if self._down is None:
            shift = self.shape.residual_frac - self.shape.embedding_frac
            return replace(step, source=Source.EMBED, frac=shift)
        return replace(step, scale_a=self._down)

    def layer(self, packed: PackedArrays, rope: Array) -> Layer:
        """The next layer."""
        shape, numbers = self.shape, packed.numbers
        d, f, q = shape.hidden_size, shape.intermediate_size, shape.n_heads * shape.head_dim
        bits = shape.a_bits
        input_norm = self.after_layer(packed, "input_norm")
        self._down = _scale(numbers, "down_proj")
        used = shape.n_heads * shape.head_dim_used
        ffn_input = self.norm(packed, "ffn_input_norm", d, Source.ADD)
        gated = Source.RELU2 if shape.relu2 else Source.SWIGLU
        return Layer(
            input_norm=input_norm,
            qkv=_matrix(packed, MATRICES[:3], d, bits),
            rope=self._rope(packed, rope),
            window=cast("int", numbers["window"]),
            attention_norm=self.norm(packed, "attention_norm", q, Source.ATTENTION, used),
            o=_matrix(packed, ("o_proj",), q, bits),
            ffn_input_norm=replace(ffn_input, scale_a=_scale(numbers, "o_proj")),
            gate_up=_matrix(packed, ("gate_proj", "up_proj"), d, bits),
            ffn_norm=replace(
                self.norm(packed, "ffn_norm", f, gated),
                scale_a=_scale(numbers, "gate_proj"),
                scale_b=_scale(numbers, "up_proj"),
            ),
            down=_matrix(packed, ("down_proj",), f, bits),
        )

    def _rope(self, packed: PackedArrays, rope: Array) -> RopeStep:
        shape, arrays, numbers = self.shape, packed.arrays, packed.numbers
        bias_frac, norm_frac = (cast("int | None", numbers[n]) for n in ("bias", "head_norms"))
        gamma = None
        if norm_frac is not None:
            gamma = upload(np.stack([arrays["query_norm"], arrays["key_norm"]]).astype(np.int16))
        return RopeStep(
            scale_q=_scale(numbers, "q_proj"),
            scale_k=_scale(numbers, "k_proj"),
            scale_v=_scale(numbers, "v_proj"),
            rope=rope,
            bias=None if bias_frac is None else upload(arrays["bias"].astype(np.int16)),
            bias_frac=bias_frac or 0,
            gamma=gamma,
            gamma_frac=norm_frac or 0,
            # of the mean over padded heads
            eps=round(shape.head_eps * shape.head_dim_used / shape.head_dim),
        )


def upload_model(shape: ModelShape, around: PackedArrays, layers: Iterable[PackedArrays]) -> Model:
    """Put a model on the device.

    ``around`` has ``embedding`` int16 ``[V, D]``, ``rope`` int16 ``[context, head_dim]``, ``head``
    int8 ``[V, D]``, ``head_rows`` int16 ``[V]`` and the last ``norm``.
    """
    require_gpu()
    with naming_memory("the model's weights", "use a smaller model or fewer bits"):
        uploader = _Uploader(shape)
        rope = upload(around.arrays["rope"].astype(np.int16))
        uploaded = [uploader.layer(packed, rope) for packed in layers]
        return Model(
            shape=shape,
            embedding=upload(around.arrays["embedding"].astype(np.int16)),
            layers=uploaded,
            norm=uploader.after_layer(around, "norm"),
            head=upload_head(
                around.arrays["head"].astype(np.int8),
                around.arrays["head_rows"].astype(np.int16),
                shape.head_shift,
            ),
            tables=upload(tables()),
        )
