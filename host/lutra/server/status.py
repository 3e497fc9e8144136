"""Live figures of a server as JSON: requests, tokens, the device, its plan and its units."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict

from lutra.devices.activity import Activity, is_simulated
from lutra.devices.base import Device
from lutra.llm import LLM
from lutra.server.limits import Limits
from lutra.server.metrics import Metrics, resident_bytes
from lutra.serving.plans.device import PlannedDevice
from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores

__all__ = ["Status"]

_WAIT_S = 0.2  # for counters, which are read between two passes


class Status:
    """What a server does now with ``llm``, which ``chats`` if it has a template.

    A device is asked for its counters in a thread of its own, since it gives them between two
    passes; those of the time before stand for counters that are not there soon.
    """

    def __init__(self, llm: LLM, metrics: Metrics, limits: Limits, *, chats: bool) -> None:
        self._llm, self._metrics, self._limits, self._chats = llm, metrics, limits, chats
        self._begun = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "lutra counters")
        self._reading: asyncio.Future[Mapping[str, int]] | None = None
        self._counters: Mapping[str, int] = {}

    async def body(self) -> dict[str, object]:
        """All of it; ``uptime_s`` is the time that differences of counts belong to."""
        await self._read()
        llm, limits, device = self._llm, self._limits, self._answering()
        n_prefixes, n_bytes = llm.prefixes()
        activity = Activity.of(self._counters)
        units = None
        if activity is not None:
            units = {"kind": "simulated" if is_simulated(device) else "measured"}
            units |= asdict(activity)
        return {
            "uptime_s": time.monotonic() - self._begun,
            "model": {
                "id": llm.packed.name,
                "format": str(llm.packed.format),
                "context": llm.context,
                "chat": self._chats,
            },
            "device": {
                "name": llm.device.name,
                "facts": dict(llm.device.facts()),
                "notes": list(llm.notes),
            },
            "limits": {"parallel": limits.parallel, "queue": limits.queue},
            **self._metrics.figures(),
            "prefixes": {"count": n_prefixes, "bytes": n_bytes},
            "units": units,
            "process": {
                "cpu_s": time.process_time(),
                "cores": available_cores(),
                "memory_bytes": resident_bytes(),
            },
        }

    def close(self) -> None:
        """End the thread, once a reading under way has ended."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _answering(self) -> Device:
        device = self._llm.device
        return device.answering or device if isinstance(device, PlannedDevice) else device

    async def _read(self) -> None:
        """Take the counters of the last pass, if they are there soon."""
        if self._reading is None:
            loop, counters = asyncio.get_running_loop(), self._llm.device.counters
            self._reading = loop.run_in_executor(self._thread, counters)
        reading = self._reading
        await asyncio.wait([reading], timeout=_WAIT_S)
        if reading.done() and self._reading is reading:
            self._reading = None
            with suppress(LutraError):  # of a device that failed; requests say so
                self._counters = reading.result()
