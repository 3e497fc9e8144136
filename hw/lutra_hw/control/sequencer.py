"""Sequencer: fetches a program, queues its instructions per unit and keeps their dependencies."""

from amaranth import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.blocks import WORD_WIDTH
from lutra_golden.control.descriptor import DOORBELL_BYTES, line_bytes
from lutra_golden.control.isa import INSTRUCTION_BYTES, Opcode, Unit
from lutra_golden.control.registers import REGISTERS, ErrorCode, UnitState
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.control.context import ERROR_CODE, RunContextSignature
from lutra_hw.control.failure import instruction_counts
from lutra_hw.control.fields import argument, header, tile_tokens
from lutra_hw.control.registers import UNIT_STATE_LAYOUT
from lutra_hw.ports import INSTRUCTION_SHAPE, dma_command

__all__ = ["QUEUE_DEPTH", "Sequencer"]

QUEUE_DEPTH = 4
"""Instructions that wait at a unit, beside the one it executes."""

_WAITS = {unit: f"wait_{unit.name.lower()}" for unit in Unit}
_STALLED = {
    Unit.LOAD: UnitState.WAIT_READ,
    Unit.MATMUL: UnitState.WAIT_WEIGHTS,
    Unit.VECTOR: UnitState.WAIT_WRITE,
    Unit.ATTENTION: UnitState.WAIT_READ,
}


class Sequencer(wiring.Component):
    """Runs the program of ``program_bytes`` at ``program_base`` once after each ``start``.

    Instructions leave in order, one per cycle, for the queues of their units, as long as there is
    room. The head of a queue goes to its unit when every unit has completed as many instructions
    as the head's wait fields ask for, 2 cycles after the last of them. An LMMA that has tokens
    also sends the command for its weights at once, ahead of all dependencies. What comes behind
    END is fetched and dropped; ``finished`` comes when all units have completed everything.
    An unknown opcode ends the program like END, with ``error``; so does a program without END.

    Where ``raw``, what it fetches are no instructions: they leave by ``word``, one per cycle, until
    the end or until there is ``enough``. It may be a ``block`` at 256 times ``line`` then, instead
    of what the registers say.

    A queue's head only waits for instructions that come before it, and those have all left, so
    no order of instructions that the golden interpreter accepts can block.
    Model: :meth:`lutra_golden.control.interpreter.Interpreter.run`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    start : ``In(1)``  one cycle; not while running
    context : ``In(RunContextSignature())``  the program is whole data words.
    raw, block : ``In(1)``  stable from ``start`` to ``finished``
    line : ``In(32)``
    word : ``Out(stream.Signature(32))``
    enough : ``In(1)``
    rd_cmd : ``Out(dma_command())``
    rd_data : ``In(stream.Signature(unsigned(word_width)))``
    load_cmd, matmul_cmd, vector_cmd, attention_cmd : ``Out(stream.Signature(INSTRUCTION_SHAPE))``
    weight_cmd : ``Out(dma_command())``  in weight words
    done, busy, stall : ``In(4)``  of the units in the order of :class:`Unit`
    finished : ``Out(1)``  one cycle
    error : ``Out(4)``  OPCODE or NO_END for one cycle, before ``finished``
    completed : ``Out(instruction_counts())``  of this run
    dispatched : ``Out(16)``  instructions of this run that left
    unit_state : ``Out(UNIT_STATE_LAYOUT)``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "context": In(RunContextSignature()),
                "raw": In(1),
                "block": In(1),
                "line": In(REGISTERS["DOORBELL"].width),
                "word": Out(stream.Signature(WORD_WIDTH)),
                "enough": In(1),
                "rd_cmd": Out(dma_command()),
                "rd_data": In(stream.Signature(unsigned(config.word_width))),
                **{
                    f"{unit.name.lower()}_cmd": Out(stream.Signature(INSTRUCTION_SHAPE))
                    for unit in Unit
                },
                "weight_cmd": Out(dma_command()),
                "done": In(len(Unit)),
                "busy": In(len(Unit)),
                "stall": In(len(Unit)),
                "finished": Out(1),
                "error": Out(ERROR_CODE),
                "completed": Out(instruction_counts()),
                "dispatched": Out(instruction_counts().elem_shape),
                "unit_state": Out(UNIT_STATE_LAYOUT),
            }
        )

    def elaborate(self, platform):
        m = Module()
        queues = []
        for unit in Unit:
            queue = SyncFIFO(width=8 * INSTRUCTION_BYTES, depth=QUEUE_DEPTH)
            m.submodules[f"{unit.name.lower()}_queue"] = queue
            queues.append(queue)
        m.submodules.weight_queue = weights = SyncFIFO(
            width=len(self.weight_cmd.p.as_value()), depth=QUEUE_DEPTH
        )
        m.d.comb += [
            self.weight_cmd.p.eq(weights.r_data),
            self.weight_cmd.valid.eq(weights.r_rdy),
            weights.r_en.eq(self.weight_cmd.ready),
        ]

        completed = self._units(m, queues)
        self._program(m, queues, weights, completed)
        return m

    def _units(self, m, queues):
        """Hand the heads of the queues to the units; return the counts of completed ones."""
        completed = list(self.completed)
        for unit, count in zip(Unit, completed, strict=True):
            with m.If(self.start):
                m.d.sync += count.eq(0)
            with m.Elif(self.done[unit]):
                m.d.sync += count.eq(count + 1)

        for unit, queue in zip(Unit, queues, strict=True):
            cmd = getattr(self, f"{unit.name.lower()}_cmd")
            met = Signal(name=f"{unit.name.lower()}_met")
            waits = [header(queue.r_data, _WAITS[other]) for other in Unit]
            enough = Cat(count >= wait for count, wait in zip(completed, waits, strict=True))
            m.d.sync += met.eq(queue.r_rdy & ~queue.r_en & enough.all())
            m.d.comb += [
                cmd.p.eq(queue.r_data),
                cmd.valid.eq(met),
                queue.r_en.eq(met & cmd.ready),
                self.unit_state[unit].eq(
                    Mux(
                        self.busy[unit],
                        Mux(self.stall[unit], _STALLED[unit], UnitState.RUNNING),
                        Mux(queue.r_rdy, UnitState.WAIT_DEPENDENCY, UnitState.IDLE),
                    )
                ),
            ]
        return completed

    def _program(self, m, queues, weights, completed):
        """Fetch, decode and dispatch."""
        n_halves = self.config.word_bytes // INSTRUCTION_BYTES
        instruction, valid = Signal(INSTRUCTION_SHAPE), Signal()
        n_words = INSTRUCTION_BYTES // (WORD_WIDTH // 8)
        number, given, emptied = Signal(range(n_words)), Signal(), Signal()
        beats, part = Signal.like(self.rd_cmd.p.beats), Signal(range(n_halves))

        opcode = header(instruction, "opcode")
        _, n_tokens = tile_tokens(m, instruction, self.context.n_tokens, self.context.logits_from)
        is_lmma = opcode == Opcode.LMMA
        weight_words = argument(instruction, Opcode.LMMA, "n_words")
        needs_weights = is_lmma & (n_tokens != 0) & (weight_words != 0)
        weight_cmd = Signal(data.StructLayout({"addr": ADDRESS_WIDTH, "beats": 24}))
        target, known = Signal(range(len(Unit))), Signal()
        with m.Switch(opcode):
            for code in Opcode:
                if code.unit is not None:
                    with m.Case(code):
                        m.d.comb += [target.eq(code.unit), known.eq(1)]
        dispatch = Signal()
        room = Array(queue.w_rdy for queue in queues)[target]
        m.d.comb += [
            dispatch.eq(valid & ~self.raw & known & room & (weights.w_rdy | ~needs_weights)),
            weight_cmd.addr.eq(
                self.context.weight_base + argument(instruction, Opcode.LMMA, "address")
            ),
            weight_cmd.beats.eq(weight_words),
            weights.w_data.eq(weight_cmd),
            weights.w_en.eq(dispatch & needs_weights),
        ]
        with m.If(self.start):
            m.d.sync += self.dispatched.eq(0)
        with m.Elif(dispatch):
            m.d.sync += self.dispatched.eq(self.dispatched + 1)
        dispatched = []
        for unit, queue in zip(Unit, queues, strict=True):
            count = Signal.like(completed[unit], name=f"{unit.name.lower()}_dispatched")
            m.d.comb += [
                queue.w_data.eq(instruction),
                queue.w_en.eq(dispatch & (target == unit)),
            ]
            with m.If(self.start):
                m.d.sync += count.eq(0)
            with m.Elif(queue.w_en):
                m.d.sync += count.eq(count + 1)
            dispatched.append(count)
        all_completed = Cat(a == b for a, b in zip(dispatched, completed, strict=True)).all()

        last_part, take, drop = part == n_halves - 1, Signal(), Signal()
        beat_bits = exact_log2(self.config.word_bytes)
        m.d.comb += [
            self.rd_cmd.p.addr.eq(
                Mux(self.block, self.line << exact_log2(DOORBELL_BYTES), self.context.program_base)
            ),
            self.rd_cmd.p.beats.eq(beats),
            self.rd_data.ready.eq((take & last_part) | drop),
            self.word.p.eq(instruction),
            self.word.valid.eq(valid & self.raw),
            given.eq(self.word.valid & self.word.ready),
            emptied.eq(given & (number == n_words - 1)),
        ]
        with m.If(given):
            m.d.sync += number.eq(number + 1)
        with m.If(self.rd_data.valid & self.rd_data.ready):
            m.d.sync += beats.eq(beats - 1)
        with m.If(take & self.rd_data.valid):
            m.d.sync += [part.eq(part + 1), valid.eq(1)]
            with m.Switch(part):
                for index in range(n_halves):
                    with m.Case(index):
                        first = 8 * INSTRUCTION_BYTES * index
                        m.d.sync += instruction.eq(self.rd_data.p[first:])
        with m.Elif(given):
            m.d.sync += [instruction.eq(instruction >> WORD_WIDTH), valid.eq(~emptied)]
        with m.Elif(dispatch):
            m.d.sync += valid.eq(0)

        m.d.sync += self.error.eq(ErrorCode.NONE)
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [
                    beats.eq(
                        Mux(
                            self.block,
                            line_bytes(self.config) >> beat_bits,
                            self.context.program_bytes >> beat_bits,
                        )
                    ),
                    part.eq(0),
                    valid.eq(0),
                    number.eq(0),
                ]
                with m.If(self.start):
                    m.next = "Request"
            with m.State("Request"):
                with m.If(self.rd_cmd.ready):
                    m.next = "Run"
            with m.State("Run"):
                with m.If(self.raw):
                    with m.If(given & self.enough):
                        m.d.sync += valid.eq(0)
                        m.next = "Drop"
                    with m.Elif(~valid & (beats == 0)):
                        m.next = "Finish"
                with m.Elif(valid & ~known):
                    m.d.sync += valid.eq(0)
                    with m.If(opcode != Opcode.END):
                        m.d.sync += self.error.eq(ErrorCode.OPCODE)
                    m.next = "Drop"
                with m.Elif(~valid & (beats == 0)):
                    m.d.sync += self.error.eq(ErrorCode.NO_END)
                    m.next = "Finish"
            with m.State("Drop"):
                with m.If(beats == 0):
                    m.next = "Finish"
            with m.State("Finish"):
                with m.If(all_completed):
                    m.d.comb += self.finished.eq(1)
                    m.next = "Idle"
        fetch_state = Signal(UnitState)
        m.d.comb += [
            self.rd_cmd.valid.eq(fsm.ongoing("Request")),
            take.eq(fsm.ongoing("Run") & (beats != 0) & (~valid | dispatch | emptied)),
            drop.eq(fsm.ongoing("Drop") & (beats != 0)),
            self.unit_state[len(Unit)].eq(fetch_state),
        ]
        with m.If(fsm.ongoing("Idle")):
            m.d.comb += fetch_state.eq(UnitState.IDLE)
        with m.Elif(valid | fsm.ongoing("Finish")):
            m.d.comb += fetch_state.eq(Mux(dispatch, UnitState.RUNNING, UnitState.WAIT_DEPENDENCY))
        with m.Else():
            m.d.comb += fetch_state.eq(
                Mux(self.rd_data.valid, UnitState.RUNNING, UnitState.WAIT_READ)
            )
        return m
