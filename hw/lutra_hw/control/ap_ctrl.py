"""Front end by which XRT starts descriptors: ``ap_ctrl_chain`` before the registers."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra_golden.control.ap_ctrl import (
    AP_CONTINUE,
    AP_START,
    IRQ_DONE,
    IRQ_READY,
    XRT_ADDR_WIDTH,
    XRT_REGISTERS,
)
from lutra_golden.control.descriptor import DOORBELL_BYTES, QUEUE_DEPTH
from lutra_golden.control.registers import REGISTERS
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.axi.signatures import RESP_OKAY, RESP_SLVERR, Axi4LiteSignature
from lutra_hw.control.context import REGISTER_ADDR_WIDTH

__all__ = ["ApCtrlChain"]

_PENDING = REGISTERS["PENDING"]
_DOORBELL = REGISTERS["DOORBELL"]


class ApCtrlChain(wiring.Component):
    """Starts descriptors by the handshake ``ap_ctrl_chain``, over the accelerator's registers.

    A start rings the accelerator's doorbell. While descriptors are outstanding, PENDING is read
    between accesses of the host: those that it does not count any more are over, and done until
    they are acknowledged. Accesses from ``WINDOW`` on go to the accelerator, and so do its answers.
    Writes honour strobes; what is not in the map reads as zero, and answers SLVERR.

    Own registers are written 2 cycles after the later of address and data, a cycle later where the
    handshake moves, and read in 2; one write and one read are under way at a time. What is
    forwarded goes first; doorbells and reads of PENDING have their turn while the host takes its
    answer. Reset forgets all descriptors, so the accelerator is to be reset, too.

    Model: :class:`lutra_golden.control.ap_ctrl.ApCtrl`. Source: Xilinx UG1393.

    Members
    -------
    s_axi : ``In(Axi4LiteSignature(13))``
    interrupt : ``Out(1)``  level
    m_axi : ``Out(Axi4LiteSignature(12))``  to the accelerator's registers
    """

    s_axi: In(Axi4LiteSignature(XRT_ADDR_WIDTH))
    interrupt: Out(1)
    m_axi: Out(Axi4LiteSignature(REGISTER_ADDR_WIDTH))

    def elaborate(self, platform):
        m = Module()
        state = _Handshake()
        alive = Signal()
        # nothing is taken in a reset that lasts longer in here than at the master
        m.d.sync += alive.eq(1)
        m.d.comb += [
            self.interrupt.eq(state.gie & state.isr.any()),
            self.m_axi.bready.eq(1),
            self.m_axi.rready.eq(1),
        ]
        self._handshake(m, state)
        self._writes(m, state, alive)
        self._reads(m, state, alive)
        return m

    def _handshake(self, m, state):
        """Ends of starts and of descriptors, and the events of both."""
        has_room, fits = Signal(), Signal(name="fits")
        n_over = Signal(range(QUEUE_DEPTH + 1))
        moves, events = Signal(), Signal(2)
        low = ceil_log2(DOORBELL_BYTES)
        refuses = state.start & ~fits & has_room & (state.outstanding == 0)
        continues = state.continues & (state.finished != 0)
        taken = state.rung | refuses
        m.d.comb += [
            has_room.eq(state.outstanding + state.finished < QUEUE_DEPTH),
            fits.eq(~(state.argument[:low].any() | state.argument[ADDRESS_WIDTH:].any())),
            state.rings.eq(state.start & fits & has_room),
            # what was asked before the last doorbell may not count it
            moves.eq(state.answered & ~state.stale & (state.pending < state.outstanding)),
            n_over.eq(Mux(moves, state.outstanding - state.pending, 0)),
            state.moves.eq(taken | moves),
            # done rises for one, or anew for the next when one is acknowledged
            events.eq(
                Mux(
                    Mux(continues, state.finished > 1, (moves | refuses) & (state.finished == 0)),
                    IRQ_DONE,
                    0,
                )
                | Mux(taken, IRQ_READY, 0)
            ),
            state.control.eq(
                Cat(
                    state.start,
                    state.finished != 0,
                    ~state.start & (state.outstanding == 0),
                    state.ready,
                )
            ),
        ]
        m.d.sync += [
            state.start.eq((state.start | state.starts) & ~taken),
            state.ready.eq((state.ready & ~state.looks) | taken),
            state.outstanding.eq(state.outstanding + state.rung - n_over),
            state.finished.eq(state.finished + refuses + n_over - continues),
            state.isr.eq((state.isr ^ state.toggles) | (events & state.ier)),
            state.stale.eq((state.stale | state.rung) & ~state.asks),
        ]

    def _writes(self, m, state, alive):
        """Writes of the host, here or to the accelerator, and doorbells."""
        host, core = self.s_axi, self.m_axi
        write_addr = Signal(XRT_ADDR_WIDTH)
        data, strb = Signal(32), Signal(4)
        has_addr, has_data = (Signal(name=name) for name in ("has_addr", "has_data"))
        complete, here, answered = Signal(), Signal(), Signal()
        error = Signal()
        m.d.comb += [
            host.awready.eq(alive & ~has_addr),
            host.wready.eq(alive & ~has_data),
            complete.eq(has_addr & has_data & ~host.bvalid),
            # one thing at a time changes the handshake
            here.eq(complete & ~write_addr[-1] & ~state.moves),
        ]
        with m.If(host.awvalid & host.awready):
            m.d.sync += [has_addr.eq(1), write_addr.eq(host.awaddr)]
        with m.If(host.wvalid & host.wready):
            m.d.sync += [has_data.eq(1), data.eq(host.wdata), strb.eq(host.wstrb)]
        with m.If(here | answered):
            m.d.sync += [
                has_addr.eq(0),
                has_data.eq(0),
                host.bvalid.eq(1),
                host.bresp.eq(Mux(answered, core.bresp, Mux(error, RESP_SLVERR, RESP_OKAY))),
            ]
        with m.Elif(host.bready):
            m.d.sync += host.bvalid.eq(0)

        with m.If(core.awready):
            m.d.sync += core.awvalid.eq(0)
        with m.If(core.wready):
            m.d.sync += core.wvalid.eq(0)
        with m.FSM(name="write"):
            with m.State("Idle"):
                forwards = complete & write_addr[-1]
                with m.If(forwards):
                    m.d.sync += [
                        core.awaddr.eq(write_addr),
                        core.wdata.eq(data),
                        core.wstrb.eq(strb),
                        Cat(core.awvalid, core.wvalid).eq(-1),
                    ]
                    m.next = "ForwardWrite"
                with m.Elif(state.rings):
                    m.d.sync += [
                        core.awaddr.eq(_DOORBELL.address),
                        core.wdata.eq(state.argument[ceil_log2(DOORBELL_BYTES) :]),
                        core.wstrb.eq(-1),
                        Cat(core.awvalid, core.wvalid).eq(-1),
                    ]
                    m.next = "Ring"
            with m.State("Ring"):
                m.d.comb += state.rung.eq(core.bvalid)
                with m.If(core.bvalid):
                    m.next = "Idle"
            with m.State("ForwardWrite"):
                m.d.comb += answered.eq(core.bvalid)
                with m.If(core.bvalid):
                    m.next = "Idle"
        self._registers(m, state, here, write_addr, data, strb, error)

    def _registers(self, m, state, here, addr, data, strb, error):
        """Own registers, as ``here`` writes them."""

        def at(name, word=0):
            return addr[2:-1] == XRT_REGISTERS[name].address // 4 + word

        m.d.comb += error.eq(1)
        for name, register in XRT_REGISTERS.items():
            for word in range(register.count):
                with m.If(at(name, word)):
                    m.d.comb += error.eq(0)
        first = here & strb[0]
        m.d.comb += [
            state.starts.eq(first & at("CTRL") & ((data & AP_START) != 0)),
            state.continues.eq(first & at("CTRL") & ((data & AP_CONTINUE) != 0)),
            state.toggles.eq(Mux(first & at("ISR"), data, 0)),
        ]
        with m.If(first & at("GIE")):
            m.d.sync += state.gie.eq(data)
        with m.If(first & at("IER")):
            m.d.sync += state.ier.eq(data)
        for lane in range(8):
            word, byte = divmod(lane, 4)
            # an argument stays while its start waits
            with m.If(here & strb[byte] & at("DESCRIPTOR", word) & ~state.start):
                m.d.sync += state.argument.word_select(lane, 8).eq(data.word_select(byte, 8))

    def _reads(self, m, state, alive):
        """Reads of the host, here or from the accelerator, and of PENDING."""
        host, core = self.s_axi, self.m_axi
        read_addr = Signal(XRT_ADDR_WIDTH)
        has_read = Signal()
        complete, here, answered = Signal(), Signal(), Signal()
        value, error = Signal(32), Signal()
        words = {
            "CTRL": [state.control],
            "GIE": [state.gie],
            "IER": [state.ier],
            "ISR": [state.isr],
            "DESCRIPTOR": [state.argument[:32], state.argument[32:]],
        }
        m.d.comb += error.eq(1)
        with m.Switch(read_addr[2:-1]):
            for name, entries in words.items():
                for word, entry in enumerate(entries):
                    with m.Case(XRT_REGISTERS[name].address // 4 + word):
                        m.d.comb += [value.eq(entry), error.eq(0)]
        m.d.comb += [
            host.arready.eq(alive & ~has_read),
            complete.eq(has_read & ~host.rvalid),
            here.eq(complete & ~read_addr[-1]),
            state.looks.eq(here & (read_addr[2:-1] == XRT_REGISTERS["CTRL"].address // 4)),
            state.pending.eq(core.rdata),
        ]
        with m.If(host.arvalid & host.arready):
            m.d.sync += [has_read.eq(1), read_addr.eq(host.araddr)]
        with m.If(here | answered):
            m.d.sync += [
                has_read.eq(0),
                host.rvalid.eq(1),
                host.rdata.eq(Mux(answered, core.rdata, value)),
                host.rresp.eq(Mux(answered, core.rresp, Mux(error, RESP_SLVERR, RESP_OKAY))),
            ]
        with m.Elif(host.rready):
            m.d.sync += host.rvalid.eq(0)

        with m.If(core.arready):
            m.d.sync += core.arvalid.eq(0)
        with m.FSM(name="read"):
            with m.State("Idle"):
                forwards = complete & read_addr[-1]
                with m.If(forwards):
                    m.d.sync += [core.araddr.eq(read_addr), core.arvalid.eq(1)]
                    m.next = "ForwardRead"
                with m.Elif(state.outstanding != 0):
                    m.d.comb += state.asks.eq(1)
                    m.d.sync += [core.araddr.eq(_PENDING.address), core.arvalid.eq(1)]
                    m.next = "Ask"
            with m.State("Ask"):
                m.d.comb += state.answered.eq(core.rvalid)
                with m.If(core.rvalid):
                    m.next = "Idle"
            with m.State("ForwardRead"):
                m.d.comb += answered.eq(core.rvalid)
                with m.If(core.rvalid):
                    m.next = "Idle"


class _Handshake:
    """Registers of the handshake, and what happens to them in a cycle."""

    def __init__(self):
        self.start, self.ready, self.gie, self.stale = (
            Signal(name=name) for name in ("start", "ready", "gie", "stale")
        )
        self.outstanding, self.finished = (
            Signal(range(QUEUE_DEPTH + 1), name=name) for name in ("outstanding", "finished")
        )
        self.ier, self.isr = Signal(2, name="ier"), Signal(2, name="isr")
        self.argument = Signal(XRT_REGISTERS["DESCRIPTOR"].width, name="argument")
        self.control = Signal(XRT_REGISTERS["CTRL"].width, name="control")
        # of the host
        self.starts, self.continues, self.looks = (
            Signal(name=name) for name in ("starts", "continues", "looks")
        )
        self.toggles = Signal(2, name="toggles")
        # of the accelerator
        self.rings, self.rung, self.asks, self.answered, self.moves = (
            Signal(name=name) for name in ("rings", "rung", "asks", "answered", "moves")
        )
        self.pending = Signal(_PENDING.width, name="pending")
