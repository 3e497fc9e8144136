"""Runs of descriptors: what they touch, and in which order their results are written."""

from enum import IntEnum

from amaranth import Cat, Module, Mux, Signal, signed

from lutra_golden.control.result import RESULT_BYTES
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.control.result import ResultWriter
from lutra_hw.control.runs import RunState, RunUnit
from lutra_sim.formal.property import Property, past

__all__ = ["ResultOrder", "RunBounds"]


class _Step(IntEnum):
    """States of the writer, as they are numbered in it."""

    IDLE = 0
    WORDS = 1
    LAST = 2
    OFFER = 3
    SETTLE = 4


class ResultOrder(Property):
    """A result block is handed over whole, and its status when all else was answered.

    What the writer is told stays as it is until it is done; memory takes commands and words when it
    likes, and is not idle in the cycle after it took one.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._n_beats = max(RESULT_BYTES // config.word_bytes, 1)
        super().__init__(ResultWriter(config))

    def rules(self, m: Module) -> None:
        dut = self.dut
        running = Signal()
        m.d.sync += running.eq((running | dut.start) & ~dut.done)
        for name in ("report", "line", "token", "pair", "n_results", "n_made", "tag"):
            value = getattr(dut, name)
            self.assume(m, ~running | (value == past(m, value, name)))
        cmd, data = (self.channels[name] for name in ("wr_cmd", "wr_data"))
        moved = cmd.transfer | data.transfer
        self.assume(m, ~(dut.wr_idle & past(m, moved, "moved")))

        # words that commands asked for and that were not handed over; less than none are ahead
        owed = Signal(signed(10))
        beats = dut.wr_cmd.p.beats[:8]
        m.d.sync += owed.eq(owed + Mux(cmd.transfer, beats, 0) - data.transfer)
        self.claim(m, "commands wait unchanged", self.kept(m, cmd))
        self.claim(m, "words wait unchanged", self.kept(m, data))
        offered = cmd.valid | data.valid
        answered = Signal(init=1)
        m.d.sync += answered.eq((dut.wr_idle & ~offered) | (answered & ~moved))
        self.claim(m, "done: all was handed over", ~dut.done | ((owed == 0) & ~offered))
        self.claim(m, "done: the block is in memory", ~(dut.done & dut.report) | dut.wr_idle)

        state, closing = self.probe("fsm_state", 3), dut.closing
        begins = closing & ~past(m, closing, "closing")
        self.claim(m, "the status comes when all else was answered", ~begins | answered)
        # for the induction
        waits = [self.probe(f"asked_{cycle}", 8)[0] for cycle in (1, 2)]
        beat = self.probe("beat", range(self._n_beats))
        block, rests = dut.report & ~closing, state == _Step.IDLE
        words = Mux(block, self._n_beats, 1)
        sent = Mux(state == _Step.SETTLE, words, Mux(block, beat, 0))
        self.claim(m, "there is no other step", state <= _Step.SETTLE)
        self.claim(m, "it rests when nothing was asked", running == ~rests)
        self.claim(m, "and offers nothing", ~rests | ~offered)
        self.claim(m, "only a block has a status", rests | ~closing | dut.report)
        self.claim(m, "nothing comes behind the last", (state != _Step.LAST) | ~waits[0])
        is_whole = (state == _Step.WORDS) | (state == _Step.LAST) | ~Cat(waits).any()
        self.claim(m, "a word that is offered is whole", is_whole)
        expected = Mux(rests, 0, Mux(cmd.valid, 0, words) - sent)
        self.claim(m, "words are counted", owed == expected)


class RunBounds(Property):
    """A run of a descriptor touches nothing unless it is busy, and asks for one thing at a time.

    The register file keeps a run busy until it is over, or fails and is cleared.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(RunUnit(config))

    def rules(self, m: Module) -> None:
        dut = self.dut
        control, bus = dut.control, dut.control.bus
        fetching = Signal()
        with m.If(dut.start):
            m.d.sync += fetching.eq(1)
        with m.Elif(dut.finished | control.clear):
            m.d.sync += fetching.eq(0)
        busy = past(m, control.busy | control.begin, "busy")
        self.assume(m, ~control.ready | ~control.busy, ~control.stop | control.busy)
        # it stays busy; a clear follows a failure, and lasts
        ended = past(m, (control.over & ~control.stop) | control.clear, "ended")
        stopped, cleared = past(m, control.stop, "stopped"), past(m, control.clear, "cleared")
        self.assume(m, ~busy | control.busy | ended, busy | ~control.busy)
        self.assume(m, control.clear | ~stopped, ~control.clear | stopped | cleared)
        self.assume(m, ~(control.clear & (control.ready | control.stop)))
        self.assume(m, ~dut.finished | fetching)

        state = self.probe("state", 5)
        rests = state == RunState.IDLE
        self.claim(m, "begins only when it may", ~control.begin | control.ready)
        self.claim(m, "engaged until it rests", control.engaged == ~rests)
        touches = dut.start | dut.raw | dut.wanted | bus.write_en | control.over
        self.claim(m, "what rests touches nothing", ~rests | ~touches)
        self.claim(m, "one fetch at a time", ~(dut.start & fetching))
        self.claim(m, "over after all fetches", ~(control.over & fetching))
        # for the induction
        waits = (state == RunState.FETCH) | (state == RunState.RUN)
        fails = (state == RunState.FAILED) & control.clear
        self.claim(m, "a fetch is waited for", ~fetching | waits | fails)
        is_failure = ~control.engaged | (state == RunState.FAILED)
        self.claim(m, "a run that is cleared has failed", ~control.clear | is_failure)
