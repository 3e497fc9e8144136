"""Faults in the golden models: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_DECODER = "golden/model/test_decoder.py"

MUTANTS = [
    *planted(
        "sim/lutra_golden/arith/fixed.py",
        ["golden/arith/test_fixed.py"],
        (
            "rounding down",
            "rounded = (x >> right) + ((x >> (right - 1)) & 1)",
            "rounded = x >> right",
        ),
        (
            "the most negative value clamped to its neighbour",
            "-(1 << (width - 1)), (1 << (width - 1)) - 1)",
            "1 - (1 << (width - 1)), (1 << (width - 1)) - 1)",
        ),
        (
            "bit length wrong where the high half is one",
            "np.where(high > 0, length_high",
            "np.where(high > 1, length_high",
        ),
        (
            "every product in float32",
            "if b.dtype == np.float32 else np.float64",
            "if b.dtype == np.float32 else np.float32",
        ),
    ),
    *planted(
        "sim/lutra_golden/arith/scale.py",
        ["golden/arith/test_scale.py"],
        ("carry of the rounded mantissa dropped", "carry = m >> 16  #", "carry = m >> 17  #"),
        (
            "a zero with the larger exponent taken as the larger",
            "| (a.m == 0)) & (b.m != 0)\n",
            "| (a.m == 0))\n",
        ),
        ("no Newton step in the reciprocal", "y1 = round_shift(y0 * (c >> 15), 16)", "y1 = y0"),
        (
            "mantissas not compared where exponents agree",
            "| ((b.e == a.e) & (b.m > a.m))",
            "| ((b.e == a.e) & (b.m < a.m))",
        ),
        (
            "sign of an unpacked exponent lost",
            "return Scale(word & 0xFFFF, e - ((e & 0x8000) << 1))",
            "return Scale(word & 0xFFFF, e)",
        ),
    ),
    *planted(
        "sim/lutra_golden/arith/silu.py",
        ["golden/arith/test_silu.py"],
        ("the split taken as fine", "fine = u < 1 <<", "fine = u <= 1 <<"),
        (
            "coarse segments behind the split are zero",
            "params.split_bits + params.coarse_bits)\n    base",
            "params.split_bits + params.coarse_bits + 1)\n    base",
        ),
        (
            "the gap rounded down",
            "gap = round_shift(y, params.table_frac + params.rest_bits - params.x_frac)",
            "gap = y >> (params.table_frac + params.rest_bits - params.x_frac)",
        ),
    ),
    *planted(
        "sim/lutra_golden/arith/exp2.py",
        ["golden/arith/test_exp2.py"],
        ("powers far away come back", "np.minimum(whole, 31) + guard", "(whole & 31) + guard"),
        (
            "interpolation rounded",
            "- ((drop[segment] * rest) >> params.rest_bits)",
            "- round_shift(drop[segment] * rest, params.rest_bits)",
        ),
        ("knots rounded down", "np.rint(2.0 **", "np.floor(2.0 **"),
    ),
    *planted(
        "sim/lutra_golden/arith/quantize.py",
        ["golden/arith/test_quantize.py"],
        (
            "-128 for -127",
            "return np.clip(q, -q_max, q_max)",
            "return np.clip(q, -q_max - 1, q_max)",
        ),
        ("shifts limited to 31", "np.clip(-factor.e, 0, 63)", "np.clip(-factor.e, 0, 31)"),
        (
            "a step of the next integer",
            "return scale_mul(scale_from_int(y_max), scale_recip(scale_from_int(q_max)))",
            "return scale_mul(scale_from_int(y_max), scale_recip(scale_from_int(q_max + 1)))",
        ),
        (
            "exponents only below the largest",
            "(peaks << shift) <= y_max[:, None]",
            "(peaks << shift) < y_max[:, None]",
        ),
        (
            "groups that reach into the next run",
            "within = np.arange(0, run, self.size, dtype=np.int64)",
            "return np.arange(0, n, self.size, dtype=np.int64)",
        ),
        (
            "integers shifted by the exponent",
            "return q << (groups.shift_max - e)",
            "return q << e",
        ),
    ),
    *planted(
        "sim/lutra_golden/attention/attention.py",
        ["golden/attention/test_attention.py"],
        (
            "a window of one position more",
            "max(position - window + 1, 0)",
            "max(position - window, 0)",
        ),
        (
            "the last key behind the window is seen",
            "keys <= queries - window",
            "keys < queries - window",
        ),
        (
            "hidden keys count as score zero in the maximum",
            "np.where(hidden, score.min(), score)",
            "np.where(hidden, 0, score)",
        ),
        (
            "scales of hidden values choose the exponent",
            "e = np.where(live, v_scale.e",
            "e = np.where(v_scale.m != 0, v_scale.e",
        ),
        ("query heads share keys in turn", "g = h // params.q_per_kv", "g = h % params.n_kv_heads"),
    ),
    *planted(
        "sim/lutra_golden/attention/cache.py",
        ["golden/attention/test_cache.py"],
        ("halves of a byte swapped", "(even | odd << 4)", "(odd | even << 4)"),
        ("sign of four bits lost", "((pairs ^ 8) - 8)", "pairs"),
        ("even elements twice", "x[..., 1::2] & 15", "x[..., 0::2] & 15"),
    ),
    *planted(
        "sim/lutra_golden/attention/pairs.py",
        ["golden/attention/test_pairs.py"],
        (
            "the cut last beat not fetched",
            "end_beat = -(-n * row_bytes // config.word_bytes)",
            "end_beat = n * row_bytes // config.word_bytes",
        ),
        (
            "every token has the first one's window",
            "if first_seen(position + token, window) <= p",
            "if first_seen(position, window) <= p",
        ),
        (
            "positions before the window fetched",
            "first_beat = first * row_bytes // config.word_bytes",
            "first_beat = 0",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/engine.py",
        ["golden/matmul/test_engine.py"],
        (
            "the last row of a part not in the peak",
            "rows = slice(first, first + n_rows)",
            "rows = slice(first, first + n_rows - 1)",
        ),
        (
            "offsets subtracted",
            "doubled + self.offset.repeat(self.group, axis=1)",
            "doubled - self.offset.repeat(self.group, axis=1)",
        ),
        ("half steps called ternary", " and (self.zero % 2 == 0).all())", ")"),
        (
            "groups called ternary",
            "if not one or self.group != self.codes.shape[1]:",
            "if not one:",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/lookup.py",
        ["golden/matmul/test_lookup.py"],
        (
            "the plane of signs counts like the others",
            "negated = is_binary(planes) and plane == 0",
            "negated = False",
        ),
        (
            "planes that are not doubled",
            "                    acc *= 2\n",
            "                    acc *= 1\n",
        ),
        (
            "one bit too few for a power of two",
            "bits = max(high.bit_length(), (~low).bit_length()) + 1",
            "bits = max(high.bit_length(), (-low).bit_length())",
        ),
        (
            "digits of a code in the other order",
            "powers = (base ** np.arange(group)).astype(np.uint8)",
            "powers = (base ** np.arange(group)[::-1]).astype(np.uint8)",
        ),
    ),
    *planted(
        "sim/lutra_golden/timing/lookup.py",
        ["golden/timing/test_lookup.py"],
        (
            "a pass that waits for no table",
            "return len(walk(planes)) + self.params",
            "return self.params",
        ),
        (
            "groups of tokens that are not aligned",
            "groups = tokens[-1] // size - tokens[0] // size + 1",
            "groups = (len(tokens) - 1) // size + 1",
        ),
        (
            "tables that are written while the last ones are looked up",
            "return self.params.n_tables // 2 - 1",
            "return 0",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/ternary.py",
        ["golden/matmul/test_ternary.py"],
        (
            "negative weights do not count for the digits",
            "peak = int(np.abs(doubled).max(initial=2)) // 2",
            "peak = int(doubled.max(initial=2)) // 2",
        ),
        (
            "an accumulator holds one more",
            "return ((1 << (self.acc_width - 1)) - 1) // largest",
            "return (1 << (self.acc_width - 1)) // largest",
        ),
        (
            "a radix of two between planes",
            "partial = 3 * partial + sum_lookups",
            "partial = 2 * partial + sum_lookups",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/table.py",
        ["golden/matmul/test_table.py", "golden/matmul/test_ternary.py"],
        ("the last term added where it is subtracted", "(1, -1, -1),\n    ]", "(1, -1, 1),\n    ]"),
        (
            "signs relative to the table before",
            "relative[..., table] ^= codes[..., table & (table - 1)] & 16",
            "relative[..., table] ^= codes[..., table - 1] & 16",
        ),
        (
            "the upper entries not reached",
            "indices = codes & 15\n",
            "indices = codes & 7\n",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/grouped.py",
        ["golden/matmul/test_grouped.py"],
        (
            "sign of a stored zero point lost",
            "return digits, scale, second - ((second >> (width - 1)) << width)",
            "return digits, scale, second",
        ),
        (
            "zero point times half the activations",
            "(double * total - second * a_sum)",
            "(double * total - second * (a_sum >> 1))",
        ),
        (
            "zero points without their scale",
            "sums = -scale * self.stored_zero(zero, planes)",
            "sums = -self.stored_zero(zero, planes)",
        ),
        (
            "all depth tiles shifted as the first",
            "result << shifts[:, tile, None]",
            "result << shifts[:, 0, None]",
        ),
        (
            "offsets a bit too wide",
            "if needed > self.offset_width:",
            "if needed > self.offset_width + 1:",
        ),
        (
            "bits without room for the lowest",
            "max(int(values.max(initial=0)), ~int(values.min(initial=0)))",
            "max(int(values.max(initial=0)), -int(values.min(initial=0)))",
        ),
        (
            "scales of other tiles",
            "tail = tail.repeat(planes * self.steps, axis=0)",
            "tail = np.tile(tail, (planes * self.steps, 1))",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/lut.py",
        ["golden/matmul/test_lut.py"],
        (
            "stored zero point one off",
            "return zero - ((1 << planes) - 1)",
            "return zero - (1 << planes)",
        ),
        (
            "mirrored entries with the wrong sign",
            "np.where(fields >> 3, -entry, entry)",
            "np.where(fields >> 3, entry, -entry)",
        ),
        (
            "the last bit of a code not complemented",
            "1 - negate[..., None]], axis=-1)",
            "negate[..., None]], axis=-1)",
        ),
    ),
    *planted(
        "sim/lutra_golden/matmul/mac.py",
        ["golden/matmul/test_mac.py"],
        (
            "an operand one row's digit too wide",
            "if sum_width + self.w_width <= _DSP_OPERAND:",
            "if sum_width <= _DSP_OPERAND:",
        ),
        ("levels rounded down", "return 1 + -(-n_levels // 2)", "return 1 + n_levels // 2"),
        ("the top bit of a digit dropped", "return a * digit", "return a * (digit & 7)"),
    ),
    *planted(
        "sim/lutra_golden/matmul/mixpe.py",
        ["golden/matmul/test_mixpe.py"],
        (
            "the top bit of a digit dropped",
            "for bit in range(self.w_width):",
            "for bit in range(self.w_width - 1):",
        ),
        (
            "the odd activation has no term",
            "return -(-self.step_depth // 2)",
            "return self.step_depth // 2",
        ),
        ("digits of two bits taken", "self.w_width not in (4, 8)", "self.w_width not in (2, 4, 8)"),
    ),
    *planted(
        "sim/lutra_golden/vector/norm.py",
        ["golden/vector/test_norm.py"],
        (
            "a block shift too small",
            "bit_length(v_max) - (SCALED_WIDTH - 1)",
            "bit_length(v_max) - SCALED_WIDTH",
        ),
        ("no epsilon", "scale_add(mean_square, eps)", "mean_square"),
        ("negative gates squared", "positive = np.maximum(gate, 0)", "positive = np.abs(gate)"),
        (
            "the gate's argument not saturated",
            "x = saturate(exact, SILU.x_width)",
            "x = round_shift(gate * c.m[:, None], shift[:, None])",
        ),
        (
            "fraction bits of gamma ignored",
            "np.where(step.m == 0, 0, gamma_frac)",
            "0",
        ),
    ),
    *planted(
        "sim/lutra_golden/vector/rope.py",
        ["golden/vector/test_rope.py"],
        ("sine with the wrong sign", "hi * cos + lo * sin]", "hi * cos - lo * sin]"),
        (
            "table rounded down",
            "return np.rint(table * (1 << ROPE_FRAC))",
            "return np.floor(table * (1 << ROPE_FRAC))",
        ),
        ("values not shifted", "return x << ROPE_FRAC if table is", "return x if table is"),
        ("a centre without its fraction", "+ ROPE_FRAC - bias.frac)", "+ ROPE_FRAC)"),
        ("centres added", "y = y - (bias.centre <<", "y = y + (bias.centre <<"),
    ),
    *planted(
        "sim/lutra_golden/vector/heads.py",
        ["golden/vector/test_heads.py"],
        ("epsilon not times the elements of a head", "+ head_dim * norm.eps", "+ norm.eps"),
        ("fraction of a bias ignored", "(FIXED_FRAC - bias.frac)", "FIXED_FRAC"),
        (
            "normed elements rounded down",
            "return round_shift(v * norm.gamma, NORM_SHIFT), unit",
            "return (v * norm.gamma) >> NORM_SHIFT, unit",
        ),
    ),
    *planted(
        "sim/lutra_golden/vector/residual.py",
        ["golden/vector/test_residual.py"],
        (
            "coded rows rounded down",
            "return round_shift(doubled * int(w_scale.m), -(int(w_scale.e) + frac))",
            "return (doubled * int(w_scale.m)) >> -(int(w_scale.e) + frac)",
        ),
        ("shifts limited to 31", "np.clip(shift, 0, 63)", "np.clip(-(c.e + frac), 0, 31)"),
        (
            "logits rounded down",
            "return saturate(round_shift(acc * row_scale, LOGIT_SHIFT), LOGIT_WIDTH)",
            "return saturate((acc * row_scale) >> LOGIT_SHIFT, LOGIT_WIDTH)",
        ),
        (
            "the sum wraps",
            "return saturate(residual_sum(x, acc, s, w_scale, frac), RESIDUAL_WIDTH)",
            "return residual_sum(x, acc, s, w_scale, frac).astype(np.int32).astype(np.int64)",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/decoder.py",
        [
            f"{_DECODER}::test_the_flag_of_saturation",
            f"{_DECODER}::test_sums_that_float32_does_not_hold_are_exact",
            f"{_DECODER}::test_keys_and_values_of_different_bits",
            f"{_DECODER}::test_every_architecture[qwen2-window]",
            "host/quantize/test_vocabulary.py::test_a_model_and_its_reference[False-4]",
        ],
        ("centres of values", 'if name == "k_proj" else None', 'if name == "v_proj" else None'),
        (
            "rows of the head for those of the embedding",
            "coded = m.vocabulary.embedding\n",
            "coded = m.vocabulary.head\n",
        ),
        (
            "a coded head's sums by the other shift",
            "return round_shift(acc, m.vocabulary.head.shift), s",
            "return round_shift(acc, m.vocabulary.embedding.shift), s",
        ),
        (
            "an overflow not flagged",
            "linear.scale, frac, self.saturation)",
            "linear.scale, frac)",
        ),
        (
            "no biases of keys and values but the first ones",
            "                first += h.shape[1]\n",
            "",
        ),
        (
            "float32 for sums that it does not hold",
            "np.float32 if peak < 1 << 24 else np.float64",
            "np.float32 if peak < 1 << 40 else np.float64",
        ),
        (
            "values in the bits of keys",
            "q_max_of(m.key_bits), q_max_of(m.value_bits)),",
            "q_max_of(m.key_bits), q_max_of(m.key_bits)),",
        ),
        ("no window", "            layer.window,\n", "            0,\n"),
    ),
    *planted(
        "sim/lutra_golden/model/limits.py",
        ["golden/model/test_limits.py"],
        ("the least shift ignored", "range(least, SHIFT_MAX + 1)", "range(SHIFT_MAX + 1)"),
        (
            "sums rounded down",
            "int(round_shift(peak * q_max, shift)) <= limit",
            "(peak * q_max >> shift) <= limit",
        ),
        ("a limit of one less", "shift)) <= limit:", "shift)) < limit:"),
    ),
    *planted(
        "sim/lutra_golden/model/lowered.py",
        ["golden/model/test_lowered.py"],
        (
            "epsilon of padded heads not smaller",
            "return round(model.head_eps * model.head_dim / built_head_dim(model.head_dim))",
            "return model.head_eps",
        ),
        (
            "a mean over the padded width",
            "inv_n = scale_from_float(1 / n)",
            "inv_n = scale_from_float(1 / (width or n))",
        ),
        (
            "keys and values of different bits taken",
            "if model.key_bits != model.value_bits:",
            "if model.key_bits < model.value_bits:",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/padding.py",
        ["golden/model/test_padding.py"],
        (
            "gamma smaller by the mean, not by its root",
            "math.sqrt(len(gamma) / to)",
            "len(gamma) / to",
        ),
        (
            "halves not kept",
            "within[head_dim // 2 :] += to // 2 - head_dim // 2",
            "within[head_dim // 2 :] += 0",
        ),
        (
            "padded rows of integers not zero",
            "codes = np.full((shape, w.codes.shape[1]), zero // 2, w.codes.dtype)",
            "codes = np.full((shape, w.codes.shape[1]), 0, w.codes.dtype)",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/stacks.py",
        ["golden/model/test_stacks.py"],
        (
            "the coarsest groups",
            "math.gcd(*(part.group for part in found))",
            "max(part.group for part in found)",
        ),
        ("the fewest bits", "bits, group = max(part.bits", "bits, group = min(part.bits"),
        (
            "a matrix begins a row early",
            "slice(end - each.n_rows, end)",
            "slice(max(0, end - each.n_rows - 1), end - 1)",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/capabilities.py",
        ["host/quantize/test_defaults.py::test_parts_are_what_the_device_runs"],
        (
            "groups of activations on no device",
            "EVERY_PART = Capabilities(activation_groups=True",
            "EVERY_PART = Capabilities(activation_groups=False",
        ),
        (
            "offsets on no device",
            "EVERY_PART = Capabilities(activation_groups=True, offsets=True",
            "EVERY_PART = Capabilities(activation_groups=True, offsets=False",
        ),
        (
            "groups of activations on every device",
            "COMMON_PARTS = Capabilities()",
            "COMMON_PARTS = Capabilities(activation_groups=True)",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/stored.py",
        ["golden/model/test_stored.py"],
        (
            "codes of six bits cut to five",
            "weights.codes.max(initial=0)) <= top and",
            "weights.codes.max(initial=0)) <= top + 1 and",
        ),
        (
            "zero points of six bits beside codes of five",
            "weights.zero.max(initial=0)) <= 2 * top",
            "weights.zero.max(initial=0)) <= 3 * top",
        ),
        (
            "the first group's mark on top",
            'np.packbits(marked, axis=1, bitorder="little")',
            "np.packbits(marked, axis=1)",
        ),
        (
            "marks for the other zero point",
            "np.array([self.first, self.second], np.uint16)[marked]",
            "np.array([self.second, self.first], np.uint16)[marked]",
        ),
        (
            "scales of nine bits cut to eight",
            "if weights.scale_bits > 8 else",
            "if weights.scale_bits > 9 else",
        ),
        (
            "the nearer end for the bound",
            "scale * np.maximum(zero, top - zero)",
            "scale * np.minimum(zero, top - zero)",
        ),
        (
            "offsets left out of the bound",
            "offset = some.offset.astype(np.int64) << some.offset_shift",
            "offset = np.int64(0)",
        ),
        (
            "the bound of the first rows for all",
            "range(0, self.n_rows, n_rows)",
            "range(0, 1, n_rows)",
        ),
        (
            "the bound of the last rows for all",
            "peak = max(peak, int(furthest.sum(axis=1).max(initial=0)))",
            "peak = int(furthest.sum(axis=1).max(initial=0))",
        ),
        (
            "offsets of the last bits lost",
            "if (offset.astype(np.int64) << shift != weights.offset).any():",
            "if shift < 0:",
        ),
        ("code 3 taken for a trit", "or threes.any()", ""),
    ),
    *planted(
        "sim/lutra_golden/model/stored.py",
        ["golden/model/test_two_levels.py"],
        (
            "offsets of two levels not shifted",
            "offset_shift=self.levels.offset_shift,\n",
            "offset_shift=0,\n",
        ),
        (
            "two levels of the first rows",
            "None if self.levels is None else self.levels.rows(select)",
            "None if self.levels is None else self.levels.rows(slice(len(some(self.codes))))",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/two_levels.py",
        ["golden/model/test_two_levels.py"],
        ("products rounded down", " + half) >> self.shift", ") >> self.shift"),
        ("offsets without a sign", "self._products(1, np.int16)", "self._products(1, np.int64)"),
        (
            "multiples of scales for offsets",
            "packed = self.records[..., side * size : (side + 1) * size]",
            "packed = self.records[..., :size]",
        ),
        (
            "the last factor for both",
            "end = self.records.shape[2] - _FACTOR_BYTES * (self.offsets - side)",
            "end = self.records.shape[2]",
        ),
        (
            "multiples of any size",
            "range(1 + self.offsets if self.shift < self.bits else 0)",
            "range(0)",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/two_stage.py",
        ["golden/model/test_two_stage.py"],
        (
            "one candidate fewer for the top k",
            "np.partition(logits, -n)[-n])",
            "np.partition(logits, -n)[1 - n])",
        ),
        (
            "ties drawn in an unstable order",
            'np.argsort(-logits[kept], kind="stable")]',
            'np.argsort(logits[kept], kind="stable")[::-1]]',
        ),
        ("rows that may be equals left out", "bound >= least", "bound > least"),
        (
            "more than the rows that were read first reach",
            "np.sort(first)[-n]",
            "np.sort(first)[-1]",
        ),
        ("what is not known, with its sign", "groups = np.abs(a).reshape", "groups = a.reshape"),
        (
            "half of what is not known",
            "reach = unknown * weights",
            "reach = unknown // 2 * weights",
        ),
        (
            "upper trits rounded down",
            "(weights.astype(np.int64) + furthest)",
            "weights.astype(np.int64)",
        ),
        ("tokens by their places among the rows", "Best(rows[order], exact", "Best(order, exact"),
        (
            "as many rows as are allowed are too many",
            "len(rows) > self._most",
            "len(rows) >= self._most",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/b128.py",
        ["golden/model/test_b128.py"],
        (
            "halves of a byte swapped",
            "4 * i if width == 4",
            "4 - 4 * i if width == 4",
        ),
        ("the plane of high bits first", "3: (2, 1)", "3: (1, 2)"),
        ("the fifth bit first", "5: (4, 1)", "5: (1, 4)"),
        (
            "a cut block not counted",
            "return -(-k // BLOCK) * BLOCK * bits // 8",
            "return k // BLOCK * BLOCK * bits // 8",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/cache.py",
        ["golden/model/test_cache.py"],
        (
            "value scales of all positions",
            "Scale(self.value_scale.m[:n], self.value_scale.e[:n])",
            "self.value_scale",
        ),
        (
            "a context of one position more",
            "if layer.length > context:",
            "if layer.length > context + 1:",
        ),
        (
            "values written without their own scales",
            "self._scales[i, 0, rows], self._scales[i, 1, rows] = scale",
            "self._scales[i, 0, rows], self._scales[i, 1, rows] = k_scale",
        ),
    ),
    *planted(
        "sim/lutra_golden/control/interpreter.py",
        ["golden/control/test_interpreter.py"],
        ("centres of values", "centre if kind == 1 else", "centre if kind == 2 else"),
        (
            "the last of equal logits wins",
            "better = (best > self._best[tokens])",
            "better = (best >= self._best[tokens])",
        ),
        (
            "an overflow not flagged",
            "acc, s, w_scale, frac, self._saturation)",
            "acc, s, w_scale, frac)",
        ),
        (
            "low halves in place of whole elements",
            "self.residual[m, :width] & ~_LOW | row & _LOW",
            "row & _LOW",
        ),
        (
            "the stream from its first word on",
            "self.residual[tokens, LANES * base : LANES * (base + n_words)]",
            "self.residual[tokens, : LANES * n_words]",
        ),
        (
            "weights of the memory before",
            "or self._weights[key][0] != version:",
            "or False:",
        ),
        (
            "the table from position 0 on",
            "self._int16(base + chunk.position * d * 2, n * d)",
            "self._int16(base, n * d)",
        ),
        ("a wait of one too few taken", "if done[other] < wait:", "if done[other] + 1 < wait:"),
    ),
    *planted(
        "sim/lutra_golden/control/memory.py",
        ["golden/control/test_memory.py"],
        ("a byte of the range written is enough", "if not written.all():", "if not written.any():"),
        (
            "an access may end one byte outside",
            "address + n_bytes > len(self._bytes)",
            "address + n_bytes > len(self._bytes) + 1",
        ),
        ("writes not counted", "self._n_writes += 1", "self._n_writes += 0"),
    ),
    *planted(
        "sim/lutra_golden/control/isa.py",
        ["golden/control/test_isa.py"],
        ("addresses in bytes", "return spec.unit * ((word", "return 1 * ((word"),
        (
            "values one past the field taken",
            "if not 0 <= count < 1 << spec.width:",
            "if not 0 <= count <= 1 << spec.width:",
        ),
        (
            "waits of vector and attention swapped",
            "load, matmul, vector, attention = (get",
            "load, matmul, attention, vector = (get",
        ),
    ),
    *planted(
        "sim/lutra_golden/arith/fixed.py",
        ["golden/arith/test_fixed.py"],
        ("an overflow forgotten by the next value", "self.seen |= bool(", "self.seen = bool("),
    ),
    *planted(
        "sim/lutra_golden/attention/attention.py",
        ["golden/attention/test_attention.py::test_the_flag_of_saturation"],
        ("hidden scores flagged too", "left if hidden is None else left & ~hidden", "left"),
    ),
    *planted(
        "sim/lutra_golden/model/exponents.py",
        ["golden/model/test_exponents.py"],
        (
            "a product's carry left out",
            "self.low + other.low + 15, self.high + other.high + 16",
            "self.low + other.low + 15, self.high + other.high + 15",
        ),
        ("an integer's carry left out", "np.asarray(bits - 15 + e)", "np.asarray(bits - 16 + e)"),
        (
            "the block shift left out of the input's scale",
            "Exponents(e + shift, e + shift)",
            "Exponents(e + 0 * shift, e + 0 * shift)",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/checks.py",
        ["golden/model/test_checks.py"],
        (
            "sums of the head of any size",
            "_head_peak(model), model.head_shift)\n        if needed > limit:",
            "_head_peak(model), model.head_shift)\n        if False:",
        ),
        (
            "a negative shift of embeddings",
            "elif not 0 <= (shift := ",
            "elif not -99 <= (shift := ",
        ),
        (
            "rows of the embedding of any size",
            "    if reached > RESIDUAL_MAX:",
            "    if reached > 2 * RESIDUAL_MAX:",
        ),
        (
            "sums of a coded head of any size",
            "sum_bits(model, head.peak, head.shift)\n        if needed > limit:",
            "sum_bits(model, head.peak, head.shift)\n        if needed > limit + 1:",
        ),
        ("a centre of keys with a norm", "if layer.head_norms is not None:", "if False:"),
        ("a centre of keys of any size", "if peak > 1 << (limit + bias.frac)", "if False"),
    ),
]
"""Faults of every module that computes tokens."""
