"""The attention kernels as they run on the layers of released models."""

from dataclasses import replace

from lutra_kernels.attention.decode import scores_kernel, sums_kernel
from lutra_kernels.attention.prefill import attention_kernel
from lutra_kernels.attention.step import attention_step_kernel
from lutra_kernels.attention.tiles import TileShape, dot_rows, tile_shape
from lutra_kernels.catalogue import Variant
from lutra_kernels.jit import Kernel

__all__ = ["VARIANTS"]

_SIZES = ("M", "n_pages", "window", "prefix", "frac")
_BYTES = ("q_ptr", "k_ptr", "v_ptr")
_SUMS = ("den_ptr", "sums_ptr")


def _variant(
    name: str,
    kernel: Kernel,
    constants: dict[str, object],
    tile: TileShape,
    elements: int,
    limit: float | None,
    quick: bool,
) -> Variant:
    """``elements`` of the cache that a program takes in a step of its hot loop."""
    arguments = {
        argument: "*i8" if argument in _BYTES else "*i64" if argument in _SUMS else "*i32"
        for argument in kernel.arg_names
        if argument.endswith("_ptr")
    }
    sizes = [size for size in _SIZES if size in kernel.arg_names]
    return Variant(
        name=name,
        kernel=kernel,
        arguments={**arguments, **dict.fromkeys(sizes, "i32")},
        constants=constants,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        unaligned=sizes,
        matrix=True,
        wide=kernel is not sums_kernel and constants["D"] == 128,
        elements=elements / (32 * tile.num_warps),
        max_per_weight=limit,
        quick=quick,
    )


def _heads(h: int, h_kv: int, d: int, kv_bits: int, tokens: int) -> dict[str, object]:
    room, rows = dot_rows(tokens * (h // h_kv))
    return {
        "H": h, "H_KV": h_kv, "D": d, "PAGE": 128, "KV_BITS": kv_bits, "TOKENS": tokens,
        "QUERIES": room, "ROWS": rows,
    }  # fmt: skip


def _split(
    h: int,
    h_kv: int,
    d: int,
    kv_bits: int = 8,
    tokens: int = 1,
    limit: float | None = None,
    quick: bool = False,
) -> list[Variant]:
    constants = _heads(h, h_kv, d, kv_bits, tokens)
    room = int(str(constants["QUERIES"]))
    tile = tile_shape(room, kv_bits, 128, 128)
    constants |= {"CONTEXT": 4096, "SHARED": tokens > 1, "BLOCKS": 1, "BLOCK_N": tile.block_n}
    kind = f"{h}/{h_kv}x{d} KV{kv_bits} M={tokens}"
    scored = constants | {"ROWS": max(16, room)}
    return [
        _variant(
            f"split scores {kind}",
            scores_kernel,
            scored,
            tile._replace(num_warps=4),
            tile.block_n * d,
            limit,
            quick,
        ),
        _variant(
            f"split sums {kind}", sums_kernel, constants, tile, tile.block_n * d, limit, quick
        ),
    ]


def _whole(
    h: int, h_kv: int, d: int, kv_bits: int = 8, tokens: int = 1, quick: bool = False
) -> list[Variant]:
    constants = _heads(h, h_kv, d, kv_bits, tokens)
    tile = tile_shape(int(str(constants["QUERIES"])), kv_bits, 128, 64)
    constants["BLOCK_N"] = tile.block_n
    kind = f"attention {h}/{h_kv}x{d} KV{kv_bits} M={tokens}"
    return [_variant(kind, attention_kernel, constants, tile, 2 * tile.block_n * d, None, quick)]


_STEP = ("scale_q", "scale_k", "scale_v", "bias_frac", "gamma_frac", "eps")


def _step(
    h: int, h_kv: int, d: int, kv_bits: int, bias: bool, norm: bool, quick: bool = False
) -> Variant:
    constants = _heads(h, h_kv, d, kv_bits, 1)
    del constants["TOKENS"]
    tile = tile_shape(int(str(constants["QUERIES"])), kv_bits, 128, 64)
    constants |= {
        "LOG2_DIM": d.bit_length() - 1, "HAS_BIAS": bias, "HAS_NORM": norm,
        "HEADS": 1 << (h // h_kv + 1).bit_length(), "BLOCK_N": tile.block_n,
    }  # fmt: skip
    kind = f"step {h}/{h_kv}x{d} KV{kv_bits}{' bias' * bias}{' norm' * norm}"
    plain = _variant(
        kind, attention_step_kernel, constants, tile, 2 * tile.block_n * d, None, quick
    )
    vectors = dict.fromkeys(("rope_ptr", "bias_ptr", "gamma_ptr"), "*i16")
    return replace(
        plain,
        arguments={**plain.arguments, **vectors, **dict.fromkeys(_STEP, "i32")},
        unaligned=(*plain.unaligned, *_STEP),
    )


VARIANTS = (
    *_split(20, 5, 128, limit=6.0, quick=True),
    *_split(32, 8, 128, 4, limit=14.0),
    *_split(9, 3, 64),
    *_split(32, 8, 128, tokens=4),
    _step(20, 5, 128, 8, False, False, quick=True),
    _step(14, 2, 64, 8, True, False),
    _step(16, 8, 128, 4, False, True),
    *_whole(20, 5, 128),
    *_whole(20, 5, 128, tokens=7),
    *_whole(32, 8, 128, 4),
    *_whole(32, 8, 128, 4, tokens=7),
    *_whole(14, 2, 64, tokens=4),
    *_whole(16, 16, 64, tokens=31),
)
"""The kernels on the heads that they are made for."""
