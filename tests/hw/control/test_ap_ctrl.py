"""ApCtrlChain against its model in Amaranth's simulator, and before the accelerator's registers."""

from collections import deque
from collections.abc import Callable, Sequence
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
    ApCtrl,
)
from lutra_golden.control.descriptor import QUEUE_DEPTH, Descriptor, Kind, line_bytes
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.memory import Memory
from lutra_golden.control.registers import IDENT, REGISTERS, STATUS_DONE
from lutra_golden.control.result import Result
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import Purpose
from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR
from lutra_hw.control.ap_ctrl import ApCtrlChain
from lutra_sim.bench.control.front import XrtFront
from lutra_sim.bench.simulate import simulate

CTRL, GIE, IER, ISR, DESCRIPTOR = (each.address for each in XRT_REGISTERS.values())
DOORBELL, PENDING = (REGISTERS[name].address for name in ("DOORBELL", "PENDING"))
OWN = [*range(0, 0x18, 4), 0x18, WINDOW - 4]
# a word beside each of those that the front end uses itself, and one of every answer
OTHERS = [WINDOW + each for each in (0, DOORBELL - 4, PENDING + 4, 0x7F8, 0xFFC)]


def _response(address: int) -> int:
    """The accelerator's answer to an access."""
    return RESP_SLVERR if address & 8 else RESP_OKAY


class _Port:
    """One end of a channel of an AXI4-Lite port, which stalls at random.

    ``words`` wait to be sent, or were taken.
    """

    def __init__(self, axi: Any, side: str, channel: str, names: Sequence[str]) -> None:
        self.name = f"{side}_{channel}"
        # answers go to the host, and come from the accelerator
        self.takes = (channel in "br") == (side == "s")
        self.words = deque[tuple[int, ...]]()
        self._signals = [getattr(axi, channel + name) for name in ("ready", "valid", *names)]
        self._names = [f"{self.name}{name}" for name in names]
        self._driven = 0

    def drive(self, ctx: Any, stalls: bool) -> None:
        """Offer a word, or to take one, in the next cycle."""
        ready, valid, *values = self._signals
        if self.takes:
            if self._driven == stalls:
                self._driven = int(not stalls)
                ctx.set(ready, self._driven)
        elif not self._driven and self.words and not stalls:
            self._driven = 1
            ctx.set(valid, 1)
            for signal, value in zip(values, self.words[0], strict=True):
                ctx.set(signal, value)

    def move(self, ctx: Any, now: dict[str, int]) -> None:
        """A cycle is over: take the word that was offered, or go on to the next."""
        if now[f"{self.name}valid"] and now[f"{self.name}ready"]:
            if self.takes:
                self.words.append(tuple(now[name] for name in self._names))
            else:
                self.words.popleft()
                self._driven = 0
                ctx.set(self._signals[1], 0)


_CHANNELS = {
    "aw": ["addr"],
    "w": ["data", "strb"],
    "b": ["resp"],
    "ar": ["addr"],
    "r": ["data", "resp"],
}


class _Bench:
    """Host and accelerator around the front end, which the model follows."""

    def __init__(self, seed: int, p_stall: float) -> None:
        self.dut: Any = ApCtrlChain()
        self.rng, self.model = Random(seed), ApCtrl()
        self._p_stall = p_stall
        self._signals = {
            f"{side}_{name}": getattr(axi, name)
            for side, axi in (("s", self.dut.s_axi), ("m", self.dut.m_axi))
            for name in axi.signature.members
            if "prot" not in name
        }
        self.ports = {
            f"{side}_{channel}": _Port(axi, side, channel, names)
            for side, axi in (("s", self.dut.s_axi), ("m", self.dut.m_axi))
            for channel, names in _CHANNELS.items()
        }
        self.writes, self.reads = deque[tuple[int, int, int]](), deque[int]()
        self.starts, self.rung = list[int](), list[int]()
        self.forwarded = list[tuple[int, int, int]]()
        self._sent = list[tuple[int, int, int]]()
        self._before = dict.fromkeys(self._signals, 0)
        self.pending = self.n_over = self.n_done = self.n_read = 0
        self.p_over, self.p_answer = 0.02, 0.3
        self.values = deque[tuple[int, int]]()
        """Values that were read and are not answered yet."""

    def run(self, host: Callable[[Any], Any], max_cycles: int = 30_000) -> None:
        """Run until ``host`` is over."""
        over = list[bool]()

        async def until_over(ctx: Any) -> None:
            await host(ctx)
            over.append(True)

        async def cycles(ctx: Any) -> None:
            while not over:
                for port in self.ports.values():
                    port.drive(ctx, self.rng.random() < self._p_stall)
                _, _, interrupt, *values = await ctx.tick().sample(
                    self.dut.interrupt, *self._signals.values()
                )
                now = dict(zip(self._signals, values, strict=True))
                for port in self.ports.values():
                    port.move(ctx, now)
                self._watch(now, interrupt)
                self._core()

        simulate(self.dut, until_over, cycles, max_cycles=max_cycles)
        assert self._sent == self.forwarded

    def write(self, address: int, value: int, strobes: int = 15) -> None:
        """Queue a write of the host."""
        self.writes.append((address, value, strobes))
        self.ports["s_aw"].words.append((address,))
        self.ports["s_w"].words.append((value, strobes))

    def read(self, address: int) -> None:
        """Queue a read of the host."""
        self.reads.append(address)
        self.ports["s_ar"].words.append((address,))

    def start(self, address: int) -> None:
        """Queue the writes that start a descriptor."""
        self.write(DESCRIPTOR, address & 0xFFFF_FFFF)
        self.write(DESCRIPTOR + 4, address >> 32)
        self.write(CTRL, AP_START)

    async def settle(self, ctx: Any) -> None:
        """Wait until the host's accesses are answered."""
        while self.writes or self.reads:
            await ctx.tick()

    def _core(self) -> None:
        """A cycle of the accelerator: its registers, and the descriptors that it carries out."""
        aw, w, b, ar, r = (self.ports[f"m_{channel}"].words for channel in _CHANNELS)
        if self.pending and self.rng.random() < self.p_over:
            self.pending -= 1
            self.n_over += 1
        if aw and w and self.rng.random() < 0.7:
            (address,), (value, strobes) = aw.popleft(), w.popleft()
            if address == DOORBELL:
                assert strobes == 15 and self.pending < QUEUE_DEPTH
                self.pending += 1
                self.rung.append(value)
            else:
                self.forwarded.append((WINDOW + address, value, strobes))
            b.append((_response(address),))
        if ar and self.rng.random() < 0.7:
            (address,) = ar.popleft()
            value = self.pending if address == PENDING else address * 0x10_0001
            self.values.append((value, _response(address)))
        if self.values and self.rng.random() < self.p_answer:
            r.append(self.values.popleft())

    def _watch(self, now: dict[str, int], interrupt: int) -> None:
        """Move the model as the front end has moved, and compare all that can be seen of both."""
        model, before = self.model, self._before
        risen = {name for name in now if now[name] and not before[name]}
        if "m_awvalid" in risen and now["m_awaddr"] == DOORBELL:
            assert now["m_wdata"] == model.doorbell
        refuses = model.refuses
        if "s_rvalid" in risen:
            self._check_read(now)
        if refuses:
            model.refuse()
        if "s_bvalid" in risen:
            self._check_write(now, refuses)
        if before["m_rvalid"] and before["m_rready"] and before["m_araddr"] == PENDING:
            outstanding = model.outstanding
            model.answer(before["m_rdata"])
            self.n_done += outstanding - model.outstanding
        if before["m_bvalid"] and before["m_bready"] and before["m_awaddr"] == DOORBELL:
            model.rung()
        if "m_arvalid" in risen and now["m_araddr"] == PENDING:
            assert model.outstanding
            model.ask()
        assert self.n_done <= self.n_over, "done before it is over"
        assert interrupt == model.interrupt
        self._before = now

    def _check_write(self, now: dict[str, int], refuses: bool) -> None:
        address, value, strobes = self.writes.popleft()
        if address < WINDOW:
            assert not refuses, "one thing at a time"
            was_started = self.model.start
            expected = RESP_OKAY if self.model.write(address, value, strobes) else RESP_SLVERR
            if self.model.start and not was_started:
                self.starts.append(self.model.argument)
        else:
            expected = _response(address)
            self._sent.append((address, value, strobes))
        assert now["s_bresp"] == expected, f"write to {address:#x}"

    def _check_read(self, now: dict[str, int]) -> None:
        address = self.reads.popleft()
        self.n_read += 1
        if address < WINDOW:
            value = self.model.read(address)
            expected = (0, RESP_SLVERR) if value is None else (value, RESP_OKAY)
        else:
            expected = (address - WINDOW) * 0x10_0001, _response(address)
        assert (now["s_rdata"], now["s_rresp"]) == expected, f"read of {address:#x}"


def _random_access(bench: _Bench) -> None:
    rng = bench.rng
    kind = rng.random()
    if kind < 0.25:
        address = rng.getrandbits(32) << 8
        if rng.random() < 0.2:
            address ^= rng.choice([1, 0x80, 1 << 40, 1 << 63])
        bench.start(address)
    elif kind < 0.5:
        bench.write(CTRL, AP_CONTINUE | rng.choice([0, 0, AP_START]), rng.choice([15, 15, 1, 14]))
    elif kind < 0.75:
        bench.write(rng.choice([GIE, IER, ISR]), rng.getrandbits(32), rng.choice([15, 15, 1, 14]))
    else:
        bench.write(rng.choice(OWN[1:] + OTHERS), rng.getrandbits(32), rng.getrandbits(4))


@pytest.mark.parametrize("p_stall", [0.0, 0.6])
def test_is_its_model(p_stall: float) -> None:
    bench = _Bench(1, p_stall)
    rng = bench.rng

    async def host(ctx: Any) -> None:
        for _ in range(250):
            _random_access(bench)
            for _ in range(rng.randrange(4)):
                bench.read(rng.choice([CTRL, ISR, rng.choice(OWN + OTHERS)]))
            if rng.random() < 0.6:
                await bench.settle(ctx)
            if rng.random() < 0.1:
                await ctx.tick().repeat(rng.randrange(1, 200))
        # all that was started ends, and is acknowledged
        await bench.settle(ctx)
        while bench.model.control != AP_IDLE:
            bench.write(CTRL, AP_CONTINUE)
            bench.read(CTRL)
            await bench.settle(ctx)

    bench.run(host)
    fitting = [each >> 8 for each in bench.starts if not each & 0xFF and each < 1 << 40]
    assert bench.rung == fitting and len(fitting) > 20
    assert len(bench.starts) > len(fitting) + 3
    assert bench.n_done == bench.n_over == len(fitting)


def test_a_read_that_a_doorbell_overtook_does_not_count() -> None:
    """PENDING was read before the accelerator had the second descriptor."""
    bench = _Bench(1, 0.0)
    bench.p_over = bench.p_answer = 0.0

    async def host(ctx: Any) -> None:
        bench.start(0x100)
        while not bench.values:
            await ctx.tick()
        bench.start(0x200)
        while bench.model.outstanding < 2:
            await ctx.tick()
        bench.p_answer = 1.0
        await ctx.tick().repeat(30)
        bench.read(CTRL)
        await bench.settle(ctx)

    bench.run(host, max_cycles=300)
    assert bench.n_done == 0


def test_the_host_cannot_keep_it_from_its_own_accesses() -> None:
    """Nor does it keep the host from its: those that are forwarded take turns with them."""
    bench = _Bench(1, 0.0)
    bench.p_over = 0.2

    async def host(ctx: Any) -> None:
        bench.start(0x100)
        for n_own in range(2):
            n_before = bench.n_done
            for cycle in range(1000):
                if len(bench.writes) < 3:
                    bench.write(OTHERS[0], 1)
                if len(bench.reads) < 3:
                    bench.read(OTHERS[0])
                if bench.n_done > n_before:
                    break
                assert cycle < 200, f"descriptor {n_own} is not done"
                await ctx.tick()
            bench.start(0x200)
        n_read = bench.n_read
        bench.p_over = 0.0
        for _ in range(300):
            if len(bench.reads) < 3:
                bench.read(OTHERS[0])
            await ctx.tick()
        assert bench.n_read > n_read + 10
        await bench.settle(ctx)

    bench.run(host)


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
    bench = _Bench(1, 0.0)

    async def host(ctx: Any) -> None:
        bench.start(0x1_0000_0000_0100)
        await bench.settle(ctx)
        await ctx.tick().repeat(3)
        assert bench.model.control == AP_DONE | AP_IDLE | AP_READY
        bench.read(CTRL)
        await bench.settle(ctx)

    bench.run(host)
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
                assert command.beats == 1
                addresses.append(command.addr)
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
