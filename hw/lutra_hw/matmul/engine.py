"""The frame that all matmul engines share: control, weight ring, activations, accumulators."""

from typing import Any

from amaranth import Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_golden.timing.matmul import MatmulTiming
from lutra_hw.matmul.accumulate import (
    CONTROL_FLAGS,
    AccumulatorBanks,
    Dequantizer,
    RowRegisters,
    word_control,
)
from lutra_hw.matmul.activations import ActivationBuffer, ActivationSums
from lutra_hw.matmul.contract import MatmulEngineSignature, group_range, tile_command
from lutra_hw.matmul.lut import LutDatapath
from lutra_hw.matmul.mac import MacDatapath
from lutra_hw.matmul.mixpe import MixpeDatapath
from lutra_hw.matmul.table import TernaryDatapath
from lutra_hw.pipeline import delay
from lutra_hw.stream.replay import ReplayBuffer

__all__ = ["DATAPATHS", "MatmulEngine", "PassWalker"]

DATAPATHS = {
    "ternary": TernaryDatapath,
    "lut": LutDatapath,
    "mixpe": MixpeDatapath,
    "mac": MacDatapath,
}
"""Datapaths by :attr:`EngineParams.kind`: the only part in which engines differ."""


class PassWalker(wiring.Component):
    """Walks the passes of a command, and has the activations of each prepared ahead of its words.

    A pass is one depth tile of one group of ``step_tokens`` tokens. Of two sets of activations one
    is prepared while the other is used; a start comes as soon as its set is free. ``available``
    rises ``lead`` cycles after the start of a set, and starts are ``spacing`` cycles apart or more.

    Parameters
    ----------
    params : :class:`EngineParams`
    lead, spacing : cycles, ``1 <= lead <= spacing``.

    Members
    -------
    load : ``In(1)``  take ``cmd``; only while ``idle``.
    cmd : ``In(tile_command)``
    idle : ``Out(1)``  every pass of the command has been started.
    start, start_set : ``Out(1)``; prepare this set, of the activations ``group``, ``tile``.
    group, tile : ``Out``
    available : ``Out(1)``  words that use set ``select`` may be issued.
    select : ``Out(1)``
    free : ``In(1)``  the last word that uses set ``select`` is being issued.
    """

    def __init__(self, params: EngineParams, lead: int, spacing: int) -> None:
        self.params, self.lead, self.spacing = params, lead, spacing
        super().__init__(
            {
                "load": In(1),
                "cmd": In(tile_command(params)),
                "idle": Out(1),
                "start": Out(1),
                "start_set": Out(1),
                "group": Out(range(params.pass_tokens // params.step_tokens)),
                "tile": Out(range(params.act_tiles)),
                "available": Out(1),
                "select": Out(1),
                "free": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()

        full, freed, run = Signal(2), Signal(), Signal()
        count = Signal(range(self.spacing))  # cycles since a start, zero after the last of them
        group_first = Signal.like(self.group)
        n_groups, groups_left = Signal.like(self.group), Signal.like(self.group)
        tiles_left = Signal.like(self.tile)
        m.d.comb += [
            self.start.eq(run & (count == 0) & ~full.bit_select(self.start_set, 1)),
            self.idle.eq(~run),
            self.available.eq(full.bit_select(self.select, 1)),
        ]

        with m.If(self.start | (count != 0)):
            m.d.sync += count.eq(count + 1)
        with m.If(count == self.spacing - 1):
            m.d.sync += count.eq(0)
        with m.If(self.start):
            m.d.sync += self.start_set.eq(~self.start_set)
            with m.If(groups_left != 0):
                m.d.sync += [groups_left.eq(groups_left - 1), self.group.eq(self.group + 1)]
            with m.Else():
                m.d.sync += [groups_left.eq(n_groups), self.group.eq(group_first)]
                m.d.sync += [tiles_left.eq(tiles_left - 1), self.tile.eq(self.tile + 1)]
                with m.If(tiles_left == 0):
                    m.d.sync += run.eq(0)

        # the last word gets to the datapath two cycles after its issue, no later than a start
        m.d.sync += freed.eq(self.free)
        with m.If(self.free):
            m.d.sync += self.select.eq(~self.select)
        with m.If(freed):
            m.d.sync += full.bit_select(~self.select, 1).eq(0)
        with m.If(self.start if self.lead == 1 else count == self.lead - 1):
            filled = self.start_set if self.lead == 1 else ~self.start_set
            m.d.sync += full.bit_select(filled, 1).eq(1)

        with m.If(self.load):
            first, groups = group_range(self.params, self.cmd)
            m.d.sync += [
                run.eq(1),
                group_first.eq(first),
                n_groups.eq(groups),
                groups_left.eq(groups),
                tiles_left.eq(self.cmd.depth_tiles - 1),
                self.group.eq(first),
                self.tile.eq(0),
            ]
        return m


class _Counts:
    """Counts of the command that is issued; ``*_left`` come after the current one."""

    def __init__(self, params: EngineParams) -> None:
        self.params = p = params
        n_groups, n_blocks = p.pass_tokens // p.step_tokens, p.acc_blocks // p.block_rows

        def register(name: str, shape: Any) -> Signal:
            return Signal(shape, name=name, reset_less=True)

        self.run = Signal(name="run")
        self.groups_left = Signal(range(n_groups), name="groups_left")
        self.planes_left = register("planes_left", range(p.max_planes))
        self.n_planes = register("n_planes", range(p.max_planes))
        self.blocks_left = register("blocks_left", range(n_blocks))
        self.n_blocks = register("n_blocks", range(n_blocks))
        self.n_groups = register("n_groups", range(n_groups))
        self.tiles_left = register("tiles_left", range(p.act_tiles))
        self.block = register("block", range(p.acc_blocks))
        self.acc_base = register("acc_base", range(p.acc_blocks))
        self.group = register("group", range(n_groups))
        self.group_first = register("group_first", range(n_groups))
        self.shift = register("shift", p.shift_width)
        self.first_plane, self.first_tile, self.first_group = (
            register(name, 1) for name in ("first_plane", "first_tile", "first_group")
        )
        # tokens of the first and of the last group that are the command's
        self.mask_first = register("mask_first", p.step_tokens)
        self.mask_last = register("mask_last", p.step_tokens)

    def load(self, command: Any, step: Signal) -> list[Any]:
        """Assignments that begin ``command``."""
        p = self.params
        blocks = (command.row_blocks >> exact_log2(p.block_rows)) - 1
        first, groups = group_range(p, command)
        within = command.token_first[: exact_log2(p.step_tokens)]
        after = (command.token_first + command.token_count)[: exact_log2(p.step_tokens)]
        ones = Const(-1, p.step_tokens)
        return [
            self.run.eq(1),
            step.eq(0),
            self.planes_left.eq(command.planes - 1),
            self.n_planes.eq(command.planes - 1),
            self.blocks_left.eq(blocks),
            self.n_blocks.eq(blocks),
            self.groups_left.eq(groups),
            self.n_groups.eq(groups),
            self.tiles_left.eq(command.depth_tiles - 1),
            self.block.eq(command.acc_base),
            self.acc_base.eq(command.acc_base),
            self.group.eq(first),
            self.group_first.eq(first),
            self.mask_first.eq(ones << within),
            self.mask_last.eq(Mux(after == 0, ones, ~(ones << after))),
            self.shift.eq(command.shift),
            self.first_plane.eq(1),
            self.first_tile.eq(1),
            self.first_group.eq(1),
        ]


class MatmulEngine(wiring.Component):
    """Matrix product with ``step_tokens * step_rows * step_depth`` multiply-accumulates of digits
    per cycle.

    A command runs over depth tiles, then groups of ``step_tokens`` tokens, then blocks of
    ``step_rows`` rows, then planes from the most significant digit down, then steps of
    ``step_depth``: one weight word per cycle, which meets all tokens of a group. A pass is one
    depth tile of one group. It takes as long as its words, or ``spacing`` cycles if they are fewer:
    the activations of the next pass, of the next command too, are prepared meanwhile. The rows of a
    block go to the accumulators in ``drain_cycles`` while the next block is computed, which waits
    if it is faster. An idle engine takes :meth:`MatmulTiming.cycles` from the acceptance of a
    command to ``done`` when the words are there in time; a command that waited adds its passes
    alone. A pass waits for words that have not arrived, and goes on with each. For more than one
    group the words of a pass must fit the weight buffer, and half of it if they are to arrive while
    the former pass is replayed.

    Groups are aligned to ``step_tokens``: tokens of a group that are not the command's are
    computed, and not written. The next command is accepted while the former is in its last passes;
    its activations must be in the buffer by then. ``done`` pulses ``latency`` cycles after the last
    word left the weight buffer, and accumulators read in that cycle are final. A command of no
    tokens, rows, planes or depth takes no word. Weights are accepted at any time while there is
    room.

    Bit order of a weight word: see :meth:`EngineParams.pack` of the engine.
    Model: :meth:`lutra_golden.matmul.engine.EngineParams.matmul`, then a rounding shift.
    Source: the order of the loops, the groups and the drain are ours; for what an engine computes,
    see its datapath.

    Parameters
    ----------
    params : :class:`EngineParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.MatmulEngineSignature`.
    """

    cmd: stream.Interface
    weights: stream.Interface

    def __init__(self, params: EngineParams) -> None:
        if not isinstance(params, EngineParams):
            raise TypeError(f"params must be EngineParams, not {params!r}")
        self.params, self.timing = params, MatmulTiming(params)
        self._activations = ActivationBuffer(params)
        self._datapaths = [DATAPATHS[params.kind](params) for _ in range(params.step_tokens)]
        self._rows = RowRegisters(params, self._datapaths[0].o_width)
        if params.grouped:
            self._dequantizer = Dequantizer(params)
            width, lag = self._dequantizer.o_width, self._dequantizer.latency
        else:
            width, lag = len(self._rows.h_o[0]), 1
        self._accumulators = AccumulatorBanks(params, width, lag)
        super().__init__(MatmulEngineSignature(params))

    def elaborate(self, platform):
        m = Module()
        p = self.params

        m.submodules.activations = activations = self._activations
        m.submodules.walker = walker = PassWalker(p, self.timing.lead, self.timing.spacing)
        m.submodules.ring = ring = ReplayBuffer(
            p.word_bits, p.weight_buffer_words, late_width=p.side_bits, lag=self.timing.drain_lag
        )
        for index, datapath in enumerate(self._datapaths):
            m.submodules[f"datapath_{index}"] = datapath
        m.submodules.rows = rows = self._rows
        m.submodules.accumulators = accumulators = self._accumulators
        wiring.connect(m, wiring.flipped(self.act), activations.w)
        wiring.connect(m, wiring.flipped(self.weights), ring.i)
        wiring.connect(m, wiring.flipped(self.acc), accumulators.acc)

        issued, step = Signal(word_control(p)), Signal(range(p.steps))
        controls = delay(m, issued, 2 + p.datapath_latency, name="control", flags=CONTROL_FLAGS)
        # a word is there two cycles after its issue
        step_delayed = delay(m, step, 2, reset_less=True)[-1]
        set_delayed = delay(m, walker.select, 2, reset_less=True)[-1]
        m.d.comb += [
            activations.fetch.eq(walker.start),
            activations.group.eq(walker.group),
            activations.tile.eq(walker.tile),
            rows.control.eq(controls[-1]),
            accumulators.control.eq(rows.control_o),
            self.done.eq(accumulators.done),
        ]
        for index, datapath in enumerate(self._datapaths):
            m.d.comb += [
                datapath.start.eq(walker.start),
                datapath.start_set.eq(walker.start_set),
                datapath.i.eq(activations.o[index]),
                datapath.en.eq(controls[2].valid),
                datapath.digits.eq(ring.o),
                datapath.step.eq(step_delayed),
                datapath.set.eq(set_delayed),
                rows.i[index].eq(datapath.o),
                rows.negate[index].eq(datapath.negate),
            ]
        if p.grouped:
            self._dequantize(m, walker, ring, issued)
        else:
            m.d.comb += accumulators.i.eq(rows.h_o)

        self._control(m, walker, ring, issued, step)
        return m

    def _dequantize(self, m, walker, ring, issued):
        """Activation sums, side fields, and the rows in the units of their result."""
        p, rows, activations = self.params, self._rows, self._activations
        timing = self.timing
        # a sum waits from the preparation of its pass to the pass's last rows
        wait = timing.drain_lag + timing.drain_cycles - p.depth_tile // LANES - 2
        depth = 2
        while (depth - 2) * timing.spacing < wait:
            depth *= 2
        m.submodules.sums = sums = ActivationSums(p, depth)
        m.submodules.dequantizer = dequantizer = self._dequantizer
        m.d.comb += [
            ring.mark.eq(issued.last_word),
            sums.start.eq(walker.start),
            sums.i.eq(activations.o),
            sums.take.eq(rows.take),
            rows.side.eq(ring.late),
            rows.a_sum.eq(sums.o),
            dequantizer.side.eq(rows.side_o),
            dequantizer.a_sum.eq(rows.a_sum_o),
            dequantizer.h.eq(rows.h_o),
            self._accumulators.i.eq(dequantizer.o),
        ]
        if p.a_groups is not None:
            m.d.comb += [
                sums.i_shift.eq(activations.shift),
                rows.a_shift.eq(sums.o_shift),
                dequantizer.a_shift.eq(rows.a_shift_o),
            ]

    def _control(self, m, walker, ring, issued, step):
        """Accept commands and issue one weight word per cycle."""
        p, c = self.params, _Counts(self.params)

        # the command that waits for the issue of the former one's last word
        waiting = Signal(tile_command(p), reset_less=True)
        waits, empty, accept = Signal(), Signal(), Signal()
        cmd = self.cmd.payload
        is_empty = ~(
            cmd.token_count.any() & cmd.depth_tiles.any() & cmd.row_blocks.any() & cmd.planes.any()
        )
        m.d.comb += [
            self.cmd.ready.eq(walker.idle & ~waits),
            accept.eq(self.cmd.valid & self.cmd.ready),
            walker.load.eq(accept & ~is_empty),
            walker.cmd.eq(cmd),
        ]

        issue, end_plane, end_block, end_pass, end_tile, finish = ends = tuple(
            Signal(name=name)
            for name in ("issue", "end_plane", "end_block", "end_pass", "end_tile", "finish")
        )
        wanted, holds, draining, last_word = Signal(), Signal(), Signal(), Signal()
        load, skip = Signal(), Signal()
        m.d.comb += [
            last_word.eq((c.planes_left == 0) & (step == p.steps - 1)),
            wanted.eq(c.run & walker.available & ~holds & ~(last_word & draining)),
            issue.eq(wanted & ring.available),
            end_plane.eq(issue & (step == p.steps - 1)),
            end_block.eq(issue & last_word),
            end_pass.eq(end_block & (c.blocks_left == 0)),
            end_tile.eq(end_pass & (c.groups_left == 0)),
            finish.eq(end_tile & (c.tiles_left == 0)),
            load.eq(waits & ~empty & (~c.run | finish)),
            skip.eq(waits & empty & ~c.run & ~draining),
            walker.free.eq(end_pass),
            ring.take.eq(issue),
            ring.keep.eq(c.groups_left != 0),
            ring.end.eq(end_pass),
            issued.valid.eq(issue),
            issued.finish.eq(finish | skip),
            issued.first_word.eq(c.first_plane & (step == 0)),
            issued.first_step.eq(step == 0),
            issued.last_word.eq(last_word),
            issued.last_block.eq(c.blocks_left == 0),
            issued.first_tile.eq(c.first_tile),
            issued.last_tile.eq(c.tiles_left == 0),
            issued.mask.eq(
                (c.mask_first | ~c.first_group.replicate(p.step_tokens))
                & (c.mask_last | (c.groups_left != 0).replicate(p.step_tokens))
            ),
            issued.block.eq(c.block),
            issued.group.eq(c.group),
            issued.shift.eq(c.shift),
        ]
        self._pace(m, issue, end_block, end_pass, holds, draining)
        self._advance(m, c, step, ends)
        with m.If(load):
            m.d.sync += c.load(waiting, step)
        with m.If(accept):
            m.d.sync += [waiting.eq(cmd), waits.eq(1), empty.eq(is_empty)]
        with m.Elif(load | skip):
            m.d.sync += waits.eq(0)
        self._count_commands(m, accept)
        m.d.comb += self.stall.eq(wanted & ~ring.available)

    def _advance(self, m, c, step, ends):
        """Go on to the next step, plane, block, group and depth tile."""
        issue, end_plane, end_block, end_pass, end_tile, finish = ends
        with m.If(issue):
            m.d.sync += step.eq(step + 1)
        with m.If(end_plane):
            m.d.sync += [step.eq(0), c.planes_left.eq(c.planes_left - 1), c.first_plane.eq(0)]
        with m.If(end_block):
            m.d.sync += [c.planes_left.eq(c.n_planes), c.first_plane.eq(1)]
            m.d.sync += c.blocks_left.eq(c.blocks_left - 1)
            m.d.sync += c.block.eq(c.block + self.params.block_rows)
        with m.If(end_pass):
            m.d.sync += [c.blocks_left.eq(c.n_blocks), c.block.eq(c.acc_base)]
            m.d.sync += [c.groups_left.eq(c.groups_left - 1), c.group.eq(c.group + 1)]
            m.d.sync += c.first_group.eq(0)
        with m.If(end_tile):
            m.d.sync += [c.groups_left.eq(c.n_groups), c.group.eq(c.group_first)]
            m.d.sync += [c.first_group.eq(1), c.tiles_left.eq(c.tiles_left - 1), c.first_tile.eq(0)]
        with m.If(finish):
            # nothing is kept between commands
            m.d.sync += [c.run.eq(0), c.groups_left.eq(0)]

    def _count_commands(self, m, accept):
        """Busy: at most one command waits, one is issued and one is in each stage behind."""
        n_commands = Signal(range(self.timing.latency + 3))
        with m.If(accept & ~self.done):
            m.d.sync += n_commands.eq(n_commands + 1)
        with m.Elif(~accept & self.done):
            m.d.sync += n_commands.eq(n_commands - 1)
        m.d.comb += self.busy.eq(n_commands != 0)

    def _pace(self, m, issue, end_block, end_pass, holds, draining):
        """Stall words until the rows of the last block and their accumulators are free."""
        drain, recovery = self.timing.drain_cycles, self.timing.recovery
        if drain > 1:
            left = Signal(range(drain))
            m.d.comb += draining.eq(left != 0)
            with m.If(end_block):
                m.d.sync += left.eq(drain - 1)
            with m.Elif(draining):
                m.d.sync += left.eq(left - 1)
        if drain < recovery:
            # few words alone come again with the next pass, which waits for their write
            n_words, gap = Signal(range(recovery)), Signal(range(recovery))
            m.d.comb += holds.eq(gap != 0)
            with m.If(end_pass):
                m.d.sync += [n_words.eq(0), gap.eq(recovery - 1 - n_words)]
            with m.Elif(issue & (n_words != recovery - 1)):
                m.d.sync += n_words.eq(n_words + 1)
            with m.If(holds):
                m.d.sync += gap.eq(gap - 1)
