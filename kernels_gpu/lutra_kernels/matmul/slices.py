"""Packed planes as operands of matrix instructions: int8 codes of 32 weights in their order.

A block of 128 weights has four such slices, whatever its width; the planes of a code are put
together in the operand, so a wide code costs one matrix instruction too. Four codes share a
register from the load to the matrix instruction, which is why this is assembly. Codes of 8 bits
come less 128, to be signed.
"""

import triton
import triton.language as tl

from lutra_kernels.jit import jit
from lutra_kernels.matmul.fields import PLANES, n_planes, plane_bits, plane_low

__all__ = ["load_tiles", "slice_codes"]


@triton.constexpr_function
def _tile_index(bits, plane, part):
    before = sum(2 if width == 4 else 1 for width in PLANES[bits][:plane])
    return before + (part // 2 if PLANES[bits][plane] == 4 else 0)


@triton.constexpr_function
def _place_assembly(bits, part, target, joined):
    """Codes of slice ``part`` moved to bit ``target`` of each byte; ``joined`` to what is there."""
    source = {1: 6 - 2 * part, 2: 6 - 2 * part, 4: 4 * (part % 2)}[bits] - target
    mask = ((1 << bits) - 1) << target
    lines = ["{ .reg .b32 t, n;"]
    moved = "$1"
    if source:
        name = "shr.u32" if source > 0 else "shl.b32"
        lines.append(f"{name} t, $1, {abs(source)};")
        moved = "t"
    if bits == 1:
        # two fields of 16 weights: the upper bit is that of the first half
        lines += ["and.b32 n, $2, 1;", f"shr.u32 t, {moved}, n;"]
        moved = "t"
    if joined:
        other = "$3" if bits == 1 else "$2"
        lines.append(f"lop3.b32 $0, {moved}, 0x{mask * 0x01010101:08x}, {other}, 0xea;")
    else:
        lines.append(f"and.b32 $0, {moved}, 0x{mask * 0x01010101:08x};")
    return " ".join([*lines, "}"])


@triton.constexpr_function
def _place_constraints(bits, joined):
    return ",".join(["=r", "r"] + ["r"] * (bits == 1) + ["r"] * joined)


@jit
def load_tiles(row_ptr, mask, BITS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Bytes of ``BLOCK_B`` blocks behind ``row_ptr``: tiles ``[BLOCK_N, 32 * BLOCK_B]``, two of a
    plane of 4 bits, one of the others."""
    i = tl.arange(0, 32 * BLOCK_B)
    tiles = ()
    for plane in tl.static_range(n_planes(BITS)):
        base = (i // 32) * (16 * BITS) + 16 * plane_low(BITS, plane)
        at = base + (i % 16 if plane_bits(BITS, plane) == 1 else i % 32)
        for beat in tl.static_range(2 if plane_bits(BITS, plane) == 4 else 1):
            pointers = row_ptr + (at + 32 * beat)[None, :]
            if mask is None:
                tile = tl.load(pointers, eviction_policy="evict_first")
            else:
                tile = tl.load(pointers, mask=mask, other=0, eviction_policy="evict_first")
            tiles = tiles + (tile,)
    return tiles


@jit
def _place(
    tile, upper, codes, BITS: tl.constexpr, PART: tl.constexpr, TARGET: tl.constexpr,
    JOINED: tl.constexpr,
):  # fmt: skip
    asm: tl.constexpr = _place_assembly(BITS, PART, TARGET, JOINED)
    kinds: tl.constexpr = _place_constraints(BITS, JOINED)
    if BITS == 1:
        if JOINED:
            arguments = [tile, upper, codes]
        else:
            arguments = [tile, upper]
    else:
        if JOINED:
            arguments = [tile, codes]
        else:
            arguments = [tile]
    return tl.inline_asm_elementwise(asm, kinds, arguments, dtype=tl.int8, is_pure=True, pack=4)


@jit
def slice_codes(tiles, PART: tl.constexpr, BITS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Codes of slice ``PART`` of each block: int8 ``[BLOCK_N, 32 * BLOCK_B]``."""
    i = tl.arange(0, 32 * BLOCK_B)
    upper = (1 - (i % 32) // 16).to(tl.int8)[None, :]
    codes = tiles[0]
    for plane in tl.static_range(n_planes(BITS)):
        tile = tiles[_tile_index(BITS, plane, PART)]
        codes = _place(
            tile, upper, codes, plane_bits(BITS, plane), PART, plane_low(BITS, plane), plane > 0
        )
    if BITS == 8:
        codes = tl.inline_asm_elementwise(
            "xor.b32 $0, $1, 0x80808080;", "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4
        )
    return codes
