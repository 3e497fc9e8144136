"""Division of transfers into bursts, for the reader and the writer."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.core.ports import BEATS_MAX, BOUNDARY_BYTES, PORT_WIDTHS
from lutra_hw.ports import dma_command

__all__ = ["BurstSplitter", "check_dma"]


def check_dma(data_width, addr_width, burst_beats, max_outstanding, fifo_depth):
    """Raise ValueError where a DMA engine of these sizes cannot be built."""
    if data_width not in PORT_WIDTHS:
        raise ValueError(f"data_width must be a power of two in 32..1024, not {data_width}")
    if not 12 < addr_width <= 64:
        raise ValueError(f"addr_width must be in 13..64, not {addr_width}")
    limit = min(BEATS_MAX, BOUNDARY_BYTES // (data_width // 8))
    if burst_beats < 1 or burst_beats & (burst_beats - 1) or burst_beats > limit:
        raise ValueError(f"burst_beats must be a power of two in 1..{limit}, not {burst_beats}")
    if max_outstanding < 1:
        raise ValueError(f"max_outstanding must be positive, not {max_outstanding}")
    if fifo_depth < max(burst_beats, 4):
        raise ValueError(f"fifo_depth must be at least {max(burst_beats, 4)}, not {fifo_depth}")


class BurstSplitter(wiring.Component):
    """Cuts commands into bursts that start and end at multiples of ``burst_beats`` where they can.

    As ``burst_beats`` beats divide 4 KB, no burst crosses a 4 KB boundary. The next burst is
    offered the cycle after ``next``, the first one the cycle after the command; a command of no
    beats gives no burst.

    Parameters
    ----------
    data_width, addr_width : int
        Bits of a beat and of a byte address.
    burst_beats : int
        Beats of the longest burst, a power of two.

    Members
    -------
    cmd : ``In(dma_command(addr_width))``
    beat_addr : ``Out(...)``  address of the burst in beats
    length : ``Out(range(burst_beats + 1))``  its beats
    valid : ``Out(1)``  a burst is there
    next : ``In(1)``  the burst is issued in this cycle
    """

    def __init__(self, data_width: int, addr_width: int, burst_beats: int):
        self.data_width, self.addr_width, self.burst_beats = data_width, addr_width, burst_beats
        self._beat_bits = exact_log2(data_width // 8)
        super().__init__(
            {
                "cmd": In(dma_command(addr_width)),
                "beat_addr": Out(addr_width - self._beat_bits),
                "length": Out(range(burst_beats + 1)),
                "valid": Out(1),
                "next": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cmd, remaining = self.cmd, Signal.like(self.cmd.p.beats)
        burst_bits = exact_log2(self.burst_beats)

        distance = Signal(range(self.burst_beats + 1))
        last = Signal()
        m.d.comb += [
            cmd.ready.eq(~self.valid),
            distance.eq(self.burst_beats - self.beat_addr[:burst_bits]),
            last.eq(remaining <= distance),
            self.length.eq(Mux(last, remaining, distance)),
        ]

        with m.If(cmd.valid & cmd.ready):
            m.d.sync += [
                self.beat_addr.eq(cmd.p.addr >> self._beat_bits),
                remaining.eq(cmd.p.beats),
                self.valid.eq(cmd.p.beats != 0),
            ]
        with m.Elif(self.next):
            m.d.sync += [
                self.beat_addr.eq((self.beat_addr[burst_bits:] + 1) << burst_bits),
                remaining.eq(remaining - self.length),
                self.valid.eq(~last),
            ]
        return m
