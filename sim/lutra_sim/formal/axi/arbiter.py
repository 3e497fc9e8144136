"""Requests and data of several masters through a ReadArbiter."""

from amaranth import Cat, Module, Signal

from lutra_hw.axi.arbiter import ReadArbiter
from lutra_sim.formal.property import Property, past

__all__ = ["ArbiterOrder"]

_REQUEST = ("araddr", "arlen", "arsize", "arburst")


class ArbiterOrder(Property):
    """Every request is forwarded once, in order and with its master's id; data reach their master.

    A request is served after at most one request of each other master.
    """

    def __init__(self, n: int) -> None:
        super().__init__(ReadArbiter(n, 32, 40))

    def rules(self, m: Module) -> None:
        dut, o = self.dut, self.dut.o
        accepted = Signal(dut.n)
        m.d.comb += accepted.eq(Cat(i.arvalid & i.arready for i in dut.i))
        self.claim(m, "one request at a time is accepted", (accepted & (accepted - 1)) == 0)
        for index, i in enumerate(dut.i):
            before = past(m, accepted[index], f"accepted_{index}")
            request = past(m, Cat(getattr(i, name) for name in _REQUEST), f"request_{index}")
            same = Cat(getattr(o, name) for name in _REQUEST) == request
            self.claim(
                m,
                f"a request of master {index} is on the port a cycle later, with its id",
                ~before | (o.arvalid & (o.arid == index) & same),
            )
        came = past(m, accepted.any(), "any")
        went, held = past(m, o.arvalid & o.arready, "went"), past(m, o.arvalid, "held")
        self.claim(m, "no request goes on twice", came | ~went | ~o.arvalid)
        self.claim(m, "no request comes from nowhere", came | held | ~o.arvalid)
        self.claim(m, "a request that waits is not overtaken", ~came | ~held | went)

        last = self.probe("last", range(dut.n))
        self.claim(m, "the last one served is a master", last < dut.n)
        for index, i in enumerate(dut.i):
            others = (accepted & ~(1 << index)).any()
            passed = Signal(range(dut.n + 1), name=f"passed_{index}")
            with m.If(~i.arvalid | i.arready):
                m.d.sync += passed.eq(0)
            with m.Elif(others):
                m.d.sync += passed.eq(passed + 1)
            self.claim(m, f"master {index} waits for one request of each other", passed < dut.n)
            # the master served last has the lowest priority, so this many may still pass
            turns = Signal(range(dut.n), name=f"turns_{index}")
            with m.Switch(last):
                for served in range(dut.n):
                    with m.Case(served):
                        m.d.comb += turns.eq((index - served - 1) % dut.n)
            self.claim(m, f"master {index} gets nearer", (passed == 0) | (passed + turns < dut.n))

        # ids beyond the masters are unused
        self.assume(m, ~o.rvalid | (o.rid < dut.n))
        ready = Signal()
        for index, i in enumerate(dut.i):
            mine = o.rid == index
            same = Cat(i.rdata, i.rresp, i.rlast) == Cat(o.rdata, o.rresp, o.rlast)
            self.claim(
                m, f"master {index} sees its own data only", (i.rvalid == (o.rvalid & mine)) & same
            )
            with m.If(mine):
                m.d.comb += ready.eq(i.rready)
        self.claim(m, "data wait for the master they are for", ~o.rvalid | (o.rready == ready))
