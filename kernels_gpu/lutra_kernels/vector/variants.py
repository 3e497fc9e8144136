"""The kernels between matrix products as they run on the layers of released models."""

from lutra_kernels.catalogue import Variant
from lutra_kernels.layout import cdiv, padded_depth
from lutra_kernels.vector.norm import BLOCK_MAX, Source, norm_quantize_kernel
from lutra_kernels.vector.rope import rope_kv_kernel
from lutra_kernels.vector.sums import group_sums_kernel

__all__ = ["VARIANTS"]

_SCALES = ("scale_a", "scale_b", "inv_n", "eps", "unit", "frac", "gamma_frac", "M")
_WORDS = ("x_ptr", "exponent_ptr", "token_ptr", "s_ptr", "tables_ptr", "scale_ptr", "sums_ptr",
          "flag_ptr")  # fmt: skip
_ACC = {Source.EMBED: "*i16", Source.SUMS: "*i64"}
_ROPE = ("scale_q", "scale_k", "scale_v", "bias_frac", "gamma_frac", "eps", "n_pages", "M")
_HEADS = ("acc_ptr", "s_ptr", "position_ptr", "table_ptr", "tables_ptr", "flag_ptr", "q_scale_ptr",
          "k_scale_ptr", "v_scale_ptr", "score_max_ptr", "exponent_ptr")  # fmt: skip


def _norm(
    source: Source, n: int, group: int = 0, a_bits: int = 8, tokens: int = 1, shared: int = 0,
    quick: bool = False,
) -> Variant:  # fmt: skip
    k = padded_depth(n)
    block = min(1 << (k - 1).bit_length(), BLOCK_MAX)
    return Variant(
        name=f"norm {source.name.lower()} {n} g{group}A{a_bits} M={tokens}"
        + f" shared {shared}" * (shared > 0),
        kernel=norm_quantize_kernel,
        arguments={
            **dict.fromkeys(_WORDS, "*i32"),
            "acc_ptr": _ACC.get(source, "*i32"),
            "den_ptr": "*i64",
            "gamma_ptr": "*i16",
            "q_ptr": "*i8",
            **dict.fromkeys(_SCALES, "i32"),
        },
        constants={
            "N": n, "K": k, "D": 128, "SOURCE": int(source), "NORMALISE": True, "A_BITS": a_bits,
            "GROUP": group, "SHARED": shared, "SHIFT_MAX": 7 if shared else 0, "TOKENS": tokens,
            "BLOCK": block, "N_BLOCKS": cdiv(k, block),
        },
        num_warps=min(16, tokens * block // 256),
        unaligned=_SCALES,
        # 16 warps have 65,536 registers between them
        max_registers=128,
        wide=False,
        quick=quick,
    )  # fmt: skip


def _rope(bias: bool, norm: bool, rows: int, kv_bits: int = 8, quick: bool = False) -> Variant:
    return Variant(
        name=f"rope KV{kv_bits}{' bias' * bias}{' norm' * norm} rows={rows}",
        kernel=rope_kv_kernel,
        arguments={
            **dict.fromkeys(_HEADS, "*i32"),
            **dict.fromkeys(("rope_ptr", "bias_ptr", "gamma_ptr"), "*i16"),
            **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*i8"),
            **dict.fromkeys(("den_ptr", "sums_ptr"), "*i64"),
            **dict.fromkeys(_ROPE, "i32"),
        },
        constants={
            "H": 20, "H_KV": 5, "D": 128, "LOG2_DIM": 7, "PAGE": 128, "KV_BITS": kv_bits,
            "HAS_BIAS": bias, "HAS_NORM": norm, "SPLIT": True, "ROWS": rows,
        },
        num_warps=1 if rows == 1 else 4,
        unaligned=_ROPE,
        max_registers=128,
        wide=False,
        quick=quick,
    )  # fmt: skip


VARIANTS = (
    _norm(Source.RESIDUAL, 2560),
    _norm(Source.EMBED, 2560),
    _norm(Source.ADD, 2560, quick=True),
    _norm(Source.ADD, 4096, 128, 16),
    _norm(Source.ADD, 576, 64, tokens=8),
    _norm(Source.SUMS, 2560),
    _norm(Source.ATTENTION, 4096, 128),
    _norm(Source.RELU2, 6912, quick=True),
    _norm(Source.SWIGLU, 4864, 64),
    _norm(Source.SWIGLU, 14336, 128),
    _norm(Source.SWIGLU, 14336, 128, 16),
    _norm(Source.SWIGLU, 4864, 32, 16, shared=32),
    _norm(Source.ADD, 896, 32, 16, shared=32),
    _rope(False, False, 1, quick=True),
    _rope(False, False, 16),
    _rope(True, False, 1),
    _rope(False, True, 1, 4),
    _rope(True, True, 16),
    Variant(
        name="sums g96A16",
        kernel=group_sums_kernel,
        arguments={"q_ptr": "*i8", "sums_ptr": "*i32", "M": "i32"},
        constants={
            "K": 640, "N_GROUPS": 6, "GROUP": 96, "A_BITS": 16, "BLOCK_G": 16, "BLOCK_K": 128,
        },
        unaligned=("M",),
        wide=False,
    ),
)  # fmt: skip
"""The kernels on the widths that they are made for."""
