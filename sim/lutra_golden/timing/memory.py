"""Memory behind the accelerator's ports: bandwidth, latency, refresh and stalls."""

import random
from dataclasses import dataclass
from typing import Any

__all__ = ["IDEAL_MEMORY", "NANO_MEMORY", "MemoryTiming", "Rate", "random_timing"]

_MAX_CYCLES = (1 << 32) - 1
_FURTHER_RATES = 4  # ports behind the first two that have one of their own

Rate = tuple[int, int]
"""An amount, and the clock cycles in which at most that much moves."""


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """Bandwidth, latency and gaps of the memory behind the AXI4 masters, in clock cycles.

    Reads and writes of a port each move no more beats than ``rates`` has for it, one for each port
    in their order, the last one for all that follow; never more than one in a cycle. What all ports
    move together is at most ``total_rate``, in bytes; None is no limit. The first data of a read
    follow its address by ``read_latency`` cycles, the answer to a write its last data by
    ``write_latency``; each is longer by up to ``latency_jitter`` cycles, drawn from ``seed``. With
    jitter, reads of different ids are answered in any order. Nothing moves in the first
    ``refresh_cycles`` of every ``refresh_interval``; 0 is no refresh. ``stall`` is the probability
    that a channel stands still in a cycle.
    """

    rates: tuple[Rate, ...] = ((1, 1),)
    total_rate: Rate | None = None
    read_latency: int = 1
    write_latency: int = 1
    latency_jitter: int = 0
    max_outstanding: int = 32
    refresh_interval: int = 0
    refresh_cycles: int = 0
    stall: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rates:
            raise ValueError("rates must have one for the first port")
        for number, (beats, cycles) in enumerate(self.rates):
            _check_int(f"beats of rates[{number}]", beats, 1, cycles)
            _check_int(f"cycles of rates[{number}]", cycles, 1, 1 << 16)
        for name, value in zip(("bytes", "cycles"), self.total_rate or (), strict=False):
            _check_int(f"{name} of total_rate", value, 1, _MAX_CYCLES)
        for name in ("read_latency", "write_latency", "max_outstanding"):
            _check_int(name, getattr(self, name), 1, _MAX_CYCLES)
        for name in ("latency_jitter", "refresh_interval"):
            _check_int(name, getattr(self, name), 0, _MAX_CYCLES)
        _check_int("refresh_cycles", self.refresh_cycles, 0, max(self.refresh_interval - 1, 0))
        _check_int("seed", self.seed, 0, _MAX_CYCLES)
        if not 0 <= self.stall < 1:
            raise ValueError(f"stall must be in [0, 1), not {self.stall}")

    def rate(self, port: int) -> Rate:
        """Beats of a port, by its number, and the cycles in which they move."""
        return self.rates[min(port, len(self.rates) - 1)]

    @property
    def refreshed(self) -> float:
        """Share of the cycles in which the memory is not being refreshed."""
        return 1 - self.refresh_cycles / self.refresh_interval if self.refresh_interval else 1.0

    @property
    def mean_read_latency(self) -> float:
        """Cycles from an address to the first data, on average."""
        return self.read_latency + self.latency_jitter / 2

    @property
    def mean_write_latency(self) -> float:
        """Cycles from the last data to their answer, on average."""
        return self.write_latency + self.latency_jitter / 2


def _check_int(name: str, value: Any, minimum: int, maximum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if not minimum <= value <= maximum:
        raise ValueError(f"{name} must be in {minimum}..{maximum}, not {value}")


IDEAL_MEMORY = MemoryTiming()
"""Answers in the next cycle, a beat in every cycle."""

NANO_MEMORY = MemoryTiming(read_latency=40, write_latency=20)
"""Full rate after the latency of a DRAM controller; the simulated device's default."""


def random_timing(seed: int) -> MemoryTiming:
    """A memory unlike any other: rates, latencies, gaps and stalls follow from ``seed``."""
    # other ports came later: numbers of their own leave those of the first two as they were
    draw, further = random.Random(seed), random.Random(~seed)

    def rate(draw: random.Random) -> Rate:
        cycles = draw.randint(1, 5)
        return draw.randint(max(1, cycles - 2), cycles), cycles

    refresh_interval = draw.choice([0, 500])
    return MemoryTiming(
        rates=(rate(draw), rate(draw), *(rate(further) for _ in range(_FURTHER_RATES))),
        read_latency=draw.choice([1, 2, 7, 30]),
        write_latency=draw.choice([1, 2, 7, 30]),
        latency_jitter=draw.choice([1, 5, 40]),
        max_outstanding=draw.choice([1, 2, 4, 32]),
        refresh_interval=refresh_interval,
        refresh_cycles=40 if refresh_interval else 0,
        stall=draw.choice([0.0, 0.1, 0.5]),
        seed=seed,
    )
