"""The matmul kernels as they run on the layers of released models."""

from lutra_kernels.catalogue import Variant
from lutra_kernels.matmul.embedding import embed_rows_kernel
from lutra_kernels.matmul.expand import combine_kernel, expand_kernel
from lutra_kernels.matmul.gemm import gemm_kernel
from lutra_kernels.matmul.gemv import gemv_kernel
from lutra_kernels.matmul.head import head_kernel, top_kernel
from lutra_kernels.matmul.lut import lut_kernel, table_kernel

__all__ = ["VARIANTS", "gemm_variant", "gemv_variant", "name_of"]

_SIDES = {
    "scale_ptr": "*u8", "zero_ptr": "*u8", "minimum_ptr": "*i32", "sum_ptr": "*i32",
    "offset_ptr": "*i64",
}  # fmt: skip
_GEMV = {
    "x_ptr": "*i32", "w_ptr": "*i32", **_SIDES, "o_ptr": "*i32", "N": "i32", "n_blocks": "i32",
    "n_groups": "i32", "shift": "i32", "stride_x": "i32",
}  # fmt: skip
_GEMM = {
    "x_ptr": "*i8", "w_ptr": "*i8", **_SIDES, "o_ptr": "*i32", "ticket_ptr": "*i32", "M": "i32",
    "N": "i32", "n_blocks": "i32", "n_groups": "i32", "shift": "i32", "split_blocks": "i32",
    "stride_x": "i32",
}  # fmt: skip


def name_of(bits: int, group: int, a_bytes: int) -> str:
    """``W1.58A8``, ``W4g128A16`` and so on."""
    weights = f"W{bits}g{group}" if group else "W1.58"
    return f"{weights}A{8 * a_bytes}"


def gemv_variant(
    bits: int, group: int, block_n: int, block_b: int, num_warps: int, limit: float | None = None,
    m: int = 1, a_bytes: int = 1, wide: bool = False, even: bool = True, offsets: bool = False,
    quick: bool = False,
) -> Variant:  # fmt: skip
    """A product of few tokens with this tile."""
    kind = f"{name_of(bits, group, a_bytes)} M={m} {block_n}x{block_b}"
    kind += " 64-bit" * wide + " offsets" * offsets + " hanging" * (not even)
    return Variant(
        name=f"gemv {kind}",
        kernel=gemv_kernel,
        arguments=_GEMV,
        constants={
            "M": m,
            "A_BYTES": a_bytes,
            "BITS": bits,
            "GROUP": group,
            "OFFSETS": offsets,
            "WIDE": wide,
            "EVEN": even,
            "BLOCK_N": block_n,
            "BLOCK_B": block_b,
            "BLOCK_G": 32,
        },
        num_warps=num_warps,
        unaligned=("n_blocks", "n_groups", "shift"),
        tokens=m * a_bytes,
        max_registers=168,
        max_per_weight=limit,
        quick=quick,
    )


def gemm_variant(
    bits: int, group: int, block_m: int, block_n: int, block_b: int, num_warps: int,
    limit: float | None = None, a_bytes: int = 1, wide: bool = False, split: int = 1,
    offsets: bool = False, quick: bool = False,
) -> Variant:  # fmt: skip
    """A product of many tokens with this tile."""
    kind = f"{name_of(bits, group, a_bytes)} {block_m}x{block_n}" + " 64-bit" * wide
    kind += " offsets" * offsets
    return Variant(
        name=f"gemm {kind}" + f" split {split}" * (split > 1),
        kernel=gemm_kernel,
        arguments={**_GEMM, "work_ptr": "*i64" if wide else "*i32"},
        constants={
            "A_BYTES": a_bytes,
            "BITS": bits,
            "GROUP": group,
            "OFFSETS": offsets,
            "WIDE": wide,
            "EVEN": True,
            "SPLIT": split,
            "BLOCK_N": block_n,
            "BLOCK_M": block_m,
            "BLOCK_B": block_b,
        },
        num_warps=num_warps,
        unaligned=("M", "n_blocks", "n_groups", "shift", "split_blocks"),
        tokens=block_m,
        max_per_weight=limit,
        matrix=True,
        quick=quick,
    )


_HEAD = Variant(
    name="head arg-max",
    kernel=head_kernel,
    arguments={
        "x_ptr": "*i32", "h_ptr": "*i32", "scale_ptr": "*i16", "offset_ptr": "*i64",
        "logits_ptr": "*i32", "keys_ptr": "*i64", "V": "i32", "n_chunks": "i32", "shift": "i32",
        "M": "i32", "first_m": "i32", "stride_x": "i32",
    },
    constants={
        "TOKENS": 1, "A_BYTES": 1, "TOP": 1, "STORE": False, "EVEN": True, "LOGIT_SHIFT": 7,
        "LOGIT_WIDTH": 32, "BLOCK_N": 16, "BLOCK_C": 32,
    },
    unaligned=("V", "n_chunks", "shift", "M", "first_m"),
    max_registers=128,
    max_per_weight=0.75,
    quick=True,
)  # fmt: skip


def _embed(bits: int, group: int, offsets: bool = False, quick: bool = False) -> Variant:
    return Variant(
        name=f"embedding W{bits}g{group}" + " offsets" * offsets,
        kernel=embed_rows_kernel,
        arguments={
            "token_ptr": "*i32", "w_ptr": "*u8", "scale_ptr": "*u8", "zero_ptr": "*u8",
            "minimum_ptr": "*i32", "x_ptr": "*i32", "mantissa": "i32", "shift": "i32",
        },
        constants={"N": 2560, "BITS": bits, "GROUP": group, "OFFSETS": offsets, "BLOCK_K": 1024},
        unaligned=("mantissa", "shift"),
        max_registers=128,
        wide=False,
        quick=quick,
    )  # fmt: skip


VARIANTS = (
    gemv_variant(2, 0, 4, 16, 1, limit=0.70, quick=True),
    gemv_variant(2, 0, 32, 4, 4, limit=0.70),
    gemv_variant(2, 0, 32, 4, 4, even=False),
    gemv_variant(2, 0, 4, 16, 1, m=4),
    gemv_variant(2, 0, 4, 16, 1, a_bytes=2),
    gemv_variant(1, 128, 4, 32, 1, limit=0.70),
    gemv_variant(2, 128, 8, 16, 1, limit=0.80),
    gemv_variant(3, 128, 16, 8, 4, limit=0.90),
    gemv_variant(4, 128, 8, 8, 1, limit=1.0, quick=True),
    gemv_variant(4, 64, 4, 8, 1, limit=1.0),
    gemv_variant(4, 128, 4, 8, 1, wide=True, limit=1.2),
    gemv_variant(4, 128, 4, 8, 1, m=4),
    gemv_variant(4, 128, 4, 8, 1, a_bytes=2, wide=True),
    gemv_variant(4, 32, 4, 8, 1, a_bytes=2, wide=True, offsets=True),
    gemv_variant(6, 128, 16, 8, 4, limit=1.0),
    gemv_variant(8, 128, 4, 8, 1, limit=0.90),
    gemm_variant(2, 0, 16, 64, 4, 4, limit=1.0, quick=True),
    gemm_variant(2, 0, 64, 64, 4, 4),
    gemm_variant(2, 0, 16, 64, 4, 4, split=4),
    gemm_variant(2, 0, 128, 128, 2, 8),
    gemm_variant(2, 0, 256, 128, 1, 8),
    gemm_variant(2, 0, 64, 64, 2, 4, a_bytes=2),
    gemm_variant(1, 128, 16, 128, 1, 4),
    gemm_variant(2, 128, 16, 256, 1, 4, limit=1.2),
    gemm_variant(3, 128, 16, 128, 1, 4),
    gemm_variant(4, 128, 16, 256, 1, 4, limit=1.2, quick=True),
    gemm_variant(4, 128, 64, 64, 1, 4),
    gemm_variant(4, 128, 64, 64, 1, 4, wide=True),
    gemm_variant(4, 128, 32, 64, 1, 4, a_bytes=2, wide=True),
    gemm_variant(4, 32, 32, 64, 1, 4, a_bytes=2, wide=True, offsets=True),
    gemm_variant(6, 128, 16, 256, 1, 4, limit=2.1),
    gemm_variant(8, 128, 16, 256, 1, 4, limit=2.1),
    _HEAD,
    Variant(
        name="head join",
        kernel=top_kernel,
        arguments={"keys_ptr": "*i64", "o_ptr": "*i64", "n_keys": "i32"},
        constants={"TOP": 1, "BLOCK": 1024},
        unaligned=("n_keys",),
        wide=False,
    ),
    Variant(
        name="expand W4g128",
        kernel=expand_kernel,
        arguments={
            "w_ptr": "*i8", "scale_ptr": "*u8", "zero_ptr": "*u8", "o_ptr": "*i8", "N": "i32",
            "padded_n": "i32", "n_blocks": "i32", "n_groups": "i32",
        },
        constants={"BITS": 4, "GROUP": 128, "DIGITS": 2, "BLOCK_N": 32},
        unaligned=("n_blocks", "n_groups"),
        wide=False,
    ),
    Variant(
        name="expand join",
        kernel=combine_kernel,
        arguments={"p_ptr": "*i32", "o_ptr": "*i32", "N": "i32", "padded_n": "i32",
                   "shift": "i32"},
        constants={"DIGITS": 2, "TERNARY": False, "BLOCK": 1024},
        unaligned=("shift",),
    ),
    Variant(
        name="lut tables W1.58",
        kernel=table_kernel,
        arguments={"x_ptr": "*i8", "t_ptr": "*i16"},
        constants={"BITS": 2},
        wide=False,
    ),
    Variant(
        name="lut W1.58",
        kernel=lut_kernel,
        arguments={
            "t_ptr": "*i16", "w_ptr": "*u8", "scale_ptr": "*u8", "zero_ptr": "*u8",
            "sum_ptr": "*i32", "o_ptr": "*i32", "N": "i32", "n_bytes": "i32", "n_groups": "i32",
            "shift": "i32",
        },
        constants={"BITS": 2, "GROUP": 0, "BLOCK_N": 16, "BLOCK_T": 32},
        unaligned=("n_groups", "shift"),
        wide=False,
    ),
    _embed(4, 128, quick=True),
    _embed(6, 16),
    _embed(8, 32, offsets=True),
)  # fmt: skip
"""Every kernel, on the shapes and widths it is made for."""
