"""The matmul-engine contract: what every engine offers, whatever it is made of.

An engine computes ``acc[token, row] = sum_k a[token, k] * w[row, k]`` over a tile of up to
``pass_tokens`` tokens, exactly, and rounds each sum once at the end. Four streams meet in it:

- Activations are written into the engine's buffer, eight at a time, before the tile is commanded.
- Weight words arrive in the order of the engine's packer and are taken once per command, whatever
  the number of tokens; the engine accepts the next command's words, and prepares its activations,
  while it computes.
- Scales and zero points have no stream of their own: a word holds the digits of ``step_rows`` rows,
  then the scale and the zero point of each, so that they arrive, wait and are replayed together.
  An engine with an ``offset_width`` has offsets in the place of zero points.
- Results stay in the accumulator buffer, which is read by pairs of blocks of eight rows.
"""

from amaranth import Const, Shape, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_hw.ports import ReadPortSignature, WritePortSignature

__all__ = [
    "DatapathSignature",
    "MatmulEngineSignature",
    "TableWriterSignature",
    "acc_read_port",
    "act_write_port",
    "depth_tile_layout",
    "group_range",
    "group_shift",
    "tile_command",
]


def tile_command(params: EngineParams) -> data.StructLayout:
    """A tile of a matmul."""
    return data.StructLayout(
        {
            "depth_tiles": unsigned(16),
            "row_blocks": unsigned(
                16
            ),  # of eight rows; a multiple of step_rows / 8, as is acc_base
            "planes": unsigned(8),
            "acc_base": unsigned(16),
            "token_first": unsigned(8),
            "token_count": unsigned(8),  # zero tokens: done at once, no weight word is taken
            # rounding right shift of the finished sums, less shift_min; ternary: not used
            "shift": unsigned(params.shift_width),
        }
    )


def group_range(params: EngineParams, cmd):
    """First group of tokens of a command, and the number of groups after it."""
    bits = exact_log2(params.step_tokens)
    within = cmd.token_first[:bits] if bits else Const(0, 1)
    return cmd.token_first >> bits, (within + cmd.token_count - 1)[:8] >> bits


def act_write_port(params: EngineParams) -> WritePortSignature:
    """Activations ``8 * word .. 8 * word + 7`` of a token, lane 0 in the LSBs.

    With groups of activations they are ``q``, and ``shift`` is what their group is shifted left by:
    the same for all words of a depth tile.
    """
    words = params.act_tiles * params.depth_tile // LANES
    payload = data.ArrayLayout(signed(params.a_width), LANES)
    if params.a_groups is not None:
        payload = data.StructLayout({"q": payload, "shift": group_shift(params)})
    return WritePortSignature({"token": range(params.pass_tokens), "word": range(words)}, payload)


def group_shift(params: EngineParams) -> Shape:
    """What the activations of a group are shifted left by."""
    return Shape.cast(range(params.a_shift_max + 1))


def acc_read_port(params: EngineParams) -> ReadPortSignature:
    """Blocks ``2 * pair`` and ``2 * pair + 1`` of a token's accumulators, ``[2][lanes]``."""
    return ReadPortSignature(
        {"token": range(params.pass_tokens), "pair": range(params.acc_blocks // 2)},
        data.ArrayLayout(data.ArrayLayout(signed(params.acc_width), LANES), 2),
    )


def depth_tile_layout(params: EngineParams) -> data.ArrayLayout:
    """The activations of a token in a depth tile; the one of the lowest depth in the LSBs."""
    return data.ArrayLayout(signed(params.a_width), params.depth_tile)


class TableWriterSignature(wiring.Signature):
    """Ports of a writer of lookup tables, seen from outside it.

    ``start`` writes the tables of set ``start_set`` from the depth tile that ``i`` holds from the
    next cycle until the next start; ``w`` is the write port of the table memories, ``w_layout``.
    """

    def __init__(self, params: EngineParams, w_layout: data.StructLayout):
        super().__init__(
            {
                "start": In(1),
                "start_set": In(1),
                "i": In(depth_tile_layout(params)),
                "w": Out(w_layout),
            }
        )


class DatapathSignature(wiring.Signature):
    """Ports of an engine's datapath, the row sums of one token, seen from outside it.

    start : ``In(1)``  prepares set ``start_set`` from ``i``. The set may be used
        ``params.prepare_cycles`` later, until the second start after it; the next start comes no
        earlier than that.
    start_set : ``In(1)``
    i : ``In(depth_tile_layout(params))``  valid from the cycle after ``start`` until the next one.
    en : ``In(1)``  ``digits``, ``step`` and ``set`` are valid; ``o`` follows after
        ``params.datapath_latency`` cycles and stays until the next enabled step.
    digits : ``In(digit_bits)``  the digits of a weight word.
    step : ``In(range(steps))``  the step of the depth tile that the digits belong to.
    set : ``In(1)``  the set of activations that the digits meet.
    o : ``Out(step_rows * unsigned(o_width))``  the rows' sums in offset binary:
        ``value + 2 ** (o_width - 1)``.
    negate : ``Out(step_rows)``  the sum is ``-o``; see :func:`lutra_hw.matmul.table.signed_term`.
    """

    def __init__(self, params: EngineParams, o_width: int):
        super().__init__(
            {
                "start": In(1),
                "start_set": In(1),
                "i": In(depth_tile_layout(params)),
                "en": In(1),
                "digits": In(params.digit_bits),
                "step": In(range(params.steps)),
                "set": In(1),
                "o": Out(data.ArrayLayout(unsigned(o_width), params.step_rows)),
                "negate": Out(params.step_rows),
            }
        )


class MatmulEngineSignature(wiring.Signature):
    """Ports of an engine, seen from outside it (an engine's component uses them as they are).

    ``done`` pulses once per command when the last accumulator is readable; ``busy`` is high while
    a command is in the engine; ``stall`` while it is busy and waits for weight words.
    """

    def __init__(self, params: EngineParams):
        super().__init__(
            {
                "cmd": In(stream.Signature(tile_command(params))),
                "weights": In(stream.Signature(unsigned(params.word_bits))),
                "act": In(act_write_port(params)),
                "acc": In(acc_read_port(params)),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )
