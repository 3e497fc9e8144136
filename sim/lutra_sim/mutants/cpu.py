"""Faults in the C library of the device cpu: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_STEPS, _BINDING = "host/devices/cpu/test_steps.py", "host/devices/cpu/test_binding.py"

_RANGES = "host/quantize/test_ranges.py"

MUTANTS = [
    *planted(
        "host/lutra/devices/cpu/csrc/ranges.c",
        [f"{_RANGES}::test_every_target_has_the_same_bits"],
        (
            "the largest of free ranges for that of whole ones",
            "return whole;",
            "return free_steps[0];",
        ),
        ("a unit less", "room, unit, free_steps", "room, unit / 2, free_steps"),
        (
            "steps and errors exchanged",
            "error, step, zero);\n    free",
            "step, error, zero);\n    free",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/ranges.h",
        [f"{_RANGES}::test_every_target_has_the_same_bits"],
        ("squares in their own order", "(i + (j ^ 12))", "(i + j)"),
        ("the last of equals", "error[j] < best->error[j]", "error[j] <= best->error[j]"),
        ("a group's tail left out", "j < 3; j++)", "j < 2; j++)"),
        (
            "columns that count as the first group's",
            "r->weigh, first, r->groups",
            "r->weigh, 0, r->groups",
        ),
        (
            "zero points in whole levels alone",
            "zero + 1, 2, &best",
            "zero + 2, 1, &best",
        ),
        ("steps without an inverse", "factor > FLT_MIN ?", "factor > 0 ?"),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/copy.c",
        [
            f"{_BINDING}::test_matrices_are_copied_into_large_pages",
            f"{_BINDING}::test_matrices_are_copied_in_strips",
        ],
        ("arrays that begin with another's piece", "before += pieces;", "before += pieces - 1;"),
        ("pieces over one another", "memcpy((uint8_t *)c->to + at,", "memcpy((uint8_t *)c->to,"),
        ("the last piece left out", "(units + piece - 1) / piece", "units / piece"),
        ("the last strip left out", "(c->rows + STRIP - 1) / STRIP", "c->rows / STRIP"),
        ("rows behind the last one copied", "(left < STRIP ? left : STRIP)", "(STRIP)"),
        (
            "the first line's columns for all",
            "from[r * columns + c]",
            "from[r * columns + c - first]",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/scale.h",
        [f"{_STEPS}::test_norms"],
        ("rounding down", "return (x >> n) + ((x >> (n - 1)) & 1);", "return x >> n;"),
        (
            "the root's parity dropped",
            "rsqrt_table[(parity << RSQRT_BITS) | seed]",
            "rsqrt_table[seed]",
        ),
        (
            "the smaller addend cut too far",
            "clip(large.e - small.e, 0, 32)",
            "clip(large.e - small.e + 1, 0, 32)",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/vector.c",
        [
            f"{_STEPS}::test_norms",
            f"{_STEPS}::test_norms_in_groups",
            f"{_STEPS}::test_a_group_whose_double_is_the_largest",
            f"{_STEPS}::test_heads",
            f"{_BINDING}::test_ternary_models[least]",
        ],
        (
            "a block shift too small",
            "bit_length((uint64_t)v_max) - (SCALED_WIDTH - 1)",
            "bit_length((uint64_t)v_max) - SCALED_WIDTH",
        ),
        (
            "the gate's scale once",
            "scale_mul(scale_mul(gate, gate), scale_mul(s, w_up))",
            "scale_mul(gate, scale_mul(s, w_up))",
        ),
        (
            "exponents only below the largest",
            "peak << (e + 1) <= y_max",
            "peak << (e + 1) < y_max",
        ),
        (
            "groups that reach into the next run",
            "int rest = norm->run - at,",
            "int rest = n - first - at,",
        ),
        ("epsilon once for a head", "(int64_t)head_dim * step->eps", "(int64_t)step->eps"),
        ("a centre without its fraction", "ROPE_FRAC - step->bias_frac)", "ROPE_FRAC)"),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/model.c",
        [f"{_BINDING}::test_architectures[qwen2-w4a8]"],
        (
            "the first head's centre for all keys",
            "layer->key_centre + (int64_t)(h - counts[0]) * d",
            "layer->key_centre",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/model.c",
        [
            f"{_BINDING}::test_saturation_of_one_row_is_told",
            f"{_BINDING}::test_rows_of_several_sequences_share_passes[grouped-4-scalar]",
            f"{_BINDING}::test_arg_max_is_the_first_of_equals",
        ],
        (
            "the later row of equal logits in another thread",
            "w->best_row[slot] < row)) {",
            "w->best_row[slot] > row)) {",
        ),
        (
            "only the last row's overflow",
            "w->saturated |= residual_add",
            "w->saturated = residual_add",
        ),
        (
            "rows of other sequences in one segment",
            "int follows = t && rows[t].cache == rows[t - 1].cache;",
            "int follows = t > 0;",
        ),
        (
            "every query at the first one's position",
            "queries[i].position = rows[t].position;",
            "queries[i].position = rows[0].position;",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/attend.c",
        [f"{_STEPS}::test_attention"],
        (
            "a window of one position more",
            "position - window + 1 : 0;",
            "position - window : 0;",
        ),
        (
            "keys that only later queries see weigh too",
            "memset(w + (to - s->low), 0, (size_t)(whole - to) * 2);",
            "memset(w + (to - s->low), 0, 0);",
        ),
        (
            "the exponent of the first value alone",
            "for (int i = from - page; i < to - page; i++)",
            "for (int i = from - page; i < from - page + 1; i++)",
        ),
        (
            "the first page for all",
            "cache->pages[position / cache->page] +",
            "cache->pages[0] +",
        ),
        (
            "the largest score of the last page alone",
            "s->top[c] = most > s->top[c] ? most : s->top[c];",
            "s->top[c] = most;",
        ),
        (
            "a window always begins with a page",
            "skip = at % size / VALUE_BLOCK;",
            "skip = 0;",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/attend.c",
        ["host/devices/cpu/test_sessions.py::test_forks_of_every_length[4]"],
        (
            "sign of four bits lost in what is exported",
            "(int8_t)((((high ? byte >> 4 : byte) & 15) ^ 8) - 8);",
            "(int8_t)((high ? byte >> 4 : byte) & 15);",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/attend.c",
        ["host/devices/cpu/test_pages.py"],
        (
            "a copy of one position less",
            "blocks = round_up(n, KEY_BLOCK);",
            "blocks = round_up(n - 1, KEY_BLOCK);",
        ),
        (
            "scales of the first half of a copy",
            "memcpy(b + at, a + at, (size_t)n * 2);",
            "memcpy(b + at, a + at, (size_t)n);",
        ),
        (
            "memory stays with the process",
            "    madvise(data, (size_t)n_bytes, MADV_DONTNEED);\n",
            "    (void)data, (void)n_bytes;\n",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/matmul.c",
        [
            f"{_STEPS}::test_signed_rows",
            f"{_STEPS}::test_groups",
            f"{_STEPS}::test_offsets",
            f"{_STEPS}::test_activations_in_groups",
            f"{_STEPS}::test_sums_that_32_bits_do_not_hold",
        ],
        (
            "offsets of the first rows for all",
            "w->offset + (int64_t)first * groups,",
            "w->offset,",
        ),
        (
            "sums of groups of bytes without their powers of two",
            "sums[u] *= 1 << (shifts[u * UNIT / SHARED] - 1);",
            "sums[u] *= 1;",
        ),
        (
            "columns behind the fourth from the first again",
            "        columns_skip(&some, GEMV_COLUMNS);\n",
            "",
        ),
        (
            "wide sums of many columns in 32 bits",
            "(in_groups(x) || (w->group && w->shift > NARROW_SHIFT));",
            "in_groups(x);",
        ),
        ("the sign of low bytes left", "low[r] + 128 * ones[r];", "low[r];"),
        (
            "the sums of the first group for all",
            "(int64_t)c * units + (int64_t)g * per;",
            "(int64_t)c * units;",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/matmul.c",
        [f"{_STEPS}::test_activations_in_groups"],
        (
            "zero points out of a strip for offsets",
            "flat_rows(part, w->offset",
            "flat_rows(part, w->scale",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/matmul.c",
        [f"{_STEPS}::test_rows_out_of_strips"],
        (
            "marks out of a strip of its first row",
            "(int64_t)g * STRIP + r % STRIP;",
            "(int64_t)g * STRIP;",
        ),
        (
            "half of the records out of a strip",
            "supers * record_bytes(w) / 2, 2);",
            "supers * record_bytes(w) / 4, 2);",
        ),
        (
            "rows of strips as they lie for other activations",
            "return w->strip && in_groups(x);",
            "return w->strip;",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/matmul.c",
        [
            f"{_STEPS}::test_one_and_two_bits_in_groups",
            f"{_STEPS}::test_one_and_two_bits_at_the_ends",
        ],
        (
            "rows out of a strip from its beginning",
            "(int64_t)(r - r % STRIP) * columns + r % STRIP;",
            "(int64_t)(r - r % STRIP) * columns;",
        ),
        (
            "the second block of a pair behind the first",
            "int whole = b / side * side, in = b % side * 16;",
            "int whole = b / side * side, in = b % side * 32;",
        ),
        (
            "powers of the first part of a block for all",
            "1 << (shifts[4 * b + i] - 1), 16);",
            "1 << (shifts[4 * b] - 1), 16);",
        ),
        ("digits that eight bits do not hold", "(q[first + i] + 64) >> 7;", "q[first + i] >> 8;"),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/matmul.c",
        [f"{_STEPS}::test_two_levels"],
        (
            "codes of the first rows for all beside numbers of two levels",
            "        out.codes += first * w->row_bytes;\n",
            "",
        ),
        (
            "marks of the first rows for all beside numbers of two levels",
            "        if (out.marks) out.marks += (int64_t)first * ((groups + 7) / 8);\n",
            "",
        ),
        (
            "two levels without offsets",
            "if (w->level_offsets) out.offset",
            "if (0) out.offset",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/groups.h",
        [f"{_STEPS}::test_two_levels"],
        (
            "factors of offsets without a sign",
            "return (int16_t)(p[0] | p[1] << 8);",
            "return p[0] | p[1] << 8;",
        ),
        (
            "the factor of offsets for scales",
            "record + (1 + w->level_offsets) * multiples_bytes(w);",
            "record + record_bytes(w) - 2;",
        ),
        (
            "five multiples of eight",
            "if (bits == 6) memcpy(&high, p + 4, 2);",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/model.c",
        [f"{_BINDING}::test_two_levels"],
        (
            "scales of the first row of an embedding for all",
            "matrix_rows(kernels, w, row, row + 1,",
            "matrix_rows(kernels, w, 0, 1,",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/kernels.h",
        [
            f"{_STEPS}::test_activations_in_groups",
            f"{_STEPS}::test_one_and_two_bits_in_groups",
            f"{_STEPS}::test_columns_about_those_that_are_taken_together",
        ],
        (
            "columns behind the fourth with the first ones' shifts",
            "    x->shifts += n * (x->depth / SHARED);\n",
            "",
        ),
        (
            "columns behind the fourth with the first ones' sums",
            "    x->raw += n * (x->depth / UNIT);\n",
            "",
        ),
        ("pairs of the first columns again", "        x->pairs += n * depth;\n", ""),
        (
            "digits of the first columns again",
            "    if (x->fields & TWO_BITS) x->digits += n * 2 * depth;\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/model.c",
        [
            f"{_BINDING}::test_embedding_and_head_in_codes[groups1-True-4]",
            f"{_BINDING}::test_codes_of_a_head_that_lies_on_a_grid",
            f"{_BINDING}::test_coded_embedding_has_every_bit",
        ],
        (
            "the first row of coded embedding for all",
            "codes_of(w->codes + row * w->row_bytes,",
            "codes_of(w->codes,",
        ),
        (
            "coded embedding rounded down",
            "(int32_t)round_shift(doubled * w->unit.m, shift)",
            "(int32_t)(doubled * w->unit.m >> shift)",
        ),
        (
            "ternary embedding from zero on",
            "scale = 1, zero = 2, offset = 0;",
            "scale = 1, zero = 0, offset = 0;",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/matmul.c",
        [f"{_BINDING}::test_llamas[llama-grouped-w4a8]"],
        (
            "group sums of the matrix before",
            "void product_forget(lutra_scratch *scratch) { scratch->per = 0; }",
            "void product_forget(lutra_scratch *scratch) { (void)scratch; }",
        ),
    ),
]
"""Faults of modules that compute tokens."""
