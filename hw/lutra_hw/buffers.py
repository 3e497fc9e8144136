"""Ports of the accelerator's on-chip buffers; a buffer's owner and its users share one class."""

from amaranth import signed, unsigned
from amaranth.lib import data

from lutra_golden.control.chunks import PAGE_WIDTH, POSITION_WIDTH, TOKENS_WIDTH
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.norm import SOURCE_WIDTH
from lutra_golden.vector.residual import RESIDUAL_WIDTH
from lutra_hw.ports import SCALE_LAYOUT, ReadPortSignature, WritePortSignature

__all__ = [
    "ArgmaxReadPort",
    "AttentionReadPort",
    "AttentionWritePort",
    "ChunkReadPort",
    "HeadScaleWritePort",
    "ParamReadPort",
    "ParamWritePort",
    "QueryScaleWritePort",
    "QueryWritePort",
    "ResidualReadPort",
    "ResidualWritePort",
    "RopeReadPort",
    "RopeWritePort",
    "ScaleReadPort",
    "ScaleWritePort",
    "TokenReadPort",
]

_QUERY_WIDTH = 8
_PARAM_WIDTH = 16
_TOKEN_WIDTH = 32
_ROW_WIDTH = 32


def _tokens(config: AcceleratorConfig) -> range:
    return range(config.pass_tokens)


def _words(width: int) -> data.ArrayLayout:
    """A word of eight elements."""
    return data.ArrayLayout(signed(width), LANES)


def _residual_addr(config: AcceleratorConfig) -> dict[str, range]:
    return {"token": _tokens(config), "word": range(config.vector.hidden_max // LANES)}


class ResidualReadPort(ReadPortSignature):
    """Read port of the residual stream: elements ``8 * word`` and on of a token."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__(_residual_addr(config), _words(RESIDUAL_WIDTH))


class ResidualWritePort(WritePortSignature):
    """Write port of the residual stream: elements ``8 * word`` and on of a token."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__(_residual_addr(config), _words(RESIDUAL_WIDTH))


class ParamReadPort(ReadPortSignature):
    """Read port of the parameter buffer: eight gammas, biases or row scales."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"word": range(config.vector.param_words)}, _words(_PARAM_WIDTH))


class ParamWritePort(WritePortSignature):
    """Write port of the parameter buffer: eight gammas, biases or row scales."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"word": range(config.vector.param_words)}, _words(_PARAM_WIDTH))


class RopeReadPort(ReadPortSignature):
    """Read port of the rotary table: cosines and sines of dimensions ``8 * word`` and on."""

    def __init__(self, config: AcceleratorConfig):
        addr = {"token": _tokens(config), "word": range(config.head_dim // (2 * LANES))}
        super().__init__(addr, data.ArrayLayout(_words(_PARAM_WIDTH), 2))


class RopeWritePort(WritePortSignature):
    """Write port of the rotary table: a token's cosines, then its sines."""

    def __init__(self, config: AcceleratorConfig):
        addr = {"token": _tokens(config), "word": range(config.head_dim // LANES)}
        super().__init__(addr, _words(_PARAM_WIDTH))


class ScaleReadPort(ReadPortSignature):
    """Read port of the activation scales: one for each token."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"token": _tokens(config)}, SCALE_LAYOUT)


class ScaleWritePort(WritePortSignature):
    """Write port of the activation scales: one for each token."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"token": _tokens(config)}, SCALE_LAYOUT)


class QueryWritePort(WritePortSignature):
    """Write port of the queries: int8 of dimensions ``8 * word`` and on, natural order."""

    def __init__(self, config: AcceleratorConfig):
        addr = {
            "token": _tokens(config),
            "head": range(config.n_heads),
            "word": range(config.head_dim // LANES),
        }
        super().__init__(addr, _words(_QUERY_WIDTH))


class QueryScaleWritePort(WritePortSignature):
    """Write port of the queries' scales: one for each token and head."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"token": _tokens(config), "head": range(config.n_heads)}, SCALE_LAYOUT)


class HeadScaleWritePort(WritePortSignature):
    """Write port of the scales of all heads of a token: queries, then keys, then values."""

    def __init__(self, config: AcceleratorConfig):
        heads = range(config.n_heads + 2 * config.n_kv_heads)
        super().__init__({"token": _tokens(config), "head": heads}, SCALE_LAYOUT)


def _attention_addr(config: AcceleratorConfig) -> dict[str, range]:
    return {
        "token": _tokens(config),
        "word": range(config.n_heads * (config.head_dim // LANES)),
    }


class AttentionReadPort(ReadPortSignature):
    """Read port of the attention output: a head begins at word ``head * head_dim / 8``."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__(_attention_addr(config), _words(SOURCE_WIDTH))


class AttentionWritePort(WritePortSignature):
    """Write port of the attention output: a head begins at word ``head * head_dim / 8``."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__(_attention_addr(config), _words(SOURCE_WIDTH))


class ArgmaxReadPort(ReadPortSignature):
    """Read port of the rows of the largest logits: one for each token."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"token": _tokens(config)}, unsigned(_ROW_WIDTH))


class TokenReadPort(ReadPortSignature):
    """Read port of the token ids of the pass."""

    def __init__(self, config: AcceleratorConfig):
        super().__init__({"token": _tokens(config)}, unsigned(_TOKEN_WIDTH))


class ChunkReadPort(ReadPortSignature):
    """Read port of the table of the pass's chunks."""

    def __init__(self, config: AcceleratorConfig):
        entry = {"position": POSITION_WIDTH, "n_tokens": TOKENS_WIDTH, "page": PAGE_WIDTH}
        super().__init__({"entry": _tokens(config)}, data.StructLayout(entry))
