"""Configurations of the whole accelerator, and their fingerprints."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from lutra_golden.attention.attention import AttentionParams
from lutra_golden.control.registers import REGISTERS
from lutra_golden.matmul.engine import SCALE_WIDTH, EngineParams
from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_golden.vector.heads import NORM_HEAD_DIM_MAX
from lutra_golden.vector.norm import NormParams

__all__ = [
    "CONFIGS",
    "ENGINES",
    "KV_WIDTHS",
    "NANO",
    "NANO_WIDE",
    "AcceleratorConfig",
    "with_engine",
]

RTL_VERSION = 3
KV_WIDTHS = (8, 4)
"""Bits that an element of the KV cache may have."""

ENGINES: dict[str, type[EngineParams]] = {
    params.kind: params for params in (TernaryParams, LutParams, MixpeParams, MacParams)
}
"""Parameters of the matmul engines, by :attr:`AcceleratorConfig.engine`."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Sizes of every buffer, width of every port, clock. Two equal configurations are one design.

    ``engine`` and the fields down to ``sum_width`` are those of the matmul engine, see
    :class:`~lutra_golden.matmul.engine.EngineParams`. ``pass_tokens`` tokens are processed per
    weight fetch; ``hidden_max`` bounds the residual stream, ``row_blocks_max`` the output rows of
    one matmul, ``act_tiles`` its depth. ``kv_width`` are the bits of an element of the KV cache, 8
    or 4. ``qkv_bias`` and ``qk_norm`` are the hardware for ROPEQ's ``FLAG_BIAS`` and
    ``FLAG_QK_NORM``.
    """

    name: str
    engine: str = "ternary"
    step_tokens: int = 1
    step_rows: int = 8
    step_depth: int = 72
    depth_tile: int = 72
    a_width: int = 8
    w_width: int = 2
    scale_width: int = SCALE_WIDTH
    acc_width: int = 24
    sum_width: int = 24
    lanes: int = 8
    pass_tokens: int = 8
    gate_width: int = 20
    row_blocks_max: int = 192
    act_tiles: int = 11
    weight_buffer_words: int = 512
    hidden_max: int = 256
    param_words: int = 512
    head_dim: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    max_context: int = 256
    kv_width: int = 8
    weight_axi_width: int = 1024
    data_axi_width: int = 512
    max_outstanding: int = 8
    burst_bytes: int = 1024
    qkv_bias: bool = False
    qk_norm: bool = False
    clock_hz: int = 200_000_000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name in ("name", "engine"):
                continue
            if name in ("qkv_bias", "qk_norm"):
                if not isinstance(value, bool):
                    raise TypeError(f"{name} must be a bool, not {value!r}")
                continue
            if not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        for name in ("weight_axi_width", "data_axi_width", "max_context", "param_words"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} must be a power of two, not {value}")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {self.engine!r}")
        if self.kv_width not in KV_WIDTHS:
            raise ValueError(f"kv_width must be 8 or 4, not {self.kv_width}")
        if self.max_context * self.kv_width < 8:
            raise ValueError(
                f"max_context must be 2 or more with kv_width 4, not {self.max_context}"
            )
        if self.lanes != 8:
            raise ValueError(f"lanes must be 8, not {self.lanes}")
        if self.pass_tokens > REGISTERS["TOKEN"].count:
            raise ValueError(
                f"pass_tokens must be at most {REGISTERS['TOKEN'].count}, the tokens that "
                f"registers hold, not {self.pass_tokens}"
            )
        if self.hidden_max % self.lanes:
            raise ValueError(
                f"hidden_max must be a multiple of {self.lanes} lanes, not {self.hidden_max}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads, not {self.n_heads} of {self.n_kv_heads}"
            )
        if self.matmul.word_bits > self.weight_axi_width:
            raise ValueError(
                f"weight_axi_width must hold a weight word of {self.matmul.word_bits} bits, "
                f"not {self.weight_axi_width}"
            )
        if self.head_dim * 8 != self.data_axi_width:
            raise ValueError(
                f"head_dim must be {self.data_axi_width // 8} (one beat of the data port), "
                f"not {self.head_dim}"
            )
        if self.qk_norm and self.head_dim > NORM_HEAD_DIM_MAX:
            raise ValueError(
                f"head_dim must be at most {NORM_HEAD_DIM_MAX} with qk_norm, not {self.head_dim}"
            )
        # their own checks
        _ = self.norm, self.attention
        if self.kv_scale_bytes > self.data_axi_width // 8:
            raise ValueError(f"n_kv_heads must fit one scale record, not {self.n_kv_heads}")

    @property
    def matmul(self) -> EngineParams:
        """Parameters of the matmul engine."""
        return ENGINES[self.engine](
            step_tokens=self.step_tokens,
            step_rows=self.step_rows,
            step_depth=self.step_depth,
            depth_tile=self.depth_tile,
            a_width=self.a_width,
            w_width=self.w_width,
            scale_width=self.scale_width,
            acc_width=self.acc_width,
            sum_width=self.sum_width,
            pass_tokens=self.pass_tokens,
            acc_blocks=self.row_blocks_max,
            weight_buffer_words=self.weight_buffer_words,
            act_tiles=self.act_tiles,
            max_planes=5 if self.engine == "ternary" else 8 // self.w_width,
        )

    @property
    def attention(self) -> AttentionParams:
        """Parameters of the attention unit."""
        return AttentionParams(
            head_dim=self.head_dim,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            pass_tokens=self.pass_tokens,
            max_context=self.max_context,
            kv_width=self.kv_width,
        )

    @property
    def norm(self) -> NormParams:
        """Parameters of the norm unit."""
        return NormParams(
            lanes=self.lanes,
            gate_width=self.gate_width,
            acc_width=self.acc_width,
            a_width=self.a_width,
        )

    @property
    def weight_word_bytes(self) -> int:
        """Bytes that one weight word occupies in memory (one beat of the weight port)."""
        return self.weight_axi_width // 8

    @property
    def data_bytes(self) -> int:
        """Bytes of one beat of the data port."""
        return self.data_axi_width // 8

    @property
    def kv_scale_bytes(self) -> int:
        """Bytes of one position's key and value scales, rounded up to a power of two."""
        return 1 << (8 * self.n_kv_heads - 1).bit_length()

    @property
    def kv_row_bytes(self) -> int:
        """Bytes of one head's key (or value) at a position: a beat, or with 4 bits half of one."""
        return self.head_dim * self.kv_width // 8

    @property
    def kv_head_bytes(self) -> int:
        """Bytes of one head's keys (or values) over the whole context."""
        return self.max_context * self.kv_row_bytes

    @property
    def kv_v_offset(self) -> int:
        """Offset of the values behind a layer's keys."""
        return self.n_kv_heads * self.kv_head_bytes

    @property
    def kv_s_offset(self) -> int:
        """Offset of the scales behind a layer's keys."""
        return 2 * self.n_kv_heads * self.kv_head_bytes

    @property
    def kv_layer_bytes(self) -> int:
        """Bytes of one layer's KV cache."""
        return self.kv_s_offset + self.max_context * self.kv_scale_bytes

    @property
    def fingerprint(self) -> int:
        """64-bit hash of everything that shapes the RTL; the name does not count."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("name", "clock_hz")}
        text = json.dumps({"rtl": RTL_VERSION, **fields}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


NANO = AcceleratorConfig(name="nano")
"""Simulates fast; holds the tales model; 576 ternary MAC per cycle."""

NANO_WIDE = AcceleratorConfig(name="nano-wide", pass_tokens=64)
"""``nano`` with a tile of 64 tokens; the golden device evaluates perplexity with it."""

CONFIGS = {config.name: config for config in (NANO, NANO_WIDE)}

# step_depth, w_width: what a weight word of 1024 bits holds for eight rows
_TILES = {"lut": (64, 1), "mixpe": (16, 4), "mac": (16, 4)}
_DEPTH_TILE = 64
_DEPTH_TILES = (16, 32, 64)


def with_engine(
    config: AcceleratorConfig,
    engine: str,
    *,
    a_width: int = 8,
    scale_width: int = SCALE_WIDTH,
    depth_tile: int = _DEPTH_TILE,
) -> AcceleratorConfig:
    """``config`` with another matmul engine, width of activations and of group scales.

    ``depth_tile`` is the least group; depths are as large with a smaller one. The ternary engine
    has activations of 8 bits only, and no groups."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if config.engine != "ternary":
        raise ValueError(f"config must have the ternary engine, not {config.engine!r}")
    if depth_tile not in _DEPTH_TILES:
        raise ValueError(
            f"depth_tile must be one of {', '.join(map(str, _DEPTH_TILES))}, not {depth_tile}"
        )
    if engine == "ternary":
        for name, value, only in (
            ("a_width", a_width, 8),
            ("scale_width", scale_width, SCALE_WIDTH),
            ("depth_tile", depth_tile, _DEPTH_TILE),
        ):
            if value != only:
                raise ValueError(f"{name} of the ternary engine must be {only}, not {value}")
        return config
    step_depth, w_width = _TILES[engine]
    name = f"{config.name}-{engine}"
    for letter, value, usual in (
        ("a", a_width, 8),
        ("s", scale_width, SCALE_WIDTH),
        ("k", depth_tile, _DEPTH_TILE),
    ):
        name += "" if value == usual else f"-{letter}{value}"
    return replace(
        config,
        name=name,
        engine=engine,
        step_depth=min(step_depth, depth_tile),
        depth_tile=depth_tile,
        a_width=a_width,
        w_width=w_width,
        scale_width=scale_width,
        acc_width=28,
        sum_width=28 + a_width + (scale_width - SCALE_WIDTH),
        act_tiles=12 * _DEPTH_TILE // depth_tile,
    )
