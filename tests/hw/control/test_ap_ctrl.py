"""ApCtrlChain against its model in Amaranth's simulator, and before the accelerator's registers."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.control.ap_ctrl import (
    AP_CONTINUE,
    AP_DONE,
    AP_IDLE,
    AP_READY,
    AP_START,
    IRQ_DONE,
    WINDOW,
    XRT_REGISTERS,
)
from lutra_golden.control.descriptor import Descriptor, Kind, line_bytes
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import IDENT, REGISTERS, STATUS_DONE
from lutra_golden.control.result import Result
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import Purpose
from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR
from lutra_hw.control.ap_ctrl import ApCtrlChain
from lutra_sim.bench.control.ap_ctrl import (
    INTERRUPT,
    SIGNALS,
    FrontBench,
    Host,
    busy_host,
    overtaken_read,
    random_traffic,
)
from lutra_sim.bench.control.front import XrtFront
from lutra_sim.bench.simulate import run_cocotb, simulate

CTRL, GIE, IER, ISR, DESCRIPTOR = (each.address for each in XRT_REGISTERS.values())


def _run(bench: FrontBench, host: Host, max_cycles: int = 30_000) -> None:
    """Run ``host`` to its end in Amaranth's simulator."""
    dut: Any = ApCtrlChain()
    signals = {name: getattr(getattr(dut, f"{name[0]}_axi"), name[2:]) for name in SIGNALS}
    signals[INTERRUPT] = dut.interrupt

    async def cycles(ctx: Any) -> None:
        for _ in host(bench):
            for name, value in bench.drive().items():
                ctx.set(signals[name], value)
            _, _, *values = await ctx.tick().sample(*signals.values())
            for name, value in bench.step(dict(zip(signals, values, strict=True))).items():
                ctx.set(signals[name], value)

    simulate(dut, cycles, max_cycles=max_cycles)
    bench.finish()


@pytest.mark.cocotb
def test_bench(tmp_path: Path) -> None:
    run_cocotb(ApCtrlChain(), "lutra_sim.bench.control.tb_ap_ctrl", tmp_path)


@pytest.mark.parametrize("p_stall", [0.0, 0.6])
def test_is_its_model(p_stall: float) -> None:
    _run(FrontBench(1, p_host=p_stall, p_core=p_stall), random_traffic)


def test_a_read_that_a_doorbell_overtook_does_not_count() -> None:
    _run(FrontBench(1), overtaken_read, max_cycles=300)


def test_the_host_cannot_keep_it_from_its_own_accesses() -> None:
    _run(FrontBench(1), busy_host)


def test_latency() -> None:
    """A write is answered 2 cycles after its data, a read 2 after its address."""
    dut: Any = ApCtrlChain()

    async def bench(ctx: Any) -> None:
        axi = dut.s_axi
        assert not (ctx.get(axi.awready) or ctx.get(axi.wready) or ctx.get(axi.arready))
        await ctx.tick()
        ctx.set(axi.awaddr, DESCRIPTOR)
        ctx.set(axi.wdata, 77)
        ctx.set(axi.wstrb, 15)
        for valid in (axi.awvalid, axi.wvalid):
            ctx.set(valid, 1)
        await ctx.tick()
        for valid in (axi.awvalid, axi.wvalid):
            ctx.set(valid, 0)
        assert not ctx.get(axi.bvalid)
        await ctx.tick()
        assert ctx.get(axi.bvalid)
        ctx.set(axi.bready, 1)
        ctx.set(axi.araddr, DESCRIPTOR)
        ctx.set(axi.arvalid, 1)
        await ctx.tick()
        assert not ctx.get(axi.bvalid)
        ctx.set(axi.arvalid, 0)
        assert not ctx.get(axi.rvalid)
        await ctx.tick()
        assert ctx.get(axi.rvalid) and ctx.get(axi.rdata) == 77

    simulate(dut, bench)


def test_a_start_that_cannot_be_rung_touches_nothing() -> None:
    def host(bench: FrontBench) -> Iterator[None]:
        bench.start(0x1_0000_0000_0100)
        yield from bench.settle()
        yield from [None] * 3
        assert bench.model.control == AP_DONE | AP_IDLE | AP_READY
        bench.read(CTRL)
        yield from bench.settle()

    bench = FrontBench(1)
    _run(bench, host)
    assert bench.rung == []


CONFIG = NANO.with_(name="small", pass_tokens=2, n_heads=2, n_kv_heads=1)
LINE = line_bytes(CONFIG)
DATA, DESCRIPTORS, RESULTS = 0x1000, 0x2000, 0x3000


def _work(slot: int) -> Descriptor:
    """Sums over different ranges; the second is for another configuration."""
    return Descriptor(
        fingerprint=CONFIG.fingerprint ^ (slot == 1),
        result_base=RESULTS + slot * LINE,
        kind=Kind.CHECKSUM,
        tag=0x1000 + slot,
        program_base=DATA,
        program_bytes=CONFIG.alignment(Purpose.FETCH) << slot,
    )


def _image() -> Memory:
    memory = Memory(RESULTS + 4 * LINE)
    memory.write(DATA, Random(1).randbytes(DESCRIPTORS - DATA))
    memory.write(RESULTS, bytes(4 * LINE))
    for slot in range(3):
        memory.write(DESCRIPTORS + slot * LINE, _work(slot).encode(LINE))
    return memory


class _Host:
    """Accesses of a host, one after the other."""

    def __init__(self, ctx: Any, axi: Any) -> None:
        self._ctx, self._axi = ctx, axi
        ctx.set(axi.bready, 1)
        ctx.set(axi.rready, 1)
        ctx.set(axi.wstrb, 15)

    async def write(self, address: int, value: int) -> int:
        ctx, axi = self._ctx, self._axi
        ctx.set(axi.awaddr, address)
        ctx.set(axi.wdata, value)
        ctx.set(axi.awvalid, 1)
        ctx.set(axi.wvalid, 1)
        await ctx.tick().until(axi.awready & axi.wready)
        ctx.set(axi.awvalid, 0)
        ctx.set(axi.wvalid, 0)
        (response,) = await ctx.tick().sample(axi.bresp).until(axi.bvalid)
        return response

    async def read(self, address: int) -> tuple[int, int]:
        ctx, axi = self._ctx, self._axi
        ctx.set(axi.araddr, address)
        ctx.set(axi.arvalid, 1)
        await ctx.tick().until(axi.arready)
        ctx.set(axi.arvalid, 0)
        return await ctx.tick().sample(axi.rdata, axi.rresp).until(axi.rvalid)


def test_before_the_registers() -> None:
    """Descriptors that are started by CTRL leave their result blocks, in order."""
    dut: Any = XrtFront(CONFIG)
    memory, golden = _image(), Interpreter(CONFIG, _image())
    over = list[bool]()

    async def ports(ctx: Any) -> None:
        """Memory that answers at once."""
        reads, addresses = deque[int](), deque[int]()
        n_bytes = CONFIG.word_bytes
        for each in (dut.rd_cmd.ready, dut.wr_cmd.ready, dut.wr_data.ready, dut.idle):
            ctx.set(each, 1)
        while not over:
            ctx.set(dut.rd_data.valid, bool(reads))
            if reads:
                word = memory.read(reads[0], n_bytes).tobytes()
                ctx.set(dut.rd_data.payload, int.from_bytes(word, "little"))
            ctx.set(dut.wr_idle, not addresses)
            streams = (dut.rd_cmd, dut.wr_cmd, dut.wr_data)
            _, _, taken, *words = await ctx.tick().sample(
                dut.rd_data.valid & dut.rd_data.ready,
                *(each.valid for each in streams),
                *(each.payload for each in streams),
            )
            (reading, commanding, writing), (read, command, beat) = words[:3], words[3:]
            if taken:
                reads.popleft()
            if reading:
                reads.extend(read.addr + i * n_bytes for i in range(read.beats))
            if commanding:
                addresses.extend(command.addr + i * n_bytes for i in range(command.beats))
            if writing:
                address = addresses.popleft()
                content = int(beat.data).to_bytes(n_bytes, "little")
                for i in range(n_bytes):
                    if beat.strb >> i & 1:
                        memory.write(address + i, content[i : i + 1])

    async def host(ctx: Any) -> None:
        await ctx.tick()
        front = _Host(ctx, dut.s_axi)
        assert await front.read(WINDOW + REGISTERS["IDENT"].address) == (IDENT, RESP_OKAY)
        assert await front.write(WINDOW + REGISTERS["IDENT"].address, 1) == RESP_SLVERR
        await front.write(GIE, 1)
        await front.write(IER, IRQ_DONE)
        for slot in range(3):
            await front.write(DESCRIPTOR, DESCRIPTORS + slot * LINE)
            await front.write(CTRL, AP_START)
            while (await front.read(CTRL))[0] & AP_START:
                pass
        for slot in range(3):
            await ctx.tick().until(dut.interrupt)
            await front.write(ISR, (await front.read(ISR))[0])
            assert (await front.read(CTRL))[0] & AP_DONE
            expected = golden.run_descriptor(DESCRIPTORS + slot * LINE)
            found = Result.decode(memory.read(RESULTS + slot * LINE, LINE).tobytes())
            assert found.counters["cycles"]
            found.counters = dict(expected.counters)
            assert found == expected and found.status & STATUS_DONE
            await front.write(CTRL, AP_CONTINUE)
        await front.write(DESCRIPTOR, DESCRIPTORS + 8)
        await front.write(CTRL, AP_START)
        assert (await front.read(CTRL))[0] & (AP_DONE | AP_IDLE) == AP_DONE | AP_IDLE
        await front.write(CTRL, AP_CONTINUE)
        assert (await front.read(CTRL))[0] & (AP_DONE | AP_IDLE) == AP_IDLE
        over.append(True)

    simulate(dut, host, ports, max_cycles=4000)
