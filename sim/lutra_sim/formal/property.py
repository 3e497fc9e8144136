"""Base of all proofs: a component with free inputs, and rules about its ports."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth import Cat, ClockDomain, Const, Module, Mux, Shape, Signal, Value
from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]
from amaranth.hdl import Assert, Assume
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["CLAIM", "MODEL", "Channel", "Property", "Token", "channels", "past", "recorded"]

CLAIM = "claim"
"""``<CLAIM>:<n>`` is claim n in what a solver prints."""
MODEL = "model_of_"
"""``<MODEL><primitive>`` is Yosys' own model of a primitive, which a design may have instances of
beside the twin of that name."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A stream, or a channel of an AXI port: both are kept by the same rule."""

    name: str
    valid: Value
    ready: Value
    payload: Value
    offered: bool
    """The component drives ``valid``."""

    @property
    def transfer(self) -> Value:
        """A word goes over."""
        return self.valid & self.ready


def channels(dut: wiring.Component) -> Iterator[Channel]:
    """Every channel of ``dut``: ``<prefix>valid`` with its ``<prefix>ready`` and what is beside."""
    ports = {path: (member, value) for path, member, value in dut.signature.flatten(dut)}
    for (*parent, last), (member, valid) in ports.items():
        if not str(last).endswith("valid"):
            continue
        prefix = str(last).removesuffix("valid")
        ready = ports.get((*parent, f"{prefix}ready"))
        if ready is None:
            continue
        payload = [
            Value.cast(value)
            for path, (_, value) in ports.items()
            if path[: len(parent)] == tuple(parent)
            and str(path[len(parent)]).startswith(prefix)
            and path[len(parent)] not in (f"{prefix}valid", f"{prefix}ready")
        ]
        yield Channel(
            name="_".join(map(str, (*parent, prefix))).strip("_"),
            valid=Value.cast(valid),
            ready=Value.cast(ready[1]),
            payload=Cat(*payload),
            offered=member.flow is not In,
        )


def past(m: Module, value: Any, name: str) -> Signal:
    """``value`` a cycle ago; zero in the first cycle."""
    value = Value.cast(value)
    before = Signal(value.shape(), name=f"{name}_past")
    m.d.sync += before.eq(value)
    return before


class Token:
    """One word, any, of all that enter; how many are ahead of it at each of several places.

    The solver picks the word: where it likes, and only one at a time, so that few bits tell what
    counters of all words would need many for.
    """

    def __init__(
        self, prop: "Property", m: Module, places: Sequence[str], *, width: int, name: str = "token"
    ) -> None:
        self._m = m
        self.live = Signal(name=f"{name}_live")
        self._picked = prop.free(1, f"{name}_pick")
        self._offset = prop.free(width, f"{name}_offset")
        self._prop, self._name = prop, name
        self.left = {place: Signal(width, name=f"{name}_{place}_left") for place in places}
        """Words that entered and have not passed the place."""
        self._ahead = {place: Signal(width, name=f"{name}_{place}_ahead") for place in places}
        self._waits = {place: Signal(name=f"{name}_{place}_waits") for place in places}

    def enter(self, transfer: Any, n: Any = 1) -> tuple[Value, Value]:
        """``n`` words enter where ``transfer`` is; returns whether one of them becomes the token,
        and which."""
        m = self._m
        pick = Signal(name=f"{self._name}_picked")
        m.d.comb += pick.eq(transfer & self._picked & ~self.live & (self._offset < n))
        with m.If(pick):
            m.d.sync += self.live.eq(1)
            for place, ahead in self._ahead.items():
                m.d.sync += [
                    ahead.eq(self.left[place] + self._offset),
                    self._waits[place].eq(1),
                ]
        self._entering = Mux(transfer, n, 0)
        self._pick = pick
        return pick, self._offset

    def passes(self, place: str, transfer: Any, n: Any = 1) -> tuple[Value, Value]:
        """``n`` words pass ``place`` where ``transfer`` is; returns whether the token is among
        them, and as which."""
        m = self._m
        ahead, waits = self._ahead[place], self._waits[place]
        here = Signal(name=f"{self._name}_{place}_here")
        leaving = Mux(transfer, n, 0)
        m.d.comb += here.eq(transfer & waits & (ahead < n))
        m.d.sync += self.left[place].eq(self.left[place] + self._entering - leaving)
        with m.If(here):
            m.d.sync += waits.eq(0)
            if place == next(reversed(self._ahead)):
                m.d.sync += self.live.eq(0)
        with m.Elif(waits):
            m.d.sync += ahead.eq(ahead - leaving)
        with m.Elif(self._pick):
            # what leaves in the cycle in which the token enters was ahead of it
            m.d.sync += ahead.eq(self.left[place] + self._offset - leaving)
        return here, ahead


def recorded(m: Module, event: Any, value: Any, name: str) -> Signal:
    """``value`` of the last cycle before this one in which ``event`` was."""
    value = Value.cast(value)
    record = Signal(value.shape(), name=f"{name}_record")
    with m.If(event):
        m.d.sync += record.eq(value)
    return record


class Property(ABC):
    """Rules that ``dut`` keeps from its reset state on, whatever its inputs do.

    Every input of ``dut`` is free in every cycle, but that streams into it keep the rule of
    streams: once valid, they stay as they are until they are taken. Subclasses state the rest in
    :meth:`rules`: what is assumed of the inputs and what is claimed. A proof has no reset; it
    begins with the registers' initial values.
    """

    def __init__(self, dut: wiring.Component) -> None:
        self.dut: Any = dut
        self.channels = {channel.name: channel for channel in channels(dut)}
        self.claims: list[str] = []
        self.probes: list[str] = []
        self.cuts: list[str] = []
        self.models: list[str] = []
        self._clock: Any = ClockDomain("sync", reset_less=True)
        self._ports: list[Any] = [self._clock.clk]

    @property
    def depth(self) -> int | None:
        """Cycles that a check has to look at, where they depend on ``dut``."""
        return None

    @abstractmethod
    def rules(self, m: Module) -> None:
        """Add assumptions and claims to ``m``."""

    def free(self, shape: Any, name: str) -> Any:
        """A value that may be another in every cycle."""
        signal = Signal(shape, name=name)
        self._ports.append(Value.cast(signal))
        return signal

    def probe(self, path: str, shape: Any, *, cut: bool = False) -> Any:
        """The signal ``path`` inside the component, for invariants that an induction needs.

        With ``cut`` nothing in the component drives it: it may be another in every cycle. A claim
        then holds for more than what the component puts there, and its proof needs less.
        """
        if cut:
            self.cuts.append(path)
        signal = self.free(shape, f"probe_{len(self.probes)}")
        self.probes.append(path)
        return signal

    def constant(self, m: Module, shape: Any, name: str) -> Any:
        """A value that may be any, but is the same in all cycles; 0 if there is no other."""
        if Shape.cast(shape).width == 0:
            # solvers have no term for it when they write a trace
            return Const(0, 0)
        value = self.free(shape, name)
        running = Signal(name=f"{name}_running")
        m.d.sync += running.eq(1)
        self.assume(m, ~running | (past(m, value, name) == Value.cast(value)))
        return value

    @staticmethod
    def assume(m: Module, *conditions: Any) -> None:
        """Look at inputs that keep ``conditions`` only."""
        m.d.comb += [Assume(condition, None) for condition in conditions]

    def claim(self, m: Module, what: str, condition: Any) -> None:
        """Demand ``condition``, which is ``what`` in words, in every cycle."""
        statement: Any = Assert(condition, None)
        # the solver names a claim by its place; by this one it is found in ``claims``
        statement.src_loc = (CLAIM, len(self.claims))
        self.claims.append(what)
        m.d.comb += statement

    @staticmethod
    def kept(m: Module, channel: Channel) -> Value:
        """True if ``channel`` obeys the stream rules in this cycle."""
        waits = past(m, channel.valid & ~channel.ready, f"{channel.name}_waits")
        payload = past(m, channel.payload, channel.name)
        return ~waits | (channel.valid & (channel.payload == payload))

    def convert(self) -> str:
        """RTLIL of the rules and the component."""
        m = Module()
        m.domains.sync = self._clock
        m.submodules.dut = self.dut

        for path, member, value in self.dut.signature.flatten(self.dut):
            # smtbmc cannot write the trace of a failure where an input has no bits
            if member.flow is In and len(Value.cast(value)):
                port = self.free(Value.cast(value).shape(), "_".join(map(str, path)))
                m.d.comb += Value.cast(value).eq(port)
        for channel in self.channels.values():
            if not channel.offered:
                self.assume(m, self.kept(m, channel))

        self.rules(m)
        return rtlil.convert(m, name="top", ports=self._ports)
