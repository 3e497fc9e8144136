"""The accelerator's register file behind its AXI4-Lite port."""

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra_golden.control.descriptor import QUEUE_DEPTH
from lutra_golden.control.isa import Unit
from lutra_golden.control.registers import (
    CONTEXT,
    CONTROL_ABORT,
    CONTROL_START,
    COUNTER_WIDTH,
    COUNTERS,
    ERROR_FIELDS,
    IDENT,
    REGISTERS,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_DRAINING,
    STATUS_ERROR,
    STATUS_REFUSED,
    STATUS_SATURATED,
    TILE_ARRAYS,
    VERSION,
    ErrorCode,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_hw.axi.lite import LiteSlave, RegisterBusSignature
from lutra_hw.axi.signatures import Axi4LiteSignature
from lutra_hw.buffers import ArgmaxReadPort, ChunkReadPort, ScaleReadPort, TokenReadPort
from lutra_hw.control.context import (
    CONTEXT_WIDTHS,
    ERROR_CODE,
    REGISTER_ADDR_WIDTH,
    RunContextSignature,
    RunControlSignature,
)
from lutra_hw.control.failure import FAILURE_LAYOUT

__all__ = ["UNIT_STATE_LAYOUT", "RegisterFile", "event_counts"]

_CHUNK_USERS = (Unit.LOAD, Unit.VECTOR, Unit.ATTENTION)
_PART_WIDTH = 4  # bits of an array's element that are written together

UNIT_STATE_LAYOUT = data.ArrayLayout(4, len(Unit) + 1)
""":class:`UnitState` of the units in the order of :class:`Unit`, then of the instruction fetch."""


def event_counts(config: AcceleratorConfig) -> data.StructLayout:
    """Events per cycle of each performance counter other than cycles."""
    # fetch, load and attention may each have a port, and each lane of the weights
    most = {"data_read_beats": 3, "weight_read_beats": config.weight_stripe.n_lanes}
    return data.StructLayout(
        {name: most.get(name, 1).bit_length() for name in COUNTERS if name != "cycles"}
    )


_STORED = ["IRQ_ENABLE", "WATCHDOG", *(name.upper() for name in CONTEXT_WIDTHS)]


class RegisterFile(wiring.Component):
    """Registers of :data:`lutra_golden.control.registers.REGISTERS` and what they control.

    Writes honour byte strobes, but that of DOORBELL, which is whole. What is not in the map, or is
    an array's element beyond ``pass_tokens``, reads as zero; that, and writing what is read-only,
    answers SLVERR.

    START takes effect when it was ``checked``, in the next cycle without ``clear``: counters and
    status are cleared, ``start`` is high, and busy lasts until ``done``; where ``refusal`` is not
    NONE, the run is over at once instead. Descriptors begin in the order of their doorbells, when
    nothing else runs; an abort drops those that wait, and a doorbell too many sets REFUSED. While a
    run is busy or to come, START, and writes to the arrays of a tile and to what ``context`` has,
    do nothing but set REFUSED. An error or ABORT raises ``clear``, which ends whatever runs; it
    falls, and the run is over, when the memory owes nothing (``idle``). So it does after reset.
    ``expired`` is like an error; while ``clear`` it ends the run although the memory owes, which
    DRAINING shows. Counters stand still while not busy.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    s_axi : ``In(Axi4LiteSignature(12))``
    irq : ``Out(1)``  level: IRQ_STATUS and IRQ_ENABLE
    start : ``Out(1)``  one cycle
    clear : ``Out(1)``  reset of the units
    idle : ``In(1)``  no memory port has anything under way
    context : ``Out(RunContextSignature())``
    tokens : ``In(TokenReadPort(config))``
    load_chunks, vector_chunks, attention_chunks : ``In(ChunkReadPort(config))``
    control : ``Out(RunControlSignature())``  runs of descriptors
    changed : ``Out(1)``  what shapes a run was written in the cycle before.
    checked : ``In(1)``  the ``refusal`` of a run as it is described now is known
    refusal : ``In(4)``  :class:`ErrorCode` of what is wrong with context and chunks
    watchdog : ``Out(32)``  the register
    running : ``Out(1)``  a run is under way, or waits for its check or the memory to begin
    expired : ``In(1)``  one cycle: nothing moved for too long
    done : ``In(1)``  pulse: the run has ended
    failure : ``In(FAILURE_LAYOUT)``  with its code for one cycle; the first of a run is kept
    saturated : ``In(1)``  kept in STATUS until the next START
    unit_state : ``In(UNIT_STATE_LAYOUT)``
    argmax : ``Out(ArgmaxReadPort(config))``
    scales : ``Out(ScaleReadPort(config))``
    events : ``In(event_counts(config))``
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "s_axi": In(Axi4LiteSignature(REGISTER_ADDR_WIDTH)),
                "irq": Out(1),
                "start": Out(1),
                "clear": Out(1),
                "idle": In(1),
                "context": Out(RunContextSignature()),
                "tokens": In(TokenReadPort(config)),
                **{_chunks(unit): In(ChunkReadPort(config)) for unit in _CHUNK_USERS},
                "control": Out(RunControlSignature()),
                "changed": Out(1),
                "checked": In(1),
                "refusal": In(ERROR_CODE),
                "watchdog": Out(REGISTERS["WATCHDOG"].width),
                "running": Out(1),
                "expired": In(1),
                "done": In(1),
                "failure": In(FAILURE_LAYOUT),
                "saturated": In(1),
                "unit_state": In(UNIT_STATE_LAYOUT),
                "argmax": Out(ArgmaxReadPort(config)),
                "scales": Out(ScaleReadPort(config)),
                "events": In(event_counts(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus = self._bus(m)
        tile = {name: self._tile_array(m, name) for name in TILE_ARRAYS}
        self._tile_ports(m, tile)

        stored = {name: Signal(REGISTERS[name].width, name=name.lower()) for name in _STORED}
        irq_status, done, saturated, failure = (
            Signal(), Signal(), Signal(), Signal(FAILURE_LAYOUT)
        )  # fmt: skip
        units = Signal(UNIT_STATE_LAYOUT)
        state = _State()
        # an abort drops what waits; so does the watchdog where nothing can begin
        doorbells, flush = SyncFIFO(width=REGISTERS["DOORBELL"].width, depth=QUEUE_DEPTH), Signal()
        m.submodules.doorbells = ResetInserter(flush)(doorbells)
        m.d.comb += state.queued.eq(doorbells.r_rdy)
        counters = {name: Signal(COUNTER_WIDTH, name=f"counter_{name}") for name in COUNTERS}
        for name in CONTEXT_WIDTHS:
            m.d.comb += getattr(self.context, name).eq(stored[name.upper()])
        m.d.comb += [
            self.irq.eq(irq_status & stored["IRQ_ENABLE"]),
            self.watchdog.eq(stored["WATCHDOG"]),
            self.running.eq(state.taken),
        ]

        self._writes(m, bus, stored, tile, irq_status, state, doorbells)
        words = {
            "IDENT": [IDENT],
            "VERSION": [VERSION],
            "FINGERPRINT": _words(self.config.fingerprint),
            "CONTROL": [0],
            "STATUS": [
                Mux(state.taken, STATUS_BUSY, 0)
                # not those of the run before
                | Mux(done & ~state.waits, STATUS_DONE, 0)
                | Mux((failure.code != ErrorCode.NONE) & ~state.waits, STATUS_ERROR, 0)
                | Mux(saturated, STATUS_SATURATED, 0)
                | Mux(state.refused, STATUS_REFUSED, 0)
                | Mux(self.clear, STATUS_DRAINING, 0)
            ],
            "DOORBELL": [0],
            "PENDING": [doorbells.level + self.control.engaged],
            "ERROR": [_word(failure)],
            "ERROR_ADDRESS": _words(failure.address),
            "IRQ_STATUS": [irq_status],
            "UNIT_STATE": [units.as_value()],
            **{
                name: [value[i : i + 32] for i in range(0, len(value), 32)]
                for name, value in stored.items()
            },
        }
        memories = {
            "ARGMAX": (self.argmax.addr.token, self.argmax.data),
            "SCALE": (self.scales.addr.token, _packed(self.scales.data)),
        }
        for name, memory in tile.items():
            read = memory.read_port()
            memories[name] = read.addr, read.data
        self._reads(m, bus, words, counters, memories)

        self._run(m, state, irq_status, done, failure, saturated, counters, doorbells, flush)
        # after a failure they stay as they were when it came
        with m.If(~self.clear & (failure.code == ErrorCode.NONE)):
            m.d.sync += units.eq(self.unit_state)
        return m

    def _bus(self, m):
        """The register bus of the host and of the runs of descriptors, which come first."""
        m.submodules.lite = lite = LiteSlave(REGISTER_ADDR_WIDTH)
        wiring.connect(m, wiring.flipped(self.s_axi), lite.axi)
        host, own = lite.bus, self.control.bus
        bus = RegisterBusSignature(REGISTER_ADDR_WIDTH).create(path=("bus",))
        m.d.comb += lite.hold.eq(own.write_en | own.read_en)
        for kind, names in (("write", ("addr", "data", "strb")), ("read", ("addr",))):
            first = getattr(own, f"{kind}_en")
            m.d.comb += getattr(bus, f"{kind}_en").eq(first | getattr(host, f"{kind}_en"))
            for name in (f"{kind}_{name}" for name in names):
                value = Mux(first, getattr(own, name), getattr(host, name))
                m.d.comb += getattr(bus, name).eq(value)
        for side in (host, own):
            m.d.comb += [
                side.write_error.eq(bus.write_error),
                side.read_data.eq(bus.read_data),
                side.read_error.eq(bus.read_error),
            ]
        return bus

    def _run(self, m, state, irq_status, done, failure, saturated, counters, doorbells, flush):
        """Beginning and end of a run, and what is counted of it."""
        clear, busy, control = Signal(init=1), state.busy, self.control
        go, fits, stop, over, give_up = (Signal() for _ in range(5))
        ends = state.abort | self.expired
        ending = Mux(self.expired, ErrorCode.WATCHDOG, ErrorCode.ABORT)
        m.d.comb += [
            self.clear.eq(clear),
            go.eq(state.wanted & self.checked & ~clear & ~ends),
            fits.eq(self.refusal == ErrorCode.NONE),
            self.start.eq(go & fits),
            stop.eq(busy & ~clear & ((self.failure.code != ErrorCode.NONE) | ends)),
            # a start that still waits for its check or for the memory
            give_up.eq(state.waits & ends),
            over.eq(
                Mux(
                    busy,
                    Mux(
                        clear,
                        (self.idle & ~control.keeps) | self.expired,
                        Mux(control.engaged, control.over, self.done) & ~stop,
                    ),
                    (go & ~fits) | give_up,
                )
            ),
            flush.eq(state.abort | give_up),
            control.bell.eq(doorbells.r_data),
            control.ready.eq(doorbells.r_rdy & ~(busy | state.wanted | clear | ends)),
            control.busy.eq(busy),
            control.stop.eq(stop),
            control.clear.eq(clear),
            doorbells.r_en.eq(control.begin),
        ]
        m.d.sync += clear.eq(stop | (clear & ~self.idle))
        with m.If(go | give_up | control.begin):
            m.d.sync += [
                state.wanted.eq(0),
                state.refused.eq(0),
                busy.eq(self.start | control.begin),
                done.eq(0),
                saturated.eq(0),
                failure.eq(0),
            ]
            with m.If(~control.begin):
                m.d.sync += failure.code.eq(Mux(give_up, ending, self.refusal))
            m.d.sync += [counter.eq(0) for counter in counters.values()]
        with m.Elif(busy):
            m.d.sync += saturated.eq(saturated | self.saturated)
            # the report of a run that failed may fail, too
            with m.If(stop & (failure.code == ErrorCode.NONE)):
                m.d.sync += failure.eq(self.failure)
                with m.If(self.failure.code == ErrorCode.NONE):
                    m.d.sync += failure.code.eq(ending)
            with m.Elif(control.refusal != ErrorCode.NONE):
                m.d.sync += failure.code.eq(control.refusal)
            with m.If(~control.frozen):
                m.d.sync += counters["cycles"].eq(counters["cycles"] + 1)
                for name in self.events.shape().members:
                    with m.If(self.events[name] != 0):
                        m.d.sync += counters[name].eq(counters[name] + self.events[name])
        with m.If(over):
            m.d.sync += [busy.eq(0), done.eq(1), irq_status.eq(1)]

    def _tile_array(self, m, name):
        """Memory of an array over the tokens of a tile."""
        memory = Memory(shape=REGISTERS[name].width, depth=self.config.pass_tokens, init=[])
        m.submodules[f"{name.lower()}_memory"] = memory
        return memory

    def _tile_ports(self, m, tile):
        """Connect the units' read ports to the arrays of a tile."""
        read = tile["TOKEN"].read_port()
        m.d.comb += [read.addr.eq(self.tokens.addr.token), self.tokens.data.eq(read.data)]
        for unit in _CHUNK_USERS:
            port = getattr(self, _chunks(unit))
            reads = [tile[name].read_port() for name in ("CHUNK", "CHUNK_KV")]
            m.d.comb += [read.addr.eq(port.addr.entry) for read in reads]
            m.d.comb += port.data.as_value().eq(Cat(read.data for read in reads))

    def _writes(self, m, bus, stored, tile, irq_status, state, doorbells):
        """Write port of the registers; ``write_error`` stays high where nothing can be written."""
        m.d.comb += bus.write_error.eq(1)
        m.d.sync += state.abort.eq(0)

        def at(name, word=0):
            return bus.write_addr == REGISTERS[name].address // 4 + word

        # what is written shapes a run, and there is one
        shapes, locked = Signal(), Signal()
        m.d.comb += locked.eq(shapes & state.taken & ~self.control.bus.write_en)
        m.d.sync += self.changed.eq(bus.write_en & shapes & ~locked)
        with m.If(bus.write_en & locked):
            m.d.sync += state.refused.eq(1)

        for name, value in stored.items():
            for word in range(REGISTERS[name].count):
                with m.If(at(name, word)):
                    m.d.comb += bus.write_error.eq(0)
                    if name in CONTEXT:
                        m.d.comb += shapes.eq(1)
                    for lane in range(4):
                        first = 32 * word + 8 * lane
                        if first < len(value):
                            part = value[first : min(first + 8, len(value))]
                            with m.If(bus.write_en & bus.write_strb[lane] & ~locked):
                                m.d.sync += part.eq(bus.write_data[8 * lane :])
        with m.If(at("CONTROL")):
            m.d.comb += bus.write_error.eq(0)
            with m.If(bus.write_en & bus.write_strb[0]):
                with m.If((bus.write_data & CONTROL_ABORT) != 0):
                    m.d.sync += state.abort.eq(1)
                with m.Elif((bus.write_data & CONTROL_START) != 0):
                    with m.If(state.taken):
                        m.d.sync += state.refused.eq(1)
                    with m.Else():
                        m.d.sync += state.wanted.eq(1)
        m.d.comb += doorbells.w_data.eq(bus.write_data)
        with m.If(at("DOORBELL")):
            m.d.comb += [bus.write_error.eq(0), doorbells.w_en.eq(bus.write_en)]
            with m.If(bus.write_en & ~doorbells.w_rdy):
                m.d.sync += state.refused.eq(1)
        with m.If(at("IRQ_STATUS")):
            m.d.comb += bus.write_error.eq(0)
            with m.If(bus.write_en & bus.write_strb[0] & bus.write_data[0]):
                m.d.sync += irq_status.eq(0)

        for name, memory in tile.items():
            bank, index = _split(name, bus.write_addr)
            hit, write = Signal(), memory.write_port(granularity=_PART_WIDTH)
            lanes = [bus.write_strb[_PART_WIDTH * i // 8] for i in range(len(write.en))]
            m.d.comb += [
                hit.eq(bank & (index < self.config.pass_tokens)),
                write.addr.eq(index),
                write.data.eq(bus.write_data),
                write.en.eq(Mux(bus.write_en & hit & ~locked, Cat(lanes), 0)),
            ]
            with m.If(hit):
                m.d.comb += [bus.write_error.eq(0), shapes.eq(1)]

    def _reads(self, m, bus, words, counters, memories):
        """Read port: every bank in a register in the first cycle, one of them in the second."""
        selected, values = [], []

        def bank(name):
            value, hit = Signal(32, name=f"{name}_value"), Signal(name=f"{name}_hit")
            values.append(value)
            selected.append(hit)
            return value, hit

        value, hit = bank("scalar")
        with m.If(bus.read_en):
            m.d.sync += [hit.eq(0), value.eq(0)]
            with m.Switch(bus.read_addr):
                for name, entries in words.items():
                    for word, entry in enumerate(entries):
                        with m.Case(REGISTERS[name].address // 4 + word):
                            m.d.sync += [hit.eq(1), value.eq(entry)]

        for name, (addr, element) in memories.items():
            # the memory's own output register
            value, hit = bank(name.lower())
            in_bank, index = _split(name, bus.read_addr)
            m.d.comb += [addr.eq(index), value.eq(element)]
            with m.If(bus.read_en):
                m.d.sync += hit.eq(in_bank & (index < self.config.pass_tokens))

        value, hit = bank("counter")
        in_bank, index = _split("COUNTER", bus.read_addr)
        halves = [counter[i : i + 32] for counter in counters.values() for i in (0, 32)]
        with m.If(bus.read_en):
            m.d.sync += hit.eq(0)
            with m.If(in_bank):
                with m.Switch(index):
                    for number, half in enumerate(halves):
                        with m.Case(number):
                            m.d.sync += [hit.eq(1), value.eq(half)]

        data_out = 0
        for hit, value in zip(selected, values, strict=True):
            data_out = data_out | Mux(hit, value, 0)
        m.d.sync += [bus.read_data.eq(data_out), bus.read_error.eq(~Cat(selected).any())]


class _State:
    """Flags of a run that the host's writes and its end change."""

    def __init__(self):
        self.wanted, self.queued, self.busy, self.abort, self.refused = (
            Signal(name=name) for name in ("wanted", "queued", "busy", "abort", "refused")
        )

    @property
    def taken(self):
        """A run is under way, or is to come."""
        return self.busy | self.wanted | self.queued

    @property
    def waits(self):
        """A run waits for its check, or for the memory, to begin."""
        return ~self.busy & (self.wanted | self.queued)


def _chunks(unit):
    """Name of the port by which ``unit`` reads the tile's chunks."""
    return f"{unit.name.lower()}_chunks"


def _split(name, addr):
    """Select flag and element index of array ``name`` for ``addr``, which counts registers."""
    register = REGISTERS[name]
    bits = ceil_log2(register.count)
    assert register.address % (4 << bits) == 0, f"{name} is not aligned to its size"
    return addr[bits:] == register.address // 4 >> bits, addr[:bits]


def _words(value):
    return [value & 0xFFFFFFFF, value >> 32]


def _word(failure):
    """The register ERROR."""
    word = Const(0, 32)
    for name, (first, _, _) in ERROR_FIELDS.items():
        word = word | (getattr(failure, name) << first)
    return word


def _packed(scale):
    """A scale in 32 bits, as golden ``pack_scale`` packs it."""
    return Cat(scale.m, scale.e, scale.e[-1].replicate(16 - len(scale.e)))
