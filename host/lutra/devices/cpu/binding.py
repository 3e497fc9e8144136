"""A packed model for the C library, and passes through its layers."""

import contextlib
import ctypes
import mmap
import os
import weakref
from ctypes import CDLL
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lutra.devices.cpu.cache import CacheShape, CpuCache
from lutra.devices.cpu.interface import (
    HEAD_DIM_MAX,
    CCopy,
    CLayer,
    CMatrix,
    CModel,
    CNorm,
    CPass,
    CRow,
    CShare,
)
from lutra.devices.cpu.library import library, pointer, scale_of, strip_rows, target_number
from lutra.devices.shares import PartyLeft
from lutra_golden.arith.scale import Scale, scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.model.b128 import BLOCK
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
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.model.stored import TwoZeros

__all__ = ["CpuModel", "CpuResult", "KeptArrays", "RowTable", "matrix_of"]

_FEW_BITS = 2
_UNIT = 16  # weights: what sums of groups are made of
_SHARED = 32  # activations that have an exponent of their own
_TWO_BYTES, _FOUR_BYTES = np.dtype(np.uint16), np.dtype(np.uint32)
_BYTE_PEAK = 128
_INT16 = np.dtype(np.int16)
_ROW = cast("np.dtype[np.void]", np.dtype(CRow))
_HUGE_PAGE = 1 << 21
_ROOM = 1 << 26  # bytes that are asked for at once
_LINE = 64  # bytes of a cache's line, where matrices begin


class CpuResult(NamedTuple):
    """Logits ``[wanted, vocab]``, each worth ``scale`` ``[wanted]`` times the model's head scale.

    Without the model's last layer there are none, but ``residual`` ``[n, hidden]``.
    """

    logits: NDArray[np.int32]
    scale: NDArray[np.float64]
    argmax: NDArray[np.int32]
    saturated: bool
    residual: NDArray[np.int32] | None


@dataclass(frozen=True)
class RowTable:
    """Rows of a pass, one token each; rows of one cache are adjacent, at successive positions."""

    table: NDArray[np.void]

    @classmethod
    def empty(cls, n: int) -> "RowTable":
        """Room for ``n`` rows."""
        return cls(np.zeros(n, _ROW))

    def set(
        self, at: slice, cache: CpuCache, position: int, tokens: NDArray[np.int32], wanted: int
    ) -> None:
        """Fill rows with ``tokens`` from ``position`` on; logits from token ``wanted`` on."""
        rows, n = self.table[at], len(tokens)
        rows["cache"], rows["token"] = cache.address, tokens
        rows["position"] = np.arange(position, position + n)
        rows["wanted"][wanted:] = 1

    def __len__(self) -> int:
        return len(self.table)

    @property
    def n_wanted(self) -> int:
        """Rows that want logits."""
        return int(np.count_nonzero(self.table["wanted"]))


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
    """True if ``n_bytes`` is less than half of this machine's memory."""
    try:
        return 2 * n_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return False


def _mapped_file(values: NDArray[np.generic]) -> mmap.mmap | None:
    """The file that an array is a view of, mapped to be read; None if it is in memory."""
    base, reads = cast("object", values), False
    while isinstance(base, np.ndarray):
        reads |= isinstance(base, np.memmap) and base.mode == "r"
        base = cast("object", base.base)
    return base if reads and isinstance(base, mmap.mmap) else None


class KeptArrays:
    """Arrays that the library points into.

    With ``copies`` matrices are copied into large pages. Mapped from a file they lie in pages of
    4 KiB, past whose ends processors do not prefetch, so a decoded token takes longer
    (docs/devices.md). The copies of matrices are in strips of ``strip`` rows, unless that is 0.
    """

    def __init__(self, copies: bool = False, strip: int = 0) -> None:
        self._arrays: list[object] = []
        self._copies, self._room = copies, np.empty(0, np.uint8)
        self._awaited: list[tuple[CCopy, NDArray[np.generic]]] = []
        self.strip = strip if copies else 0

    def __call__(self, values: NDArray[np.generic]) -> int:
        whole = np.ascontiguousarray(values)
        self._arrays.append(whole)
        return whole.ctypes.data

    def matrix(self, values: NDArray[np.generic], strip: int = 0) -> int:
        """Address of an array that is read for every token, copied into large pages if possible:
        by :meth:`fill`. ``[N, columns]`` is copied in strips of ``strip`` rows."""
        if not self._copies:
            return self(values)
        # codes of a file that are copied four bytes at a time may lie anywhere
        whole = np.require(values, requirements=["C", "ALIGNED"])
        copy = CCopy(rows=1, columns=whole.nbytes, size=1, strip=strip)
        taken = whole.nbytes
        if strip:
            copy.rows, copy.size = len(whole), whole.itemsize
            copy.columns = whole.size // len(whole)
            taken = -(-len(whole) // strip) * strip * copy.columns * copy.size
        taken = -(-taken // _LINE) * _LINE
        if taken > len(self._room):
            self._room = _huge_pages(max(taken, _ROOM))
        room, self._room = self._room[:taken], self._room[taken:]
        copy.source, copy.to = whole.ctypes.data, self(room)
        self._awaited.append((copy, whole))
        return room.ctypes.data

    def fill(self, pool: int | None) -> None:
        """Copy what is to be copied, by the threads of a pool: in one call, as each return to
        Python waits where another thread is busy there. A file that it comes from then takes no
        memory of this process any more; what is read of it later comes back."""
        awaited, self._awaited = self._awaited, []
        copies = (CCopy * len(awaited))(*(copy for copy, _ in awaited))
        library().lutra_cpu_copy(pool, ctypes.addressof(copies), len(awaited))
        files = [_mapped_file(values) for _, values in awaited]
        if (advice := getattr(mmap, "MADV_DONTNEED", None)) is not None:
            for file in {id(file): file for file in files if file is not None}.values():
                file.madvise(advice)

    def int16(self, values: NDArray[np.integer]) -> int:
        return self(values.astype(_INT16, copy=False))


def _parts_of(group: int, bits: int, a_peak: int) -> int:
    """Parts of a group of which each is summed in 32 bits, whatever its codes and activations."""
    largest = 2 * ((1 << bits) - 1) * a_peak  # of twice a weight times an activation
    for parts in range(1, group // _UNIT + 1):
        if group % (parts * _UNIT) == 0 and group // parts * largest < 1 << 31:
            return parts
    raise AssertionError("a unit is summed in 32 bits")


def _repeated(values: NDArray[np.generic] | None, parts: int) -> NDArray[np.generic] | None:
    """Numbers of groups, each for all parts of its group."""
    return None if values is None else values.repeat(parts, axis=1)


def _in_strips(bits: int, group: int | None, *, a_groups: bool, marked: bool) -> bool:
    """True if there are products with strips of such a matrix, which the library has where
    arithmetic bounds products of rows that are taken one by one, not memory: of few bits, and,
    where activations are in groups, of more."""
    if bits > _FEW_BITS:
        return a_groups and group is not None
    if marked:
        return False
    if group is None or group % BLOCK == 0:
        return True
    return group in (2 * _SHARED, _SHARED) or (group == _UNIT and bits > 1)


def _marks_of_strips(marks: NDArray[np.uint8], groups: int, strip: int) -> NDArray[np.uint8]:
    """Bits of groups ``[N, G / 8]`` as those of rows, ``[N / strip, G, strip / 8]``."""
    bits = np.unpackbits(marks, axis=1, count=groups, bitorder="little")
    bits = np.pad(bits, ((0, -len(bits) % strip), (0, 0)))
    columns = bits.reshape(-1, strip, groups).transpose(0, 2, 1)
    return np.packbits(columns, axis=2, bitorder="little")


def matrix_of(
    linear: PackedLinear, keep: "KeptArrays | None" = None, a_peak: int = _BYTE_PEAK
) -> CMatrix:
    """A matrix of a layer; ``keep`` holds the arrays that it points into.

    ``a_peak`` is the largest magnitude of what its codes are multiplied by.
    """
    hold = keep or KeptArrays()
    stored = linear.stored
    if stored.group is not None and stored.group % _UNIT:
        raise LutraError(
            f"device cpu needs groups of a multiple of {_UNIT}, not {stored.group}: pack the model "
            "with another --group"
        )
    if stored.bits <= _FEW_BITS or stored.group not in (_UNIT, _SHARED):
        stored = stored.one_level()  # products of their own, and parts of groups, have no other
    scale, zero, offset, group = stored.scale, stored.zero, stored.offset, stored.group
    levels, two = stored.levels, None
    if group is not None and zero is not None:
        parts = _parts_of(group, stored.bits, a_peak)
        if stored.bits <= _FEW_BITS and group % BLOCK == 0:
            parts = max(parts, group // BLOCK)  # what has products of its own
        if parts > 1:
            scale, zero = _repeated(scale, parts), zero.repeat(parts, axis=1)
            offset = _repeated(offset, parts)
            group //= parts
        # what one or two numbers say takes no memory that every token would read
        two = TwoZeros.of(zero)
    marks = two.marks if two is not None and two.first < two.second else None
    in_strips = _in_strips(
        stored.bits, group, a_groups=a_peak != _BYTE_PEAK, marked=marks is not None
    )
    strip = hold.strip if in_strips else 0
    codes = stored.codes.view(_FOUR_BYTES) if strip else stored.codes
    if marks is not None and strip and group is not None:
        marks = _marks_of_strips(marks, stored.depth // group, strip)

    def held(values: NDArray[np.generic] | None) -> int | None:
        return None if values is None else hold.matrix(values, strip)

    numbers = {}
    if levels is not None:
        numbers = {
            "levels": hold.matrix(
                levels.records.reshape(stored.n_rows, -1).view(_TWO_BYTES), strip
            ),
            "multiple_bits": levels.bits,
            "level_shift": levels.shift,
            "level_offsets": levels.offsets,
        }
    return CMatrix(
        codes=hold.matrix(codes, strip),
        scale=held(scale),
        zero=held(zero) if two is None else None,
        marks=None if marks is None else hold.matrix(marks),
        zero_point=0 if two is None else two.first,
        other_zero=0 if two is None else two.second,
        offset=held(offset),
        strip=strip,
        row_bytes=stored.codes.shape[1],
        n=stored.n_rows,
        k=stored.depth,
        bits=stored.bits,
        group=group or 0,
        scale_bytes=0 if scale is None else scale.dtype.itemsize,
        shift=linear.shift,
        offset_shift=stored.offset_shift if levels is None else levels.offset_shift,
        unit=scale_of(linear.scale),
        **numbers,
    )


def _column_bits(model: PackedModel) -> int:
    """Bits of the integers that matrices are multiplied by: those of groups have a shift more."""
    if model.a_groups is None:
        return model.a_bits
    return model.a_bits + model.a_groups.shift_max


def _norm_of(model: PackedModel, norm: LoweredNorm, keep: KeptArrays) -> CNorm:
    # without a gamma the library multiplies by ones
    gamma = keep.int16(norm.gamma) if norm.normalise else None
    out = CNorm(
        gamma=gamma, frac=norm.frac, plain=int(not norm.normalise), inv_n=scale_of(norm.inv_n)
    )
    if (groups := model.a_groups) is not None:
        out.group, out.run, out.group_shift = groups.size, norm.run, groups.shift_max
    return out


def _a_peak(model: PackedModel) -> int:
    """Largest magnitude of what codes are multiplied by."""
    return _BYTE_PEAK if model.a_groups is None else model.a_groups.peak


def _layer_of(model: PackedModel, layer: PackedLayer, keep: KeptArrays) -> CLayer:
    layer = lower_layer(model, layer)
    norms = layer_norms(model, layer)
    linears = {name: matrix_of(layer.linear(name), keep, _a_peak(model)) for name in LINEARS}
    out = CLayer(
        q=linears["q_proj"],
        k=linears["k_proj"],
        v=linears["v_proj"],
        o=linears["o_proj"],
        gate=linears["gate_proj"],
        up=linears["up_proj"],
        down=linears["down_proj"],
        input=_norm_of(model, norms.input, keep),
        attention=_norm_of(model, norms.attention, keep),
        ffn_input=_norm_of(model, norms.ffn_input, keep),
        ffn=_norm_of(model, norms.ffn, keep),
        window=layer.window,
    )
    if layer.bias is not None:
        out.bias, out.bias_frac = keep.int16(layer.bias.values), layer.bias.frac
        if layer.bias.centre is not None:
            out.key_centre = keep.int16(layer.bias.centre)
    if layer.head_norms is not None:
        norms = layer.head_norms
        out.query_norm, out.key_norm = keep.int16(norms.query), keep.int16(norms.key)
        out.head_norm_frac = norms.frac
    return out


def _matrix_bytes(model: PackedModel) -> int:
    """Approximate bytes of all matrices, as if every layer had the size of the first."""
    layer = model.layers[0]
    codes = sum(layer.linear(name).stored.codes.nbytes for name in LINEARS)
    head = model.head if model.vocabulary is None else model.vocabulary.head.stored.codes
    return codes * len(model.layers) + head.nbytes


class CpuModel:
    """A packed model in the library, with threads and working memory.

    Matrices are copied into large pages, unless they would take half of this machine's memory: then
    they stay where they are, mapped from their file.

    ``few`` and ``many`` name the targets for products of one column and of more; passes have up to
    ``rows`` rows. Not for two threads at once.
    """

    def __init__(
        self, model: PackedModel, *, threads: int, few: str, many: str, rows: int = 256
    ) -> None:
        shape = CacheShape.of(model)
        if shape.built > HEAD_DIM_MAX:
            raise LutraError(
                f"device cpu has heads of up to {HEAD_DIM_MAX}, the model's are of "
                f"{model.head_dim}: run it with -dev golden"
            )
        self.shape, self.rows = shape, rows
        self._library = library()
        self._keep = KeptArrays(_spare_memory(_matrix_bytes(model)), strip_rows(few))
        self._rows = KeptArrays()
        keep = self._keep
        layers = (CLayer * len(model.layers))(
            *(_layer_of(model, layer, keep) for layer in model.layers)
        )
        self._layers = layers
        self._c = CModel(
            layers=ctypes.addressof(layers),
            rope=keep.int16(lower_rope(model)),
            norm=_norm_of(model, lower_norm(model.norm, model.hidden_size), keep),
            eps=scale_of(model.eps),
            unit=scale_of(residual_unit(model)),
            n_layers=len(layers),
            hidden=model.hidden_size,
            intermediate=model.intermediate_size,
            heads=model.n_heads,
            kv_heads=model.n_kv_heads,
            head_dim=shape.built,
            vocab=model.vocab_size,
            context=model.context,
            a_bits=model.a_bits,
            column_bits=_column_bits(model),
            key_bits=shape.key_bits,
            value_bits=shape.value_bits,
            swiglu=int(model.gate is Gate.SILU),
            residual_frac=model.residual_frac,
            embedding_shift=embedding_shift(model),
            head_eps=padded_head_eps(model),
        )
        self._set_vocabulary(model)
        self._pool = self._library.lutra_cpu_pool_new(threads)
        if self._pool:
            keep.fill(self._pool)
        self._engine = self._library.lutra_cpu_engine_new(
            ctypes.addressof(self._c), threads, target_number(few), target_number(many), rows
        )
        self._free = weakref.finalize(
            self, _release, self._library, self._engine, self._pool, os.getpid()
        )
        # a daemon thread may still be in a pass when the process ends
        self._free.atexit = False
        if not self._pool or not self._engine:
            self.close()
            raise _no_memory("its working memory")

    def _set_vocabulary(self, model: PackedModel) -> None:
        """Embedding and head, in codes or as int16 and signed bytes."""
        c, keep = self._c, self._keep
        if (coded := model.vocabulary) is None:
            c.embedding, c.head_rows = keep.int16(model.embedding), keep.int16(model.head_rows)
            c.head = CMatrix(
                codes=keep.matrix(model.head.astype(np.int8, copy=False)),
                row_bytes=model.hidden_size,
                n=model.vocab_size,
                k=model.hidden_size,
                shift=model.head_shift,
            )
            return
        c.head = matrix_of(coded.head, keep, _a_peak(model))
        # a token reads one row of the embedding, so that large pages would be for nothing
        c.embedded = (
            CMatrix.from_buffer_copy(c.head)
            if coded.tied
            else matrix_of(coded.embedding, self._rows)
        )
        c.embedded.unit = scale_of(coded.embedding.scale)

    @property
    def token_bytes(self) -> int:
        """Bytes of matrices that a token reads which is decoded on its own."""
        names = ("q", "k", "v", "o", "gate", "up", "down")
        layers = sum(getattr(layer, name).n_bytes for layer in self._layers for name in names)
        return layers + self._c.head.n_bytes

    def run(
        self,
        rows: RowTable,
        layers: range,
        residual: NDArray[np.int32] | None = None,
        share: CShare | None = None,
    ) -> CpuResult:
        """Take rows through ``layers``; ``residual`` ``[n, hidden]`` is what enters after layer 0.
        With a ``share`` only its rows are computed here, and its logits alone come back.

        Tokens, positions and layers are in range: :mod:`lutra.devices.base` sees to that. PartyLeft
        if another device of the share has left.
        """
        c, n, last = self._c, len(rows), layers.stop == self._c.n_layers
        wanted = rows.n_wanted if last else 0
        width = c.vocab if share is None else share.vocab.last - share.vocab.first
        logits = np.empty((wanted, width), np.int32)
        scale, argmax = np.zeros((wanted, 2), np.int32), np.empty(wanted, np.int32)
        stream = None
        if layers.start > 0 or not last:
            stream = np.zeros((n, c.hidden), np.int32)
            if residual is not None:
                stream[...] = residual
        given = CPass(
            rows=pointer(rows.table),
            residual=pointer(stream),
            logits=pointer(logits),
            argmax=pointer(argmax),
            scale=pointer(scale),
            share=None if share is None else ctypes.addressof(share),
            n=n,
            first=layers.start,
            last=layers.stop,
        )
        status = self._library.lutra_cpu_run(self._engine, self._pool, ctypes.addressof(given))
        if status == -1:
            raise _no_memory(f"attention over {int(rows.table['position'].max()) + 1} positions")
        if status == -3:
            raise PartyLeft("another device of the share has failed")
        assert status >= 0, "rows that do not fit were not refused"
        m, e = scale.astype(np.int64).T
        return CpuResult(
            logits, scale_to_float(Scale(m, e)), argmax, bool(status), None if last else stream
        )

    def close(self) -> None:
        """Release threads and memory."""
        self._free()
        self._engine = self._pool = None


def _release(library: CDLL, engine: int | None, pool: int | None, pid: int) -> None:
    library.lutra_cpu_engine_free(engine)
    # a forked process has no threads to end
    if pid == os.getpid():
        library.lutra_cpu_pool_free(pool)


def _no_memory(what: str) -> LutraError:
    return LutraError(f"device cpu has no memory for {what}: use a smaller model or context")
