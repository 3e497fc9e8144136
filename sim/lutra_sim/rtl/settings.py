"""What the harness is told when a device is made; design.h gets the structure from here."""

import ctypes

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
        ("weight_beats", ctypes.c_uint32),
        ("weight_cycles", ctypes.c_uint32),
        ("data_beats", ctypes.c_uint32),
        ("data_cycles", ctypes.c_uint32),
        ("refresh_interval", ctypes.c_uint32),  # 0: never
        ("refresh_cycles", ctypes.c_uint32),
        ("stall", ctypes.c_uint32),  # of 2^32, per channel and cycle
    )

    @classmethod
    def of(cls, timing: MemoryTiming, *, watchdog_cycles: int, clock_hz: int) -> "Settings":
        """Settings of a device."""
        return cls(
            seed=timing.seed,
            watchdog_cycles=watchdog_cycles,
            clock_ps=max(2, 10**12 // clock_hz),
            read_latency=timing.read_latency,
            write_latency=timing.write_latency,
            latency_jitter=timing.latency_jitter,
            max_outstanding=timing.max_outstanding,
            weight_beats=timing.weight_rate[0],
            weight_cycles=timing.weight_rate[1],
            data_beats=timing.data_rate[0],
            data_cycles=timing.data_rate[1],
            refresh_interval=timing.refresh_interval,
            refresh_cycles=timing.refresh_cycles,
            stall=int(timing.stall * 2**32),
        )

    @classmethod
    def declaration(cls) -> str:
        """The structure in C++."""
        members = [f"    {_C_TYPES[field[1]]} {field[0]};" for field in cls._fields_]
        return "\n".join(["struct Settings {", *members, "};"])
