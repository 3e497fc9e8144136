"""The matmul-engine contract: what every engine offers, whatever it is made of.

An engine computes ``acc[token, row] = sum_k q[token, k] * w[row, k]`` over a tile of up to
``m_tile`` tokens, exactly. Activations are written into the engine's buffer before the tile is
commanded. Weight words arrive in the order of the engine's packer and are taken once per tile,
whatever the number of tokens; the engine accepts the next tile's words and builds its tables while
it computes. Results stay in the accumulator buffer, which is read by pairs of blocks.
"""

from amaranth import signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hw.ports import ReadPortSignature, WritePortSignature
from lutra.sim.golden.matmul.ternary import TernaryParams

__all__ = ["TILE_COMMAND", "MatmulEngineSignature", "acc_read_port", "act_write_port"]

TILE_COMMAND = data.StructLayout(
    {
        "k_tiles": unsigned(16),
        "row_blocks": unsigned(16),
        "planes": unsigned(8),
        "acc_base": unsigned(16),
        "token_first": unsigned(8),
        "token_count": unsigned(8),  # zero tokens: done at once, no weight word is taken
    }
)


def act_write_port(params: TernaryParams) -> WritePortSignature:
    """Eight int8 activations ``8 * word .. 8 * word + 7`` of a token, lane 0 in the LSBs."""
    words = params.act_tiles * params.k_tile // params.lanes
    return WritePortSignature(
        {"token": range(params.m_tile), "word": range(words)},
        data.ArrayLayout(signed(params.a_width), params.lanes),
    )


def acc_read_port(params: TernaryParams) -> ReadPortSignature:
    """Blocks ``2 * pair`` and ``2 * pair + 1`` of a token's accumulators, ``[2][lanes]``."""
    return ReadPortSignature(
        {"token": range(params.m_tile), "pair": range(params.acc_blocks // 2)},
        data.ArrayLayout(data.ArrayLayout(signed(params.acc_width), params.lanes), 2),
    )


class MatmulEngineSignature(wiring.Signature):
    """Ports of an engine, seen from outside it (an engine's component uses them as they are).

    ``done`` pulses once per command when the last accumulator is readable; ``busy`` is high while
    a command is in the engine; ``stall`` while it is busy and waits for weight words.
    """

    def __init__(self, params: TernaryParams):
        super().__init__(
            {
                "cmd": In(stream.Signature(TILE_COMMAND)),
                "weights": In(stream.Signature(unsigned(params.word_bits))),
                "act": In(act_write_port(params)),
                "acc": In(acc_read_port(params)),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )
