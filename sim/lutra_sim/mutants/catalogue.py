"""The faults: what is changed where, and which tests must notice."""

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """In ``file`` under ``hw/lutra_hw``, ``old`` is there once and becomes ``new``.

    ``tests`` are pytest node ids under ``tests``; each of them alone is not asked to notice, but
    one of them must.
    """

    fault: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file, and what is wrong."""
        return f"{self.file}: {self.fault}"


MUTANTS = [
    Mutant(
        fault="rounding half down",
        file="arith/fixed.py",
        old="return (Value.cast(guarded) + 1) >> 1",
        new="return Value.cast(guarded) >> 1",
        tests=("hw/arith/test_fixed.py::test_round_shift",),
    ),
    Mutant(
        fault="lost sign of the clamped value",
        file="arith/fixed.py",
        old="return Cat(Mux(fits, low, (~negative).replicate(width - 1)), negative).as_signed()",
        new="return Cat(Mux(fits, low, (~negative).replicate(width - 1)), 0).as_signed()",
        tests=("hw/arith/test_fixed.py::test_saturate",),
    ),
    Mutant(
        fault="bit length one short of a power of two",
        file="arith/fixed.py",
        old="high.eq(rest[half:].any()),",
        new="high.eq(rest[half + 1 :].any()),",
        tests=("hw/arith/test_fixed.py::test_bit_length",),
    ),
    Mutant(
        fault="exponent of the rounding carry dropped",
        file="arith/scale.py",
        old="return m[:16], e + Mux(carry, 1, Mux(top, 0, -1))",
        new="return m[:16], e + Mux(top | carry, 0, -1)",
        tests=("hw/arith/test_scale.py::test_product_per_cycle",),
    ),
    Mutant(
        fault="wrong segment of the table",
        file="arith/exp2.py",
        old="self.d[rest_bits : params.d_frac]",
        new="self.d[rest_bits - 1 : params.d_frac - 1]",
        tests=("hw/arith/test_exp2.py::test_one_argument_per_cycle",),
    ),
    Mutant(
        fault="a buffer of one word less",
        file="stream/replay.py",
        old="self.i.ready.eq((written ^ freed) != self.depth),",
        new="self.i.ready.eq((written - freed)[: len(freed)] < self.depth - 1),",
        tests=("hw/stream/test_replay.py::test_full_rate_and_capacity",),
    ),
    Mutant(
        fault="a replayed pass begins a word late",
        file="stream/replay.py",
        old="m.d.sync += taken.eq(base)",
        new="m.d.sync += taken.eq(base + 1)",
        tests=("hw/stream/test_replay.py::test_replays",),
    ),
    Mutant(
        fault="a burst reaches over its boundary",
        file="axi/bursts.py",
        old="distance.eq(self.burst_beats - self.beat_addr[:burst_bits]),",
        new="distance.eq(self.burst_beats),",
        tests=("hw/axi/test_bursts.py::test_splits",),
    ),
    Mutant(
        fault="stuck valid after the last burst",
        file="axi/bursts.py",
        old="self.valid.eq(~last),",
        new="self.valid.eq(1),",
        tests=("hw/axi/test_bursts.py::test_splits[0.0-32-1]",),
    ),
    Mutant(
        fault="data for the wrong master",
        file="axi/arbiter.py",
        old="i.rvalid.eq(o.rvalid & (o.rid == index)),",
        new="i.rvalid.eq(o.rvalid & (o.rid == (index ^ 1))),",
        tests=("hw/axi/test_arbiter.py::test_bench[3-512]",),
    ),
    Mutant(
        fault="the same master first every time",
        file="axi/arbiter.py",
        old="last.eq(index),",
        new="last.eq(0),",
        tests=("hw/axi/test_arbiter.py::test_bench[3-512]",),
    ),
    Mutant(
        fault="a burst too many under way",
        file="axi/reader.py",
        old="& (outstanding != self.max_outstanding)",
        new="& (outstanding <= self.max_outstanding)",
        tests=("hw/axi/test_reader.py::test_bench[small]",),
    ),
    Mutant(
        fault="asks without room in the FIFO",
        file="axi/reader.py",
        old="& (free >= self.burst_beats)",
        new="& (free != 0)",
        tests=("hw/axi/test_reader.py::test_bench[small]",),
    ),
    Mutant(
        fault="wlast a beat early",
        file="axi/writer.py",
        old="axi.wlast.eq(beat == lengths.r_data),",
        new="axi.wlast.eq(beat + 1 >= lengths.r_data),",
        tests=("hw/axi/test_writer.py::test_bench[small]",),
    ),
    Mutant(
        fault="words of a wide beat one place on",
        file="axi/width.py",
        old="lane.eq(transfer.p.first + index)",
        new="lane.eq(transfer.p.first + index + 1)",
        tests=("hw/axi/test_width.py::test_bench[ReadWidth-8-16]",),
    ),
    Mutant(
        fault="strobes of the last beat are kept",
        file="axi/width.py",
        old="m.d.sync += word.strb.eq(0)",
        new="m.d.sync += word.strb.eq(word.strb)",
        tests=("hw/axi/test_width.py::test_bench[WriteWidth-8-16]",),
    ),
    Mutant(
        fault="idle before the answer",
        file="axi/writer.py",
        old="self.idle.eq(~splitter.valid & (outstanding == 0) & (fifo.level == 0))",
        new="self.idle.eq(~splitter.valid & (fifo.level == 0))",
        tests=("hw/axi/test_writer.py::test_bench[small]",),
    ),
    Mutant(
        fault="a write answered without its data",
        file="axi/lite.py",
        old="bus.write_en.eq(has_addr & has_data & ~axi.bvalid),",
        new="bus.write_en.eq(has_addr & ~axi.bvalid),",
        tests=("hw/axi/test_lite.py::test_transfers",),
    ),
    Mutant(
        fault="waits for one completion too few",
        file="control/sequencer.py",
        old="enough = Cat(count >= wait for",
        new="enough = Cat(count + 1 >= wait for",
        tests=("hw/control/test_sequencer.py::test_bench[narrow]",),
    ),
    Mutant(
        fault="an instruction taken twice",
        file="control/sequencer.py",
        old="m.d.sync += met.eq(queue.r_rdy & ~queue.r_en & enough.all())",
        new="m.d.sync += met.eq(queue.r_rdy & enough.all())",
        tests=("hw/control/test_sequencer.py::test_bench[narrow]",),
    ),
    Mutant(
        fault="the cut last beat of a row is kept for the next one",
        file="control/load.py",
        old="rd_data.ready.eq(reading & ((lane == beat_words - 1) | last_word)),",
        new="rd_data.ready.eq(reading & (lane == beat_words - 1)),",
        tests=("hw/control/test_load.py::test_bench[small]",),
    ),
    Mutant(
        fault="the first token that sees a key is one late",
        file="attention/pairs.py",
        old="token_next = Mux(index >= position, token_first + 1, 0)",
        new="token_next = Mux(index > position, token_first + 1, 0)",
        tests=("hw/attention/test_pairs.py::test_order",),
    ),
    Mutant(
        fault="only the first tokens to see a key of the window begin anew",
        file="attention/pairs.py",
        old="pair.first.eq(token >= n_begun),",
        new="pair.first.eq(n_begun == 0),",
        tests=("hw/attention/test_pairs.py::test_order",),
    ),
    Mutant(
        fault="a word of several positions is kept when the last of them is not its last",
        file="attention/pairs.py",
        old="last_row = last_index | index[:key_bits].all() if key_bits else Const(1)",
        new="last_row = index[:key_bits].all() if key_bits else Const(1)",
        tests=("hw/attention/test_pairs.py::test_order[small-kv4-0.0]",),
    ),
    Mutant(
        fault="another position of a word",
        file="attention/attention.py",
        old="row = Array(rows)[multiplied.position[: ceil_log2(issuer.rows)]]",
        new="row = Array(rows)[~multiplied.position[: ceil_log2(issuer.rows)]]",
        tests=("hw/attention/test_attention.py::test_against_golden[small-kv4]",),
    ),
    Mutant(
        fault="keys and values take the queries' factor",
        file="vector/head_scales.py",
        old="cached = current.head >= config.n_heads",
        new="cached = current.head > config.n_heads",
        tests=("hw/vector/test_head_scales.py::test_tile[four-bits]",),
    ),
    Mutant(
        fault="a slot written while it is in use",
        file="attention/pairs.py",
        old="self.rd_ready.eq(loading | (self.busy & (occupied != BEAT_SLOTS))),",
        new="self.rd_ready.eq(loading | self.busy),",
        tests=("hw/attention/test_pairs.py::test_order",),
    ),
    Mutant(
        fault="denominators never begin anew",
        file="attention/attention.py",
        old="den_w.data[head].eq(Mux(first, 0, den_old.data[head]) + power)",
        new="den_w.data[head].eq(den_old.data[head] + power)",
        tests=("hw/attention/test_attention.py::test_against_golden[tiny]",),
    ),
    Mutant(
        fault="accumulators of the other bank",
        file="vector/residual.py",
        old="block = Mux(word_1.odd, self.acc.data[1][lane], self.acc.data[0][lane])",
        new="block = Mux(word_1.odd, self.acc.data[0][lane], self.acc.data[1][lane])",
        tests=("hw/vector/test_residual.py::test_residual_add[small]",),
    ),
    Mutant(
        fault="sine with the wrong sign",
        file="vector/rope.py",
        old="y_low.eq(low_cos - high_sin),",
        new="y_low.eq(low_cos + high_sin),",
        tests=("hw/vector/test_rope.py::test_follows_golden[narrow]",),
    ),
    Mutant(
        fault="gamma of queries for keys",
        file="vector/heads.py",
        old="gamma_word.eq(gamma_first + Mux(is_key, head_words, 0) + of_head)",
        new="gamma_word.eq(gamma_first + of_head)",
        tests=("hw/vector/test_heads.py::test_words",),
    ),
    Mutant(
        fault="squares of the head before added",
        file="vector/heads.py",
        old="total.eq(Mux(first_word, 0, so_far) + sums[0] + sums[1]),",
        new="total.eq(so_far + sums[0] + sums[1]),",
        tests=("hw/vector/test_heads.py::test_words",),
    ),
    Mutant(
        fault="epsilon not times the elements of a head",
        file="vector/head_scales.py",
        old="total.eq(read.data + (self.eps << log2_dim))",
        new="total.eq(read.data + self.eps)",
        tests=("hw/vector/test_head_scales.py::test_tile",),
    ),
    Mutant(
        fault="missing carry of a negated value",
        file="matmul/table.py",
        old="m.d.comb += total.eq(_add(_extend(a, width), b, differ))",
        new="m.d.comb += total.eq(_add(_extend(a, width), b, 0))",
        tests=("hw/matmul/test_table.py::test_signed_sum",),
    ),
    Mutant(
        fault="a walk's term added where it is subtracted",
        file="matmul/table.py",
        old="subtract.eq(sign < 0),",
        new="subtract.eq(sign > 0),",
        tests=("hw/matmul/test_table.py::test_datapath",),
    ),
    Mutant(
        fault="the other set of tables",
        file="matmul/table.py",
        old="r_port.addr.eq(Cat(code[:4], self.set)),",
        new="r_port.addr.eq(Cat(code[:4], ~self.set)),",
        tests=("hw/matmul/test_table.py::test_datapath",),
    ),
    Mutant(
        fault="differences for sums of the last pair",
        file="matmul/lut.py",
        old='last = pairs["last_sum" if s2 > 0 else "last_difference"]',
        new='last = pairs["last_sum" if s2 < 0 else "last_difference"]',
        tests=("hw/matmul/test_lut.py::test_table_precompute",),
    ),
    Mutant(
        fault="the last step of the tables is skipped",
        file="matmul/lut.py",
        old="run.eq(step != p.steps - 1)",
        new="run.eq(step + 2 < p.steps)",
        tests=("hw/matmul/test_lut.py::test_table_writer",),
    ),
    Mutant(
        fault="the pair's sum for its first activation",
        file="matmul/mixpe.py",
        old="a, b, both = words[2 * index], words[2 * index + 1], words[n + index]",
        new="b, a, both = words[2 * index], words[2 * index + 1], words[n + index]",
        tests=("hw/matmul/test_mixpe.py::test_in_amaranth",),
    ),
    Mutant(
        fault="the lower product borrows from the upper one",
        file="matmul/mac.py",
        old="offset = sum(1 << (width * (row + 1) - 1) for row in range(per_dsp))",
        new="offset = 1 << (width * per_dsp - 1)",
        tests=("hw/matmul/test_mac.py::test_in_amaranth[dsp]",),
    ),
    Mutant(
        fault="the older set for the newer one",
        file="matmul/mac.py",
        old="m.d.sync += [older.eq(newer), newer_set.eq(self.start_set)]",
        new="m.d.sync += [older.eq(newer), newer_set.eq(~self.start_set)]",
        tests=("hw/matmul/test_mac.py::test_in_amaranth[chains]",),
    ),
    Mutant(
        fault="a wrong radix between planes",
        file="matmul/accumulate.py",
        old="former = h << exact_log2(p.radix)",
        new="former = h << 1",
        tests=("hw/matmul/test_accumulate.py::test_rows[mac]",),
    ),
    Mutant(
        fault="zero point added",
        file="matmul/accumulate.py",
        old="term.eq(h - offset),",
        new="term.eq(h + offset),",
        tests=("hw/matmul/test_accumulate.py::test_dequantizer",),
    ),
    Mutant(
        fault="depth tiles behind the first replace the sum",
        file="matmul/accumulate.py",
        old="former = Mux(adding.first_tile, half, Mux(",
        new="former = Mux(~adding.last_tile, half, Mux(",
        tests=("hw/matmul/test_accumulate.py::test_banks",),
    ),
    Mutant(
        fault="a skipped group of eight activations",
        file="matmul/activations.py",
        old="m.d.sync += [add.eq(read), first.eq(index == 0),",
        new="m.d.sync += [add.eq(read & (index != 1)), first.eq(index == 0),",
        tests=("hw/matmul/test_activations.py::test_sums",),
    ),
    Mutant(
        fault="activations of another group of tokens",
        file="matmul/activations.py",
        old="w_port.addr.eq(Cat(w_tile, w_token[log2_step_tokens:])),",
        new="w_port.addr.eq(Cat(w_tile, w_token)),",
        tests=("hw/matmul/test_activations.py::test_buffer_gives_depth_tiles_of_groups",),
    ),
    Mutant(
        fault="weights kept for one group too few",
        file="matmul/engine.py",
        old="ring.keep.eq(c.groups_left != 0),",
        new="ring.keep.eq(c.groups_left > 1),",
        tests=("hw/matmul/test_engine.py::test_a_command[mac]",),
    ),
    Mutant(
        fault="blocks of eight rows counted for those of step_rows",
        file="matmul/engine.py",
        old="c.block.eq(c.block + self.params.block_rows)",
        new="c.block.eq(c.block + 1)",
        tests=("hw/matmul/test_engine.py::test_a_command[ternary-2x16]",),
    ),
]
"""Faults of many kinds, in every kind of block."""
