"""Every check: what is proved about which block, how far."""

from collections.abc import Callable
from typing import Any

from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered

from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.axi.stripe import StripeParams
from lutra_golden.axi.width import WidthParams
from lutra_golden.core.configs import NANO
from lutra_golden.matmul.lut import LutParams, Tables
from lutra_golden.matmul.mac import Adders, MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_golden.matmul.ternary import TernaryParams
from lutra_hw.arith.scale import ScaleUnit
from lutra_hw.axi.arbiter import ReadArbiter
from lutra_hw.axi.lite import LiteSlave
from lutra_hw.axi.reader import DmaReader
from lutra_hw.axi.stripe import Stripe
from lutra_hw.axi.width import ReadWidth, WriteWidth
from lutra_hw.axi.writer import DmaWriter
from lutra_hw.control.load import LoadUnit
from lutra_hw.control.registers import RegisterFile
from lutra_hw.fabric.accumulate import TRUTH_TABLE, Accumulate
from lutra_hw.fabric.sums import PackedSum
from lutra_hw.fabric.tables import LookupTables
from lutra_hw.matmul.lut import LutDatapath
from lutra_hw.matmul.mac import MacDatapath
from lutra_hw.matmul.mixpe import MixpeDatapath
from lutra_hw.matmul.table import TernaryDatapath
from lutra_hw.vector.residual import Logits
from lutra_hw.vector.rope import RopeQuant
from lutra_sim.formal.attention.pairs import PairsRules
from lutra_sim.formal.axi.arbiter import ArbiterOrder
from lutra_sim.formal.axi.bursts import SplitterOrder
from lutra_sim.formal.axi.reader import ReaderClear, ReaderOrder
from lutra_sim.formal.axi.stripe import StripeOrder
from lutra_sim.formal.axi.width import ReadWidthOrder, WriteWidthOrder
from lutra_sim.formal.axi.writer import WriterClear, WriterOrder
from lutra_sim.formal.control.ap_ctrl import ApCtrlRules
from lutra_sim.formal.control.chunks import ChunkRules
from lutra_sim.formal.control.registers import RunEnds
from lutra_sim.formal.control.runs import ResultOrder, RunBounds
from lutra_sim.formal.control.sequencer import SequencerRules, SequencerRun
from lutra_sim.formal.fabric.twins import RamTwin, carry_twin, lut_twin
from lutra_sim.formal.fabric.variants import TablesEqual, VariantsEqual
from lutra_sim.formal.matmul.datapath import (
    DatapathEqual,
    RowEqual,
    StepEqual,
    Sum,
    digit_sum,
    lut_sum,
    shifted_sum,
    ternary_sum,
)
from lutra_sim.formal.matmul.groups import SumsOfGroups
from lutra_sim.formal.prove import Check, Mode
from lutra_sim.formal.stream.fifo import FifoOrder
from lutra_sim.formal.stream.replay import ReplayOrder
from lutra_sim.formal.stream.rules import StreamRules
from lutra_sim.formal.vector.centre import CentreOfKeys
from lutra_sim.formal.vector.group_shifts import ShiftOfGroups

__all__ = ["CHECKS"]

_SMALL = NANO.with_(name="small", hidden_max=64, n_heads=2, n_kv_heads=1, max_context=16)
_DMA = {"burst_beats": 2, "max_outstanding": 2, "fifo_depth": 4}
_DRAIN = 3  # cycles of the pipeline behind the pair issuer
_WIDTHS = {
    "narrow": WidthParams(word_bytes=3, beat_bytes=1),
    "wide": WidthParams(word_bytes=1, beat_bytes=2),
}
"""The port beside the words."""
_STRIPE = StripeParams(n_lanes=4, beat_bytes=2)
_ROW = 5  # that is compared; seven rows share a memory, so some are readers of one

# Blocks with output streams; those of a unit are its parts'. Some are not
# proved by induction, which needs to know what states there are: there the first cycles are looked
# at, in which several transfers begin and end.
_STREAMS: dict[str, tuple[Callable[[], wiring.Component], Mode, int]] = {
    "arbiter": (lambda: ReadArbiter(3, 32), Mode.PROVED, 2),
    "lite": (lambda: LiteSlave(), Mode.BOUNDED, 12),
    "load": (lambda: LoadUnit(_SMALL), Mode.PROVED, 2),
    "logits": (lambda: Logits(_SMALL), Mode.PROVED, 2),
    "reader": (lambda: DmaReader(32, **_DMA), Mode.PROVED, 2),
    "registers": (lambda: RegisterFile(_SMALL), Mode.BOUNDED, 10),
    "rope": (lambda: RopeQuant(_SMALL), Mode.PROVED, 2),
    "scale": (lambda: ScaleUnit(), Mode.PROVED, 2),
    "stripe": (lambda: Stripe(_STRIPE), Mode.PROVED, 2),
    "read-width-narrow": (lambda: ReadWidth(_WIDTHS["narrow"]), Mode.BOUNDED, 8),
    "read-width-wide": (lambda: ReadWidth(_WIDTHS["wide"]), Mode.BOUNDED, 8),
    "write-width-narrow": (lambda: WriteWidth(_WIDTHS["narrow"]), Mode.BOUNDED, 8),
    "write-width-wide": (lambda: WriteWidth(_WIDTHS["wide"]), Mode.BOUNDED, 8),
    "writer": (lambda: DmaWriter(32, **_DMA), Mode.BOUNDED, 10),
}


def _streams(name: str) -> Check:
    make, mode, depth = _STREAMS[name]
    return Check(
        name=f"streams-{name}",
        claim="what waits on an output stream stays as it is",
        make=lambda: StreamRules(make()),
        mode=mode,
        depth=depth,
    )


def _equal(
    name: str, make: Callable[[], Any], total: Sum, *, a_bits: int, slow: bool = False
) -> Check:
    return Check(
        name=f"equal-{name}",
        claim="datapath = sum of products, both sets of activations",
        make=lambda: DatapathEqual(make(), total, _ROW, a_bits),
        mode=Mode.BOUNDED,
        slow=slow,
    )


def _mixpe(depth: int, adders: Adders) -> MixpeDatapath:
    return MixpeDatapath(MixpeParams(step_depth=depth, depth_tile=2 * depth, adders=adders))


def _row(name: str, depth: int, adders: Adders, *, a_bits: int = 8) -> Check:
    return Check(
        name=f"row-mixpe-{name}",
        claim="a step's row = sum of products by shift and add",
        make=lambda: RowEqual(_mixpe(depth, adders), shifted_sum, _ROW, a_bits),
        mode=Mode.BOUNDED,
    )


def _width(name: str, order: Callable[[WidthParams], Any], side: str) -> Check:
    return Check(
        name=f"{name}-width-{side}",
        claim="every word in its beats, in order; nothing beside it",
        make=lambda: order(_WIDTHS[side]),
        mode=Mode.BOUNDED,
        depth=8,
    )


def _twin(primitive: str, make: Callable[[], Any]) -> Check:
    return Check(
        name=f"twin-{primitive}",
        claim="the twin for simulation is Yosys' model of the primitive",
        make=make,
        mode=Mode.PROVED,
        depth=1,
    )


CHECKS: list[Check] = [
    *map(_streams, _STREAMS),
    Check(
        name="fifo",
        claim="no word lost, repeated or reordered; level, full, empty",
        make=lambda: FifoOrder(SyncFIFO, 4, 1),
        mode=Mode.BOUNDED,
        depth=12,
    ),
    Check(
        name="fifo-buffered",
        claim="no word lost, repeated or reordered; level, full, empty",
        make=lambda: FifoOrder(SyncFIFOBuffered, 5, 2),
        mode=Mode.BOUNDED,
        depth=12,
    ),
    Check(
        name="replay",
        claim="passes come out as they went in, replayed or not",
        make=lambda: ReplayOrder(4),
        mode=Mode.BOUNDED,
        depth=12,
    ),
    Check(
        name="replay-late",
        claim="the same, with a part of each word that comes later",
        make=lambda: ReplayOrder(4, late_width=2, lag=2),
        mode=Mode.BOUNDED,
        depth=12,
    ),
    Check(
        name="arbiter",
        claim="requests once, in order, with ids; data to their master; fair",
        make=lambda: ArbiterOrder(3),
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="stripe",
        claim="a command to each lane once, for its part; beats of all lanes together",
        make=lambda: StripeOrder(_STRIPE),
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="bursts",
        claim="bursts cover the command, in order; none crosses 4 KB",
        make=lambda: SplitterOrder(128, 16),
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="reader",
        claim="every beat once, in order; AXI's rules for bursts; progress",
        make=ReaderOrder,
        mode=Mode.BOUNDED,
        depth=10,
    ),
    Check(
        name="writer",
        claim="every beat once, in order, wlast; idle is true; progress",
        make=WriterOrder,
        mode=Mode.BOUNDED,
        depth=10,
    ),
    Check(
        name="reader-clear",
        claim="a clear ends within a bound, nothing owed, nothing of before comes out",
        make=ReaderClear,
        mode=Mode.BOUNDED,
        depth=14,
    ),
    Check(
        name="writer-clear",
        claim="a clear ends within a bound; bursts that had begun are written",
        make=WriterClear,
        mode=Mode.BOUNDED,
        depth=14,
    ),
    Check(
        name="run-ends",
        claim="a failed run is cleared, and over when nothing is owed; nothing starts before",
        make=lambda: RunEnds(_SMALL),
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="run-bounds",
        claim="a run of a descriptor touches nothing unless it is busy, one fetch at a time",
        make=lambda: RunBounds(_SMALL),
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="ap-ctrl",
        claim="a start by XRT is done once, none without it; what waits on a channel stays",
        make=ApCtrlRules,
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="result-order",
        claim="result blocks are handed over whole, status last when all else is in memory",
        make=lambda: ResultOrder(_SMALL),
        mode=Mode.PROVED,
        depth=2,
    ),
    *(
        _width(name, order, side)
        for name, order in (("read", ReadWidthOrder), ("write", WriteWidthOrder))
        for side in _WIDTHS
    ),
    Check(
        name="pairs",
        claim="requests wait unchanged, pairs read what is there, no slot overwritten",
        make=lambda: PairsRules(_SMALL, _DRAIN),
        mode=Mode.BOUNDED,
        depth=16,
    ),
    Check(
        name="pairs-kv4",
        claim="the same with two positions to a beat",
        make=lambda: PairsRules(_SMALL.with_(key_width=4, value_width=4), _DRAIN),
        mode=Mode.BOUNDED,
        depth=16,
    ),
    Check(
        name="pairs-parts",
        claim="the same with two cycles to a pair",
        make=lambda: PairsRules(_SMALL.with_(pair_cycles=2), _DRAIN),
        mode=Mode.BOUNDED,
        depth=16,
    ),
    Check(
        name="group-shifts",
        claim="a group's shift is what its largest product leaves room for",
        make=ShiftOfGroups,
        mode=Mode.BOUNDED,
    ),
    Check(
        name="group-sums",
        claim="sums of activations in order, each with its group's shift",
        make=lambda: SumsOfGroups(
            MacParams(
                depth_tile=8,
                step_depth=8,
                offset_width=16,
                a_groups=ActivationGroups(size=32),
                sum_width=43,
            )
        ),
        mode=Mode.BOUNDED,
        depth=12,
    ),
    Check(
        name="centre-of-keys",
        claim="rotated keys lose their centre, exactly; other heads nothing",
        make=lambda: CentreOfKeys(_SMALL.with_(head_dim=32, qkv_bias=True)),
        mode=Mode.PROVED,
    ),
    Check(
        name="chunks",
        claim="the chunks of any table cover the tile, one behind the other",
        make=lambda: ChunkRules(_SMALL),
        mode=Mode.PROVED,
        depth=2,
    ),
    Check(
        name="sequencer",
        claim="waits kept, instructions once and in order, streams",
        make=SequencerRules,
        mode=Mode.BOUNDED,
        depth=9,
    ),
    Check(
        name="sequencer-run",
        claim="a program of two beats ends within a bound: no deadlock",
        make=SequencerRun,
        mode=Mode.BOUNDED,
        depth=20,
    ),
    _equal(
        "ternary",
        lambda: TernaryDatapath(TernaryParams(step_depth=3, depth_tile=3)),
        ternary_sum,
        a_bits=3,
        slow=True,
    ),
    _equal(
        "lut",
        lambda: LutDatapath(LutParams(step_depth=4, depth_tile=4)),
        lut_sum,
        a_bits=3,
        slow=True,
    ),
    _equal(
        "lut-logic",
        lambda: LutDatapath(LutParams(step_depth=4, depth_tile=8, tables=Tables.LOGIC)),
        lut_sum,
        a_bits=3,
        slow=True,
    ),
    # a solver takes hours for what a step selects and its sum in one
    Check(
        name="step-mixpe",
        claim="a step has its activations, both sets",
        make=lambda: StepEqual(_mixpe(3, Adders.CELLS), a_bits=8),
        mode=Mode.BOUNDED,
    ),
    _row("chains", 4, Adders.CHAINS),
    _row("chains-odd", 3, Adders.CHAINS),
    _row("cells", 2, Adders.CELLS),
    _row("cells-odd", 3, Adders.CELLS, a_bits=2),
    *(
        _equal(
            f"mac-{adders.name.lower()}",
            lambda adders=adders: MacDatapath(
                MacParams(step_depth=2, depth_tile=4, w_width=2, adders=adders)
            ),
            digit_sum,
            a_bits=8,
        )
        for adders in Adders
    ),
    _twin("lut6-2", lambda: lut_twin([TRUTH_TABLE])),
    _twin("carry8", carry_twin),
    _twin("ram32m16", RamTwin),
    # twelve reads: a RAM that is full, and one that is not
    Check(
        name="fabric-tables",
        claim="both fabrics read the same, used as the cell asks for",
        make=lambda: TablesEqual(lambda fabric: LookupTables(2, 3, 3, fabric)),
        mode=Mode.BOUNDED,
        depth=5,
    ),
    Check(
        name="fabric-sums",
        claim="both fabrics give the same sums",
        make=lambda: VariantsEqual(lambda fabric: PackedSum(4, 4, 11, fabric)),
        mode=Mode.PROVED,
    ),
    Check(
        name="fabric-accumulate",
        claim="both fabrics give the same",
        make=lambda: VariantsEqual(lambda fabric: Accumulate(24, 16, fabric)),
        mode=Mode.PROVED,
    ),
]
"""In the order of the table; names as on the command line."""
