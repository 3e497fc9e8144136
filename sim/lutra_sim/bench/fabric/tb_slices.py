"""cocotb bench of the twin of DSP48E2, by the equations of Xilinx UG579.

With ALUMODE 0000, ``P = Z + W + X + Y + CIN``. X is A:B where OPMODE[1:0] is 11, Y is C where
OPMODE[3:2] is 11, Z is 0 where OPMODE[6:4] is 000 and PCIN where it is 001, W is 0 where
OPMODE[8:7] is 00. A register stands before A, B and C (AREG, BREG, CREG) and one behind the adder
(PREG), none on PCIN, which is the PCOUT of the slice before, its P.
"""

from random import Random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_sim.bench.fabric.slices import N_SLICES, Slices, SlicesParams
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import pack, unpack

__all__ = ["adds"]

PARAMS = bench_params(SlicesParams)
MEMBERS = Slices(PARAMS).signature.members
TOP = (1 << 48) - 1
# W, Z, Y, X
WITHOUT_CASCADE, WITH_CASCADE = 0b00_000_11_11, 0b00_001_11_11
CORNERS = [0, 1, TOP, TOP - 1, 1 << 47, (1 << 47) - 1, 0xFFFF, 0xFFFF_0000, 1 << 18, (1 << 18) - 1]


def drive(dut: Any, a_b: list[int], c: list[int], opmode: list[int]) -> None:
    """Inputs of every slice."""
    values = {"a": [x >> 18 for x in a_b], "b": [x % (1 << 18) for x in a_b], "c": c}
    for name, value in (values | {"opmode": opmode}).items():
        getattr(dut, name).value = pack(MEMBERS[name].shape, value)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def adds(dut: Any) -> None:
    """Any inputs, a quarter of them corners, with and without what the slice before gives."""
    random = Random(cocotb.RANDOM_SEED)

    def word() -> int:
        return random.choice(CORNERS) if random.random() < 0.25 else random.getrandbits(48)

    for name in ("alumode", "inmode", "carryin", "carryinsel"):
        getattr(dut, name).value = 0
    a_b, c, opmode = [0] * N_SLICES, [0] * N_SLICES, [WITHOUT_CASCADE] * N_SLICES
    drive(dut, a_b, c, opmode)
    Clock(dut.clk, 10, unit="ns").start()
    held_a_b, held_c, p = [0] * N_SLICES, [0] * N_SLICES, [0] * N_SLICES
    for cycle in range(500):
        await RisingEdge(dut.clk)
        # what the edge made of the inputs before it; all right sides are of before
        w = cin = 0
        z = [
            pcin if mode == WITH_CASCADE else 0
            for pcin, mode in zip([0, *p[:-1]], opmode, strict=True)
        ]
        x, y = held_a_b, held_c
        p = [(z[k] + w + x[k] + y[k] + cin) & TOP for k in range(N_SLICES)]
        held_a_b, held_c = a_b, c
        a_b, c = [word() for _ in range(N_SLICES)], [word() for _ in range(N_SLICES)]
        opmode = [random.choice((WITHOUT_CASCADE, WITH_CASCADE)) for _ in range(N_SLICES)]
        drive(dut, a_b, c, opmode)
        if PARAMS.port and cycle == 100:
            value: Any = [WITH_CASCADE, PARAMS.value]
            shape = MEMBERS[PARAMS.port].shape
            value = pack(shape, value) if PARAMS.port == "opmode" else PARAMS.value
            getattr(dut, PARAMS.port).value = value
        await ReadOnly()
        assert unpack(MEMBERS["p"].shape, int(dut.p.value)) == p, cycle
