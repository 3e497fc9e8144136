"""Settings of the harness, passed when a device is made; source of the structure in design.h."""

import ctypes

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import PORTS_MAX
from lutra_golden.timing.memory import MemoryTiming

__all__ = ["Settings"]

_C_TYPES = {ctypes.c_uint32: "uint32_t", ctypes.c_uint64: "uint64_t"}


class Settings(ctypes.Structure):
    """:class:`MemoryTiming` and more, as C sees it."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("watchdog_cycles", ctypes.c_uint64),  # 0: never
        ("clock_ps", ctypes.c_uint64),
        ("read_latency", ctypes.c_uint32),
        ("write_latency", ctypes.c_uint32),
        ("latency_jitter", ctypes.c_uint32),
        ("max_outstanding", ctypes.c_uint32),
        ("beats", ctypes.c_uint32 * PORTS_MAX),  # per ``cycles``, for each port
        ("cycles", ctypes.c_uint32 * PORTS_MAX),
        ("total_bytes", ctypes.c_uint32),  # per ``total_cycles``, for all ports; 0: no limit
        ("total_cycles", ctypes.c_uint32),
        ("refresh_interval", ctypes.c_uint32),  # 0: never
        ("refresh_cycles", ctypes.c_uint32),
        ("stall", ctypes.c_uint32),  # of 2^32, per channel and cycle
    )

    @classmethod
    def of(
        cls, timing: MemoryTiming, config: AcceleratorConfig, *, watchdog_cycles: int
    ) -> "Settings":
        """Settings of a device of ``config``."""
        rates = [timing.rate(number) for number in range(len(config.ports))]
        total_bytes, total_cycles = timing.total_rate or (0, 0)
        return cls(
            seed=timing.seed,
            watchdog_cycles=watchdog_cycles,
            clock_ps=max(2, 10**12 // config.clock_hz),
            read_latency=timing.read_latency,
            write_latency=timing.write_latency,
            latency_jitter=timing.latency_jitter,
            max_outstanding=timing.max_outstanding,
            beats=(ctypes.c_uint32 * PORTS_MAX)(*(beats for beats, _ in rates)),
            cycles=(ctypes.c_uint32 * PORTS_MAX)(*(cycles for _, cycles in rates)),
            total_bytes=total_bytes,
            total_cycles=total_cycles,
            refresh_interval=timing.refresh_interval,
            refresh_cycles=timing.refresh_cycles,
            stall=int(timing.stall * 2**32),
        )

    @classmethod
    def declaration(cls) -> str:
        """The structure in C++."""
        members = [f"    {_member(field[0], field[1])};" for field in cls._fields_]
        return "\n".join(["struct Settings {", *members, "};"])


def _member(name: str, kind: type) -> str:
    if issubclass(kind, ctypes.Array):
        return f"{_C_TYPES[kind._type_]} {name}[{kind._length_}]"
    return f"{_C_TYPES[kind]} {name}"
