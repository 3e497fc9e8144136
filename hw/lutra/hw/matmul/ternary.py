"""Ternary table-lookup matmul engine: activations, tables, weight ring, lookups, accumulators."""

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hw.matmul.contract import (
    TILE_COMMAND,
    MatmulEngineSignature,
    acc_read_port,
    act_write_port,
)
from lutra.hw.matmul.table import Lookup, TableGenerator, signed_term
from lutra.hw.stream.replay import ReplayBuffer
from lutra.sim.golden.matmul.ternary import TernaryParams

__all__ = ["TernaryEngine"]


def _reciprocal(divisor: int, limit: int) -> tuple[int, int]:
    """Return ``(factor, shift)`` with ``n * factor >> shift == n // divisor`` for n < ``limit``."""
    for shift in range(2 * limit.bit_length() + 1):
        factor = -(-(1 << shift) // divisor)
        if all(n * factor >> shift == n // divisor for n in range(limit)):
            return factor, shift
    raise AssertionError("a shift of twice the width suffices for every divisor")


class ActivationBuffer(wiring.Component):
    """Activations of a tile: written ``lanes`` at a time, read by whole depth tiles.

    A write is in memory two cycles after ``w.en``. ``o`` follows ``fetch`` by one cycle and then
    holds until the next fetch.

    Parameters
    ----------
    params : :class:`TernaryParams`

    Members
    -------
    w : ``In(act_write_port(params))``
    fetch : ``In(1)``
    token, tile : ``In``; which activations to fetch.
    o : ``Out(k_tile * signed(a_width))``  the activation of the lowest depth in the LSBs.
    """

    def __init__(self, params: TernaryParams) -> None:
        self.params = params
        super().__init__(
            {
                "w": In(act_write_port(params)),
                "fetch": In(1),
                "token": In(range(params.m_tile)),
                "tile": In(range(params.act_tiles)),
                "o": Out(data.ArrayLayout(signed(params.a_width), params.k_tile)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p = self.params

        n_banks = p.k_tile // p.lanes
        factor, shift = _reciprocal(n_banks, p.act_tiles * n_banks)
        shape = unsigned(p.lanes * p.a_width)
        tile = Signal(range(p.act_tiles))
        word = Signal(range(n_banks))
        write, w_word = Signal(), Signal.like(word)
        w_tile, w_token, w_data = Signal.like(tile), Signal(range(p.m_tile)), Signal(shape)

        # the bank's number is the remainder of a division by a constant
        product = sum(self.w.addr.word << bit for bit in range(shift + 1) if factor >> bit & 1)
        m.d.comb += tile.eq(product >> shift)
        m.d.comb += word.eq(self.w.addr.word - tile * n_banks)
        m.d.sync += [
            write.eq(self.w.en),
            w_word.eq(word),
            w_tile.eq(tile),
            w_token.eq(self.w.addr.token),
            w_data.eq(self.w.data),
        ]
        outputs = []
        for index in range(n_banks):
            depth = p.m_tile << len(tile)
            m.submodules[f"bank_{index}"] = bank = Memory(shape=shape, depth=depth, init=[])
            w_port, r_port = bank.write_port(), bank.read_port()
            m.d.comb += [
                w_port.en.eq(write & (w_word == index)),
                w_port.addr.eq(Cat(w_tile, w_token)),
                w_port.data.eq(w_data),
                r_port.en.eq(self.fetch),
                r_port.addr.eq(Cat(self.tile, self.token)),
            ]
            outputs.append(r_port.data)
        m.d.comb += self.o.eq(Cat(outputs))
        return m


def _lookup_control(params: TernaryParams) -> data.StructLayout:
    """What accompanies a weight word through the pipeline."""
    return data.StructLayout(
        {
            "valid": 1,
            "finish": 1,  # last of its command; without ``valid`` the command was empty
            "first_plane": 1,
            "last_plane": 1,
            "first_tile": 1,
            "bank": 1,
            "pair": range(params.acc_blocks // 2),
            "token": range(params.m_tile),
        }
    )


class Accumulators(wiring.Component):
    """Joins planes, ``h = 3 * h + sum``, and adds a block's sum to its accumulators.

    A block is read in the cycle of its last plane's sum and written in the next, so the same block
    must not come in two consecutive cycles. Even and odd blocks are banks.

    Parameters
    ----------
    params : :class:`TernaryParams`
    sum_width : width of a lane's sum.

    Members
    -------
    control : ``In``; belongs to ``i``.
    i, negate : ``In``; the lanes' sums, as :class:`Lookup` gives them.
    acc : ``In(acc_read_port(params))``  latency 1, at any time.
    done : ``Out(1)``  the cycle after the write of a word with ``finish``.
    """

    def __init__(self, params: TernaryParams, sum_width: int) -> None:
        self.params = params
        super().__init__(
            {
                "control": In(_lookup_control(params)),
                "i": In(data.ArrayLayout(unsigned(sum_width), params.lanes)),
                "negate": In(params.lanes),
                "acc": In(acc_read_port(params)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p = self.params

        largest = p.k_tile * (1 << (p.a_width - 1)) * (3**p.max_planes - 1) // 2
        h_width = min(p.acc_width, largest.bit_length() + 1)
        read_addr = Cat(self.control.pair, self.control.token)
        read, write, finish = Signal(), Signal(), Signal()
        write_addr, bank, first_tile = Signal.like(read_addr), Signal(), Signal()
        m.d.comb += read.eq(self.control.valid & self.control.last_plane)
        m.d.sync += [
            write.eq(read),
            finish.eq(self.control.finish),
            self.done.eq(finish),
        ]
        with m.If(read):
            m.d.sync += [
                write_addr.eq(read_addr),
                bank.eq(self.control.bank),
                first_tile.eq(self.control.first_tile),
            ]

        for lane in range(p.lanes):
            h = Signal(signed(h_width), name=f"h_{lane}")
            term, carry = signed_term(self.i[lane], self.negate[lane])
            former = Mux(self.control.first_plane, 0, h).as_signed()
            with m.If(self.control.valid):
                m.d.sync += h.eq(former + Cat(carry, former).as_signed() + term)
            old, new = [], Signal(signed(p.acc_width), name=f"new_{lane}")
            for index in range(2):
                depth = p.m_tile << len(self.control.pair)
                m.submodules[f"bank_{index}_{lane}"] = memory = Memory(
                    shape=signed(p.acc_width), depth=depth, init=[]
                )
                w_port, r_port, acc_port = (
                    memory.write_port(),
                    memory.read_port(),
                    memory.read_port(),
                )
                m.d.comb += [
                    w_port.en.eq(write & (bank == index)),
                    w_port.addr.eq(write_addr),
                    w_port.data.eq(new),
                    r_port.en.eq(read),
                    r_port.addr.eq(read_addr),
                    acc_port.en.eq(1),
                    acc_port.addr.eq(Cat(self.acc.addr.pair, self.acc.addr.token)),
                    self.acc.data[index][lane].eq(acc_port.data),
                ]
                old.append(r_port.data)
            m.d.comb += new.eq(h + Mux(first_tile, 0, Mux(bank, old[1], old[0])))
        return m


class TernaryEngine(wiring.Component):
    """Ternary table-lookup matrix product: ``lanes * k_tile`` multiply-accumulates per cycle.

    A command runs over depth tiles, then tokens, then row blocks, then planes from the most
    significant digit down, one weight word per cycle. A pass is one depth tile of one token, of
    ``L = row_blocks * planes`` words, and takes ``max(L, n_entries)`` cycles: the tables of the
    next pass, of the next command too, are built meanwhile. An idle engine takes :meth:`cycles`
    from the acceptance of a command to ``done`` when the words are there in time; a command that
    waited adds its passes alone. A pass waits for words that have not arrived, and goes on with
    each. For more than one token the words of a pass must fit the weight buffer, and half of it if
    they are to arrive while the former pass is replayed.

    The next command is accepted while the former is in its last passes; its activations must be in
    the buffer by then. ``done`` pulses ``latency`` cycles after the last word left the weight
    buffer, and accumulators read in that cycle are final. A command of no tokens, rows, planes or
    depth takes no word. Weights are accepted at any time while there is room.

    Bit order of a weight word and rounding (none): see the model.
    Model: :func:`lutra.sim.golden.matmul.ternary.lookup_matmul`. Source: TeLLMe, arXiv 2510.15926,
    section on table-lookup matmul; the mirrored tables and the order of the loops are ours.

    Parameters
    ----------
    params : :class:`TernaryParams`

    Members
    -------
    See :class:`lutra.hw.matmul.contract.MatmulEngineSignature`.
    """

    cmd: stream.Interface
    weights: stream.Interface

    def __init__(self, params: TernaryParams) -> None:
        if not isinstance(params, TernaryParams):
            raise TypeError(f"params must be TernaryParams, not {params!r}")
        if params.k_tile % params.lanes:
            raise ValueError(
                f"n_tables must make k_tile a multiple of {params.lanes} lanes, "
                f"not {params.n_tables}"
            )
        self.params = params
        self._lookup = Lookup(params)
        super().__init__(MatmulEngineSignature(params))

    @property
    def latency(self) -> int:
        """Cycles from the issue of a command's last weight word to ``done``."""
        return 4 + self._lookup.latency

    def cycles(self, k_tiles: int, row_blocks: int, planes: int, tokens: int) -> int:
        """Cycles of a command from its acceptance to ``done``, without waiting for weights."""
        n_entries, words = self.params.n_entries, row_blocks * planes
        passes = k_tiles * tokens
        return n_entries + (passes - 1) * max(words, n_entries) + words - 1 + self.latency

    def elaborate(self, platform):
        m = Module()
        p = self.params

        m.submodules.activations = activations = ActivationBuffer(p)
        m.submodules.generator = generator = TableGenerator(p)
        m.submodules.ring = ring = ReplayBuffer(p.word_bits, p.weight_buffer_words)
        m.submodules.lookup = lookup = self._lookup
        m.submodules.accumulators = accumulators = Accumulators(p, lookup.o_width)
        wiring.connect(m, wiring.flipped(self.act), activations.w)
        wiring.connect(m, wiring.flipped(self.weights), ring.i)
        wiring.connect(m, wiring.flipped(self.acc), accumulators.acc)

        issued = Signal(_lookup_control(p))
        controls, selects = [issued], [generator.select]
        for stage in range(2 + lookup.latency):
            controls.append(Signal(_lookup_control(p), name=f"control_{stage}"))
            m.d.sync += controls[-1].eq(controls[-2])
        for stage in range(2):
            selects.append(Signal(name=f"select_{stage}"))
            m.d.sync += selects[-1].eq(selects[-2])
        m.d.comb += [
            generator.i.eq(activations.o),
            activations.fetch.eq(generator.fetch),
            activations.token.eq(generator.token),
            activations.tile.eq(generator.tile),
            lookup.w.eq(generator.w),
            lookup.word.eq(ring.o),
            lookup.select.eq(selects[-1]),
            lookup.en.eq(controls[2].valid),
            accumulators.control.eq(controls[-1]),
            accumulators.i.eq(lookup.o),
            accumulators.negate.eq(lookup.negate),
            self.done.eq(accumulators.done),
        ]

        self._control(m, generator, ring, issued)
        return m

    def _control(self, m, generator, ring, issued):
        """Accept commands and issue one weight word per cycle."""
        p = self.params

        # the command that waits for the issue of the former one's last word
        waiting, waits, empty, accept = Signal(TILE_COMMAND), Signal(), Signal(), Signal()
        cmd = self.cmd.payload
        is_empty = ~(
            cmd.token_count.any() & cmd.k_tiles.any() & cmd.row_blocks.any() & cmd.planes.any()
        )
        m.d.comb += [
            self.cmd.ready.eq(generator.idle & ~waits),
            accept.eq(self.cmd.valid & self.cmd.ready),
            generator.load.eq(accept & ~is_empty),
            generator.cmd.eq(cmd),
        ]

        # counts are of what is left behind the current one
        run, gap = Signal(), Signal()
        planes_left, n_planes = Signal(8), Signal(8)
        blocks_left, n_blocks = Signal(16), Signal(16)
        tokens_left, n_tokens = Signal(8), Signal(8)
        tiles_left = Signal(16)
        block, acc_base = Signal(range(p.acc_blocks)), Signal(range(p.acc_blocks))
        token, token_first = Signal(range(p.m_tile)), Signal(range(p.m_tile))
        first_plane, first_tile = Signal(), Signal()

        issue, end_block, end_pass, end_tile, finish = (
            Signal(name=name) for name in ("issue", "end_block", "end_pass", "end_tile", "finish")
        )
        wanted = Signal()
        load, skip = Signal(), Signal()
        m.d.comb += [
            wanted.eq(run & generator.available & ~gap),
            issue.eq(wanted & ring.available),
            end_block.eq(issue & (planes_left == 0)),
            end_pass.eq(end_block & (blocks_left == 0)),
            end_tile.eq(end_pass & (tokens_left == 0)),
            finish.eq(end_tile & (tiles_left == 0)),
            load.eq(waits & ~empty & (~run | finish)),
            skip.eq(waits & empty & ~run),
            generator.free.eq(end_pass),
            ring.take.eq(issue),
            ring.keep.eq(tokens_left != 0),
            ring.end.eq(end_pass),
            issued.valid.eq(issue),
            issued.finish.eq(finish | skip),
            issued.first_plane.eq(first_plane),
            issued.last_plane.eq(planes_left == 0),
            issued.first_tile.eq(first_tile),
            issued.bank.eq(block[0]),
            issued.pair.eq(block[1:]),
            issued.token.eq(token),
        ]

        # one block alone comes again with the next pass, which waits for its write
        m.d.sync += gap.eq(end_pass & (n_blocks == 0))
        with m.If(issue):
            m.d.sync += [planes_left.eq(planes_left - 1), first_plane.eq(0)]
        with m.If(end_block):
            m.d.sync += [planes_left.eq(n_planes), first_plane.eq(1)]
            m.d.sync += [blocks_left.eq(blocks_left - 1), block.eq(block + 1)]
        with m.If(end_pass):
            m.d.sync += [blocks_left.eq(n_blocks), block.eq(acc_base)]
            m.d.sync += [tokens_left.eq(tokens_left - 1), token.eq(token + 1)]
        with m.If(end_tile):
            m.d.sync += [tokens_left.eq(n_tokens), token.eq(token_first)]
            m.d.sync += [tiles_left.eq(tiles_left - 1), first_tile.eq(0)]
        with m.If(finish):
            # nothing is kept between commands
            m.d.sync += [run.eq(0), tokens_left.eq(0)]

        with m.If(load):
            m.d.sync += [
                run.eq(1),
                planes_left.eq(waiting.planes - 1),
                n_planes.eq(waiting.planes - 1),
                blocks_left.eq(waiting.row_blocks - 1),
                n_blocks.eq(waiting.row_blocks - 1),
                tokens_left.eq(waiting.token_count - 1),
                n_tokens.eq(waiting.token_count - 1),
                tiles_left.eq(waiting.k_tiles - 1),
                block.eq(waiting.acc_base),
                acc_base.eq(waiting.acc_base),
                token.eq(waiting.token_first),
                token_first.eq(waiting.token_first),
                first_plane.eq(1),
                first_tile.eq(1),
            ]
        with m.If(accept):
            m.d.sync += [waiting.eq(cmd), waits.eq(1), empty.eq(is_empty)]
        with m.Elif(load | skip):
            m.d.sync += waits.eq(0)

        # at most one command waits, one is issued and one is in each stage behind
        n_commands = Signal(range(self.latency + 3))
        with m.If(accept & ~self.done):
            m.d.sync += n_commands.eq(n_commands + 1)
        with m.Elif(~accept & self.done):
            m.d.sync += n_commands.eq(n_commands - 1)
        m.d.comb += self.busy.eq(n_commands != 0)
        m.d.comb += self.stall.eq(wanted & ~ring.available)
