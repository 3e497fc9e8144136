"""Faults in the RTL: those that need no bench of their own, and what joins the units."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_ACCELERATOR = ["hw/core/test_accelerator.py::test_bench[ternary]"]
_UNIT = ["hw/vector/test_unit.py::test_executes[small]"]

MUTANTS = [
    *planted(
        "hw/lutra_hw/arith/exp2.py",
        ["hw/arith/test_exp2.py::test_one_argument_per_cycle"],
        (
            "powers far away come back",
            "whole_1.eq(whole[:5] | whole[5:].any().replicate(5)),",
            "whole_1.eq(whole[:5]),",
        ),
        ("rounding down", "self.y.eq((shifted_3 + 1) >> 1),", "self.y.eq(shifted_3 >> 1),"),
    ),
    *planted(
        "hw/lutra_hw/arith/quantize.py",
        ["hw/arith/test_quantize.py::test_latency"],
        (
            "shifts limited to 31",
            "shift = Signal(unsigned(6))",
            "shift = Signal(unsigned(5))",
        ),
    ),
    *planted(
        "hw/lutra_hw/arith/scale.py",
        ["hw/arith/test_scale.py::test_every_operation"],
        (
            "an addend far below comes back",
            "shift.eq(Mux(distance[5:].any(), 32, distance[:5])),",
            "shift.eq(distance[:5]),",
        ),
        (
            "the correction rounded up",
            "correction.eq(below - inexact)",
            "correction.eq(below)",
        ),
        (
            "the exponent of a zero taken for the larger",
            "((r.b.e > r.a.e) | (r.a.m == 0)) & (r.b.m != 0)",
            "(r.b.e > r.a.e) | (r.a.m == 0)",
        ),
    ),
    *planted(
        "hw/lutra_hw/arith/silu.py",
        ["hw/arith/test_silu.py::test_one_vector_per_cycle"],
        (
            "the gap beyond the table's end",
            "lost.eq(Mux(inside_3, round_half(gap[cut:]), Const(0)))",
            "lost.eq(round_half(gap[cut:]))",
        ),
    ),
    *planted(
        "hw/lutra_hw/axi/arbiter.py",
        ["hw/axi/test_arbiter.py::test_bench[3-512]"],
        (
            "a request replaces one that waits",
            "take.eq(~o.arvalid | o.arready)",
            "take.eq(1)",
        ),
    ),
    *planted(
        "hw/lutra_hw/axi/bursts.py",
        ["hw/axi/test_bursts.py::test_splits[0.0-32-1]", "hw/axi/test_bursts.py::test_splits"],
        (
            "a first burst that is cut counted whole",
            "remaining.eq(remaining - self.length),",
            "remaining.eq(remaining - self.burst_beats),",
        ),
    ),
    *planted(
        "hw/lutra_hw/axi/lite.py",
        ["hw/axi/test_lite.py"],
        (
            "a write before the last one's answer was taken",
            "& has_data & ~axi.bvalid",
            "& has_data",
        ),
        (
            "an error of a read answered OKAY",
            "axi.rresp.eq(Mux(bus.read_error, RESP_SLVERR, RESP_OKAY)),",
            "axi.rresp.eq(RESP_OKAY),",
        ),
    ),
    *planted(
        "hw/lutra_hw/axi/packed.py",
        ["hw/axi/test_packed.py::test_bench[10-8]"],
        (
            "a command that goes on where the last one ended",
            "m.d.sync += [left.eq(0), beat.eq(0)]",
            "m.d.sync += left.eq(0)",
        ),
        (
            "a beat less for words that do not fill it",
            "(cmd.p.beats * p.period_beats + (p.period_words - 1)) >> shift",
            "(cmd.p.beats * p.period_beats) >> shift",
        ),
        (
            "words a part too late",
            "wide[part * (parts - 1) :][: len(o.p)]",
            "wide[part * parts :][: len(o.p)]",
        ),
        (
            "words of a transfer that a reset ended count for the next",
            "left = Signal(len(self._queue.r_data))",
            "left = Signal.like(self._queue.r_data)",
        ),
    ),
    *planted(
        "hw/lutra_hw/axi/stripe.py",
        ["hw/axi/test_stripe.py::test_bench[4-4]"],
        (
            "a stripe's next command begins where the last one ended",
            "offset.eq(Mux(taken[n - 1], 0, offset + stride)),",
            "offset.eq(offset + stride),",
        ),
        (
            "a lane's beat is taken before the others have one",
            "i.ready.eq(self.o.valid & self.o.ready)",
            "i.ready.eq(self.o.ready)",
        ),
        (
            "lanes joined from the last one on",
            "self.o.p.eq(Cat(i.p for i in self.i)),",
            "self.o.p.eq(Cat(i.p for i in reversed(list(self.i)))),",
        ),
    ),
    *planted(
        "hw/lutra_hw/axi/width.py",
        ["hw/axi/test_width.py::test_bench[WriteWidth-8-16]"],
        (
            "the last word is written to the next place, too",
            "with m.Elif(lane < index):",
            "with m.Elif(lane + 1 < index):",
        ),
    ),
    *planted(
        "hw/lutra_hw/buffers.py",
        ["hw/vector/test_rope.py::test_follows_golden[narrow]"],
        (
            "queries of half of the heads",
            '            "head": range(config.n_heads),\n',
            '            "head": range(config.n_heads // 2),\n',
        ),
    ),
    *planted(
        "hw/lutra_hw/buffers.py",
        ["hw/vector/test_head_scales.py::test_tile"],
        (
            "as many scales as there are queries",
            "heads = range(config.n_heads + 2 * config.n_kv_heads)",
            "heads = range(config.n_heads)",
        ),
    ),
    *planted(
        "hw/lutra_hw/buffers.py",
        ["hw/vector/test_residual.py::test_residual_add[small]"],
        (
            "half of a token's residual stream",
            '"word": range(config.vector.hidden_max // LANES)}',
            '"word": range(config.vector.hidden_max // (2 * LANES))}',
        ),
    ),
    *planted(
        "hw/lutra_hw/control/chunks.py",
        ["hw/control/test_chunks.py::test_walks_again_and_again"],
        (
            "the next chunk is there before it was read",
            "self.valid.eq(~self.step)",
            "self.valid.eq(1)",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/failure.py",
        ["hw/control/test_failure.py::test_takes_the_first"],
        (
            "what the first port answered",
            "self.o.response.eq(transfer.response)",
            "self.o.response.eq(self.transfers[0].response)",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/fields.py",
        ["hw/control/test_sequencer.py::test_bench[narrow]"],
        (
            "arguments without their unit",
            "return Cat(C(0, exact_log2(field.unit)), word[",
            "return Cat(word[",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/fields.py",
        _UNIT,
        (
            "tokens in front of the first with logits count, too",
            "Mux(tokens.first < n_tokens, n_tokens - tokens.first, 0)",
            "Mux(tokens.first < n_tokens, n_tokens, 0)",
        ),
        (
            "flagged instructions work on every token",
            'Mux(header(word, "flags") & FLAG_LOGITS, logits_from, 0)',
            "0",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/sequencer.py",
        ["hw/control/test_sequencer.py::test_bench[narrow]"],
        (
            "weights of a product without tokens",
            "needs_weights = is_lmma & (n_tokens != 0)",
            "needs_weights = is_lmma",
        ),
        (
            "an unknown opcode ends a program as END does",
            "with m.If(opcode != Opcode.END):",
            "with m.If(0):",
        ),
    ),
    *planted(
        "hw/lutra_hw/control/watchdog.py",
        ["hw/control/test_watchdog.py::test_expires_when_golden_does[0.05-7]"],
        (
            "a cycle late",
            "self.running & (left == 0) & armed",
            "self.running & (left.all()) & armed",
        ),
    ),
    *planted(
        "hw/lutra_hw/core/accelerator.py",
        _ACCELERATOR,
        (
            "every product works on the tile's first tokens",
            "tile.p.token_first.eq(first)",
            "tile.p.token_first.eq(0)",
        ),
        (
            "a clear ends while reads are under way",
            "                idle.append(reader.idle)\n",
            "",
        ),
        (
            "windows and fractions swapped",
            'attend.p.window.eq(argument(word, Opcode.ATTEND, "window"))',
            'attend.p.window.eq(argument(word, Opcode.ATTEND, "frac"))',
        ),
    ),
    *planted(
        "hw/lutra_hw/core/accelerator.py",
        ["hw/core/test_accelerator.py::test_bench[striped]"],
        (
            "bus errors of the last lane alone",
            "transfer.error.eq(Cat(engine.error for engine in engines[purpose]).any()),",
            "transfer.error.eq(last.error),",
        ),
        (
            "beats of one lane counted",
            "beats[kind] += moves[-1]",
            "beats[kind] = moves[-1]",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/contract.py",
        ["hw/matmul/test_engine.py::test_a_command[ternary-2x16]"],
        (
            "accumulators of half of the buffer",
            '"pair": range(params.acc_blocks // 2)}',
            '"pair": range(params.acc_blocks // 4)}',
        ),
        (
            "activations of a quarter of the depth",
            "words = params.act_tiles * params.depth_tile // LANES",
            "words = params.act_tiles * params.depth_tile // (4 * LANES)",
        ),
        ("two planes at most", '"planes": unsigned(8),', '"planes": unsigned(1),'),
    ),
    *planted(
        "hw/lutra_hw/matmul/activations.py",
        ["hw/matmul/test_activations.py::test_sums"],
        (
            "the sum of the tile before added",
            "results[token].eq(parts[token] + Mux(first, 0, totals[token]))",
            "results[token].eq(parts[token] + totals[token])",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/activations.py",
        ["hw/matmul/test_activations.py::test_sums"],
        (
            "the shift of the next depth tile",
            "with m.If(read):\n            m.d.sync += shifts.eq(self.i_shift)",
            "m.d.comb += shifts.eq(self.i_shift)",
        ),
        (
            "sums of all tokens shifted as the first",
            "results[token] << shifts[token]",
            "results[token] << shifts[0]",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/activations.py",
        ["hw/matmul/test_activations.py::test_buffer_gives_depth_tiles_of_groups"],
        (
            "the shift of the first token's group for all",
            "self.shift[token].eq(r_port.data[n_bits:])",
            "self.shift[0].eq(r_port.data[n_bits:])",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/accumulate.py",
        ["hw/matmul/test_accumulate.py::test_dequantizer"],
        (
            "offsets a cycle early",
            "total.eq(product + offset_delayed)",
            "total.eq(product + offset)",
        ),
        (
            "rows shifted as the next ones",
            "m.d.sync += row_shift.eq(self.a_shift[low:])",
            "m.d.comb += row_shift.eq(self.a_shift[low:])",
        ),
        (
            "the scale takes a bit of the shift more than the row leaves",
            "return low, n_bits - low",
            "return low, max(n_bits - low - 1, 0)",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/accumulate.py",
        ["hw/matmul/test_accumulate.py::test_banks"],
        (
            "half of the last place a bit too high",
            "Const(0, p.shift_min - 1)",
            "Const(0, p.shift_min)",
        ),
        (
            "results read from the bits that are cut",
            "acc_port.data[p.shift_min :]",
            "acc_port.data[max(p.shift_min - 1, 0) :]",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/accumulate.py",
        ["hw/matmul/test_accumulate.py::test_rows"],
        (
            "the shift of another token",
            "shift = self.a_shift[token] if p.step_tokens > 1 else self.a_shift[0]",
            "shift = self.a_shift[0]",
        ),
    ),
    *planted(
        "hw/lutra_hw/vector/group_shifts.py",
        ["hw/vector/test_group_shifts.py::test_shifts"],
        (
            "a group's largest from the group before",
            "Mux(begins | (largest > peak), largest, peak)",
            "Mux(largest > peak, largest, peak)",
        ),
        (
            "a largest that is the token's by a power of two has a bit too many",
            "r_port.data <= self.y_max[e:]",
            "r_port.data < self.y_max[e:]",
        ),
        (
            "the last group of a token goes on",
            "ends.eq(valid & ((count == whole) | last)),",
            "ends.eq(valid & (count == whole)),",
        ),
        (
            "short groups as long as others",
            "whole = Mux(self.short, self.n_words_short - 1, self.n_words - 1)",
            "whole = Mux(self.short, self.n_words - 1, self.n_words - 1)",
        ),
    ),
    *planted(
        "hw/lutra_hw/vector/norm.py",
        ["hw/vector/test_norm.py::test_golden[small-mac-k32-g32]"],
        (
            "words of a group multiplied as if its shift were none",
            "(self.config.matmul.a_shift_max - shift)",
            "(0 * shift)",
        ),
        (
            "the shift of the word before",
            "delay(m, shift, quantizer.latency, name",
            "delay(m, shift, quantizer.latency + 1, name",
        ),
        (
            "scales of activations with a shift less",
            "lowered = lowered - self.a_shift_max",
            "lowered = lowered - self.a_shift_max + 1",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/engine.py",
        ["hw/matmul/test_engine.py::test_a_command[mac-2x16-w8]"],
        (
            "tokens behind the last written",
            "self.mask_last.eq(Mux(after == 0, ones, ~(ones << after))),",
            "self.mask_last.eq(ones),",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/contract.py",
        ["hw/matmul/test_engine.py::test_a_command[mac-2x16-w8]"],
        (
            "a group less where tokens begin within one",
            "(within + cmd.token_count - 1)[:8] >> bits",
            "(cmd.token_count - 1)[:8] >> bits",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/lut.py",
        ["hw/matmul/test_lut.py::test_table_writer"],
        (
            "the second sign for the pair's",
            "_add(chosen[0], chosen[1], minus[0] ^ minus[1])",
            "_add(chosen[0], chosen[1], minus[1])",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/mac.py",
        ["hw/matmul/test_mac.py::test_in_amaranth"],
        (
            "signs of upper planes put right in the lowest",
            "offset -= 1 << (len(term) - 1 + bit)",
            "offset -= 1 << (len(term) - 1)",
        ),
    ),
    *planted(
        "hw/lutra_hw/matmul/mixpe.py",
        ["hw/matmul/test_mixpe.py::test_in_amaranth"],
        (
            "the second activation or-ed with the sum",
            "Mux(~a_bit & b_bit, sign_extend(b, width), 0)",
            "Mux(b_bit, sign_extend(b, width), 0)",
        ),
        (
            "an odd activation by its neighbour's bit",
            "terms.append(Mux(bits[-1], words[n - 1], 0))",
            "terms.append(Mux(bits[0], words[n - 1], 0))",
        ),
    ),
    *planted(
        "hw/lutra_hw/pipeline.py",
        ["hw/vector/test_residual.py::test_residual_add[small]"],
        (
            "a stage without its register",
            "    stage = Signal(value.shape(), name=name, reset_less=reset_less)\n    m.d.sync",
            "    stage = Signal(value.shape(), name=name, reset_less=reset_less)\n    m.d.comb",
        ),
    ),
    *planted(
        "hw/lutra_hw/pipeline.py",
        ["hw/matmul/test_engine.py::test_a_command[mac]"],
        (
            "flags of the cycle before",
            "m.d.comb += getattr(stage, flag).eq(getattr(kept, flag))",
            "m.d.comb += getattr(stage, flag).eq(getattr(value, flag))",
        ),
        (
            "fields not delayed",
            "m.d.comb += stage.eq(fields)",
            "m.d.comb += stage.eq(value)",
        ),
    ),
    *planted(
        "hw/lutra_hw/stream/replay.py",
        ["hw/stream/test_replay.py::test_replays"],
        (
            "words of a pass that is kept are overwritten",
            "m.d.comb += freed.eq(Mux(self.keep, base, taken))",
            "m.d.comb += freed.eq(taken)",
        ),
    ),
    *planted(
        "hw/lutra_hw/vector/head_scales.py",
        ["hw/vector/test_head_scales.py::test_tile"],
        (
            "the scale of keys for values",
            "Mux(is_query, self.scale_q, Mux(is_key, self.scale_k, self.scale_v))",
            "Mux(is_query, self.scale_q, self.scale_k)",
        ),
    ),
    *planted(
        "hw/lutra_hw/vector/residual.py",
        ["hw/vector/test_residual.py::test_logits[small]"],
        (
            "the last of a word's equal logits",
            "m.d.comb += larger.eq(b > a)",
            "m.d.comb += larger.eq(b >= a)",
        ),
        (
            "every word of the first run begins anew",
            "restart = word_6.first & first",
            "restart = first",
        ),
        (
            "the arg-max of the token that is looked at",
            "write.addr.eq(word_6.token)",
            "write.addr.eq(self.argmax.addr.token)",
        ),
    ),
    *planted(
        "hw/lutra_hw/vector/unit.py",
        _UNIT,
        (
            "sines for cosines",
            "write.en.eq(self.rope_w.en & (word[pairs] == part)),",
            "write.en.eq(self.rope_w.en & (word[pairs] != part)),",
        ),
        (
            "done before keys and values are in memory",
            "writes.eq(code in (Opcode.ROPEQ, Opcode.LOGITS))",
            "writes.eq(code in (Opcode.LOGITS,))",
        ),
        (
            "heads scaled as the norm's token",
            "(norms, norm.scale_r)",
            "(norms | rotates, norm.scale_r)",
        ),
    ),
]
"""Faults of modules that compute tokens, or that what they compute passes through."""
