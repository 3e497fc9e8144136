"""FailureMux: transfers in their order, then the program; what an abort ended."""

from dataclasses import asdict
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")

from amaranth.sim import Simulator

from lutra_golden.control.failure import UNITS, Failure
from lutra_golden.control.isa import Unit
from lutra_golden.control.registers import ErrorCode
from lutra_golden.core.ports import Purpose
from lutra_hw.control.failure import FailureMux


def _first(
    errors: dict[Purpose, tuple[int, int]], program: ErrorCode, counts: list[int], left: int
) -> Failure:
    """The failure of a cycle with ``errors``: response and address of each."""
    for number, (purpose, unit) in enumerate(UNITS.items()):
        if purpose in errors:
            response, address = errors[purpose]
            return Failure(
                code=ErrorCode.BUS,
                purpose=number,
                response=response,
                address=address,
                instruction=left if unit is None else counts[unit],
            )
    return Failure(code=program, instruction=left)


def test_takes_the_first() -> None:
    dut, rng, seen = FailureMux(), Random(1), set[tuple[int, int]]()
    assert list(UNITS) == list(Purpose)

    async def check(ctx: Any) -> None:
        for _ in range(500):
            counts = [rng.getrandbits(16) for _ in Unit]
            left = rng.getrandbits(16)
            program = rng.choice([ErrorCode.NONE, ErrorCode.OPCODE, ErrorCode.NO_END])
            errors = {
                purpose: (rng.choice([2, 3]), rng.getrandbits(40))
                for purpose in Purpose
                if rng.random() < 0.3
            }
            for number, purpose in enumerate(Purpose):
                response, address = errors.get(purpose, (1, rng.getrandbits(40)))
                transfer = dut.transfers[number]
                ctx.set(transfer.error, purpose in errors)
                ctx.set(transfer.response, response)
                ctx.set(transfer.address, address)
            ctx.set(dut.program, program)
            ctx.set(dut.dispatched, left)
            for unit in Unit:
                ctx.set(dut.completed[unit], counts[unit])
            await ctx.delay(1e-9)
            expected = _first(errors, program, counts, left)
            actual = {name: ctx.get(getattr(dut.o, name)) for name in asdict(expected)}
            assert actual == asdict(expected)
            seen.add((expected.code, expected.purpose))

    # it has no clock
    simulator = Simulator(dut)
    simulator.add_testbench(check)
    simulator.run()
    assert len(seen) == len(Purpose) + 3
