"""Every check passes, and fails where its block has a fault."""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest

pytest.importorskip("amaranth")

from tests.sim.formal.broken import broken_module

from lutra_sim.formal.catalogue import CHECKS
from lutra_sim.formal.prove import prove

pytestmark = pytest.mark.formal

BY_NAME = {check.name: check for check in CHECKS}


@dataclass(frozen=True)
class Fault:
    """``block`` of ``module`` with a fault, put into ``place``: a part of ``lutra_sim.formal`` that
    imported it, or a module of the hardware."""

    check: str
    module: str
    block: str
    place: str
    old: str
    new: str


def _stream(check: str, module: str, block: str, old: str, new: str) -> Fault:
    return Fault(f"streams-{check}", f"lutra_hw.{module}", block, "catalogue", old, new)


def _fabric(name: str, block: str, old: str, new: str) -> Fault:
    return Fault(f"fabric-{name}", f"lutra_hw.fabric.{name}", block, "catalogue", old, new)


def _twin(primitive: str, old: str, new: str) -> Fault:
    """A fault in the Verilog of a twin, when it is read."""
    read = '.read_text("utf-8")'
    return Fault(
        f"twin-{primitive}",
        "lutra_sim.rtl.primitives.twins",
        "twins_for_rtlil",
        "prove",
        read,
        f"{read}.replace({old!r}, {new!r})",
    )


FAULTS = [
    _stream(
        "arbiter",
        "axi.arbiter",
        "ReadArbiter",
        "take.eq(~o.arvalid | o.arready)",
        "take.eq(1)",
    ),
    _stream(
        "stripe",
        "axi.stripe",
        "Stripe",
        "o_cmd.valid.eq(cmd.valid & (lane == index)),",
        "o_cmd.valid.eq(cmd.valid & (lane == index) & self.o.ready),",
    ),
    _stream(
        "reader",
        "axi.reader",
        "DmaReader",
        "with m.If(axi.arready):\n                m.d.sync += axi.arvalid.eq(0)",
        "m.d.sync += axi.arvalid.eq(0)",
    ),
    _stream(
        "writer",
        "axi.writer",
        "DmaWriter",
        "fifo.r_en.eq(axi.wready & lengths.r_rdy)",
        "fifo.r_en.eq(lengths.r_rdy)",
    ),
    _stream(
        "lite",
        "axi.lite",
        "LiteSlave",
        "with m.Elif(axi.bready):\n            m.d.sync += axi.bvalid.eq(0)",
        "with m.Else():\n            m.d.sync += axi.bvalid.eq(0)",
    ),
    _stream(
        "scale",
        "arith.scale",
        "ScaleUnit",
        "with m.If(self.o.ready):\n                    m.next",
        "if True:\n                    m.next",
    ),
    _stream(
        "logits",
        "vector.residual",
        "Logits",
        "with m.If(self.o_cmd.ready):\n            m.d.sync += self.o_cmd.valid.eq(0)",
        "m.d.sync += self.o_cmd.valid.eq(0)",
    ),
    Fault(
        "streams-registers",
        "lutra_hw.axi.lite",
        "LiteSlave",
        "lutra_hw.control.registers",
        "with m.If(axi.rready):\n                    m.d.sync += axi.rvalid.eq(0)",
        "if True:\n                    m.d.sync += axi.rvalid.eq(0)",
    ),
    _stream(
        "rope",
        "vector.rope",
        "RopeQuant",
        "queue.r_en.eq(leaves),",
        "queue.r_en.eq(1),",
    ),
    _stream(
        "load",
        "control.load",
        "LoadUnit",
        'with m.State("Request"):\n                with m.If(self.rd_cmd.ready):',
        'with m.State("Request"):\n                if True:',
    ),
    Fault(
        "pairs",
        "lutra_hw.attention.pairs",
        "PairIssuer",
        "attention.pairs",
        'with m.State("Scales"), m.If(self.rd_cmd.ready):',
        'with m.State("Scales"):',
    ),
    Fault(
        "pairs",
        "lutra_hw.attention.pairs",
        "PairIssuer",
        "attention.pairs",
        "arrived.eq(written != issued),",
        "arrived.eq(1),",
    ),
    *(
        Fault(
            name,
            "lutra_hw.attention.pairs",
            "PairIssuer",
            "attention.pairs",
            "arrived.eq(written != issued),",
            "arrived.eq(1),",
        )
        for name in ("pairs-kv4", "pairs-parts")
    ),
    Fault(
        "chunks",
        "lutra_hw.control.chunks",
        "ChunkWalker",
        "control.chunks",
        "(entry.n_tokens >= left)),",
        "(entry.n_tokens == left)),",
    ),
    Fault(
        "fifo",
        "amaranth.lib.fifo",
        "SyncFIFO",
        "catalogue",
        "self.w_rdy.eq(self.level != self.depth),",
        "self.w_rdy.eq(1),",
    ),
    Fault(
        "fifo-buffered",
        "amaranth.lib.fifo",
        "SyncFIFOBuffered",
        "catalogue",
        "self.w_rdy.eq(inner_level != inner_depth),",
        "self.w_rdy.eq(1),",
    ),
    Fault(
        "replay",
        "lutra_hw.stream.replay",
        "ReplayBuffer",
        "stream.replay",
        "m.d.comb += freed.eq(Mux(self.keep, base, taken))",
        "m.d.comb += freed.eq(taken)",
    ),
    Fault(
        "replay",
        "lutra_hw.stream.replay",
        "ReplayBuffer",
        "stream.replay",
        "m.d.sync += taken.eq(base)",
        "m.d.sync += taken.eq(base + 1)",
    ),
    Fault(
        "replay-late",
        "lutra_hw.stream.replay",
        "ReplayBuffer",
        "stream.replay",
        "freed = delay(m, freed, self.lag)[-1]",
        "freed = freed + 0",
    ),
    Fault(
        "group-shifts",
        "lutra_hw.vector.group_shifts",
        "GroupShifts",
        "vector.group_shifts",
        "ends.eq(valid & ((count == whole) | last)),",
        "ends.eq(valid & (count == whole)),",
    ),
    Fault(
        "group-shifts",
        "lutra_hw.vector.group_shifts",
        "GroupShifts",
        "vector.group_shifts",
        "r_port.data <= self.y_max[e:]",
        "r_port.data < self.y_max[e:]",
    ),
    Fault(
        "centre-of-keys",
        "lutra_hw.vector.rope",
        "RopeQuant",
        "vector.centre",
        "y_high.eq(high_cos + low_sin - high_away)",
        "y_high.eq(high_cos + low_sin + high_away)",
    ),
    Fault(
        "centre-of-keys",
        "lutra_hw.vector.rope",
        "RopeQuant",
        "vector.centre",
        "y_low.eq(low_cos - high_sin - low_away)",
        "y_low.eq(low_cos - high_sin - high_away)",
    ),
    Fault(
        "centre-of-keys",
        "lutra_hw.vector.rope",
        "RopeQuant",
        "vector.centre",
        "with m.If(arrived.slot.valid & (arrived.high == half)):",
        "if True:",
    ),
    Fault(
        "centre-of-keys",
        "lutra_hw.vector.heads",
        "FixedHeads",
        "lutra_hw.vector.rope",
        "(key >= 0) & (key < config.n_kv_heads)",
        "(key >= 0)",
    ),
    Fault(
        "group-sums",
        "lutra_hw.matmul.activations",
        "ActivationSums",
        "matmul.groups",
        "with m.If(read):\n            m.d.sync += shifts.eq(self.i_shift)",
        "m.d.comb += shifts.eq(self.i_shift)",
    ),
    Fault(
        "group-sums",
        "lutra_hw.matmul.activations",
        "ActivationSums",
        "matmul.groups",
        "m.d.sync += taken.eq(taken + 1)",
        "m.d.sync += taken.eq(written)",
    ),
    Fault(
        "arbiter",
        "lutra_hw.axi.arbiter",
        "ReadArbiter",
        "axi.arbiter",
        "o.arvalid.eq(0)",
        "o.arvalid.eq(o.arvalid)",
    ),
    Fault(
        "arbiter",
        "lutra_hw.axi.arbiter",
        "ReadArbiter",
        "axi.arbiter",
        "last.eq(index),",
        "last.eq(0),",
    ),
    Fault(
        "bursts",
        "lutra_hw.axi.bursts",
        "BurstSplitter",
        "axi.bursts",
        "distance.eq(self.burst_beats - self.beat_addr[:burst_bits]),",
        "distance.eq(self.burst_beats),",
    ),
    Fault(
        "reader",
        "lutra_hw.axi.reader",
        "DmaReader",
        "axi.reader",
        "& (free >= self.burst_beats)",
        "& (free != 0)",
    ),
    Fault(
        "reader",
        "lutra_hw.axi.reader",
        "DmaReader",
        "axi.reader",
        "& (outstanding != self.max_outstanding)",
        "& (outstanding <= self.max_outstanding)",
    ),
    Fault(
        "writer",
        "lutra_hw.axi.writer",
        "DmaWriter",
        "axi.writer",
        "& (unclaimed >= splitter.length)",
        "& (unclaimed != 0)",
    ),
    Fault(
        "writer",
        "lutra_hw.axi.writer",
        "DmaWriter",
        "axi.writer",
        "axi.wlast.eq(beat == lengths.r_data)",
        "axi.wlast.eq(beat + 1 >= lengths.r_data)",
    ),
    Fault(
        "writer",
        "lutra_hw.axi.writer",
        "DmaWriter",
        "axi.writer",
        "self.settled & (fifo.level == 0)",
        "(fifo.level == 0)",
    ),
    Fault(
        "sequencer",
        "lutra_hw.control.sequencer",
        "Sequencer",
        "control.sequencer",
        "enough = Cat(count >= wait for",
        "enough = Cat(count + 1 >= wait for",
    ),
    Fault(
        "sequencer",
        "lutra_hw.control.sequencer",
        "Sequencer",
        "control.sequencer",
        "m.d.sync += met.eq(queue.r_rdy & ~queue.r_en & enough.all())",
        "m.d.sync += met.eq(queue.r_rdy & enough.all())",
    ),
    *(
        Fault("stripe", "lutra_hw.axi.stripe", "Stripe", "axi.stripe", old, new)
        for old, new in (
            ("Mux(taken[n - 1], 0, offset + stride)", "offset + stride"),
            ("i.ready.eq(self.o.valid & self.o.ready)", "i.ready.eq(self.o.ready)"),
        )
    ),
    Fault(
        "read-width-narrow",
        "lutra_hw.axi.width",
        "ReadWidth",
        "axi.width",
        "o.valid.eq(i.valid & last),",
        "o.valid.eq(i.valid),",
    ),
    Fault(
        "read-width-wide",
        "lutra_hw.axi.width",
        "ReadWidth",
        "axi.width",
        "i.ready.eq(transfer.valid & o.ready & (last | lane.all())),",
        "i.ready.eq(transfer.valid & o.ready & lane.all()),",
    ),
    Fault(
        "write-width-narrow",
        "lutra_hw.axi.width",
        "WriteWidth",
        "axi.width",
        "o.p.strb.eq(i.p.strb.word_select(count, params.beat_bytes)),",
        "o.p.strb.eq(i.p.strb),",
    ),
    Fault(
        "write-width-wide",
        "lutra_hw.axi.width",
        "WriteWidth",
        "axi.width",
        "m.d.sync += word.strb.eq(0)",
        "m.d.sync += word.strb.eq(word.strb)",
    ),
    Fault(
        "streams-read-width-narrow",
        "lutra_hw.axi.width",
        "ReadWidth",
        "catalogue",
        "i.ready.eq(~last | o.ready),",
        "i.ready.eq(1),",
    ),
    Fault(
        "streams-read-width-wide",
        "lutra_hw.axi.width",
        "ReadWidth",
        "catalogue",
        "transfer.ready.eq(i.valid & o.ready & last),",
        "transfer.ready.eq(i.valid & last),",
    ),
    Fault(
        "streams-write-width-narrow",
        "lutra_hw.axi.width",
        "WriteWidth",
        "catalogue",
        "i.ready.eq(o.ready & last),",
        "i.ready.eq(last),",
    ),
    Fault(
        "streams-write-width-wide",
        "lutra_hw.axi.width",
        "WriteWidth",
        "catalogue",
        "i.ready.eq(transfer.valid & (~complete | o.ready)),",
        "i.ready.eq(transfer.valid),",
    ),
    Fault(
        "sequencer-run",
        "lutra_hw.control.sequencer",
        "Sequencer",
        "control.sequencer",
        "enough = Cat(count >= wait for",
        "enough = Cat(count > wait for",
    ),
    Fault(
        "equal-ternary",
        "lutra_hw.matmul.table",
        "TernaryDatapath",
        "catalogue",
        "subtract.eq(sign < 0),",
        "subtract.eq(sign > 0),",
    ),
    Fault(
        "equal-lut",
        "lutra_hw.matmul.lut",
        "LutDatapath",
        "catalogue",
        "minus = [~entry[0], ~entry[1], ~entry[2]]",
        "minus = [~entry[0], ~entry[1], entry[2]]",
    ),
    Fault(
        "equal-lut-logic",
        "lutra_hw.matmul.lut",
        "LutDatapath",
        "catalogue",
        'last = pairs["last_sum" if s2 > 0 else "last_difference"]',
        'last = pairs["last_sum" if s2 < 0 else "last_difference"]',
    ),
    Fault(
        "step-mixpe",
        "lutra_hw.matmul.mac",
        "DotDatapath._activations_of_step",
        "lutra_hw.matmul.mac",
        "newer_set.eq(self.start_set)",
        "newer_set.eq(~self.start_set)",
    ),
    Fault(
        "row-mixpe-chains",
        "lutra_sim.formal.matmul.datapath",
        "shifted_sum",
        "catalogue",
        "low + (high << weight)",
        "low + (high << 1)",
    ),
    Fault(
        "row-mixpe-chains-odd",
        "lutra_hw.matmul.mixpe",
        "MixpeDatapath",
        "catalogue",
        "Mux(bits[-1], words[n - 1], 0)",
        "Mux(bits[-1], words[n - 2], 0)",
    ),
    Fault(
        "row-mixpe-cells",
        "lutra_hw.matmul.mixpe",
        "MixpeDatapath",
        "catalogue",
        "Mux(a_bit & ~b_bit, sign_extend(a, width), 0)",
        "Mux(a_bit, sign_extend(a, width), 0)",
    ),
    Fault(
        "row-mixpe-cells-odd",
        "lutra_hw.matmul.mac",
        "DotDatapath._add_in_cells",
        "lutra_hw.matmul.mac",
        "carry.eq((a & b) | (c & (a ^ b)))",
        "carry.eq(a & b)",
    ),
    Fault(
        "equal-mac-chains",
        "lutra_hw.matmul.mac",
        "MacDatapath",
        "catalogue",
        "Cat(Const(1, 1), a) + Cat(Const(0, 1), b)",
        "Cat(Const(1, 1), a) + Cat(Const(1, 1), b)",
    ),
    Fault(
        "equal-mac-cells",
        "lutra_hw.matmul.mac",
        "MacDatapath",
        "catalogue",
        "offset -= 1 << (len(term) - 1 + bit)",
        "offset -= 1 << (len(term) - 1)",
    ),
    Fault(
        "row-mixpe-chains",
        "lutra_hw.matmul.mixpe",
        "MixpeDatapath",
        "catalogue",
        "Mux(~a_bit & b_bit, sign_extend(b, width), 0)",
        "Mux(~a_bit & b_bit, b, 0)",
    ),
    Fault(
        "reader-clear",
        "lutra_hw.axi.reader",
        "DmaReader",
        "axi.reader",
        "~self.clear\n                & splitter.valid",
        "splitter.valid",
    ),
    Fault(
        "reader-clear",
        "lutra_hw.axi.reader",
        "DmaReader",
        "axi.reader",
        "self.idle.eq(outstanding == 0)",
        "self.idle.eq(outstanding <= 1)",
    ),
    Fault(
        "writer-clear",
        "lutra_hw.axi.writer",
        "DmaWriter",
        "axi.writer",
        "ResetInserter(self.clear & self.settled)(fifo)",
        "ResetInserter(self.clear)(fifo)",
    ),
    Fault(
        "writer-clear",
        "lutra_hw.axi.writer",
        "DmaWriter",
        "axi.writer",
        "self.settled.eq(outstanding == 0)",
        "self.settled.eq(self.clear | (outstanding == 0))",
    ),
    Fault(
        "run-ends",
        "lutra_hw.control.registers",
        "RegisterFile",
        "control.registers",
        "clear.eq(stop | (clear & ~self.idle))",
        "clear.eq(stop)",
    ),
    Fault(
        "run-bounds",
        "lutra_hw.control.runs",
        "RunUnit",
        "control.runs",
        "with m.Elif(run.engaged & control.stop):",
        "with m.Elif(control.stop):",
    ),
    Fault(
        "run-bounds",
        "lutra_hw.control.runs",
        "RunUnit",
        "control.runs",
        "self.start.eq((run.state == RunState.ASK) |",
        "self.start.eq((run.state == RunState.FETCH) |",
    ),
    Fault(
        "ap-ctrl",
        "lutra_hw.control.ap_ctrl",
        "ApCtrlChain",
        "control.ap_ctrl",
        "+ n_over - continues)",
        "+ n_over - state.continues)",
    ),
    Fault(
        "ap-ctrl",
        "lutra_hw.control.ap_ctrl",
        "ApCtrlChain",
        "control.ap_ctrl",
        "complete.eq(has_read & ~host.rvalid),",
        "complete.eq(has_read),",
    ),
    Fault(
        "result-order",
        "lutra_hw.control.result",
        "ResultWriter",
        "control.runs",
        "with m.If(~commanded & (self.wr_idle | ~self.report)):",
        "with m.If(~commanded):",
    ),
    Fault(
        "equal-mac-dsp",
        "lutra_hw.matmul.mac",
        "MacDatapath",
        "catalogue",
        "offset = sum(1 << (width * (row + 1) - 1) for row in range(per_dsp))",
        "offset = 1 << (width * per_dsp - 1)",
    ),
]
FAULTS += [
    _twin("lut6-2", "INIT[{I5, index}]", "INIT[{1'b0, index}]"),
    _twin("carry8", "+ {8'd0, CI}", ""),
    _twin("carry8", "sum[7:1] ^ S[7:1]", "sum[7:1]"),
    _twin("ram32m16", "<= DIH;", "<= DIG;"),
    _twin("ram32m16", "g[{ADDRG,", "g[{ADDRH,"),
    _fabric(
        "tables", "LookupTables", 'f"i_ADDR{port}": self.entry', 'f"i_ADDR{port}": Const(0, 5)'
    ),
    _fabric(
        "tables",
        "LookupTables",
        '"i_ADDR{port}"] = self.index[t][n]',
        '"i_ADDR{port}"] = self.index[t][0]',
    ),
    _fabric("sums", "PackedSum", "z = _Z_PCIN if k else _Z_ZERO", "z = _Z_ZERO"),
    _fabric("sums", "PackedSum", "LANE_WIDTH - self.width)", "LANE_WIDTH - 1 - self.width)"),
    _fabric("accumulate", "Accumulate", "carry = carries[-1]", "carry = carries[-2]"),
    _fabric(
        "accumulate",
        "Accumulate",
        "0 if first else below if double else acc",
        "below if double else 0 if first else acc",
    ),
]
_SEEN: dict[str, int] = {}


def _fault_id(fault: Fault) -> str:
    _SEEN[fault.check] = _SEEN.get(fault.check, 0) + 1
    return f"{fault.check}-{_SEEN[fault.check]}"


def _slow(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if BY_NAME[name].slow else []


@pytest.mark.parametrize(
    "name", [pytest.param(check.name, marks=_slow(check.name)) for check in CHECKS]
)
def test_passes(name: str, tmp_path: Path) -> None:
    assert prove(BY_NAME[name], tmp_path / "work").reason == ""


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=_slow(fault.check), id=_fault_id(fault)) for fault in FAULTS],
)
def test_fails_with_a_fault(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = broken_module(fault.module, fault.old, fault.new)
    place = fault.place if "lutra_hw" in fault.place else f"lutra_sim.formal.{fault.place}"
    monkeypatch.setattr(f"{place}.{fault.block}", attrgetter(fault.block)(module))
    verdict = prove(BY_NAME[fault.check], tmp_path / "work")
    # a check by induction holds of the sound block, so that its failure is the fault's too
    assert verdict.reason.startswith(("broken in cycle ", "held in the first "))


def test_names_are_not_used_twice() -> None:
    assert len(BY_NAME) == len(CHECKS)
