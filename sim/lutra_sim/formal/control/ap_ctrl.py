"""Handshake by which XRT starts descriptors."""

from amaranth import Module, Signal

from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.control.ap_ctrl import ApCtrlChain
from lutra_sim.formal.property import Property

__all__ = ["ApCtrlRules"]

_IDLE, _FORWARD, _OWN = range(3)  # states of each side


class ApCtrlRules(Property):
    """Every start is done once, and no done is there without a start that waits for one.

    Channels keep the rule of streams. The accelerator answers nothing before it was asked.
    """

    def __init__(self) -> None:
        super().__init__(ApCtrlChain())

    def rules(self, m: Module) -> None:
        core, host = self.dut.m_axi, self.dut.s_axi
        self.assume(m, ~(core.bvalid & (core.awvalid | core.wvalid)))
        self.assume(m, ~(core.rvalid & core.arvalid))
        start, starts, continues = (self.probe(n, 1) for n in ("start", "starts", "continues"))
        outstanding, finished = (self.probe(n, 3) for n in ("outstanding", "finished"))
        argument, fits = self.probe("argument", 64), self.probe("fits", 1)
        writing, reading = self.probe("write_state", 2), self.probe("read_state", 2)

        due = Signal(range(QUEUE_DEPTH + 2))
        m.d.sync += due.eq(due + (starts & ~start) - (continues & (finished != 0)))
        self.claim(m, "a start is done once", due == start + outstanding + finished)
        self.claim(m, "no more than the queue holds", outstanding + finished <= QUEUE_DEPTH)
        low = DOORBELL_BYTES.bit_length() - 1
        rung = core.wdata == argument[low:ADDRESS_WIDTH]
        rings = writing == _OWN
        self.claim(m, "what is rung is the argument", ~rings | ~core.wvalid | (rung & fits))
        for channel in self.channels.values():
            if channel.offered:
                self.claim(m, f"{channel.name} waits unchanged", self.kept(m, channel))
        # for the induction
        has_room = outstanding + finished < QUEUE_DEPTH
        self.claim(m, "it rings for a start", ~rings | (start & fits & has_room))
        idle = writing == _IDLE
        self.claim(m, "it asks when nothing is asked", ~idle | ~(core.awvalid | core.wvalid))
        self.claim(m, "and likewise to read", (reading != _IDLE) | ~core.arvalid)
        waits = [self.probe(name, 1) for name in ("has_addr", "has_data", "has_read")]
        outside = [self.probe(name, 13)[-1] for name in ("write_addr", "read_addr")]
        written = waits[0] & waits[1] & outside[0] & ~host.bvalid
        self.claim(m, "a write that is forwarded waits", (writing != _FORWARD) | written)
        read = waits[2] & outside[1] & ~host.rvalid
        self.claim(m, "and a read", (reading != _FORWARD) | read)
        self.claim(m, "known states", (writing <= _OWN) & (reading <= _OWN))
