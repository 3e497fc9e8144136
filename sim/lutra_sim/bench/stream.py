"""cocotb drivers and monitors of Amaranth streams, and the packing of their payloads.

Every class works in the middle of a clock cycle: what it drives and samples after one rising edge
is what the component sees at the next. Nothing is transferred while ``rst`` is high.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

import cocotb
from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge

__all__ = ["StreamMonitor", "StreamSink", "StreamSource", "pack", "reset", "unpack"]


async def reset(dut: Any, *, period_ns: int = 10, n_cycles: int = 2) -> None:
    """Start the clock of ``dut`` and hold ``rst`` high over ``n_cycles`` rising edges.

    Create the drivers first: they put the streams to rest.
    """
    dut.rst.value = 1
    Clock(dut.clk, period_ns, unit="ns").start()
    for _ in range(n_cycles):
        await RisingEdge(dut.clk)
    dut.rst.value = 0


class _Port:
    """Handles of the stream ``name``: ``<name>__payload``, ``<name>__valid``, ``<name>__ready``."""

    def __init__(self, dut: Any, name: str) -> None:
        self.name = name
        self.clk, self.rst = dut.clk, dut.rst
        self.payload = getattr(dut, f"{name}__payload")
        self.valid = getattr(dut, f"{name}__valid")
        self.ready = getattr(dut, f"{name}__ready")

    def transfers(self) -> bool:
        """True if the next edge transfers a payload; call in a ReadOnly phase only."""
        return self.rst.value == 0 and self.valid.value == 1 and self.ready.value == 1


class StreamSource:
    """Sends payloads into the input stream ``name``, in order.

    Parameters
    ----------
    p_stall :
        Chance in each cycle that an idle source does not offer its next payload.
    rng :
        Where the chance is drawn from; needed when ``p_stall`` is not zero.
    """

    def __init__(
        self, dut: Any, name: str, *, p_stall: float = 0.0, rng: Random | None = None
    ) -> None:
        self._port, self._stalls = _Port(dut, name), _stalls(p_stall, rng)
        self._queue: deque[int] = deque()
        self._port.valid.value = 0
        cocotb.start_soon(self._run())

    def send(self, payload: int) -> None:
        """Queue one packed payload."""
        self._queue.append(payload)

    def send_all(self, payloads: Iterable[int]) -> None:
        """Queue packed payloads."""
        self._queue.extend(payloads)

    async def drained(self) -> None:
        """Wait until every queued payload has been accepted."""
        while self._queue:
            await RisingEdge(self._port.clk)

    async def _run(self) -> None:
        port, offering = self._port, False
        while True:
            await RisingEdge(port.clk)
            if not offering and self._queue and port.rst.value == 0 and not self._stalls():
                offering = True
                port.payload.value = self._queue[0]
            port.valid.value = int(offering)
            await ReadOnly()
            if offering and port.transfers():
                self._queue.popleft()
                offering = False


class StreamSink:
    """Accepts what the output stream ``name`` offers; a :class:`StreamMonitor` collects it.

    Parameters
    ----------
    p_stall :
        Chance in each cycle that the sink is not ready.
    rng :
        Where the chance is drawn from; needed when ``p_stall`` is not zero.
    wait_for_valid :
        Raise ``ready`` only after ``valid`` was seen: finds outputs that wait for ``ready``.
    """

    def __init__(
        self,
        dut: Any,
        name: str,
        *,
        p_stall: float = 0.0,
        rng: Random | None = None,
        wait_for_valid: bool = False,
    ) -> None:
        self._port, self._stalls = _Port(dut, name), _stalls(p_stall, rng)
        self._wait_for_valid = wait_for_valid
        self._port.ready.value = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        port, waiting = self._port, False
        while True:
            await RisingEdge(port.clk)
            port.ready.value = int((waiting or not self._wait_for_valid) and not self._stalls())
            await ReadOnly()
            waiting = port.valid.value == 1 and port.ready.value == 0


class StreamMonitor:
    """Records the transfers of the stream ``name``, input or output, and checks its rules.

    A stream that takes back a payload it has offered, or changes it before it was accepted,
    fails the test.

    Members
    -------
    payloads : packed payloads, in order of transfer
    cycles : number of the clock cycle of each transfer, counted from the monitor's start; two
        monitors made at the same time share one count, so that latency is a difference
    cycle : number of the current clock cycle
    """

    def __init__(self, dut: Any, name: str) -> None:
        self._port = _Port(dut, name)
        self.payloads: list[int] = []
        self.cycles: list[int] = []
        self.cycle = 0
        cocotb.start_soon(self._run())

    async def wait_for(self, n_payloads: int, *, max_cycles: int = 100_000) -> list[int]:
        """Wait until ``n_payloads`` were transferred, and return all that were.

        Raises AssertionError when they were not after ``max_cycles`` more cycles.
        """
        last = self.cycle + max_cycles
        while len(self.payloads) < n_payloads:
            await RisingEdge(self._port.clk)
            assert self.cycle < last, (
                f"stream {self._port.name}: {len(self.payloads)} of {n_payloads} payloads "
                f"after {max_cycles} cycles"
            )
        return self.payloads

    async def _run(self) -> None:
        port = self._port
        held: int | None = None
        while True:
            await RisingEdge(port.clk)
            await ReadOnly()
            self.cycle += 1
            if port.rst.value == 1:
                held = None
                continue
            valid = port.valid.value == 1
            assert valid or held is None, (
                f"stream {port.name}: valid fell in cycle {self.cycle} before the transfer"
            )
            if not valid:
                continue
            payload = port.payload.value.to_unsigned()
            assert held is None or payload == held, (
                f"stream {port.name}: payload changed from {held:#x} to {payload:#x} "
                f"in cycle {self.cycle} before the transfer"
            )
            held = payload
            if port.ready.value == 1:
                held = None
                self.payloads.append(payload)
                self.cycles.append(self.cycle)


def pack(shape: ShapeLike, value: Any) -> int:
    """``value`` as the bits of ``shape``.

    A struct takes a mapping, an array a sequence (or 1-D NumPy array), anything else an integer.
    """
    layout = _layout(shape)
    if layout is None:
        plain = Shape.cast(shape)
        bits = int(value) & ((1 << plain.width) - 1)
        assert _plain(plain, bits) == int(value), f"{value} does not fit {plain!r}"
        return bits
    keyed: Mapping[Any, Any] = value if isinstance(value, Mapping) else dict(enumerate(value))
    fields = dict(layout)
    assert keyed.keys() == fields.keys(), f"fields are {list(fields)}, not {list(keyed)}"
    return sum(pack(field.shape, keyed[key]) << field.offset for key, field in fields.items())


def unpack(shape: ShapeLike, bits: int) -> Any:
    """Undo :func:`pack`: a struct becomes a dict, an array a list, anything else an integer."""
    layout = _layout(shape)
    if layout is None:
        plain = Shape.cast(shape)
        return _plain(plain, bits & ((1 << plain.width) - 1))
    values = {key: unpack(field.shape, bits >> field.offset) for key, field in layout}
    return list(values.values()) if isinstance(layout, data.ArrayLayout) else values


def _layout(shape: Any) -> data.Layout | None:
    """The layout of a struct or array; None if ``shape`` is a single integer."""
    if isinstance(shape, type) and issubclass(shape, data.Struct):
        struct: Any = shape
        return data.Layout.cast(struct)
    return shape if isinstance(shape, data.Layout) else None


def _plain(shape: Shape, bits: int) -> int:
    return bits - (1 << shape.width) if shape.signed and bits >> (shape.width - 1) else bits


def _stalls(p_stall: float, rng: Random | None) -> Callable[[], bool]:
    if not p_stall:
        return lambda: False
    if rng is None:
        raise ValueError("a stalling driver needs rng, so that the run can be repeated")
    return lambda: rng.random() < p_stall
