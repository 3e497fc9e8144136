"""cocotb bench of :class:`lutra_hw.axi.arbiter.ReadArbiter`."""

from collections import deque
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_sim.bench.axi.memory import AxiReadMemory
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import reset

__all__ = ["one_alone_gets_everything", "routes", "takes_turns"]

PARAMS = bench_params(dict)
N, N_BYTES = PARAMS["n"], PARAMS["data_width"] // 8
SIZE = 1 << 16


class _Master:
    """Asks for bursts and collects ``(beat, last)``; may refuse beats at random."""

    def __init__(self, dut: Any, index: int, p_stall: float, rng: Random) -> None:
        def port(name: str) -> Any:
            return getattr(dut, f"i__{index}__{name}")

        self.requests = deque[tuple[int, int]]()
        self.beats: list[tuple[int, int]] = []
        self.granted: list[int] = []  # cycles
        self.cycle = 0
        self._dut, self._port, self._p_stall, self._rng = dut, port, p_stall, rng
        port("arvalid").value = 0
        port("arid").value = 0
        port("rready").value = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        port = self._port
        while True:
            await RisingEdge(self._dut.clk)
            self.cycle += 1
            port("rready").value = int(self._rng.random() >= self._p_stall)
            port("arvalid").value = int(bool(self.requests))
            if self.requests:
                address, beats = self.requests[0]
                port("araddr").value = address
                port("arlen").value = beats - 1
                port("arsize").value = N_BYTES.bit_length() - 1
                port("arburst").value = 1
            await ReadOnly()
            if self._dut.rst.value == 1:
                continue
            if self.requests and port("arready").value == 1:
                self.requests.popleft()
                self.granted.append(self.cycle)
            if port("rvalid").value == 1 and port("rready").value == 1:
                self.beats.append((int(port("rdata").value), int(port("rlast").value)))


def _expected(data: bytearray, requests: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [
        (int.from_bytes(data[address + i * N_BYTES :][:N_BYTES], "little"), int(i == beats - 1))
        for address, beats in requests
        for i in range(beats)
    ]


async def _until(dut: Any, condition: Any, max_cycles: int = 5000) -> None:
    for _ in range(max_cycles):
        await RisingEdge(dut.clk)
        if condition():
            return
    raise AssertionError(f"no end after {max_cycles} cycles")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(p_memory=[0.0, 0.5], p_master=[0.0, 0.5], reorder=[False, True])
async def routes(dut: Any, p_memory: float, p_master: float, reorder: bool) -> None:
    """Every master gets its own beats in its own order, whatever the others do."""
    rng = Random(cocotb.RANDOM_SEED)
    data = bytearray(rng.randbytes(SIZE))
    memory = AxiReadMemory(
        dut, "o", data, latency=5, p_stall=p_memory, rng=Random(1), reorder=reorder
    )
    masters = [_Master(dut, i, p_master, Random(i + 2)) for i in range(N)]
    await reset(dut)

    jobs = []
    for master in masters:
        job = [(4096 * rng.randrange(16), rng.choice([1, 2, 5, 16])) for _ in range(20)]
        master.requests.extend(job)
        jobs.append(_expected(data, job))
    await _until(
        dut, lambda: all(len(m.beats) >= len(j) for m, j in zip(masters, jobs, strict=True))
    )
    assert [master.beats for master in masters] == jobs
    assert {burst.id for burst in memory.bursts} == set(range(N))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def takes_turns(dut: Any) -> None:
    """While all ask, each is granted once in every ``n`` requests, one request per cycle."""
    memory = AxiReadMemory(dut, "o", bytearray(SIZE))
    masters = [_Master(dut, i, 0.0, Random(i)) for i in range(N)]
    await reset(dut)

    for master in masters:
        master.requests.extend([(0, 1)] * 10)
    await _until(dut, lambda: len(memory.bursts) == 10 * N)
    ids = [burst.id for burst in memory.bursts]
    assert all(set(ids[i : i + N]) == set(range(N)) for i in range(0, 10 * N, N))
    assert memory.bursts[-1].cycle - memory.bursts[0].cycle == 10 * N - 1


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(index=range(N))
async def one_alone_gets_everything(dut: Any, index: int) -> None:
    """A master that asks alone is granted in every cycle; its request leaves one cycle later."""
    memory = AxiReadMemory(dut, "o", bytearray(SIZE))
    masters = [_Master(dut, i, 0.0, Random(i)) for i in range(N)]
    await reset(dut)

    masters[index].requests.extend([(0, 1)] * 8)
    await _until(dut, lambda: len(memory.bursts) == 8)
    granted = masters[index].granted
    assert granted[-1] - granted[0] == 7
    assert memory.bursts[0].cycle - granted[0] == 1
