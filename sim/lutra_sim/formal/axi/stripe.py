"""Commands and beats of the lanes of a stripe."""

from amaranth import Cat, Module, Signal
from amaranth.utils import exact_log2

from lutra_golden.axi.stripe import StripeParams
from lutra_hw.axi.stripe import Stripe
from lutra_sim.formal.property import Property

__all__ = ["StripeOrder"]


class StripeOrder(Property):
    """Every lane is given each command once, for its part; beats leave all lanes together."""

    def __init__(self, params: StripeParams) -> None:
        super().__init__(Stripe(params))

    def rules(self, m: Module) -> None:
        dut, cmd, o = self.dut, self.dut.cmd, self.dut.o
        n, size = dut.params.n_lanes, dut.params.beat_bytes
        # lanes that were given the command that is offered
        given, now = Signal(n), Signal(n)
        m.d.comb += now.eq(Cat(each.valid & each.ready for each in dut.o_cmd))
        taken = cmd.valid & cmd.ready
        m.d.sync += given.eq(given | now)
        with m.If(taken):
            m.d.sync += given.eq(0)
        self.claim(m, "no lane is given a command twice", (given & now) == 0)
        self.claim(m, "a command is taken when all lanes have it", taken == (given | now).all())
        for index, each in enumerate(dut.o_cmd):
            place = cmd.p.addr + index * (cmd.p.beats << exact_log2(size))
            mine = (each.p.addr == place[: len(each.p.addr)]) & (each.p.beats == cmd.p.beats)
            self.claim(m, f"lane {index} reads its part", ~each.valid | (cmd.valid & mine))
        some = Cat(each.valid for each in dut.o_cmd).any()
        self.claim(m, "a command that is offered is offered to a lane", cmd.valid == some)

        # what an induction needs to know
        lane, offset = self.probe("lane", range(n)), self.probe("offset", dut.addr_width)
        self.claim(m, "the lanes before this one have the command", given == (1 << lane) - 1)
        self.claim(m, "between commands it is the first lane's turn", cmd.valid | (lane == 0))
        behind = lane * (cmd.p.beats << exact_log2(size))
        self.claim(m, "the lane begins behind those before it", (lane == 0) | (offset == behind))
        self.claim(m, "the first lane begins at the command", (lane != 0) | (offset == 0))

        beats = Cat(each.valid for each in dut.i)
        self.claim(m, "a beat needs one of every lane", o.valid == beats.all())
        self.claim(m, "it is theirs side by side", o.p == Cat(each.p for each in dut.i))
        for index, each in enumerate(dut.i):
            same = (each.valid & each.ready) == (o.valid & o.ready)
            self.claim(m, f"lane {index} gives a beat with the others", same)
