"""The order in which attention works: fetches of a token tile, and its (position, token) pairs."""

from functools import reduce
from operator import and_
from typing import NamedTuple

from amaranth import Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import ADDRESS_WIDTH
from lutra_hw.ports import dma_command

__all__ = ["BEAT_SLOTS", "CHUNK_COMMAND", "PairIssuer", "ends_pair", "pair_layout"]

CHUNK_COMMAND = data.StructLayout(
    {
        "kv_addr": unsigned(ADDRESS_WIDTH),  # byte address of the layer's cache
        "position": unsigned(16),  # of the tile's first token
        "frac": unsigned(8),  # fraction bits of the output
        "token_count": unsigned(8),  # zero tokens: done at once, nothing is fetched
        "window": unsigned(16),  # latest positions that a token sees, its own included; 0: all
    }
)

BEAT_SLOTS = 16
"""Beats of keys and values that wait or are in use; more than the pipeline holds."""


def pair_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Control bits of one pass over one (position, token), which travel down the pipeline."""
    fields = {
        "valid": unsigned(1),
        "values": unsigned(1),  # pass V, else pass K
        "first": unsigned(1),  # that the token sees: running sums and maxima start anew
        "last": unsigned(1),  # of its beat
        "final": unsigned(1),  # of its pass
        "group": range(config.n_kv_heads),
        "token": range(config.pass_tokens),
        "position": range(config.max_context),
        "slot": range(BEAT_SLOTS),
    }
    if config.attention.pair_cycles > 1:
        fields["part"] = range(config.attention.pair_cycles)  # of the elements of its heads
    return data.StructLayout(fields)


def ends_pair(config: AcceleratorConfig, pair):
    """High in the last cycle of a pair."""
    return pair.valid & pair.part.all() if config.attention.pair_cycles > 1 else pair.valid


class _Tile(NamedTuple):
    """Positions and tokens of a command, in registers, and before them as the command comes."""

    position: Signal
    n_positions: Signal
    oldest: Signal
    oldest_seen_by: Signal
    oldest_of_command: Signal
    seen_by_of_command: Signal


class PairIssuer(wiring.Component):
    """Fetches a command's scales, keys and values and issues its pairs.

    For each KV head a pass K and a pass V; in each the positions ascend, and for each position the
    tokens that see it: from its own position on, and within the window. What no token of the tile
    sees is not fetched, but for what lies in a beat with the first or the last one seen: scales,
    and of 4 bits a key or a value. All DMA commands of the tile are queued at once. One pair is
    issued per cycle, two cycles after its beat came at the earliest; one of several ``pair_cycles``
    is issued as often, for one part after another. Between the last pair of pass
    K and the first of pass V lie ``drain`` cycles, until the last score is in the score memory;
    pass V also waits for the previous head's ``finished``. Beats wait in :data:`BEAT_SLOTS` slots.

    Model: :mod:`lutra_golden.attention.pairs`.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`
    drain : cycles

    Members
    -------
    cmd : ``In(stream.Signature(CHUNK_COMMAND))``  accepted when idle.
    rd_cmd : ``Out(dma_command())``  scales, then keys and values of each head.
    rd_valid, rd_ready : handshake of the beats that come back.
    scale_en, scale_row : the beat holds scales; where it belongs.
    beat_en, beat_slot : the beat is a key or a value; where it belongs.
    release : ``In(1)``  the oldest beat in use was read for the last time.
    pair : ``Out(pair_layout(config))``
    finished : ``In(1)``  the output of a head is complete.
    frac, token_last : of the command.
    done, busy, stall : as in :class:`lutra_hw.attention.attention.AttentionUnit`.
    """

    def __init__(self, config: AcceleratorConfig, drain: int):
        self.config = config
        self.drain = drain
        self.records = config.word_bytes // config.kv_scale_bytes  # positions in a beat
        self.rows = config.word_bytes // config.kv_row_bytes  # and of keys or values
        self.scale_rows = max(config.max_context // self.records, 1)
        super().__init__(
            {
                "cmd": In(stream.Signature(CHUNK_COMMAND)),
                "rd_cmd": Out(dma_command()),
                "rd_valid": In(1),
                "rd_ready": Out(1),
                "scale_en": Out(1),
                "scale_row": Out(range(self.scale_rows)),
                "beat_en": Out(1),
                "beat_slot": Out(range(BEAT_SLOTS)),
                "release": In(1),
                "pair": Out(pair_layout(config)),
                "finished": In(1),
                "frac": Out(8),
                "token_last": Out(range(config.pass_tokens)),
                "done": Out(1),
                "busy": Out(1),
                "stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        start, last_head = Signal(), Signal()
        tile = self._command(m, start, last_head)
        scale_row_end = self._fetch(m, start, tile)
        beats = self._beats(m, start, tile, scale_row_end)
        self._pairs(m, start, last_head, tile, beats)
        return m

    def _command(self, m, start, last_head):
        """Take a command; return its positions and tokens."""
        config = self.config
        position, n_positions = Signal(16), Signal(16)
        # the first position that the first token sees, and the last token that sees it
        oldest, oldest_seen_by = (
            Signal(range(config.max_context)),
            Signal(range(config.pass_tokens)),
        )
        m.d.comb += [
            self.cmd.ready.eq(~self.busy),
            start.eq(self.cmd.valid & self.cmd.ready & (self.cmd.p.token_count != 0)),
        ]
        command = self.cmd.p
        slack = Signal(signed(17))  # tokens behind the first one that see position 0
        m.d.comb += slack.eq(command.window - 1 - command.position)
        unlimited = (command.window == 0) | (slack >= command.token_count)
        oldest_of_command = Signal.like(oldest)
        seen_by_of_command = Signal.like(oldest_seen_by)
        m.d.comb += [
            oldest_of_command.eq(Mux(unlimited | (slack >= 0), 0, -slack)),
            seen_by_of_command.eq(
                Mux(unlimited, command.token_count - 1, Mux(slack >= 0, slack, 0))
            ),
        ]
        m.d.sync += self.done.eq(
            (self.cmd.valid & self.cmd.ready & (self.cmd.p.token_count == 0))
            | (self.finished & last_head)
        )
        with m.If(start):
            m.d.sync += [
                self.busy.eq(1),
                position.eq(command.position),
                n_positions.eq(command.position + command.token_count),
                oldest.eq(oldest_of_command),
                oldest_seen_by.eq(seen_by_of_command),
                self.frac.eq(command.frac),
                self.token_last.eq(command.token_count - 1),
            ]
        with m.Elif(self.finished & last_head):
            m.d.sync += self.busy.eq(0)
        return _Tile(
            position=position,
            n_positions=n_positions,
            oldest=oldest,
            oldest_seen_by=oldest_seen_by,
            oldest_of_command=oldest_of_command,
            seen_by_of_command=seen_by_of_command,
        )

    def _fetch(self, m, start, tile):
        """DMA commands: scales, then keys and values of each head; return the end of the scales."""
        config, command = self.config, self.cmd.p
        oldest, n_positions = tile.oldest, tile.n_positions
        kv_addr, key_addr = Signal(ADDRESS_WIDTH), Signal(ADDRESS_WIDTH)
        dma_group = Signal(range(config.n_kv_heads))
        row_bits, key_bits = ceil_log2(self.records), ceil_log2(self.rows)
        first_beat, n_beats = Signal.like(oldest), Signal(16)
        m.d.comb += [
            first_beat.eq(oldest >> key_bits),
            n_beats.eq(((n_positions + (self.rows - 1)) >> key_bits) - first_beat),
        ]
        scale_row_end, scale_row_first = Signal(16), oldest >> row_bits
        m.d.comb += scale_row_end.eq((n_positions + (self.records - 1)) >> row_bits)
        with m.FSM(name="dma") as dma:
            with m.State("Idle"):
                with m.If(start):
                    m.d.sync += [
                        kv_addr.eq(command.kv_addr),
                        dma_group.eq(0),
                    ]
                    m.next = "Scales"
            with m.State("Scales"), m.If(self.rd_cmd.ready):
                m.d.sync += key_addr.eq(kv_addr + first_beat * config.word_bytes)
                m.next = "Keys"
            with m.State("Keys"), m.If(self.rd_cmd.ready):
                m.next = "Values"
            with m.State("Values"), m.If(self.rd_cmd.ready):
                m.d.sync += [
                    key_addr.eq(key_addr + config.kv_head_bytes),
                    dma_group.eq(dma_group + 1),
                ]
                with m.If(dma_group == config.n_kv_heads - 1):
                    m.next = "Idle"
                with m.Else():
                    m.next = "Keys"
            scales = dma.ongoing("Scales")
            base = Mux(scales, kv_addr, key_addr)
            offset = Mux(dma.ongoing("Values"), config.kv_v_offset, 0)
            scale_offset = config.kv_s_offset + scale_row_first * config.word_bytes
            m.d.comb += [
                self.rd_cmd.valid.eq(~dma.ongoing("Idle")),
                self.rd_cmd.p.addr.eq(base + Mux(scales, scale_offset, offset)),
                self.rd_cmd.p.beats.eq(Mux(scales, scale_row_end - scale_row_first, n_beats)),
            ]

        return scale_row_end

    def _beats(self, m, start, tile, scale_row_end):
        """Beats come as fetched: scales to their memory, then keys and values to the slots.

        Returns the beats that came, as ``written``, and those that were used, as ``issued``.
        """
        pair, row_bits = self.pair, ceil_log2(self.records)
        loading, occupied = Signal(), Signal(range(BEAT_SLOTS + 1))
        written, issued, freed = (
            Signal(ceil_log2(BEAT_SLOTS) + 1, name=name) for name in ("written", "issued", "freed")
        )
        m.d.comb += [
            self.rd_ready.eq(loading | (self.busy & (occupied != BEAT_SLOTS))),
            occupied.eq(written - freed),
            self.scale_en.eq(loading & self.rd_valid),
            self.beat_en.eq(~loading & self.rd_valid & self.rd_ready),
            self.beat_slot.eq(written),
        ]
        with m.If(start):
            m.d.sync += [loading.eq(1), self.scale_row.eq(tile.oldest_of_command >> row_bits)]
        with m.Elif(self.scale_en):
            m.d.sync += self.scale_row.eq(self.scale_row + 1)
            with m.If(self.scale_row == scale_row_end - 1):
                m.d.sync += loading.eq(0)
        m.d.sync += [
            written.eq(written + self.beat_en),
            issued.eq(issued + (pair.valid & pair.last)),
            freed.eq(freed + self.release),
        ]

        return written, issued

    def _pairs(self, m, start, last_head, tile, beats):
        """Issue the pairs of a head, pass K and then pass V, and of the next head."""
        config, pair, (written, issued) = self.config, self.pair, beats
        position, n_positions, group_last = tile.position, tile.n_positions, config.n_kv_heads - 1
        issuing, draining, unfinished = Signal(), Signal(range(self.drain + 1)), Signal()
        values, group = Signal(), Signal(range(config.n_kv_heads))
        index, token, token_first = Signal(16), Signal(8), Signal(8)
        token_end = Signal(range(config.pass_tokens))  # the last that sees index
        n_begun = Signal(range(config.pass_tokens + 1))  # tokens that saw an earlier position
        open_, arrived, last_token, last_index = Signal(), Signal(), Signal(), Signal()
        # of the positions in its beat
        key_bits = ceil_log2(self.rows)
        last_row = last_index | index[:key_bits].all() if key_bits else Const(1)
        last_part = []
        if config.attention.pair_cycles > 1:
            part = Signal.like(pair.part)
            m.d.comb += pair.part.eq(part)
            with m.If(pair.valid):
                m.d.sync += part.eq(part + 1)
            last_part = [part.all()]
        ended = ends_pair(config, pair)
        m.d.comb += [
            open_.eq(issuing & ~(values & ((draining != 0) | unfinished))),
            arrived.eq(written != issued),
            self.stall.eq(open_ & ~arrived & ~self.rd_valid),
            pair.valid.eq(open_ & arrived),
            pair.values.eq(values),
            pair.first.eq(token >= n_begun),
            last_token.eq(token == token_end),
            last_index.eq(index == n_positions - 1),
            pair.last.eq(reduce(and_, [last_token, last_row, *last_part])),
            pair.final.eq(reduce(and_, [last_token, last_index, *last_part])),
            pair.group.eq(group),
            pair.token.eq(token),
            pair.position.eq(index),
            pair.slot.eq(issued),
        ]
        token_next = Mux(index >= position, token_first + 1, 0)  # first that sees index + 1
        begin = [token.eq(0), token_first.eq(0), n_begun.eq(0)]
        with m.If(draining != 0):
            m.d.sync += draining.eq(draining - 1)
        with m.If(self.finished):
            m.d.sync += unfinished.eq(0)
        with m.If(start):
            m.d.sync += [issuing.eq(1), last_head.eq(0), values.eq(0), group.eq(0)]
            m.d.sync += index.eq(tile.oldest_of_command)
            m.d.sync += [token_end.eq(tile.seen_by_of_command), *begin]
        with m.Elif(pair.valid & pair.final):
            m.d.sync += [index.eq(tile.oldest), token_end.eq(tile.oldest_seen_by), *begin]
            m.d.sync += values.eq(~values)
            with m.If(values):
                m.d.sync += [
                    unfinished.eq(1),
                    group.eq(group + 1),
                    last_head.eq(group == group_last),
                    issuing.eq(group != group_last),
                ]
            with m.Else():
                m.d.sync += draining.eq(self.drain)
        with m.Elif(ended & last_token):
            m.d.sync += [index.eq(index + 1), token.eq(token_next), token_first.eq(token_next)]
            m.d.sync += n_begun.eq(token_end + 1)
            with m.If(token_end != self.token_last):
                m.d.sync += token_end.eq(token_end + 1)
        with m.Elif(ended):
            m.d.sync += token.eq(token + 1)
