"""A small stand-in for the accelerator: its ports, its registers, and faults on request.

A run reads ``N_TOKENS`` beats at ``PROGRAM_BASE``, one by one under two ids, and as many as one
burst at ``WEIGHT_BASE``; it writes the complement of the former to ``LOGITS_BASE``, and the sum of
the latter's low words to ``ARGMAX``. ``LOGITS_FROM`` asks for a fault, ``LOGITS_STRIDE`` for a
pause.
"""

import enum
from typing import Any

from amaranth import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.control.isa import Unit
from lutra_golden.control.registers import ErrorCode, UnitState
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import port_name, two_ports
from lutra_hw.axi.signatures import Axi4LiteSignature, Axi4ReadSignature, Axi4Signature
from lutra_hw.control.registers import RegisterFile
from lutra_hw.netlist import to_named_verilog
from lutra_sim.rtl.build import TOP

__all__ = ["CONFIG", "MAX_BEATS", "Fault", "StandIn", "generate"]

CONFIG = NANO.with_(
    name="stand-in",
    step_depth=3,
    depth_tile=3,
    pass_tokens=2,
    head_dim=8,
    n_heads=1,
    n_kv_heads=1,
    ports=two_ports(weights=64, data=64),
)
"""The smallest ports there are."""

MAX_BEATS = 16


class Fault(enum.IntEnum):
    """Faults of the stand-in, selected by a write to LOGITS_FROM."""

    NONE = 0
    SIZE = 1
    BURST = 2
    AR_FALLS = 3
    AR_CHANGES = 4
    WLAST_EARLY = 5
    WLAST_MISSING = 6
    W_CHANGES = 7
    W_FALLS = 8
    HANGS = 9
    HANGS_IDLE = 10
    RACES = 11
    BUS_ERROR = 12
    BUSY_WAIT = 13
    R_FALLS = 14
    NO_ANSWER = 15


class StandIn(wiring.Component):
    """See above; at most ``MAX_BEATS`` beats."""

    s_axi: Any
    irq: Any

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        # as `two_ports` makes them
        weights, data = config.ports
        self._data_width = data.width
        super().__init__(
            {
                "s_axi": In(Axi4LiteSignature(12)),
                port_name(0): Out(Axi4ReadSignature(weights.width)),
                port_name(1): Out(Axi4Signature(data.width)),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        file: Any = RegisterFile(self.config)
        m.submodules.registers = file
        w, d = getattr(self, port_name(0)), getattr(self, port_name(1))
        fault, beats = file.context.logits_from, file.context.n_tokens
        time = Signal(32)
        m.d.sync += time.eq(time + 1)

        for name, member in file.s_axi.signature.members.items():
            inner, outer = getattr(file.s_axi, name), getattr(self.s_axi, name)
            if name == "rvalid":
                falls = (fault == Fault.R_FALLS) & time[0]
                answers = fault != Fault.NO_ANSWER
                m.d.comb += outer.eq(inner & ~falls & answers)
            elif member.flow is In:
                m.d.comb += inner.eq(outer)
            else:
                m.d.comb += outer.eq(inner)
        m.d.comb += [self.irq.eq(file.irq), file.idle.eq(1), file.checked.eq(1)]

        state = Signal(UnitState)
        m.d.comb += [
            file.unit_state[Unit.LOAD].eq(state),
            file.unit_state[Unit.MATMUL].eq(
                Mux(state == UnitState.WAIT_READ, UnitState.WAIT_WEIGHTS, UnitState.IDLE)
            ),
        ]
        stored = Array(Signal(self._data_width) for _ in range(MAX_BEATS))
        asked, written, pause = Signal(8), Signal(8), Signal(32)
        received = Array(Signal(7, name=f"received{i}") for i in range(2))
        weights_asked, weights_left, total = Signal(), Signal(8), Signal(32)
        m.d.comb += file.argmax.data.eq(total)

        data_size, weight_size = (exact_log2(width // 8) for width in (len(d.rdata), len(w.rdata)))
        wrong_size = Mux(fault == Fault.SIZE, 1, 0)
        flicker = Mux(fault == Fault.AR_CHANGES, time[0] << data_size, 0)
        m.d.comb += [
            w.araddr.eq(file.context.weight_base),
            w.arlen.eq(beats - 1),
            w.arsize.eq(weight_size - wrong_size),
            w.arburst.eq(Mux(fault == Fault.BURST, 0, 1)),
            d.araddr.eq((file.context.program_base + (asked << data_size)) ^ flicker),
            d.arid.eq(asked[0]),
            d.arlen.eq(0),
            d.arsize.eq(data_size),
            d.arburst.eq(1),
            d.awaddr.eq(file.context.logits_base),
            d.awlen.eq(beats - 1),
            d.awsize.eq(data_size),
            d.awburst.eq(1),
            d.wdata.eq(~stored[written] ^ Mux(fault == Fault.W_CHANGES, time, 0)),
            d.wstrb.eq((1 << len(d.wstrb)) - 1),
            d.wlast.eq(
                (written == beats - Mux(fault == Fault.WLAST_EARLY, 2, 1))
                & (fault != Fault.WLAST_MISSING)
            ),
            w.rready.eq(1),
            # as an arbiter does it: who is ready depends on whom the data are for
            d.rready.eq(Mux(d.rid == 1, d.rvalid & d.rid, ~d.rid)),
            d.bready.eq(1),
        ]
        with m.If(d.rvalid & d.rready):
            m.d.sync += stored[(received[d.rid] << 1) | d.rid].eq(d.rdata)
            m.d.sync += received[d.rid].eq(received[d.rid] + 1)
        with m.If(w.rvalid & w.rready):
            m.d.sync += [total.eq(total + w.rdata), weights_left.eq(weights_left - 1)]

        with m.FSM():
            with m.State("Idle"):
                with m.If(file.start):
                    m.d.sync += [
                        asked.eq(0),
                        written.eq(0),
                        pause.eq(file.context.logits_stride),
                        received[0].eq(0),
                        received[1].eq(0),
                        weights_asked.eq(0),
                        weights_left.eq(beats),
                        total.eq(0),
                    ]
                    m.next = "Pause"
            with m.State("Pause"):
                m.d.comb += state.eq(
                    Mux((fault == Fault.BUSY_WAIT) & pause[6], UnitState.RUNNING, UnitState.IDLE)
                )
                m.d.sync += pause.eq(pause - 1)
                with m.If(pause == 0):
                    m.d.sync += pause.eq(0)
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += [
                    state.eq(UnitState.WAIT_READ),
                    w.arvalid.eq(~weights_asked),
                    d.arvalid.eq((asked != beats) & ((fault != Fault.AR_FALLS) | time[0])),
                ]
                with m.If(w.arvalid & w.arready):
                    m.d.sync += weights_asked.eq(1)
                with m.If(d.arvalid & d.arready):
                    m.d.sync += asked.eq(asked + 1)
                with m.If((received[0] + received[1] == beats) & (weights_left == 0)):
                    m.next = "Address"
                with m.If((fault == Fault.RACES) & (asked == beats)):
                    m.next = "Address"
                with m.If(fault == Fault.HANGS):
                    m.d.comb += [w.arvalid.eq(0), d.arvalid.eq(0)]
                with m.If(fault == Fault.HANGS_IDLE):
                    m.d.comb += [w.arvalid.eq(0), d.arvalid.eq(0), state.eq(UnitState.IDLE)]
            with m.State("Address"):
                m.d.comb += [state.eq(UnitState.WAIT_WRITE), d.awvalid.eq(1)]
                with m.If(d.awready):
                    m.next = "Data"
            with m.State("Data"):
                m.d.comb += [
                    state.eq(UnitState.WAIT_WRITE),
                    d.wvalid.eq((fault != Fault.W_FALLS) | time[0]),
                ]
                with m.If(d.wvalid & d.wready):
                    m.d.sync += written.eq(written + 1)
                    with m.If(written == beats - 1):
                        m.next = "Answer"
            with m.State("Answer"):
                m.d.comb += [state.eq(UnitState.WAIT_WRITE), file.done.eq(d.bvalid)]
                with m.If(fault == Fault.BUS_ERROR):
                    m.d.comb += file.failure.code.eq(ErrorCode.BUS)
                with m.If(d.bvalid):
                    m.next = "Idle"
        return m


def generate(config: AcceleratorConfig) -> tuple[str, dict[str, dict[str, object]]]:
    """Verilog of the stand-in, and the ports of what is inside."""
    return to_named_verilog(StandIn(config), TOP)
