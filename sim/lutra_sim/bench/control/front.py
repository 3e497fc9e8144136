"""All that starts runs, without the units: register file, runs, sequencer, checks of registers."""

from typing import Any, cast

from amaranth import Module, ResetInserter
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.control.isa import Unit
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose
from lutra_hw.axi.signatures import Axi4LiteSignature
from lutra_hw.buffers import ArgmaxReadPort, ChunkReadPort, ScaleReadPort, TokenReadPort
from lutra_hw.control.ap_ctrl import ApCtrlChain
from lutra_hw.control.check import RunCheck
from lutra_hw.control.context import RunContextSignature
from lutra_hw.control.failure import PORT_ERROR_LAYOUT, FailureMux
from lutra_hw.control.registers import RegisterFile, event_counts
from lutra_hw.control.runs import RunUnit, connect_runs, share_table
from lutra_hw.control.sequencer import Sequencer
from lutra_hw.ports import INSTRUCTION_SHAPE, dma_command, dma_write_data

__all__ = ["RunFront", "XrtFront"]


class RunFront(wiring.Component):
    """Blocks of the accelerator that start runs, connected as they are in it.

    Instructions of the load unit leave by ``load_cmd``; there are no others.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "s_axi": In(Axi4LiteSignature()),
                "irq": Out(1),
                "clear": Out(1),
                "idle": In(1),
                "expired": In(1),
                "context": Out(RunContextSignature()),
                "tokens": In(TokenReadPort(config)),
                "load_chunks": In(ChunkReadPort(config)),
                "load_cmd": Out(stream.Signature(INSTRUCTION_SHAPE)),
                "done": In(len(Unit)),
                "transfers": In(data.ArrayLayout(PORT_ERROR_LAYOUT, len(Purpose))),
                "saturated": In(1),
                "argmax": Out(ArgmaxReadPort(config)),
                "scales": Out(ScaleReadPort(config)),
                "events": In(event_counts(config)),
                "rd_cmd": Out(dma_command()),
                "rd_data": In(stream.Signature(config.word_width)),
                "wr_cmd": Out(dma_command()),
                "wr_data": Out(dma_write_data(config.word_width)),
                "wr_idle": In(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m, config, own = Module(), self.config, cast(Any, self)
        # ports are no attributes for a type checker
        registers: Any = RegisterFile(config)
        check: Any = RunCheck(config)
        runs: Any = RunUnit(config)
        failure: Any = FailureMux()
        sequencer: Any = Sequencer(config)
        m.submodules.registers, m.submodules.check = registers, check
        m.submodules.runs, m.submodules.failure = runs, failure
        m.submodules.sequencer = ResetInserter(registers.clear)(sequencer)
        connect_runs(m, registers, runs, sequencer, check)
        share_table(m, registers, check, own.load_chunks)
        for inner, outer in (
            (registers.s_axi, own.s_axi),
            (registers.tokens, own.tokens),
            (registers.argmax, own.argmax),
            (registers.scales, own.scales),
            (sequencer.load_cmd, own.load_cmd),
            (sequencer.rd_cmd, own.rd_cmd),
            (sequencer.rd_data, own.rd_data),
            (runs.wr_cmd, own.wr_cmd),
            (runs.wr_data, own.wr_data),
        ):
            wiring.connect(m, inner, wiring.flipped(outer))
        m.d.comb += [
            own.irq.eq(registers.irq),
            own.clear.eq(registers.clear),
            *(
                getattr(own.context, name).eq(getattr(registers.context, name))
                for name in RunContextSignature().members
            ),
            registers.unit_state.eq(sequencer.unit_state),
            registers.failure.eq(failure.o),
            failure.transfers.eq(own.transfers),
            failure.program.eq(sequencer.error),
            failure.completed.eq(sequencer.completed),
            failure.dispatched.eq(sequencer.dispatched),
            sequencer.done.eq(own.done),
            runs.wr_idle.eq(own.wr_idle),
        ]
        for name in ("idle", "expired", "saturated", "events"):
            m.d.comb += getattr(registers, name).eq(getattr(own, name))
        return m


class XrtFront(wiring.Component):
    """Blocks that start runs, behind the front end by which XRT does.

    Ports are those of :class:`RunFront`, with XRT's ``s_axi`` and its ``interrupt``.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._front = RunFront(config)
        members = dict(self._front.signature.members)
        members |= {"s_axi": In(ApCtrlChain().s_axi.signature.flip()), "interrupt": Out(1)}
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m, own = Module(), cast(Any, self)
        chain: Any = ApCtrlChain()
        front: Any = self._front
        m.submodules.chain, m.submodules.front = chain, front
        wiring.connect(m, wiring.flipped(own.s_axi), chain.s_axi)
        wiring.connect(m, chain.m_axi, front.s_axi)
        m.d.comb += own.interrupt.eq(chain.interrupt)
        for name, member in front.signature.members.items():
            if name == "s_axi":
                continue
            inner, outer = getattr(front, name), getattr(own, name)
            if not member.is_port:
                wiring.connect(m, inner, wiring.flipped(outer))
            elif member.flow is In:
                m.d.comb += inner.eq(outer)
            else:
                m.d.comb += outer.eq(inner)
        return m
