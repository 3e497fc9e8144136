"""AXI4 slaves in front of a byte memory: latency, random stalls, checks of the protocol.

A reset of the master does not reset them: they go on answering what they were asked for.
"""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.core.ports import BOUNDARY_BYTES, BURST_INCR
from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR

__all__ = ["AxiReadMemory", "AxiWriteMemory", "Burst"]


@dataclass
class Burst:
    """A requested burst; ``cycle`` is the cycle of its address, ``due`` of its first answer."""

    id: int
    address: int
    beats: int
    cycle: int
    due: int


class _Channel:
    """Address channel ``ar`` or ``aw``: checks what is on it and turns it into a burst."""

    def __init__(self, dut: Any, prefix: str, letters: str, n_bytes: int) -> None:
        def port(name: str) -> Any:
            return getattr(dut, f"{prefix}__{letters}{name}")

        self.name = f"{prefix}__{letters}"
        self.valid, self.ready = port("valid"), port("ready")
        self._fields = [port(name) for name in ("id", "addr", "len", "size", "burst")]
        self._n_bytes = n_bytes
        self._held: list[int] | None = None
        self.ready.value = 0

    def sample(self, cycle: int, latency: int) -> Burst | None:
        """The burst that the coming edge transfers; only in a ReadOnly phase."""
        if self.valid.value != 1:
            assert self._held is None, f"{self.name}valid fell before the transfer"
            return None
        fields = [int(field.value) for field in self._fields]
        assert self._held is None or fields == self._held, f"{self.name} changed while it waited"
        self._held = fields
        if self.ready.value != 1:
            return None
        self._held = None
        ident, address, length, size, kind = fields
        beats = length + 1
        assert 1 << size == self._n_bytes, f"{self.name}size is {size}"
        assert kind == BURST_INCR, f"{self.name}burst is {kind}, not INCR"
        assert address % self._n_bytes == 0, f"{self.name}addr {address:#x} is not aligned"
        end = address % BOUNDARY_BYTES + beats * self._n_bytes
        assert end <= BOUNDARY_BYTES, f"{beats} beats at {address:#x} cross a 4 KB boundary"
        return Burst(ident, address, beats, cycle, cycle + latency)


class AxiReadMemory:
    """Slave of the read channels ``<prefix>__ar...`` and ``<prefix>__r...``.

    Bursts of one id are answered in order; with ``reorder`` the beats of different ids mix at
    random. ``latency`` is the number of cycles from an address to its first beat.

    Members
    -------
    data : the memory's bytes
    n_bytes : bytes of a beat
    bursts : every burst asked for, in order
    most_pending : largest number of bursts that waited for an answer
    n_refused : cycles in which a beat waited for ``rready``
    errors : addresses of beats that are answered with SLVERR, and with random data
    blocked : neither takes an address nor answers
    cycle : number of the current clock cycle, counted from the slave's start
    first, last : cycle of the first and of the last beat that was transferred
    """

    def __init__(
        self,
        dut: Any,
        prefix: str,
        data: bytearray,
        *,
        latency: int = 1,
        p_stall: float = 0.0,
        rng: Random | None = None,
        reorder: bool = False,
    ) -> None:
        def port(name: str) -> Any:
            return getattr(dut, f"{prefix}__{name}")

        self.data, self.bursts = data, list[Burst]()
        self.errors: set[int] = set()
        self.blocked = False
        self.most_pending = self.n_refused = self.cycle = self.n_beats = 0
        self.first = self.last = 0
        self._clk = dut.clk
        self._r = {name: port(f"r{name}") for name in ("id", "data", "resp", "last", "valid")}
        self._rready = port("rready")
        self.n_bytes = len(self._r["data"]) // 8
        self._ar = _Channel(dut, prefix, "ar", self.n_bytes)
        self._latency, self._p_stall, self._reorder = latency, p_stall, reorder
        self._rng = rng or Random(0)
        self._r["valid"].value = 0
        cocotb.start_soon(self._run())

    def _stalls(self) -> bool:
        return self.blocked or (self._p_stall > 0 and self._rng.random() < self._p_stall)

    async def _run(self) -> None:
        pending: dict[int, deque[Burst]] = {}
        offered: Burst | None = None
        while True:
            await RisingEdge(self._clk)
            self.cycle += 1
            self._ar.ready.value = int(not self._stalls())
            if offered is None and not self._stalls():
                offered = self._next(pending)
                if offered is not None:
                    self._offer(offered)
            self._r["valid"].value = int(offered is not None)
            await ReadOnly()
            burst = self._ar.sample(self.cycle, self._latency)
            if burst is not None:
                end = burst.address + burst.beats * self.n_bytes
                assert end <= len(self.data), f"{burst} is outside the memory"
                self.bursts.append(burst)
                # a slave that serves in order uses one key for everything
                key = burst.id if self._reorder else 0
                pending.setdefault(key, deque()).append(Burst(**vars(burst)))
                count = sum(map(len, pending.values()))
                self.most_pending = max(self.most_pending, count)
            if offered is not None:
                if self._rready.value == 1:
                    offered = self._transferred(offered, pending)
                else:
                    self.n_refused += 1

    def _next(self, pending: dict[int, deque[Burst]]) -> Burst | None:
        # the burst whose address came in cycle c is answered in cycle c + latency
        due = [queue[0] for queue in pending.values() if queue and queue[0].due <= self.cycle]
        return self._rng.choice(due) if due else None

    def _offer(self, burst: Burst) -> None:
        content = self.data[burst.address : burst.address + self.n_bytes]
        self._r["id"].value = burst.id
        wrong = burst.address in self.errors
        if wrong:
            content = self._rng.randbytes(self.n_bytes)
        self._r["data"].value = int.from_bytes(content, "little")
        self._r["resp"].value = RESP_SLVERR if wrong else RESP_OKAY
        self._r["last"].value = int(burst.beats == 1)

    def _transferred(self, burst: Burst, pending: dict[int, deque[Burst]]) -> None:
        self.n_beats += 1
        self.first = self.first or self.cycle
        self.last = self.cycle
        burst.address += self.n_bytes
        burst.beats -= 1
        if burst.beats == 0:
            pending[burst.id if self._reorder else 0].popleft()


class AxiWriteMemory:
    """Slave of the write channels ``<prefix>__aw...``, ``<prefix>__w...`` and ``<prefix>__b...``.

    ``latency`` is the number of cycles from a burst's last beat to its answer.

    Members
    -------
    data : the memory's bytes
    n_bytes : bytes of a beat
    bursts : every burst asked for, in order
    answered : bursts that were answered
    most_pending : largest number of bursts that waited for an answer
    n_waits : cycles in which an address had come, the data were awaited, and none were offered
    errors : addresses of bursts that are answered with SLVERR
    blocked : takes nothing and does not answer
    cycle : number of the current clock cycle, counted from the slave's start
    beat_cycles : cycle of each beat
    """

    def __init__(
        self,
        dut: Any,
        prefix: str,
        data: bytearray,
        *,
        latency: int = 1,
        p_stall: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        def port(name: str) -> Any:
            return getattr(dut, f"{prefix}__{name}")

        self.data, self.bursts = data, list[Burst]()
        self.errors: set[int] = set()
        self.blocked = False
        self.answered = self.most_pending = self.n_waits = self.cycle = 0
        self.beat_cycles: list[int] = []
        self._clk = dut.clk
        self._w = {name: port(f"w{name}") for name in ("data", "strb", "last", "valid")}
        self._wready = port("wready")
        self._b = {name: port(f"b{name}") for name in ("id", "resp", "valid")}
        self._bready = port("bready")
        self.n_bytes = len(self._w["data"]) // 8
        self._aw = _Channel(dut, prefix, "aw", self.n_bytes)
        self._latency, self._p_stall, self._rng = latency, p_stall, rng or Random(0)
        self._wready.value = 0
        self._b["valid"].value = 0
        cocotb.start_soon(self._run())

    def _stalls(self) -> bool:
        return self.blocked or (self._p_stall > 0 and self._rng.random() < self._p_stall)

    async def _run(self) -> None:
        addressed = deque[Burst]()  # wait for their data
        beats = deque[tuple[int, int, int]]()  # wait for their address
        written = deque[Burst]()  # wait for their answer
        done, answering = 0, False
        while True:
            await RisingEdge(self._clk)
            self.cycle += 1
            self._aw.ready.value = int(not self._stalls())
            self._wready.value = int(not self._stalls())
            if not answering and written and written[0].due <= self.cycle and not self._stalls():
                answering = True
                self._b["id"].value = written[0].id
                wrong = written[0].address in self.errors
                self._b["resp"].value = RESP_SLVERR if wrong else RESP_OKAY
            self._b["valid"].value = int(answering)
            await ReadOnly()
            burst = self._aw.sample(self.cycle, self._latency)
            if burst is not None:
                end = burst.address + burst.beats * self.n_bytes
                assert end <= len(self.data), f"{burst} is outside the memory"
                self.bursts.append(burst)
                addressed.append(burst)
            valid = self._w["valid"].value == 1
            if valid and self._wready.value == 1:
                fields = (int(self._w[name].value) for name in ("data", "strb", "last"))
                beats.append(tuple(fields))  # type: ignore[arg-type]
                self.beat_cycles.append(self.cycle)
            self.n_waits += bool(addressed and not beats and not valid)
            while addressed and beats:
                content, strobe, last = beats.popleft()
                self._store(addressed[0].address + done * self.n_bytes, content, strobe)
                done += 1
                assert last == (done == addressed[0].beats), f"wlast is {last} in beat {done}"
                if last:
                    addressed[0].due = self.cycle + self._latency
                    written.append(addressed.popleft())
                    done = 0
            self.most_pending = max(self.most_pending, len(addressed) + len(written))
            if answering and self._bready.value == 1:
                written.popleft()
                self.answered += 1
                answering = False

    def _store(self, address: int, content: int, strobe: int) -> None:
        for index, byte in enumerate(content.to_bytes(self.n_bytes, "little")):
            if strobe >> index & 1:
                self.data[address + index] = byte
