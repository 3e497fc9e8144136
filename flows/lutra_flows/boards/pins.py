"""Pins of a top module, and the buses that they form, as packaged IP describes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lutra_golden.core.packaging import INTERRUPT, REGISTER_PORT
from lutra_golden.core.ports import port_name
from lutra_golden.strings import StringEnum

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

__all__ = ["CLOCK", "RESET", "Bus", "Pin", "Role", "TopPins", "pins_of"]

CLOCK, RESET = "ap_clk", "ap_rst_n"


class Role(StringEnum):
    """Kind of a bus."""

    CONTROL = "control"
    """AXI4-Lite slave."""
    MEMORY = "memory"
    """AXI4 master."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A pin of the top module."""

    name: str
    width: int
    is_input: bool


@dataclass(frozen=True, kw_only=True)
class Bus:
    """Pins of one AXI bus by the signals' names."""

    name: str
    role: Role
    signals: Mapping[str, Pin]

    @property
    def data_width(self) -> int:
        """Bits of a beat."""
        return next(self.signals[name].width for name in ("rdata", "wdata") if name in self.signals)

    @property
    def address_width(self) -> int:
        """Bits of an address."""
        return next(
            self.signals[name].width for name in ("araddr", "awaddr") if name in self.signals
        )

    @property
    def reads(self) -> bool:
        """True if the bus has read channels."""
        return "arvalid" in self.signals

    @property
    def writes(self) -> bool:
        """True if the bus has write channels."""
        return "awvalid" in self.signals

    @property
    def mode(self) -> str:
        """``READ_WRITE_MODE`` of AXI interfaces in Vivado."""
        return {(True, True): "READ_WRITE", (True, False): "READ_ONLY"}.get(
            (self.reads, self.writes), "WRITE_ONLY"
        )


@dataclass(frozen=True, kw_only=True)
class TopPins:
    """The top module: its pins, and the buses of them; the rest are clock, reset and interrupt."""

    name: str
    pins: Sequence[Pin]
    buses: Sequence[Bus]

    @property
    def masters(self) -> Sequence[Bus]:
        """Buses to memory."""
        return [bus for bus in self.buses if bus.role == Role.MEMORY]

    @property
    def control(self) -> Bus:
        """Bus of the registers."""
        return next(bus for bus in self.buses if bus.role == Role.CONTROL)


def pins_of(component: Component, name: str, n_ports: int) -> TopPins:
    """Pins of ``component``, a top module for boards with ``n_ports`` memory ports."""
    from amaranth.hdl import Shape
    from amaranth.lib.wiring import In

    pins = [
        Pin(name=pin, width=Shape.cast(member.shape).width, is_input=member.flow is In)
        for pin, member in component.signature.members.items()
    ]
    roles = {REGISTER_PORT: Role.CONTROL} | {
        port_name(number): Role.MEMORY for number in range(n_ports)
    }
    buses = [
        Bus(name=bus, role=role, signals=dict(_signals(pins, bus))) for bus, role in roles.items()
    ]
    single = {pin.name for pin in pins} - {
        pin.name for bus in buses for pin in bus.signals.values()
    }
    expected = {CLOCK, RESET, INTERRUPT}
    assert single == expected, f"pins that no bus has must be {expected}, not {single}"
    return TopPins(name=name, pins=pins, buses=buses)


def _signals(pins: Sequence[Pin], bus: str) -> Iterator[tuple[str, Pin]]:
    for pin in pins:
        if pin.name.startswith(f"{bus}_"):
            yield pin.name.removeprefix(f"{bus}_"), pin
