"""A Sequencer among units that finish what they begin, with a program that can be met."""

from abc import abstractmethod
from typing import Any

from amaranth import Array, Cat, Module, Mux, Signal

from lutra_golden.control.isa import Opcode, Unit
from lutra_golden.core.configs import NANO
from lutra_hw.control.fields import header
from lutra_hw.control.sequencer import Sequencer
from lutra_sim.formal.property import Property, Token, past, recorded

__all__ = ["SequencerProperty", "SequencerRules", "SequencerRun"]

CONFIG = NANO.with_(head_dim=32)
"""One instruction in a beat."""

_UNIT_CYCLES = 2
_RUN_CYCLES = 17
_FIRST_ARGUMENT = 80  # bit of an instruction behind its header


class SequencerProperty(Property):
    """A sequencer that is used as it must be.

    ``start`` comes while no program runs, and the registers are stable; it is programs always, or
    data always. Memory gives what it is asked for. An instruction waits for no more instructions of
    a unit than stand before it, up to END. Units take one instruction at a time and say when it is
    done.
    """

    max_beats = 3
    """Beats of the longest program."""

    def __init__(self) -> None:
        super().__init__(Sequencer(CONFIG))

    def rules(self, m: Module) -> None:
        dut = self.dut
        self.running = running = Signal()
        with m.If(dut.start):
            m.d.sync += running.eq(1)
        with m.Elif(dut.finished):
            m.d.sync += running.eq(0)
        self.assume(m, ~(dut.start & running))
        raw = self.constant(m, 1, "raw")
        self.assume(m, dut.raw == raw, ~dut.block)
        registers = ("program_base", "program_bytes", "weight_base", "n_tokens", "logits_from")
        for name in registers:
            value = getattr(dut.context, name)
            self.assume(m, ~running | (value == past(m, value, name)))
        n_beats = dut.context.program_bytes // CONFIG.word_bytes
        self.assume(
            m, dut.context.program_bytes % CONFIG.word_bytes == 0, n_beats <= self.max_beats
        )

        # memory
        self.owed = owed = Signal(range(self.max_beats + 1))
        self.beat = dut.rd_data.valid & dut.rd_data.ready
        asked = dut.rd_cmd.valid & dut.rd_cmd.ready
        m.d.sync += owed.eq(Mux(asked, dut.rd_cmd.p.beats, owed - self.beat))
        self.assume(m, ~dut.rd_data.valid | (owed != 0))

        # the program
        word = dut.rd_data.p
        opcode = header(word, "opcode")
        self.target, known = Signal(range(len(Unit))), Signal()
        with m.Switch(opcode):
            for code in Opcode:
                if code.unit is not None:
                    with m.Case(code):
                        m.d.comb += [self.target.eq(code.unit), known.eq(1)]
        ended = Signal()
        self.fetched = Signal()  # an instruction that some unit will get
        m.d.comb += self.fetched.eq(self.beat & known & ~ended & ~raw)
        with m.If(dut.start):
            m.d.sync += ended.eq(0)
        with m.Elif(self.beat & ~known):
            m.d.sync += ended.eq(1)
        before = [Signal(range(self.max_beats + 2), name=f"before_{unit.name}") for unit in Unit]
        for unit, count in zip(Unit, before, strict=True):
            with m.If(dut.start):
                m.d.sync += count.eq(0)
            with m.Elif(self.fetched & (self.target == unit)):
                m.d.sync += count.eq(count + 1)
            wait = header(word, f"wait_{unit.name.lower()}")
            self.assume(m, ~self.fetched | (wait <= count))

        # units
        self.commands = [getattr(dut, f"{unit.name.lower()}_cmd") for unit in Unit]
        self.taken = Signal(len(Unit))
        self.working, self.completed = Signal(len(Unit)), []
        m.d.comb += self.taken.eq(Cat(cmd.valid & cmd.ready for cmd in self.commands))
        for unit, cmd in zip(Unit, self.commands, strict=True):
            count = Signal(range(self.max_beats + 2), name=f"completed_{unit.name}")
            self.assume(m, ~dut.done[unit] | self.working[unit], cmd.ready == ~self.working[unit])
            m.d.sync += self.working[unit].eq(
                (self.working[unit] & ~dut.done[unit]) | self.taken[unit]
            )
            with m.If(dut.start):
                m.d.sync += count.eq(0)
            with m.Elif(dut.done[unit]):
                m.d.sync += count.eq(count + 1)
            self.completed.append(count)
        self.claims_of(m)

    @abstractmethod
    def claims_of(self, m: Module) -> None:
        """Add the claims."""


class SequencerRules(SequencerProperty):
    """Streams wait unchanged, units get their instructions in order, and not before their waits.

    One instruction, any, of one unit, any, is followed from memory to the unit.
    """

    def claims_of(self, m: Module) -> None:
        dut: Any = self.dut
        for channel in self.channels.values():
            if channel.offered:
                self.claim(m, f"{channel.name} waits unchanged", self.kept(m, channel))
        self.claim(m, "data is no instruction", ~dut.raw | ~self.taken.any())
        for unit, cmd in zip(Unit, self.commands, strict=True):
            for other, count in zip(Unit, self.completed, strict=True):
                wait = header(cmd.p, f"wait_{other.name.lower()}")
                self.claim(
                    m,
                    f"{unit.name.lower()} waits for {other.name.lower()}",
                    ~self.taken[unit] | (count >= wait),
                )
        unit = self.constant(m, range(len(Unit)), "unit")
        token = Token(self, m, ["unit"], width=3)
        pick, _ = token.enter(self.fetched & (self.target == unit))
        here, _ = token.passes("unit", Array(self.taken)[unit])
        identity = slice(_FIRST_ARGUMENT, _FIRST_ARGUMENT + 2)
        word = recorded(m, pick, dut.rd_data.p[identity], "word")
        given = Array(cmd.p[identity] for cmd in self.commands)[unit]
        self.claim(m, "a unit gets its instructions in order", ~here | (given == word))
        left = token.left["unit"]
        self.claim(m, "a unit gets no instruction twice", ~Array(self.taken)[unit] | (left != 0))
        self.claim(
            m,
            "finished: everything is completed",
            ~dut.finished | ((left == 0) & (self.working == 0)),
        )


class SequencerRun(SequencerProperty):
    """A program of two beats ends within a bound: nothing waits for itself.

    Memory, the weight reader and the units let it wait for a cycle or two at most.
    """

    max_beats = 2

    def claims_of(self, m: Module) -> None:
        dut = self.dut
        self.assume(m, dut.rd_cmd.ready, dut.weight_cmd.ready, ~dut.raw)
        starved = Signal()
        m.d.sync += starved.eq((self.owed != 0) & ~dut.rd_data.valid)
        self.assume(m, ~starved | dut.rd_data.valid)
        for unit in Unit:
            cycles = Signal(range(_UNIT_CYCLES + 2), name=f"cycles_{unit.name}")
            m.d.sync += cycles.eq(Mux(self.working[unit] & ~dut.done[unit], cycles + 1, 0))
            self.assume(m, cycles < _UNIT_CYCLES)
        passed = Signal(range(_RUN_CYCLES + 2))
        m.d.sync += passed.eq(Mux(self.running & ~dut.finished, passed + 1, 0))
        self.claim(m, f"a run ends within {_RUN_CYCLES} cycles", passed <= _RUN_CYCLES)
