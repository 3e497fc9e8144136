"""The lookup engine: control of its lanes, and of the weight words that all of them look up."""

from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.utils import exact_log2

from lutra_golden.matmul.engine import LANES
from lutra_golden.matmul.lookup import BITS, CODE_WIDTH, LookupParams, walk
from lutra_golden.timing.lookup import LookupTiming
from lutra_hw.matmul.contract import MatmulEngineSignature, group_range, tile_command
from lutra_hw.matmul.lane import LookupLane, load_layout, row_layout, step_layout
from lutra_hw.pipeline import delay
from lutra_hw.stream.replay import ReplayBuffer

__all__ = ["LookupEngine"]

_BINARY = exact_log2(BITS)


class _Passes:
    """Counts of the passes of a command: planes, depth tiles of each, groups of tokens of each."""

    def __init__(self, params: LookupParams, name: str) -> None:
        self.params = params
        n_groups = params.pass_tokens // params.step_tokens

        def register(part: str, shape: Any) -> Signal:
            return Signal(shape, name=f"{name}_{part}", reset_less=True)

        self.run = Signal(name=f"{name}_run")
        self.binary = register("binary", 1)
        self.planes_left = register("planes_left", range(params.max_planes))
        self.tiles_left, self.n_tiles = (
            register(part, range(2 * params.act_tiles)) for part in ("tiles_left", "n_tiles")
        )
        self.groups_left, self.n_groups, self.group, self.group_first = (
            register(part, range(n_groups))
            for part in ("groups_left", "n_groups", "group", "group_first")
        )
        self.first_plane, self.first_tile, self.first_group = (
            register(part, 1) for part in ("first_plane", "first_tile", "first_group")
        )
        # of the pass at hand
        self.last_group, self.last_tile, self.last = (
            Signal(name=f"{name}_{part}") for part in ("last_group", "last_tile", "last")
        )

    def watch(self, m: Module) -> None:
        """Say what the pass at hand is the last of."""
        m.d.comb += [
            self.last_group.eq(self.groups_left == 0),
            self.last_tile.eq(self.last_group & (self.tiles_left == 0)),
            self.last.eq(self.last_tile & (self.planes_left == 0)),
        ]

    def load(self, m: Module, command: data.View) -> None:
        """Begin ``command``."""
        first, groups = group_range(self.params, command)
        m.d.sync += [
            self.run.eq(1),
            self.binary.eq(command.planes[_BINARY]),
            self.planes_left.eq(command.planes[:_BINARY] - 1),
            self.tiles_left.eq(command.depth_tiles - 1),
            self.n_tiles.eq(command.depth_tiles - 1),
            self.groups_left.eq(groups),
            self.n_groups.eq(groups),
            self.group.eq(first),
            self.group_first.eq(first),
            self.first_plane.eq(1),
            self.first_tile.eq(1),
            self.first_group.eq(1),
        ]

    def advance(self, m: Module) -> None:
        """Go on to the next pass."""
        m.d.sync += [
            self.group.eq(self.group + 1),
            self.groups_left.eq(self.groups_left - 1),
            self.first_group.eq(0),
        ]
        with m.If(self.last_group):
            m.d.sync += [
                self.group.eq(self.group_first),
                self.groups_left.eq(self.n_groups),
                self.first_group.eq(1),
                self.tiles_left.eq(self.tiles_left - 1),
                self.first_tile.eq(0),
            ]
        with m.If(self.last_tile):
            m.d.sync += [
                self.tiles_left.eq(self.n_tiles),
                self.first_tile.eq(1),
                self.planes_left.eq(self.planes_left - 1),
                self.first_plane.eq(0),
            ]
        with m.If(self.last):
            m.d.sync += [self.run.eq(0), self.groups_left.eq(0)]


class LookupEngine(wiring.Component):
    """Matrix product of ``step_tokens`` tokens at once, ``step_tokens * step_rows * step_depth``
    ternary multiply-accumulates per cycle, or 5/3 as many binary ones.

    A command runs over planes, the most significant first, then depth tiles, then groups of
    ``step_tokens`` tokens, then blocks of ``step_rows`` rows: one weight word per cycle, which all
    lanes look up in the tables of their tokens. Tables are written before a pass, entry by entry,
    all at once (:func:`lutra_golden.matmul.lookup.walk`); activations of the next pass are loaded
    meanwhile. Rows of different blocks follow each other, so sums lie in memory, and are doubled
    from plane to plane. An idle engine takes :meth:`LookupTiming.cycles` from the acceptance of a
    command to ``done`` when the words are there in time; a command that waited adds
    :meth:`LookupTiming.pass_cycles` for each of its passes.

    Everything else is as in :class:`lutra_hw.matmul.engine.MatmulEngine`.

    Model: :meth:`lutra_golden.matmul.lookup.LookupParams.matmul`.
    Source: TeLLMe, arXiv 2510.15926, section on table-lookup matmul; tokens in space, binary digits
    in the same tables and sums in adders of several rows are ours.

    Parameters
    ----------
    params : :class:`LookupParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.MatmulEngineSignature`.
    """

    cmd: stream.Interface
    weights: stream.Interface

    def __init__(self, params: LookupParams) -> None:
        if not isinstance(params, LookupParams):
            raise TypeError(f"params must be LookupParams, not {params!r}")
        self.params, self.timing = params, LookupTiming(params)
        self._lanes = [LookupLane(params) for _ in range(params.step_tokens)]
        super().__init__(MatmulEngineSignature(params))

    def elaborate(self, platform):
        m = Module()
        p = self.params

        m.submodules.ring = ring = ReplayBuffer(p.word_bits, p.weight_buffer_words)
        wiring.connect(m, wiring.flipped(self.weights), ring.i)
        issued = Signal(row_layout(p))
        # a word is there two cycles after its issue, its codes a cycle later
        controls = delay(
            m, issued, p.datapath_latency + 2, name="control", flags=("valid", "finish")
        )
        step = Signal(step_layout(p))
        steps = delay(m, step, 3, name="step", flags=("valid",))
        load = Signal(load_layout(p))
        index = self._codes(m, ring, controls[2].valid, steps[-1])
        log2_tokens = exact_log2(p.step_tokens)
        lane_read = Signal(log2_tokens)
        m.d.sync += lane_read.eq(self.acc.addr.token[:log2_tokens])
        for number, lane in enumerate(self._lanes):
            m.submodules[f"lane_{number}"] = lane
            m.d.comb += [
                lane.w.en.eq(self.act.en & (self.act.addr.token[:log2_tokens] == number)),
                lane.w.addr.eq(self.act.addr),
                lane.w.data.eq(self.act.data),
                lane.load.eq(load),
                lane.step.eq(steps[0]),
                lane.index.eq(index),
                lane.row.eq(controls[-2]),
                lane.en.eq(controls[-1].valid & controls[-1].mask[number]),
                lane.acc.addr.eq(self.acc.addr),
            ]
        with m.Switch(lane_read):
            for number, lane in enumerate(self._lanes):
                with m.Case(number):
                    m.d.comb += self.acc.data.eq(lane.acc.data)
        m.d.sync += self.done.eq(controls[-1].finish)

        waiting, waits, empty, idle = self._accept(m)
        full = [Signal(name=f"full_{number}") for number in range(2)]
        self._load(m, load, full, idle)
        self._issue(m, ring, issued, step, full, waiting, waits, empty)
        return m

    def _codes(self, m, ring, valid, step):
        """Codes of the word at hand for each table and row; those of tables ``2 k`` and ``2 k + 1``
        come k cycles later, and while tables are written some rows show the entry."""
        p = self.params
        word = Signal(p.word_bits, reset_less=True)
        with m.If(valid):
            m.d.sync += word.eq(ring.o)
        index = Signal(
            data.ArrayLayout(data.ArrayLayout(CODE_WIDTH, p.step_rows), p.n_tables), name="index"
        )
        for t in range(p.n_tables):
            fields = [word.word_select(n * p.n_tables + t, CODE_WIDTH) for n in range(p.step_rows)]
            code = Signal(CODE_WIDTH * p.step_rows, name=f"code_{t}")
            m.d.comb += code.eq(Cat(fields))
            codes = delay(m, code, t // 2, reset_less=True)[-1]
            for n in range(p.step_rows):
                field = codes.word_select(n, CODE_WIDTH)
                shared = n % LANES == LANES - 1
                m.d.comb += index[t][n].eq(Mux(step.valid, step.entry, field) if shared else field)
        return index

    def _accept(self, m):
        """Take a command when the loads of the former one are done; it waits for its turn."""
        p, cmd = self.params, self.cmd.payload
        waiting = Signal(tile_command(p), reset_less=True)
        waits, empty, idle, accept = Signal(), Signal(), Signal(), Signal()
        is_empty = ~(
            cmd.token_count.any()
            & cmd.depth_tiles.any()
            & cmd.row_blocks.any()
            & cmd.planes[:_BINARY].any()
        )
        m.d.comb += [
            self.cmd.ready.eq(idle & ~waits),
            accept.eq(self.cmd.valid & self.cmd.ready),
        ]
        with m.If(accept):
            m.d.sync += [waiting.eq(cmd), waits.eq(1), empty.eq(is_empty)]
        # busy: at most one command waits, one is issued and one is in each stage behind
        n_commands = Signal(range(self.timing.latency + 3))
        with m.If(accept & ~self.done):
            m.d.sync += n_commands.eq(n_commands + 1)
        with m.Elif(~accept & self.done):
            m.d.sync += n_commands.eq(n_commands - 1)
        m.d.comb += self.busy.eq(n_commands != 0)
        self._accepted = accept & ~is_empty
        return waiting, waits, empty, idle

    def _load(self, m, load, full, idle):
        """Load the activations of every pass, into one set while the other one is used."""
        p, c = self.params, _Passes(self.params, "load")
        c.watch(m)
        sizes = [p.tile_depth(planes) // LANES for planes in (1, BITS)]
        base = Signal.like(load.word)
        index, which = Signal(range(max(sizes))), Signal()
        end, done, read_set = Signal(), Signal(), Signal()
        m.d.comb += [
            idle.eq(~c.run),
            load.en.eq(c.run & ~Mux(which, full[1], full[0])),
            load.set.eq(which),
            load.index.eq(index),
            load.word.eq(base + index),
            load.group.eq(c.group),
            end.eq(load.en & (index == Mux(c.binary, sizes[1] - 1, sizes[0] - 1))),
        ]
        m.d.sync += [done.eq(end), read_set.eq(which)]
        with m.If(load.en):
            m.d.sync += index.eq(index + 1)
        with m.If(end):
            m.d.sync += [index.eq(0), which.eq(~which)]
            with m.If(c.last_tile):
                m.d.sync += base.eq(0)
            with m.Elif(c.last_group):
                m.d.sync += base.eq(base + Mux(c.binary, sizes[1], sizes[0]))
            c.advance(m)
        # written one cycle after they are read, and there in the next one
        for number in range(2):
            with m.If(done & (read_set == number)):
                m.d.sync += full[number].eq(1)
        with m.If(self._accepted):
            c.load(m, self.cmd.payload)
            m.d.sync += base.eq(0)

    def _issue(self, m, ring, issued, step, full, waiting, waits, empty):
        """Write the tables of every pass, then issue its words."""
        p, c = self.params, _Passes(self.params, "issue")
        c.watch(m)
        walks = [walk(planes) for planes in (1, BITS)]
        place = Signal(range(max(map(len, walks))))
        gap = Signal(range(self.timing.skew + 1))
        which, walking, words = Signal(), Signal(), Signal()
        n_blocks, blocks_left = (
            Signal(range(p.acc_blocks // p.block_rows), name=name, reset_less=True)
            for name in ("n_blocks", "blocks_left")
        )
        block, acc_base = (
            Signal(range(p.acc_blocks // p.block_rows), name=name, reset_less=True)
            for name in ("block", "acc_base")
        )
        mask_first, mask_last = (
            Signal(p.step_tokens, name=name, reset_less=True)
            for name in ("mask_first", "mask_last")
        )
        ready, walked, issue, end, finish, take, skip = (
            Signal(name=name)
            for name in ("ready", "walked", "issue", "end", "finish", "take", "skip")
        )
        m.d.comb += [
            ready.eq(c.run & ~words & (gap == 0) & Mux(which, full[1], full[0])),
            step.valid.eq(ready | walking),
            walked.eq(step.valid & (place == Mux(c.binary, *(len(w) - 1 for w in walks[::-1])))),
            issue.eq(words & ring.available),
            end.eq(issue & (blocks_left == 0)),
            finish.eq(end & c.last),
            take.eq(waits & ~empty & (~c.run | finish)),
            skip.eq(waits & empty & ~c.run),
            ring.take.eq(issue),
            ring.keep.eq(c.groups_left != 0),
            ring.end.eq(end),
            self.stall.eq(words & ~ring.available),
        ]
        self._step(m, step, place, walks, c, which)
        m.d.comb += [
            issued.valid.eq(issue),
            issued.finish.eq(finish | skip),
            issued.first.eq(c.first_plane & c.first_tile),
            issued.double.eq(c.first_tile),
            issued.block.eq(block),
            issued.group.eq(c.group),
            issued.mask.eq(
                (mask_first | ~c.first_group.replicate(p.step_tokens))
                & (mask_last | ~c.last_group.replicate(p.step_tokens))
            ),
        ]
        with m.If(step.valid):
            m.d.sync += [place.eq(place + 1), walking.eq(1)]
        with m.If(walked):
            m.d.sync += [place.eq(0), walking.eq(0), words.eq(1), which.eq(~which)]
            for number in range(2):
                with m.If(which == number):
                    m.d.sync += full[number].eq(0)
        with m.If(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        with m.If(issue):
            m.d.sync += [blocks_left.eq(blocks_left - 1), block.eq(block + 1)]
        with m.If(end):
            m.d.sync += [words.eq(0), gap.eq(self.timing.skew)]
            m.d.sync += [blocks_left.eq(n_blocks), block.eq(acc_base)]
            c.advance(m)
        with m.If(take):
            c.load(m, waiting)
            within = waiting.token_first[: exact_log2(p.step_tokens)]
            after = (waiting.token_first + waiting.token_count)[: exact_log2(p.step_tokens)]
            ones = Const(-1, unsigned(p.step_tokens))
            shift = exact_log2(p.block_rows)
            m.d.sync += [
                n_blocks.eq((waiting.row_blocks >> shift) - 1),
                blocks_left.eq((waiting.row_blocks >> shift) - 1),
                block.eq(waiting.acc_base >> shift),
                acc_base.eq(waiting.acc_base >> shift),
                mask_first.eq(ones << within),
                mask_last.eq(Mux(after == 0, ones, ~(ones << after))),
            ]
        with m.If(take | skip):
            m.d.sync += waits.eq(0)

    def _step(self, m, step, place, walks, c, which):
        """The entry that is written next, and the activation that it takes."""
        m.d.comb += [
            step.set.eq(which),
            step.negate.eq(c.binary & c.first_plane),
            step.first.eq(place == 0),
        ]
        for binary, steps in enumerate(walks):
            with m.If(c.binary == binary), m.Switch(place):
                for number, (entry, activation, sign) in enumerate(steps):
                    with m.Case(number):
                        m.d.comb += [
                            step.entry.eq(entry),
                            step.activation.eq(activation),
                            step.subtract.eq(sign < 0),
                        ]
