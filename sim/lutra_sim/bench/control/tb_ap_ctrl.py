"""cocotb bench of :class:`lutra_hw.control.ap_ctrl.ApCtrlChain`."""

from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_sim.bench.control.ap_ctrl import (
    INTERRUPT,
    SIGNALS,
    FrontBench,
    Host,
    busy_host,
    overtaken_read,
    random_traffic,
)
from lutra_sim.bench.stream import reset

__all__ = ["is_its_model", "overtakes", "takes_turns"]


async def _run(dut: Any, bench: FrontBench, host: Host) -> None:
    """Run ``host`` to its end, on the signals of ``dut``."""
    signals = {name: getattr(dut, f"{name[0]}_axi__{name[2:]}") for name in SIGNALS}
    signals[INTERRUPT] = getattr(dut, INTERRUPT)
    for port in bench.ports.values():
        signals[f"{port.name}{'ready' if port.takes else 'valid'}"].value = 0
    await reset(dut)
    await RisingEdge(dut.clk)
    steps = host(bench)
    for _ in steps:
        for name, value in bench.drive().items():
            signals[name].value = value
        await ReadOnly()
        now = {name: int(signal.value) for name, signal in signals.items()}
        await RisingEdge(dut.clk)
        for name, value in bench.step(now).items():
            signals[name].value = value
    bench.finish()


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(p_host=[0.0, 0.6], p_core=[0.0, 0.6])
async def is_its_model(dut: Any, p_host: float, p_core: float) -> None:
    """Random accesses and descriptors, with stalls of either side."""
    bench = FrontBench(cocotb.RANDOM_SEED, p_host=p_host, p_core=p_core)
    await _run(dut, bench, random_traffic)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def overtakes(dut: Any) -> None:
    """A read of PENDING that a doorbell overtook does not count."""
    await _run(dut, FrontBench(1), overtaken_read)


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def takes_turns(dut: Any) -> None:
    """Neither side can keep the other from its accesses."""
    await _run(dut, FrontBench(1), busy_host)
