"""cocotb bench of many :class:`lutra_hw.arith.scale.ScaleUnit` that work on the same operation."""

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import RisingEdge

from lutra_golden.arith.scale import Scale, scale_recip, scale_rsqrt
from lutra_hw.arith.scale import ScaleOp
from lutra_sim.bench.stream import reset

__all__ = ["every_mantissa"]


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def every_mantissa(dut: Any) -> None:
    """Reciprocals and reciprocal square roots of all mantissas, at an even and an odd exponent."""
    dut.valid.value = 0
    await reset(dut)
    n_units = len(dut.m) // 16
    mantissas = np.arange(1 << 15, 1 << 16, dtype="<u2").reshape(-1, n_units)
    for op, function in ((ScaleOp.RECIP, scale_recip), (ScaleOp.RSQRT, scale_rsqrt)):
        for e in (-20, 7):
            m, exponents = bytearray(), bytearray()
            dut.op.value, dut.e.value, dut.valid.value = op.value, e, 1
            for row in mantissas:
                dut.m.value = int.from_bytes(row.tobytes(), "little")
                await RisingEdge(dut.o_valid)
                m += int(dut.o_m.value).to_bytes(2 * n_units, "little")
                exponents += int(dut.o_e.value).to_bytes(2 * n_units, "little")
            dut.valid.value = 0
            for _ in range(10):
                await RisingEdge(dut.clk)

            operand = mantissas.astype(np.int64).ravel()
            expected = function(Scale(operand, np.full_like(operand, e)))
            assert (np.frombuffer(m, "<u2") == expected.m).all()
            assert (np.frombuffer(exponents, "<i2") == expected.e).all()
