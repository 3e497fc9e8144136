"""The bursts that a BurstSplitter cuts commands into."""

from amaranth import Module, Signal
from amaranth.utils import exact_log2

from lutra_golden.core.ports import BOUNDARY_BYTES
from lutra_hw.axi.bursts import BurstSplitter
from lutra_sim.formal.property import Property

__all__ = ["SplitterOrder"]


class SplitterOrder(Property):
    """The bursts of a command cover its beats once and in order, cut where they must be."""

    def __init__(self, data_width: int, burst_beats: int) -> None:
        super().__init__(BurstSplitter(data_width, 40, burst_beats))

    def rules(self, m: Module) -> None:
        dut, cmd = self.dut, self.dut.cmd
        self.assume(m, ~dut.next | dut.valid)

        address, left = Signal.like(dut.beat_addr), Signal.like(cmd.p.beats)
        with m.If(cmd.valid & cmd.ready):
            m.d.sync += [
                address.eq(cmd.p.addr >> exact_log2(dut.data_width // 8)),
                left.eq(cmd.p.beats),
            ]
        with m.Elif(dut.next):
            m.d.sync += [address.eq(address + dut.length), left.eq(left - dut.length)]
        self.claim(m, "a burst is offered while beats are left", dut.valid == (left != 0))
        self.claim(m, "the next command waits for the last burst", cmd.ready == ~dut.valid)
        self.claim(
            m, "a burst begins where the last ended", ~dut.valid | (dut.beat_addr == address)
        )
        self.claim(m, "the splitter knows what is left", self.probe("remaining", 24) == left)
        length, n = dut.length, dut.burst_beats
        self.claim(
            m, "a burst has 1 to burst_beats beats", ~dut.valid | ((length >= 1) & (length <= n))
        )
        self.claim(m, "a burst ends with its command at the latest", ~dut.valid | (length <= left))
        n_boundary = BOUNDARY_BYTES // (dut.data_width // 8)
        beyond = (dut.beat_addr % n_boundary) + length
        self.claim(m, "no burst crosses 4 KB", ~dut.valid | (beyond <= n_boundary))
        aligned = (dut.beat_addr % n) + length == n
        self.claim(
            m,
            "a burst ends at a multiple of burst_beats or as the last",
            ~dut.valid | aligned | (length == left),
        )
