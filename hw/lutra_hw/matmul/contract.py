"""The matmul-engine contract: what every engine offers, whatever it is made of.

An engine computes ``acc[token, row] = sum_k a[token, k] * w[row, k]`` over a tile of up to
``pass_tokens`` tokens, exactly, and rounds each sum once at the end. Four streams meet in it:

- Activations are written into the engine's buffer, eight at a time, before the tile is commanded.
- Weight words arrive in the order of the engine's packer and are taken once per command, whatever
  the number of tokens; the engine accepts the next command's words, and prepares its activations,
  while it computes.
- Scales and zero points have no stream of their own: a word holds the digits of ``step_rows`` rows,
  then the scale and the zero point of each, so that they arrive, wait and are replayed together.
- Results stay in the accumulator buffer, which is read by pairs of blocks of eight rows.
"""

from amaranth import signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_hw.ports import ReadPortSignature, WritePortSignature

__all__ = ["MatmulEngineSignature", "acc_read_port", "act_write_port", "tile_command"]


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
            # rounding right shift of the finished sums; ternary: not used
            "shift": unsigned(params.shift_width),
        }
    )


def act_write_port(params: EngineParams) -> WritePortSignature:
    """Activations ``8 * word .. 8 * word + 7`` of a token, lane 0 in the LSBs."""
    words = params.act_tiles * params.depth_tile // LANES
    return WritePortSignature(
        {"token": range(params.pass_tokens), "word": range(words)},
        data.ArrayLayout(signed(params.a_width), LANES),
    )


def acc_read_port(params: EngineParams) -> ReadPortSignature:
    """Blocks ``2 * pair`` and ``2 * pair + 1`` of a token's accumulators, ``[2][lanes]``."""
    return ReadPortSignature(
        {"token": range(params.pass_tokens), "pair": range(params.acc_blocks // 2)},
        data.ArrayLayout(data.ArrayLayout(signed(params.acc_width), LANES), 2),
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
