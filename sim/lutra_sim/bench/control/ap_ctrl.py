"""Host and accelerator around :class:`lutra_hw.control.ap_ctrl.ApCtrlChain`, in any simulator.

Of a port's signals ``s_axi.awaddr`` is called ``s_awaddr`` here, ``m_axi.awaddr`` ``m_awaddr``.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from lutra_golden.control.ap_ctrl import (
    AP_CONTINUE,
    AP_IDLE,
    AP_START,
    WINDOW,
    XRT_REGISTERS,
    ApCtrl,
)
from lutra_golden.control.descriptor import QUEUE_DEPTH
from lutra_golden.control.registers import REGISTERS
from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR

__all__ = [
    "INTERRUPT",
    "OWN",
    "SIGNALS",
    "FrontBench",
    "Host",
    "busy_host",
    "overtaken_read",
    "random_traffic",
]

INTERRUPT = "interrupt"
CTRL, GIE, IER, ISR, DESCRIPTOR = (each.address for each in XRT_REGISTERS.values())
DOORBELL, PENDING = (REGISTERS[name].address for name in ("DOORBELL", "PENDING"))
OWN = [*range(0, 0x18, 4), 0x18, WINDOW - 4]
"""Addresses of the front end, some of which are nothing."""
# a word beside each of those that the front end uses itself, and one of every answer
OTHERS = [WINDOW + each for each in (0, DOORBELL - 4, PENDING + 4, 0x7F8, 0xFFC)]

_CHANNELS: Mapping[str, Sequence[str]] = {
    "aw": ["addr"],
    "w": ["data", "strb"],
    "b": ["resp"],
    "ar": ["addr"],
    "r": ["data", "resp"],
}
SIGNALS = [
    f"{side}_{channel}{name}"
    for side in "sm"
    for channel, names in _CHANNELS.items()
    for name in ("ready", "valid", *names)
]
"""Signals of both ports that mean anything."""


def _response(address: int) -> int:
    """The accelerator's answer to an access."""
    return RESP_SLVERR if address & 8 else RESP_OKAY


class _Port:
    """One end of a channel of an AXI4-Lite port, which stalls with a chance of ``p_stall``.

    ``words`` wait to be sent, or were taken.
    """

    def __init__(self, side: str, channel: str, p_stall: float) -> None:
        self.name, self.p_stall = f"{side}_{channel}", p_stall
        # answers go to the host, and come from the accelerator
        self.takes = (channel in "br") == (side == "s")
        self.words = deque[tuple[int, ...]]()
        self._names = [f"{self.name}{name}" for name in _CHANNELS[channel]]
        self._driven = 0

    def drive(self, stalls: bool) -> dict[str, int]:
        """Signals that change: a word is offered, or to take one, in the next cycle."""
        if self.takes:
            if self._driven == stalls:
                self._driven = int(not stalls)
                return {f"{self.name}ready": self._driven}
        elif not self._driven and self.words and not stalls:
            self._driven = 1
            return {f"{self.name}valid": 1, **dict(zip(self._names, self.words[0], strict=True))}
        return {}

    def move(self, now: Mapping[str, int]) -> dict[str, int]:
        """A cycle is over: take the word that was offered, or go on to the next."""
        if not (now[f"{self.name}valid"] and now[f"{self.name}ready"]):
            return {}
        if self.takes:
            self.words.append(tuple(now[name] for name in self._names))
            return {}
        self.words.popleft()
        self._driven = 0
        return {f"{self.name}valid": 0}


class FrontBench:
    """Host and accelerator, and the model, which follows the front end's ports.

    The host's side stalls with a chance of ``p_host``, the accelerator's with ``p_core``.

    Members
    -------
    starts, rung : arguments that were started, values that came to the doorbell
    n_over, n_done : descriptors that are over, and those that the model knows to be
    p_over, p_answer : chances of a cycle that a descriptor ends, and that a read is answered
    values : what was read of the accelerator and is not answered yet
    """

    def __init__(self, seed: int, *, p_host: float = 0.0, p_core: float = 0.0) -> None:
        self.rng, self.model = Random(seed), ApCtrl()
        self.ports = {
            f"{side}_{channel}": _Port(side, channel, p_stall)
            for side, p_stall in (("s", p_host), ("m", p_core))
            for channel in _CHANNELS
        }
        self.writes, self.reads = deque[tuple[int, int, int]](), deque[int]()
        self.starts, self.rung = list[int](), list[int]()
        self._forwarded, self._sent = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
        self._before = dict.fromkeys(SIGNALS, 0)
        self.pending = self.n_over = self.n_done = self.n_read = 0
        self.p_over, self.p_answer = 0.02, 0.3
        self.values = deque[tuple[int, int]]()

    def drive(self) -> dict[str, int]:
        """Signals that change before the next cycle."""
        changes: dict[str, int] = {}
        for port in self.ports.values():
            changes |= port.drive(self.rng.random() < port.p_stall)
        return changes

    def step(self, now: Mapping[str, int]) -> dict[str, int]:
        """End of a cycle with these signals and :data:`INTERRUPT`; returns those that change."""
        changes: dict[str, int] = {}
        for port in self.ports.values():
            changes |= port.move(now)
        self._watch(now)
        self._core()
        return changes

    def finish(self) -> None:
        """Check what can only be checked at the end."""
        assert self._sent == self._forwarded

    # -- the host

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

    def settle(self) -> Iterator[None]:
        """Wait, cycle by cycle, until the host's accesses are answered."""
        while self.writes or self.reads:
            yield

    # -- the accelerator

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
                self._forwarded.append((WINDOW + address, value, strobes))
            b.append((_response(address),))
        if ar and self.rng.random() < 0.7:
            (address,) = ar.popleft()
            value = self.pending if address == PENDING else address * 0x10_0001
            self.values.append((value, _response(address)))
        if self.values and self.rng.random() < self.p_answer:
            r.append(self.values.popleft())

    # -- the model

    def _watch(self, now: Mapping[str, int]) -> None:
        """Move the model as the front end has moved, and compare all that can be seen of both."""
        model, before = self.model, self._before
        risen = {name for name in SIGNALS if now[name] and not before[name]}
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
        assert now[INTERRUPT] == model.interrupt
        self._before = dict(now)

    def _check_write(self, now: Mapping[str, int], refuses: bool) -> None:
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

    def _check_read(self, now: Mapping[str, int]) -> None:
        address = self.reads.popleft()
        self.n_read += 1
        if address < WINDOW:
            value = self.model.read(address)
            expected = (0, RESP_SLVERR) if value is None else (value, RESP_OKAY)
        else:
            expected = (address - WINDOW) * 0x10_0001, _response(address)
        assert (now["s_rdata"], now["s_rresp"]) == expected, f"read of {address:#x}"


Host = Callable[[FrontBench], Iterator[None]]
"""Actions of a host; it waits a cycle with each ``yield``."""


def _random_access(bench: FrontBench) -> None:
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


def random_traffic(bench: FrontBench, n_accesses: int = 250) -> Iterator[None]:
    """Accesses of every kind; then all that was started ends, and is acknowledged."""
    rng = bench.rng
    for _ in range(n_accesses):
        _random_access(bench)
        for _ in range(rng.randrange(4)):
            bench.read(rng.choice([CTRL, ISR, rng.choice(OWN + OTHERS)]))
        if rng.random() < 0.6:
            yield from bench.settle()
        if rng.random() < 0.1:
            for _ in range(rng.randrange(1, 200)):
                yield
    yield from bench.settle()
    while bench.model.control != AP_IDLE:
        bench.write(CTRL, AP_CONTINUE)
        bench.read(CTRL)
        yield from bench.settle()
    fitting = [each >> 8 for each in bench.starts if not each & 0xFF and each < 1 << 40]
    assert bench.rung == fitting and len(fitting) > 20
    assert len(bench.starts) > len(fitting) + 3
    assert bench.n_done == bench.n_over == len(fitting)


def overtaken_read(bench: FrontBench) -> Iterator[None]:
    """PENDING was read before the accelerator had the second descriptor, and does not count."""
    bench.p_over = bench.p_answer = 0.0
    bench.start(0x100)
    while not bench.values:
        yield
    bench.start(0x200)
    while bench.model.outstanding < 2:
        yield
    bench.p_answer = 1.0
    for _ in range(30):
        yield
    bench.read(CTRL)
    yield from bench.settle()
    assert bench.n_done == 0


def busy_host(bench: FrontBench) -> Iterator[None]:
    """A host that always accesses the accelerator takes turns with the front end's own accesses.

    Nor does the front end keep the host from its.
    """
    bench.p_over = 0.2
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
            yield
        bench.start(0x200)
    n_read = bench.n_read
    bench.p_over = 0.0
    for _ in range(300):
        if len(bench.reads) < 3:
            bench.read(OTHERS[0])
        yield
    assert bench.n_read > n_read + 10
    yield from bench.settle()
