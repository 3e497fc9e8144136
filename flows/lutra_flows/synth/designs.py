"""Designs to synthesise: an engine for one format and tile, its array alone, or an accelerator.

Amaranth is imported where hardware is generated, so that the command line starts without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutra.arguments import either
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.core.fabric import Fabric
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_golden.matmul.format import FORMATS, Format
from lutra_golden.matmul.lookup import LookupParams
from lutra_golden.matmul.lut import LutParams, Tables
from lutra_golden.matmul.mac import Adders, MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_golden.strings import StringEnum

__all__ = [
    "TOP",
    "Design",
    "Groups",
    "Material",
    "Part",
    "default_tile",
    "design",
    "engine_formats",
    "narrowest_format",
    "whole_design",
]

TOP = "design"
"""Name of the top module."""
_GROUP = 64
# bits of a digit that an engine's array may be built for; the narrowest that holds a weight is
_DIGITS = {"mixpe": (4, 8), "mac": (2, 4, 8)}
# step_tokens, step_rows, and step_depth for one plane: 512 multiply-accumulates a cycle
_TILES = {"lut": (1, 32, 16), "mixpe": (1, 32, 16), "mac": (1, 32, 16)}
# tables of three activations do not make 512; this is the engine of the configuration `nano`
_TERNARY_TILE = (1, 8, 72)
# eight tokens at once
_LOOKUP_TILE = (8, 16, 48)
_ONE_PLANE = ("ternary", "lookup")
"""Engines of ternary weights without groups."""

_LOOKUP_DEPTH = 768
"""Activations of a token, as many as the other engines have by default."""

Tile = tuple[int, int, int]


class Part(StringEnum):
    """The part of the hardware that is synthesised."""

    ENGINE = "engine"
    """The matmul engine with its control, buffers, dequantiser and accumulators."""
    DATAPATH = "datapath"
    """The array of one token alone: what papers call the PE array or the tensor core."""
    WHOLE = "whole"
    """A whole accelerator: ``nano`` with this engine, or the configuration of a board."""


class Material(StringEnum):
    """Material of an array; the values and the order of words are the same."""

    DSP = "dsp"
    """FPGA primitives, DSP blocks included."""
    LUTS = "luts"
    """FPGA primitives without DSP blocks."""
    CELLS = "cells"
    """Standard cells: tables are logic, not small memories, and sums are carry-save."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups that an engine is built for: of activations, weights with offsets of so many bits, and
    the least group of weights, the depth tile (None: the usual one, or that of activations)."""

    activations: ActivationGroups | None = None
    offset_width: int = 0
    depth_tile: int | None = None

    def tile(self, usual: int) -> int:
        """The depth tile of an engine that usually has another."""
        if self.depth_tile is not None:
            return self.depth_tile
        return usual if self.activations is None else min(usual, self.activations.size)


_TABLES = {Material.DSP: Tables.MEMORY, Material.LUTS: Tables.MEMORY, Material.CELLS: Tables.LOGIC}
_ADDERS = {Material.DSP: Adders.DSP, Material.LUTS: Adders.CHAINS, Material.CELLS: Adders.CELLS}


@dataclass(frozen=True, kw_only=True)
class Design:
    """Hardware to be synthesised, and how much it computes."""

    engine: str
    format: Format
    part: Part
    params: EngineParams
    config: AcceleratorConfig | None = None

    @property
    def tile(self) -> Tile:
        return self.params.step_tokens, self.params.step_rows, self.params.step_depth

    @property
    def planes(self) -> int:
        """Words that a step of weights of this format takes, one after the other."""
        return _planes(self.engine, self.format, self.params.w_width)

    @property
    def macs_per_cycle(self) -> float:
        """Multiply-accumulates of whole weights in a cycle, when words and activations are there.

        A block of rows takes ``steps * planes`` cycles, or ``step_tokens * step_rows / 8`` if those
        are more: eight rows a cycle go to the accumulators. The array alone knows no such limit.
        """
        p = self.params
        if isinstance(p, LookupParams):
            tokens = 1 if self.part == Part.DATAPATH else p.step_tokens
            return tokens * p.step_rows * p.step_depth
        if self.part == Part.DATAPATH:
            return p.step_rows * p.step_depth / self.planes
        cycles = max(p.steps * self.planes, p.step_tokens * p.step_rows // LANES)
        return p.step_tokens * p.step_rows * p.depth_tile / cycles

    def netlist(self) -> str:
        """RTLIL of the module :data:`TOP`; the same sources give the same text anywhere."""
        from lutra_hw.core.accelerator import Accelerator
        from lutra_hw.matmul.engine import DATAPATHS
        from lutra_hw.matmul.engines import build_engine
        from lutra_hw.matmul.lane import LookupLane
        from lutra_hw.netlist import to_rtlil

        if self.config is not None:
            component = Accelerator(self.config)
        elif self.part == Part.DATAPATH and isinstance(self.params, LookupParams):
            component = LookupLane(self.params)
        elif self.part == Part.DATAPATH:
            component = DATAPATHS[self.engine](self.params)
        else:
            component = build_engine(self.params)
        return to_rtlil(component, TOP)


def engine_formats(engine: str) -> tuple[str, ...]:
    """Names of the formats that an engine can be built for.

    ``mixpe`` is not for weights of fewer bits than half its digit, which ``mac`` has digits for.
    """
    formats = [Format.parse(name) for name in FORMATS]
    if engine in _ONE_PLANE:
        formats = [f for f in formats if f.ternary and f.a_bits == 8]
    elif engine == "mixpe":
        formats = [f for f in formats if f.w_bits > 2]
    return tuple(map(str, formats))


def _digit_bits(engine: str, fmt: Format) -> int:
    if engine in _ONE_PLANE:
        return 2 if engine == "ternary" else 1
    return next((bits for bits in _DIGITS.get(engine, ()) if bits >= fmt.w_bits), 1)


def _planes(engine: str, fmt: Format, w_width: int) -> int:
    return 1 if engine in _ONE_PLANE else -(-fmt.w_bits // w_width)


def narrowest_format(engine: str) -> str:
    """The format that an engine is reported for unless another is asked for."""
    if engine in _ONE_PLANE:
        return "W1.58A8"
    return "W4A8" if engine == "mixpe" else "W2A8"


def default_tile(engine: str, fmt: Format) -> Tile:
    """The tile of an engine that makes 512 multiply-accumulates a cycle.

    ``ternary`` makes 576, ``lookup`` 6,144, and ``lut`` 683 of six bits: their depths divide into
    groups.
    """
    if engine == "ternary":
        return _TERNARY_TILE
    if engine == "lookup":
        return _LOOKUP_TILE
    m, n, k = _TILES[engine]
    planes = _planes(engine, fmt, _digit_bits(engine, fmt))
    # a step's depth divides the group: three planes take the depth of four
    return m, n, k << (planes - 1).bit_length()


def design(
    engine: str,
    fmt: str,
    tile: Tile | None = None,
    *,
    max_planes: int | None = None,
    part: Part = Part.ENGINE,
    material: Material = Material.DSP,
    groups: Groups | None = None,
    fabric: Fabric = Fabric.GENERIC,
) -> Design:
    """The design to synthesise; LutraError names an engine, format or tile that cannot be.

    ``max_planes`` are the digits of a weight that an engine has, those of the format if left out.
    ``fabric`` is that of ``lookup``, whose other ways are all the same.
    """
    groups = groups or Groups()
    if engine not in ENGINES:
        raise LutraError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    try:
        parsed = Format.parse(fmt)
        if str(parsed) not in engine_formats(engine):
            raise LutraError(
                f"format of the {engine} engine must be {either(engine_formats(engine))}, not "
                f"{parsed}"
            )
        if part == Part.WHOLE:
            if max_planes is not None:
                raise LutraError("--whole has the digits of nano: leave --max-planes out")
            return _whole(engine, parsed, tile, material, groups)
        params = _params(engine, parsed, tile, max_planes, groups)
    except (TypeError, ValueError) as error:
        raise LutraError(str(error)) from error
    if isinstance(params, LutParams):
        params = replace(params, tables=_TABLES[material])
    elif isinstance(params, LookupParams):
        params = replace(params, fabric=fabric)
    elif isinstance(params, MacParams):
        params = replace(params, adders=_ADDERS[material])
    elif isinstance(params, MixpeParams) and material != Material.DSP:
        params = replace(params, adders=_ADDERS[material])
    return Design(engine=engine, format=parsed, part=part, params=params)


def _params(
    engine: str, fmt: Format, tile: Tile | None, max_planes: int | None, groups: Groups
) -> EngineParams:
    """Parameters of an engine for this format, and no wider one unless ``max_planes`` says so."""
    step_tokens, step_rows, step_depth = tile or default_tile(engine, fmt)
    w_width = _digit_bits(engine, fmt)
    planes = _planes(engine, fmt, w_width)
    if max_planes is not None and max_planes < planes:
        raise LutraError(f"--max-planes must be {planes} or more for {fmt}, not {max_planes}")
    sizes = {
        "step_tokens": step_tokens,
        "step_rows": step_rows,
        "step_depth": step_depth,
        "pass_tokens": max(8, step_tokens),
    }
    if engine in _ONE_PLANE:
        if engine == "lookup":
            sizes["act_tiles"] = _LOOKUP_DEPTH // step_depth
            planes = 8  # of bits, which take no hardware
        return ENGINES[engine](
            **sizes,
            depth_tile=step_depth,
            max_planes=max_planes or planes,
            a_groups=groups.activations,
            offset_width=groups.offset_width,
        )
    a_groups = groups.activations
    return ENGINES[engine](
        **sizes,
        depth_tile=groups.tile(max(_GROUP, step_depth)),
        a_width=fmt.a_bits,
        w_width=w_width,
        acc_width=28,
        sum_width=28 + fmt.a_bits + (0 if a_groups is None else a_groups.shift_max),
        max_planes=max_planes or planes,
        a_groups=a_groups,
        offset_width=groups.offset_width,
    )


def _whole(
    engine: str, fmt: Format, tile: Tile | None, material: Material, groups: Groups
) -> Design:
    config = with_engine(
        NANO,
        engine,
        a_width=fmt.a_bits,
        tile=tile,
        a_groups=groups.activations,
        offset_width=groups.offset_width,
        depth_tile=groups.tile(_GROUP),
    )
    if material == Material.CELLS:
        raise LutraError("--whole is built for FPGAs: give a --target other than liberty")
    return Design(engine=engine, format=fmt, part=Part.WHOLE, params=config.matmul, config=config)


def whole_design(config: AcceleratorConfig) -> Design:
    """The whole accelerator of ``config``, whose engine runs its narrowest format."""
    return Design(
        engine=config.engine,
        format=Format.parse(narrowest_format(config.engine)),
        part=Part.WHOLE,
        params=config.matmul,
        config=config,
    )
