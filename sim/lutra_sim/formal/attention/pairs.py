"""A PairIssuer in front of a memory and a pipeline that keep their side."""

from amaranth import Module, Mux, Signal

from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.attention.pairs import PairIssuer
from lutra_sim.formal.property import Property

__all__ = ["PairsRules"]

_MAX_POSITION, _MAX_TOKENS = 1, 1  # what a few cycles see the end of


class PairsRules(Property):
    """Requests stay unchanged while they wait; no beat overwrites one that is still in use.

    Memory gives no more than it was asked for. The pipeline releases a slot once for each last
    pair of a beat, and says once for each head that it has finished.
    """

    def __init__(self, config: AcceleratorConfig, drain: int) -> None:
        super().__init__(PairIssuer(config, drain))

    def rules(self, m: Module) -> None:
        dut, pair = self.dut, self.dut.pair
        command = dut.cmd.p
        self.assume(m, command.position <= _MAX_POSITION, (command.token_count <= _MAX_TOKENS))

        # beats that memory owes, slots and heads that the pipeline has yet to give back
        asked, beat = dut.rd_cmd.valid & dut.rd_cmd.ready, dut.rd_valid & dut.rd_ready
        read, ended = pair.valid & pair.last, pair.valid & pair.final & pair.values
        owed, slots, heads = Signal(6), Signal(4), Signal(2)
        m.d.sync += [
            owed.eq(owed + Mux(asked, dut.rd_cmd.p.beats, 0) - beat),
            slots.eq(slots + read - dut.release),
            heads.eq(heads + ended - dut.finished),
        ]
        self.assume(
            m,
            ~dut.rd_valid | (owed != 0),
            ~dut.release | (slots != 0),
            ~dut.finished | (heads != 0),
        )

        for channel in self.channels.values():
            if channel.offered:
                self.claim(m, f"{channel.name} waits unchanged", self.kept(m, channel))
        # beats in slots that no last pair has read yet, and then those that are being read
        unread = Signal(6)
        m.d.sync += unread.eq(unread + dut.beat_en - read)
        self.claim(m, "a pair reads a beat that is there", ~pair.valid | (unread != 0))
        n_slots = 1 << len(dut.beat_slot)
        self.claim(m, "no slot in use is written", ~dut.beat_en | (unread + slots < n_slots))
        self.claim(m, "one head at a time is in the pipeline", heads <= 1)
