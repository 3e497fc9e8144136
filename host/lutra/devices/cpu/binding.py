"""A packed model for the C library, and running it."""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.library import (
    CLayer,
    CMatrix,
    CModel,
    CNorm,
    library,
    pointer,
    scale_of,
    target_number,
)
from lutra_golden.arith.scale import Scale, scale_from_float, scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.model.lowered import common_kv_bits
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel, PackedNorm
from lutra_golden.model.padding import built_head_dim, pad_layer, pad_table
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.vector.norm import ONE_FRAC

__all__ = ["CpuModel", "CpuResult", "Keep", "matrix_of"]

_UNIT = 16  # weights: what sums of groups are made of
_INT16 = np.dtype(np.int16)
_HUGE_PAGE = 1 << 21
_ROOM = 1 << 26  # bytes that are asked for at once
_LINE = 64  # bytes of a cache's line, where matrices begin


class CpuResult(NamedTuple):
    """``logits`` ``[n, vocab]``, each worth ``scale`` ``[n]`` times the model's head scale."""

    logits: NDArray[np.int32]
    scale: NDArray[np.float64]
    argmax: NDArray[np.int32]
    saturated: bool


def _huge_pages(n_bytes: int) -> NDArray[np.uint8]:
    """Memory in pages of 2 MiB, where the system has them."""
    if hasattr(mmap, "MAP_PRIVATE"):  # shared memory has small pages
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = mmap.mmap(-1, n_bytes + _HUGE_PAGE, flags=flags)
    else:
        mapped = mmap.mmap(-1, n_bytes + _HUGE_PAGE)
    if advice := getattr(mmap, "MADV_HUGEPAGE", None):
        with contextlib.suppress(OSError):  # a kernel that is built without
            mapped.madvise(advice)
    whole = np.frombuffer(mapped, np.uint8)
    first = -whole.ctypes.data % _HUGE_PAGE
    return whole[first : first + n_bytes]


def _spare_memory(n_bytes: int) -> bool:
    """Whether so many bytes are less than half of the memory of this machine."""
    try:
        return 2 * n_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return False


class Keep:
    """Arrays that the library points into.

    With ``copies`` those of matrices are copied into large pages. Mapped from a file they lie in
    pages of 4 KiB, over whose ends processors do not read ahead, and a decoded token takes longer
    (docs/devices.md).
    """

    def __init__(self, copies: bool = False) -> None:
        self._arrays: list[object] = []
        self._copies, self._room = copies, np.empty(0, np.uint8)

    def __call__(self, values: NDArray[np.generic]) -> int:
        whole = np.ascontiguousarray(values)
        self._arrays.append(whole)
        return whole.ctypes.data

    def matrix(self, values: NDArray[np.generic]) -> int:
        """What is read for every token."""
        if not self._copies:
            return self(values)
        taken = -(-values.nbytes // _LINE) * _LINE
        if taken > len(self._room):
            self._room = _huge_pages(max(taken, _ROOM))
        room, self._room = self._room[: values.nbytes], self._room[taken:]
        copy = room.view(values.dtype).reshape(values.shape)
        copy[...] = values
        return self(copy)

    def int16(self, values: NDArray[np.integer]) -> int:
        return self(values.astype(_INT16, copy=False))


def matrix_of(linear: PackedLinear, keep: "Keep | None" = None) -> CMatrix:
    """A matrix of a layer; ``keep`` takes what it points into."""
    hold = keep or Keep()
    stored = linear.stored
    if stored.group is not None and stored.group % _UNIT:
        raise LutraError(
            f"device cpu needs groups of a multiple of {_UNIT}, not {stored.group}: pack the model "
            "with another --group"
        )
    scale, zero = stored.scale, stored.zero
    return CMatrix(
        codes=hold.matrix(stored.codes),
        scale=None if scale is None else hold.matrix(scale),
        zero=None if zero is None else hold.matrix(zero),
        row_bytes=stored.codes.shape[1],
        n=stored.n_rows,
        k=stored.depth,
        bits=stored.bits,
        group=stored.group or 0,
        scale_bytes=0 if scale is None else scale.dtype.itemsize,
        shift=linear.shift,
        unit=scale_of(linear.scale),
    )


def _norm_of(norm: PackedNorm | None, n: int, keep: Keep) -> CNorm:
    """A norm, or none, over ``n`` values that are not padding."""
    inv_n = scale_of(scale_from_float(1 / n))
    if norm is None:
        return CNorm(gamma=None, frac=ONE_FRAC, plain=1, inv_n=inv_n)
    return CNorm(gamma=keep.int16(norm.gamma), frac=norm.frac, plain=0, inv_n=inv_n)


def _layer_of(model: PackedModel, layer: PackedLayer, keep: Keep) -> CLayer:
    layer = pad_layer(layer, model.head_dim, built_head_dim(model.head_dim))
    out = CLayer(
        q=matrix_of(layer.q_proj, keep),
        k=matrix_of(layer.k_proj, keep),
        v=matrix_of(layer.v_proj, keep),
        o=matrix_of(layer.o_proj, keep),
        gate=matrix_of(layer.gate_proj, keep),
        up=matrix_of(layer.up_proj, keep),
        down=matrix_of(layer.down_proj, keep),
        input=_norm_of(layer.input_norm, model.hidden_size, keep),
        attention=_norm_of(layer.attention_norm, model.n_heads * model.head_dim, keep),
        ffn_input=_norm_of(layer.ffn_input_norm, model.hidden_size, keep),
        ffn=_norm_of(layer.ffn_norm, model.intermediate_size, keep),
        window=layer.window,
    )
    if layer.bias is not None:
        out.bias, out.bias_frac = keep.int16(layer.bias.values), layer.bias.frac
    if layer.head_norms is not None:
        norms = layer.head_norms
        out.query_norm, out.key_norm = keep.int16(norms.query), keep.int16(norms.key)
        out.head_norm_frac = norms.frac
    return out


def _matrix_bytes(model: PackedModel) -> int:
    """Bytes of all matrices, about: those of the first layer stand for the others."""
    layer = model.layers[0]
    codes = sum(layer.linear(name).stored.codes.nbytes for name in LINEARS)
    return codes * len(model.layers) + model.head.nbytes


class CpuModel:
    """A packed model in the library; its KV cache starts empty.

    Matrices are copied into large pages, unless they would take half of this machine's memory: then
    they stay where they are, mapped from their file.

    ``few`` and ``many`` name the targets for products of few and of many columns; tiles of up to
    ``tile`` tokens go through the model at once.
    """

    def __init__(
        self, model: PackedModel, *, threads: int, few: str, many: str, tile: int = 256
    ) -> None:
        self._library = library()
        self._keep = Keep(_spare_memory(_matrix_bytes(model)))
        head_dim = built_head_dim(model.head_dim)
        keep = self._keep
        layers = (CLayer * len(model.layers))(
            *(_layer_of(model, layer, keep) for layer in model.layers)
        )
        self._layers = layers
        self.vocab_size, self.context = model.vocab_size, model.context
        self._c = CModel(
            layers=ctypes.addressof(layers),
            embedding=keep.int16(model.embedding),
            rope=keep.int16(pad_table(model.rope, head_dim)),
            head_rows=keep.int16(model.head_rows),
            head=CMatrix(
                codes=keep.matrix(model.head.astype(np.int8, copy=False)),
                row_bytes=model.hidden_size,
                n=model.vocab_size,
                k=model.hidden_size,
                shift=model.head_shift,
            ),
            norm=_norm_of(model.norm, model.hidden_size, keep),
            eps=scale_of(model.eps),
            n_layers=len(layers),
            hidden=model.hidden_size,
            intermediate=model.intermediate_size,
            heads=model.n_heads,
            kv_heads=model.n_kv_heads,
            head_dim=head_dim,
            vocab=model.vocab_size,
            context=model.context,
            a_bits=model.a_bits,
            kv_bits=common_kv_bits(model, "cpu"),
            swiglu=int(model.gate is Gate.SILU),
            residual_frac=model.residual_frac,
            embedding_shift=model.residual_frac - model.embedding_frac,
            head_eps=round(model.head_eps * model.head_dim / head_dim),
        )
        self._pool = self._library.lutra_cpu_pool_new(threads)
        self._engine = self._library.lutra_cpu_engine_new(
            ctypes.addressof(self._c), threads, target_number(few), target_number(many), tile
        )
        self._cache: int | None = None
        if not self._pool or not self._engine:
            self.close()
            raise _no_memory("its working memory")
        try:
            self.reset()
        except LutraError:
            self.close()
            raise

    def reset(self) -> None:
        """Empty the KV cache."""
        c = self._c
        self._library.lutra_cpu_cache_free(self._cache)
        self._cache = self._library.lutra_cpu_cache_new(
            c.n_layers, c.kv_heads, c.head_dim, c.context, c.kv_bits
        )
        if not self._cache:
            raise _no_memory(f"the KV cache of {c.context} positions")

    def run(self, tokens: Sequence[int], position: int, logits_from: int) -> CpuResult:
        """Process ``tokens`` from ``position``; logits from that index on."""
        n, wanted = len(tokens), len(tokens) - logits_from
        ids = np.array(tokens, np.int32)
        if n and not (0 <= ids.min() and ids.max() < self.vocab_size):
            raise ValueError(f"tokens must be in 0..{self.vocab_size - 1}, not {list(tokens)}")
        if not 0 <= logits_from <= n:
            raise ValueError(f"logits_from must be in 0..{n}, not {logits_from}")
        if position < 0 or position + n > self.context:
            raise ValueError(f"position must be in 0..{self.context - n}, not {position}")
        logits = np.empty((wanted, self.vocab_size), np.int32)
        scale, argmax = np.zeros((wanted, 2), np.int32), np.empty(wanted, np.int32)
        status = self._library.lutra_cpu_run(
            self._engine, self._pool, self._cache, pointer(ids), n, position, logits_from,
            pointer(logits), pointer(scale), pointer(argmax),
        )  # fmt: skip
        if status < 0:
            raise _no_memory(f"attention over {position + n} positions")
        m, e = scale.astype(np.int64).T
        return CpuResult(logits, scale_to_float(Scale(m, e)), argmax, bool(status))

    def close(self) -> None:
        """Release threads and memory."""
        self._library.lutra_cpu_engine_free(self._engine)
        self._library.lutra_cpu_cache_free(self._cache)
        self._library.lutra_cpu_pool_free(self._pool)
        self._engine = self._cache = self._pool = None


def _no_memory(what: str) -> LutraError:
    return LutraError(f"device cpu has no memory for {what}: use a smaller model or context")
