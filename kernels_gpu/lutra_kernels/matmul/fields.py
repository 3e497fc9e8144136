"""Packed planes inside kernels: their fields, and dot products by dp4a with masks and no shifts.

A word of a plane of ``bits`` has ``8 / bits`` fields of four codes, one in each byte. Masking
leaves a field where it lies, so its codes are multiples of a power of two and still unsigned bytes;
one shift of the field's sum divides. Chunks are 16 bytes of a row, what a thread loads at once.
"""

import math

import triton
import triton.language as tl

from lutra_kernels.jit import jit

__all__ = [
    "PLANES",
    "common_span",
    "field_dot",
    "field_shift",
    "field_words",
    "load_words",
    "n_planes",
    "plane_bits",
    "plane_low",
    "set_fields",
    "word_offsets",
]

PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (4, 4)}
"""Widths of the planes of a code, low bits first."""


@triton.constexpr_function
def n_planes(bits):
    """Planes of a code."""
    return len(PLANES[bits])


@triton.constexpr_function
def plane_bits(bits, plane):
    """Bits of a plane."""
    return PLANES[bits][plane]


@triton.constexpr_function
def plane_low(bits, plane):
    """First bit of a plane within a code; also the first byte of a plane in a block, over eight."""
    return sum(PLANES[bits][:plane])


@triton.constexpr_function
def field_words(bits):
    """Words of activations that a field of a plane's word group spans: 4 of 16, or 8 of 32."""
    return 4 if bits == 1 else 8


@triton.constexpr_function
def field_shift(bits, field):
    """Lowest bit of a field's codes within a byte.

    The first field of 1 and 2 bits is at the top of the byte; of 4 bits, in the low nibble.
    """
    return 4 * field if bits == 4 else 8 - bits * (field + 1)


@triton.constexpr_function
def common_span(group):
    """Weights from any multiple of themselves on that lie in one group: of 16 to 128."""
    return math.gcd(group, 128)


@triton.constexpr_function
def set_fields(bits, span):
    """Fields of a chunk that lie within one such span."""
    return min(max(1, span // (16 if bits == 1 else 32)), 8 // bits)


@triton.constexpr_function
def _dot_assembly(bits, field):
    mask = (((1 << bits) - 1) << field_shift(bits, field)) * 0x01010101
    lines = ["{ .reg .b32 t, s;"]
    for word in range(4):
        total = "$9" if word == 0 else "s"
        lines.append(f"and.b32 t, ${1 + word}, 0x{mask:08x};")
        lines.append(f"dp4a.s32.u32 s, ${5 + word}, t, {total};")
    return " ".join([*lines, "mov.b32 $0, s; }"])


@jit
def field_dot(w, x, acc, BITS: tl.constexpr, FIELD: tl.constexpr):
    """``acc + 2**shift * sum(codes of a field * x)``: four words of codes, four of activations."""
    return tl.inline_asm_elementwise(
        _dot_assembly(BITS, FIELD),
        "=r,r,r,r,r,r,r,r,r,r",
        [w[0], w[1], w[2], w[3], x[0], x[1], x[2], x[3], acc],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@jit
def load_words(pointers, mask, ROWS: tl.constexpr, CHUNKS: tl.constexpr, ONCE: tl.constexpr):
    """The words ``[ROWS, 4 * CHUNKS]`` behind ``pointers``, as four of ``[ROWS, CHUNKS]``: those of
    each chunk. ``ONCE`` for what no other program reads."""
    policy: tl.constexpr = "evict_first" if ONCE else ""
    if mask is None:
        x = tl.load(pointers, eviction_policy=policy)
    else:
        x = tl.load(pointers, mask=mask, other=0, eviction_policy=policy)
    even, odd = tl.split(tl.reshape(x, (ROWS, CHUNKS, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@jit
def word_offsets(WORDS: tl.constexpr, RUN: tl.constexpr, STRIDE: tl.constexpr):
    """Offsets of ``WORDS`` words that lie in runs of ``RUN``, one run each ``STRIDE`` words."""
    e = tl.arange(0, WORDS)
    return (e // RUN) * STRIDE + e % RUN
