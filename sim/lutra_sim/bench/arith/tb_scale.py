"""cocotb bench of :class:`lutra_hw.arith.scale.ScaleUnit`."""

from random import Random
from typing import Any

import cocotb
import numpy as np

from lutra_golden.arith.scale import (
    Scale,
    scale_add,
    scale_from_int,
    scale_mul,
    scale_recip,
    scale_rsqrt,
)
from lutra_golden.timing.arith import SCALE_LATENCY
from lutra_hw.arith.scale import SCALE_COMMAND, ScaleOp
from lutra_hw.ports import SCALE_LAYOUT
from lutra_sim.bench.stream import StreamMonitor, StreamSink, StreamSource, pack, reset

__all__ = ["commands", "expected", "follows_golden"]

Command = dict[str, Any]


def expected(command: Command) -> Scale:
    """The golden model's answer to ``command``."""
    a, b = Scale(**command["a"]), Scale(**command["b"])
    match command["op"]:
        case ScaleOp.FROM_INT:
            return scale_from_int(command["x"], command["e"])
        case ScaleOp.MUL:
            return scale_mul(a, b)
        case ScaleOp.ADD:
            return scale_add(a, b)
        case ScaleOp.RECIP:
            return scale_recip(a)
        case _:
            return scale_rsqrt(a)


def commands(rng: Random, n_random: int) -> list[Command]:
    """Corners of every operation, then ``n_random`` of each."""

    def command(op: ScaleOp, *operands: tuple[int, int]) -> Command:
        """Operands are ``(x, e)`` for FROM_INT and ``(m, e)`` otherwise."""
        (first, first_e), (second, second_e) = (*operands, (0, 0))[:2]
        a, b = (
            {"m": np.int64(first), "e": np.int64(first_e if first else 0)},
            {"m": np.int64(second), "e": np.int64(second_e if second else 0)},
        )
        if op == ScaleOp.FROM_INT:
            return {"op": op, "x": first, "e": first_e, "a": b, "b": b}
        return {"op": op, "x": 0, "e": 0, "a": a, "b": b}

    def random() -> tuple[int, int]:
        m = rng.choice([half, top, rng.randrange(1 << 15, 1 << 16)])
        return m, rng.randint(-120, 120)

    half, top = 1 << 15, 0xFFFF
    ints = [0, 1, 2, 3, 127, top, top + 1, 0x1FFFE, 0x1FFFF, 1 << 62, (1 << 63) - 1]
    for shift in (1, 8, 31, 46):  # the mantissa 0xFFFF and a fraction around one half
        ints += [(top << shift) + (1 << (shift - 1)) + d for d in (-1, 0, 1)]
    out = [command(ScaleOp.FROM_INT, (x, e)) for x in ints for e in (0, -300, 300)]

    mantissas = [half, half + 1, 0xB504, 0xB505, top - 1, top]
    corners = [(0, 0), *((m, e) for m in mantissas for e in (-9, -8, 0, 7))]
    out += [command(op, a) for op in (ScaleOp.RECIP, ScaleOp.RSQRT) for a in corners]
    extremes = [(half, -250), (top, 240), (half, 0), (0, 0)]
    for op in (ScaleOp.MUL, ScaleOp.ADD):
        out += [command(op, a, b) for a in corners for b in corners[::3]]
        out += [command(op, a, b) for a in extremes for b in extremes]
    # every distance up to where the smaller summand no longer counts
    for distance in range(-36, 37):
        (m, e), (n, _) = random(), random()
        out.append(command(ScaleOp.ADD, (m, e), (n, e + distance)))

    for _ in range(n_random):
        a, b = random(), random()
        x = rng.randrange(1 << rng.randrange(1, 64))
        out += [
            command(ScaleOp.FROM_INT, (x, rng.randint(-200, 200))),
            command(ScaleOp.MUL, a, b),
            command(ScaleOp.ADD, a, (b[0], a[1] + rng.randint(-20, 20))),
            command(ScaleOp.RECIP, a),
            command(ScaleOp.RSQRT, b),
        ]
    return out


@cocotb.test(timeout_time=10, timeout_unit="ms")
@cocotb.parametrize(p_stall=[0.0, 0.4])
async def follows_golden(dut: Any, p_stall: float) -> None:
    """Results in order; without stalls, after the stated latency and with nothing between."""
    rng = Random(cocotb.RANDOM_SEED)
    source = StreamSource(dut, "i", p_stall=p_stall, rng=rng)
    StreamSink(dut, "o", p_stall=p_stall, rng=rng)
    accepted, results = StreamMonitor(dut, "i"), StreamMonitor(dut, "o")
    await reset(dut)
    todo = commands(rng, 150)
    source.send_all(pack(SCALE_COMMAND, c | {"op": c["op"].value}) for c in todo)
    got = await results.wait_for(len(todo))

    for command, result in zip(todo, got, strict=True):
        scale = expected(command)
        assert result == pack(SCALE_LAYOUT, {"m": scale.m, "e": scale.e}), command
    if not p_stall:
        latencies = [o - i for i, o in zip(accepted.cycles, results.cycles, strict=True)]
        assert latencies == [SCALE_LATENCY[command["op"].name] for command in todo]
        pauses = [i - o for i, o in zip(accepted.cycles[1:], results.cycles, strict=False)]
        assert set(pauses) == {1}
