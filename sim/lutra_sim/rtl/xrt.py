"""The Verilated kernel, and the part of XRT that starts its runs and sees their ends."""

from collections import deque

from lutra_golden.control.ap_ctrl import (
    AP_CONTINUE,
    AP_DONE,
    AP_READY,
    AP_START,
    IRQ_DONE,
    IRQ_READY,
    XRT_REGISTERS,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Top
from lutra_golden.timing.memory import NANO_MEMORY, MemoryTiming
from lutra_sim.rtl.build import Progress
from lutra_sim.rtl.device import RtlModel

__all__ = ["XrtKernel"]

_CTRL, _GIE, _IER, _ISR, _ARGUMENT = (each.address for each in XRT_REGISTERS.values())
_SLICE_CYCLES = 5000  # a fraction of a second, so that Ctrl-C is heard


class XrtKernel(RtlModel):
    """The kernel of ``config`` as a :class:`RtlModel`, driven as XRT drives ``ap_ctrl_chain``.

    Only arguments and CTRL are written to start a run. That the one before was taken, or is over,
    is seen by the interrupt and by CTRL; an end is acknowledged by ``ap_continue``.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        memory_bytes: int,
        timing: MemoryTiming = NANO_MEMORY,
        *,
        watchdog_cycles: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._waiting = deque[int]()
        self._n_under_way, self._n_over = 0, 0
        self._is_free = True
        super().__init__(
            config,
            memory_bytes,
            timing,
            top=Top.XRT,
            watchdog_cycles=watchdog_cycles,
            progress=progress,
        )

    def _begin(self) -> None:
        self.write_word(_IER, IRQ_DONE | IRQ_READY)
        self.write_word(_GIE, 1)

    @property
    def n_over(self) -> int:
        """Runs that are over and were not waited for."""
        return self._n_over

    @property
    def n_started(self) -> int:
        """Runs that were started and are not over."""
        return len(self._waiting) + self._n_under_way

    def start(self, argument: int) -> None:
        """Start a run with this argument, behind those that wait."""
        self._waiting.append(argument)
        self._go_on()

    def look(self) -> None:
        """See by CTRL if a run was taken, or is over; start the next."""
        control = self.read_word(_CTRL)
        if control & AP_READY:
            self._is_free = True
        if control & AP_DONE:
            self.write_word(_CTRL, AP_CONTINUE)
            self._n_under_way -= 1
            self._n_over += 1
        self._go_on()

    def wait(self, max_cycles: int | None = None) -> bool:
        """Wait for the end of the first run that was not waited for; False after ``max_cycles``."""
        end = None if max_cycles is None else self.cycles + max_cycles
        while not self._n_over:
            left = _SLICE_CYCLES if end is None else min(end - self.cycles, _SLICE_CYCLES)
            if left <= 0:
                return False
            if self.run(left):
                # toggled bit by bit: one that rises meanwhile stays
                self.write_word(_ISR, self.read_word(_ISR))
            self.look()
        self._n_over -= 1
        return True

    def reset(self) -> None:
        """Reset the kernel and forget its runs; memory stays as it is."""
        super().reset()
        self._waiting.clear()
        self._n_under_way, self._n_over = 0, 0
        self._is_free = True
        self._begin()

    def _go_on(self) -> None:
        if self._is_free and self._waiting:
            argument = self._waiting.popleft()
            self._is_free = False
            self.write_word(_ARGUMENT, argument & 0xFFFF_FFFF)
            self.write_word(_ARGUMENT + 4, argument >> 32)
            self.write_word(_CTRL, AP_START)
            self._n_under_way += 1
