"""Interface of the C library: its structures, and the golden model's constants as ``golden.h``.

Structures are written twice, here and in ``lutra_cpu.h``: ``golden.h`` carries their members into
the library, which exports where they lie, and loading compares. The wheel's build loads this file
alone, so it imports nothing beyond ctypes, numpy and the golden models.
"""

import ctypes
import hashlib
from ctypes import Structure, c_int32, c_int64, c_void_p
from pathlib import Path

from lutra_golden.arith.exp2 import EXP2, exp2_table
from lutra_golden.arith.fixed import Int
from lutra_golden.arith.quantize import Q_MAX
from lutra_golden.arith.scale import SCALE, recip_table, rsqrt_table
from lutra_golden.arith.silu import SILU, silu_table
from lutra_golden.attention.attention import AttentionParams
from lutra_golden.model.b128 import BLOCK
from lutra_golden.model.limits import ACC_MAX
from lutra_golden.model.two_levels import SUPER, TwoLevels
from lutra_golden.vector.heads import (
    EPS_FRAC,
    FIXED_FRAC,
    FIXED_SHIFTS,
    FIXED_WIDTH,
    NORM_HEAD_DIM_MAX,
    NORM_SHIFT,
)
from lutra_golden.vector.norm import ONE_FRAC, SCALED_WIDTH, SOURCE_WIDTH, SWIGLU_SHIFTS
from lutra_golden.vector.residual import LOGIT_SHIFT
from lutra_golden.vector.rope import ROPE_FRAC

__all__ = [
    "HEAD_DIM_MAX",
    "STRUCTURES",
    "CLayer",
    "CMatrix",
    "CModel",
    "CNorm",
    "CPass",
    "CRange",
    "CRanges",
    "CRow",
    "CScale",
    "CShare",
    "golden_header",
    "layout",
    "version",
]

HEAD_DIM_MAX = NORM_HEAD_DIM_MAX
"""The largest head that the library has room for."""
_HEADER = Path(__file__).resolve().parent / "csrc" / "lutra_cpu.h"


class CScale(Structure):
    """``lutra_scale``."""

    _fields_ = (("m", c_int32), ("e", c_int32))


class CMatrix(Structure):
    """``lutra_matrix``."""

    _fields_ = (
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("marks", c_void_p),
        ("offset", c_void_p),
        ("levels", c_void_p),
        ("row_bytes", c_int64),
        ("n", c_int32),
        ("k", c_int32),
        ("bits", c_int32),
        ("group", c_int32),
        ("scale_bytes", c_int32),
        ("shift", c_int32),
        ("offset_shift", c_int32),
        ("zero_point", c_int32),
        ("other_zero", c_int32),
        ("strip", c_int32),
        ("multiple_bits", c_int32),
        ("level_shift", c_int32),
        ("level_offsets", c_int32),
        ("unit", CScale),
    )

    @property
    def n_bytes(self) -> int:
        """Bytes that a product with one column reads of it."""
        if not self.group:
            return self.n * self.row_bytes
        groups = self.k // self.group
        n_bytes = self.row_bytes + -(-groups // 8) * bool(self.marks) + 2 * groups * bool(self.zero)
        if not self.levels:
            return self.n * (n_bytes + groups * (self.scale_bytes + 2 * bool(self.offset)))
        record = TwoLevels.record_bytes(
            SUPER // self.group, self.multiple_bits, offsets=bool(self.level_offsets)
        )
        return self.n * (n_bytes + self.k // SUPER * record)


class CCopy(Structure):
    """``lutra_copy``."""

    _fields_ = (
        ("to", c_void_p),
        ("source", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("size", c_int32),
        ("strip", c_int32),
    )


class CNorm(Structure):
    """``lutra_norm``."""

    _fields_ = (
        ("gamma", c_void_p),
        ("frac", c_int32),
        ("plain", c_int32),
        ("inv_n", CScale),
        ("group", c_int32),
        ("run", c_int32),
        ("group_shift", c_int32),
        ("reserved", c_int32),
    )


class CLayer(Structure):
    """``lutra_layer``."""

    _fields_ = (
        *((name, CMatrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, CNorm) for name in ("input", "attention", "ffn_input", "ffn")),
        ("bias", c_void_p),
        ("key_centre", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("bias_frac", c_int32),
        ("head_norm_frac", c_int32),
        ("window", c_int32),
        ("reserved", c_int32),
    )


class CModel(Structure):
    """``lutra_model``."""

    _fields_ = (
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("rope", c_void_p),
        ("head_rows", c_void_p),
        ("head", CMatrix),
        ("embedded", CMatrix),
        ("norm", CNorm),
        ("eps", CScale),
        ("unit", CScale),
        ("n_layers", c_int32),
        ("hidden", c_int32),
        ("intermediate", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("vocab", c_int32),
        ("context", c_int32),
        ("a_bits", c_int32),
        ("column_bits", c_int32),
        ("key_bits", c_int32),
        ("value_bits", c_int32),
        ("swiglu", c_int32),
        ("residual_frac", c_int32),
        ("embedding_shift", c_int32),
        ("head_eps", c_int32),
    )


class CRow(Structure):
    """``lutra_row``."""

    _fields_ = (
        ("cache", c_void_p),
        ("position", c_int32),
        ("token", c_int32),
        ("wanted", c_int32),
        ("reserved", c_int32),
    )


class CRange(Structure):
    """``lutra_range``."""

    _fields_ = (("first", c_int32), ("last", c_int32))

    @classmethod
    def of(cls, rows: range) -> "CRange":
        """A range with the step 1."""
        return cls(rows.start, rows.stop)


class CShare(Structure):
    """``lutra_share``."""

    _fields_ = (
        ("sums", c_void_p),
        ("attended", c_void_p),
        ("back", c_void_p),
        ("gated", c_void_p),
        ("meet", c_void_p),
        ("place", c_void_p),
        ("queries", CRange),
        ("keys", CRange),
        ("heads", CRange),
        ("hidden", CRange),
        ("inner", CRange),
        ("vocab", CRange),
    )


class CPass(Structure):
    """``lutra_pass``."""

    _fields_ = (
        ("rows", c_void_p),
        ("residual", c_void_p),
        ("logits", c_void_p),
        ("argmax", c_void_p),
        ("scale", c_void_p),
        ("share", c_void_p),
        ("n", c_int32),
        ("first", c_int32),
        ("last", c_int32),
        ("reserved", c_int32),
    )


class CRanges(Structure):
    """``lutra_ranges``."""

    _fields_ = (
        ("w", c_void_p),
        ("weigh", c_void_p),
        ("lots", c_void_p),
        ("factors", c_void_p),
        ("n", c_int64),
        ("groups", c_int32),
        ("group", c_int32),
        ("levels", c_int32),
        ("odd", c_int32),
        ("ternary", c_int32),
        ("scale_max", c_int32),
        ("n_factors", c_int32),
        ("reserved", c_int32),
    )


STRUCTURES: dict[str, type[Structure]] = {
    "lutra_scale": CScale,
    "lutra_matrix": CMatrix,
    "lutra_copy": CCopy,
    "lutra_norm": CNorm,
    "lutra_layer": CLayer,
    "lutra_model": CModel,
    "lutra_row": CRow,
    "lutra_range": CRange,
    "lutra_share": CShare,
    "lutra_pass": CPass,
    "lutra_ranges": CRanges,
}
"""Structures by their names in C."""


def _members(structure: type[Structure]) -> list[str]:
    return [field[0] for field in structure._fields_]


def layout() -> list[int]:
    """Size of every structure, each followed by the offsets of its members."""
    found: list[int] = []
    for structure in STRUCTURES.values():
        found.append(ctypes.sizeof(structure))
        found += [int(getattr(structure, name).offset) for name in _members(structure)]
    return found


def _constants() -> dict[str, int]:
    attention = AttentionParams()
    return {
        "BLOCK": BLOCK,
        "SUPER": SUPER,
        "ACC_WIDTH": ACC_MAX.bit_length() + 1,
        "Q_MAX": Q_MAX,
        "HEAD_DIM_MAX": HEAD_DIM_MAX,
        "SCALE_M_WIDTH": SCALE.m_width,
        "SCALE_E_MIN": SCALE.e_min,
        "RECIP_BITS": len(recip_table()).bit_length() - 1,
        "RSQRT_BITS": len(rsqrt_table()).bit_length() - 2,  # one is the exponent's parity
        "EXP2_D_FRAC": EXP2.d_frac,
        "EXP2_SEGMENT_BITS": EXP2.segment_bits,
        "EXP2_Y_FRAC": EXP2.y_frac,
        "EXP2_TABLE_FRAC": EXP2.table_frac,
        "SILU_X_WIDTH": SILU.x_width,
        "SILU_X_FRAC": SILU.x_frac,
        "SILU_SPLIT_BITS": SILU.split_bits,
        "SILU_LIMIT_BITS": SILU.limit_bits,
        "SILU_FINE_BITS": SILU.fine_bits,
        "SILU_COARSE_BITS": SILU.coarse_bits,
        "SILU_HALF_BITS": SILU.half_bits,
        "SILU_TABLE_FRAC": SILU.table_frac,
        "SWIGLU_SHIFT_MIN": SWIGLU_SHIFTS[0],
        "SWIGLU_SHIFT_MAX": SWIGLU_SHIFTS[1],
        "SCORE_WIDTH": attention.score_width,
        "SCORE_FRAC": attention.score_frac,
        "SOURCE_WIDTH": SOURCE_WIDTH,
        "SCALED_WIDTH": SCALED_WIDTH,
        "ONE_FRAC": ONE_FRAC,
        "ROPE_FRAC": ROPE_FRAC,
        "FIXED_FRAC": FIXED_FRAC,
        "FIXED_WIDTH": FIXED_WIDTH,
        "FIXED_SHIFT_MIN": FIXED_SHIFTS[0],
        "FIXED_SHIFT_MAX": FIXED_SHIFTS[1],
        "NORM_SHIFT": NORM_SHIFT,
        "EPS_FRAC": EPS_FRAC,
        "LOGIT_SHIFT": LOGIT_SHIFT,
    }


def _tables() -> dict[str, Int]:
    (base, drop), (gap, rise) = exp2_table(), silu_table()
    return {
        "recip_table": recip_table(),
        "rsqrt_table": rsqrt_table(),
        "exp2_base": base,
        "exp2_drop": drop,
        "silu_base": gap,
        "silu_rise": rise,
    }


def _constants_text() -> str:
    members = [
        f"sizeof({name}), " + ", ".join(f"offsetof({name}, {x})" for x in _members(structure))
        for name, structure in STRUCTURES.items()
    ]
    return "\n".join(
        [
            "enum {",
            *(f"    {name} = {value}," for name, value in _constants().items()),
            "};",
            *(
                f"static const int32_t {name}[{len(values)}] __attribute__((unused)) = {{"
                f"{', '.join(map(str, values.tolist()))}}};"
                for name, values in _tables().items()
            ),
            f"#define LAYOUT {', '.join(members)}",
        ]
    )


def version() -> str:
    """A digest of what the library is built from, its functions' declarations included."""
    text = _constants_text() + _HEADER.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def golden_header() -> str:
    """``golden.h``: constants and tables of the golden model, and the structures' members."""
    return "\n".join(
        [
            "/* Generated from lutra_golden by interface.py. */",
            "#ifndef LUTRA_GOLDEN_H",
            "#define LUTRA_GOLDEN_H",
            "#include <stdint.h>",
            f'#define VERSION "{version()}"',
            _constants_text(),
            "#endif",
            "",
        ]
    )
