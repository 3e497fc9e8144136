"""Faults in the C library's targets and threads: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_C = "host/lutra/devices/cpu/csrc"
_STEPS = "host/devices/cpu/test_steps.py"
_BINDING = "host/devices/cpu/test_binding.py"
_BITS = [
    f"{_STEPS}::test_one_and_two_bits_in_groups",
    f"{_STEPS}::test_one_and_two_bits_at_the_ends",
    f"{_STEPS}::test_activations_in_groups",
]
_SHIFTED = [
    f"{_STEPS}::test_activations_in_groups",
    f"{_STEPS}::test_rows_without_groups_times_activations_in_groups",
]

MUTANTS = [
    *planted(
        f"{_C}/pool.c",
        [f"{_BINDING}::test_arg_max_is_the_first_of_equals", f"{_STEPS}::test_ternary"],
        (
            "items of work of the phase before",
            "        atomic_store(&pool->next, 0);\n        signal_raise(&pool->passed);",
            "        signal_raise(&pool->passed);",
        ),
        (
            "the first item of work left out behind a barrier",
            "        atomic_store(&pool->next, 0);\n        signal_raise(&pool->passed);",
            "        atomic_store(&pool->next, 1);\n        signal_raise(&pool->passed);",
        ),
        (
            "one thread's items of the phase before",
            "        atomic_store_explicit(&pool->next, 0, memory_order_relaxed);\n",
            "",
        ),
    ),
    *planted(
        f"{_C}/steps.c",
        [f"{_STEPS}::test_attention", f"{_STEPS}::test_norms"],
        (
            "queries all at the first position",
            "q_scale[at], position + t,",
            "q_scale[at], position,",
        ),
        (
            "numbers that int32 does not hold are cut",
            "wide |= narrow[i] != v[i];",
            "wide |= 0;",
        ),
        (
            "queries of the first group for all",
            "h = g * per_kv + (first + i) % per_kv;",
            "h = (first + i) % per_kv;",
        ),
    ),
    *planted(
        f"{_C}/attend_plain.h",
        [f"{_STEPS}::test_attention"],
        ("a dot product of three", "k[2] * x[2] + k[3] * x[3];", "k[2] * x[2];"),
        (
            "blocks of the page before",
            "pages[(b + skip) / per]",
            "pages[b / per]",
        ),
        (
            "the first query for all",
            "*x = q[c] + 4 * i;",
            "*x = q[0] + 4 * i;",
        ),
        (
            "sums of the last block alone",
            "acc[c * head_dim + i] += sums[i];",
            "acc[c * head_dim + i] = sums[i];",
        ),
    ),
    *planted(
        f"{_C}/vector_body.h",
        [
            f"{_STEPS}::test_norms",
            f"{_STEPS}::test_gates",
            f"{_STEPS}::test_residual",
            f"{_STEPS}::test_heads",
        ],
        (
            "the largest value rounds up beyond 16 bits",
            "y[i] = (int32_t)(rounded > SCALED_MAX ? SCALED_MAX : rounded);",
            "y[i] = (int32_t)rounded;",
        ),
        (
            "negative gates squared",
            "int64_t g = gate[i] > 0 ? gate[i] : 0;",
            "int64_t g = gate[i];",
        ),
        (
            "sine with the wrong sign",
            "y[i] = low * cosine[i] - high * sine[i];",
            "y[i] = low * cosine[i] + high * sine[i];",
        ),
        (
            "the sum wraps",
            "int64_t kept = sum > INT32_MAX ? INT32_MAX : sum < INT32_MIN ? INT32_MIN : sum;",
            "int64_t kept = (int32_t)sum;",
        ),
        (
            "the gap beyond the table's end",
            "gap = outside ? 0 : rest[i];",
            "gap = rest[i];",
        ),
    ),
    *planted(
        f"{_C}/vector_body.h",
        [f"{_STEPS}::test_two_levels"],
        (
            "scales of two levels rounded down",
            "(uint16_t)((factor * multiple + half) >> shift);",
            "(uint16_t)((factor * multiple) >> shift);",
        ),
        (
            "multiples of scales for offsets",
            "p + multiples_bytes(w) + g / 8 * bits",
            "p + g / 8 * bits",
        ),
    ),
    *planted(
        f"{_C}/target_scalar.c",
        [f"{_STEPS}::test_groups", f"{_STEPS}::test_ternary", f"{_STEPS}::test_signed_rows"],
        (
            "zero points in whole steps",
            "total += scale * (twice * sum - zero * group_sums[g]);",
            "total += scale * (twice * sum - 2 * zero * group_sums[g]);",
        ),
        (
            "ternary codes from zero on",
            "return twice * sum - (w->bits ? 2 * (int64_t)group_sums[0] : 0);",
            "return twice * sum;",
        ),
        (
            "the first column's activations for all",
            "row_sum(w, r, codes, x->x + (int64_t)c * x->depth,",
            "row_sum(w, r, codes, x->x,",
        ),
    ),
    *planted(
        f"{_C}/codes.h",
        [f"{_STEPS}::test_groups", f"{_BINDING}::test_codes_of_a_head_that_lies_on_a_grid"],
        ("planes of three bits the other way", "{2, 1}, {4}", "{1, 2}, {4}"),
        ("the first field of a byte at the bottom", "(8 - width * (f + 1))", "(width * f)"),
        ("the upper halves of bytes lost", "(row[i] >> 4) << low", "0 << low"),
    ),
    *planted(
        f"{_C}/groups.h",
        [
            f"{_STEPS}::test_two_zero_points_of_a_matrix",
            f"{_STEPS}::test_a_zero_point_that_all_groups_share",
        ],
        ("the first group's mark on top", ">> group % 8 & 1", ">> (7 - group % 8) & 1"),
        (
            "marks of rows without their last byte",
            "w->marks[row * ((groups + 7) / 8) + group",
            "w->marks[row * (groups / 8) + group",
        ),
        (
            "marks of the next group for many columns",
            "two[marks[g / 8] >> g % 8 & 1]",
            "two[marks[g / 8] >> (g + 1) % 8 & 1]",
        ),
        (
            "numbers of groups of a row one after another",
            "out[(int64_t)g * stride] = w->zero_point;",
            "out[g] = w->zero_point;",
        ),
        ("marks for the other zero point", "marked ? w->other_zero", "!marked ? w->other_zero"),
    ),
    *planted(
        f"{_C}/x86_bits.h",
        _BITS,
        (
            "groups where they are in a vector",
            "{{0, 2, 4, 6, 1, 3, 5, 7}, {0, 1, 4, 5, 2, 3, 6, 7}}",
            "{{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 4, 5, 2, 3, 6, 7}}",
        ),
        (
            "a block behind the row in its last pair",
            "x, pair + i, v, i * n, n,",
            "x, pair, v, i * n, n,",
        ),
        (
            "scales behind the row count",
            "    if (left < 8) {",
            "    if (left < 0) {",
        ),
        (
            "the first column's activations for all",
            "sum[c][to] = NAME(added)(sum[c][to], code, a + c * stride + 32 * f);",
            "sum[c][to] = NAME(added)(sum[c][to], code, a + 32 * f);",
        ),
        (
            "one digit of activations in groups",
            "                low = _mm256_add_epi32(low, top);\n",
            "",
        ),
    ),
    *planted(
        f"{_C}/x86_bits.h",
        _BITS,
        ("offsets left out", "(shifted && w->offset))", "(shifted && w->zero))"),
        (
            "one column for several",
            "(x->count == 1 ? NAME(rows_2_1_1) : NAME(rows_2_4_1))",
            "(x->count <= 2 ? NAME(rows_2_1_1) : NAME(rows_2_4_1))",
        ),
        (
            "groups of halves of a block for quarters",
            "if (w->group != BLOCK / 4 && w->group != BLOCK / 2 &&",
            "if (w->group % 16 &&",
        ),
    ),
    *planted(
        f"{_C}/avx512_strips.h",
        _BITS,
        (
            "units of a part the other way round",
            "7 - (f % 4 * 2 + f / 4)",
            "6 - (f % 4 * 2 - f / 4)",
        ),
        ("sums left where their codes are", "sum = _mm512_srai_epi32(", "sum = _mm512_slli_epi32("),
        ("odd rows before even ones", "(0, 8, 1, 9, 2, 10, 3, 11)", "(8, 0, 9, 1, 10, 2, 11, 3)"),
        ("upper rows the other way round", "(4, 12, 5, 13, 6, 14,", "(12, 4, 13, 5, 14, 6,"),
        ("the first tile's scales for both", "g * STRIP + 16 * t;", "g * STRIP;"),
        ("a second column's sums of the first", "a[(int64_t)c * groups + g]);", "a[g]);"),
    ),
    *planted(
        f"{_C}/avx512_strips.h",
        [f"{_STEPS}::test_ternary"],
        ("the end of a row left out", "(--left > 0 && b < blocks - 1)", "--left > 0"),
    ),
    *planted(
        f"{_C}/avx512_runs.h",
        [
            f"{_STEPS}::test_columns_about_those_that_are_taken_together",
            f"{_STEPS}::test_two_levels",
            f"{_STEPS}::test_activations_in_groups",
            f"{_STEPS}::test_two_zero_points_of_a_matrix",
        ],
        (
            "single bits of the first half of a part for both",
            "7 - 2 * f - j / 4;",
            "7 - 2 * f;",
        ),
        (
            "multiples of two words without the second",
            "if (first + bits > 16)",
            "if (first + bits > 24)",
        ),
        (
            "factors of offsets without a sign in strips",
            "side ? _mm512_cvtepi16_epi32(raw) : _mm512_cvtepu16_epi32(raw);",
            "_mm512_cvtepu16_epi32(raw);",
        ),
        (
            "multiples of a record from its first group on in each run",
            "NAME(multiples)(p, w->multiple_bits, g);",
            "NAME(multiples)(p, w->multiple_bits, g - first);",
        ),
        ("marks of the first rows for all", "w->marks + (at + i) / 8,", "w->marks + i / 8,"),
        (
            "the sums of a group go on in the next one",
            "                left = run->parts;\n                UNROLL for",
            "                left = run->parts;\n                if (0) UNROLL for",
        ),
        (
            "the second half of a part as its first",
            "part, columns, bits, f,\n                               h * steps);",
            "part, columns, bits, f,\n                               0);",
        ),
        (
            "columns behind a row's end multiplied",
            "                if (g == run->groups) continue;\n",
            "",
        ),
        (
            "codes of a strip's first run for all",
            "run.codes = alone ? p : codes;",
            "run.codes = alone ? w->codes + strip * w->row_bytes : codes;",
        ),
        (
            "one unit's sum for two",
            "part == UNIT ? sums[0] : sums[0] + sums[1];",
            "sums[0];",
        ),
        (
            "columns behind the fourth from the first again",
            "                columns_skip(&some, NAME(TOGETHER));\n",
            "",
        ),
        (
            "half steps of a zero point left out",
            "w->zero || w->marks || w->zero_point % 2;",
            "w->zero || w->marks;",
        ),
        (
            "the first run again",
            "            run.first = g;\n",
            "            run.first = 0;\n",
        ),
        (
            "offsets for even rows alone",
            "_mm512_mul_epi32(sum, half));",
            "_mm512_setzero_si512());",
        ),
    ),
    *planted(
        f"{_C}/target_avx2.c",
        [f"{_STEPS}::test_groups", f"{_STEPS}::test_sums_of_16_bits_would_overflow"],
        ("sums of 16 bits too long", "((kind) == SIX ? 2 : 8)", "((kind) == SIX ? 4 : 16)"),
        ("high nibbles count once", "(high) ? 16 : 1)", "1)"),
        (
            "high nibbles for low ones",
            "_mm256_and_si256((high) ? _mm256_srli_epi16(w, 4) : (w), _mm256_set1_epi8(15))",
            "_mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15))",
        ),
    ),
    *planted(
        f"{_C}/x86_gemv.h",
        [
            f"{_STEPS}::test_groups",
            f"{_STEPS}::test_ternary",
            f"{_STEPS}::test_signed_rows",
            f"{_STEPS}::test_two_zero_points_of_a_matrix",
            f"{_STEPS}::test_activations_in_groups_at_the_ends",
        ],
        (
            "the fifth bits of the first half for the second",
            "top[2] = _mm256_srlv_epi32(lower, first);",
            "top[2] = _mm256_srlv_epi32(x, first);",
        ),
        (
            "marks of the first eight groups for all",
            "w->marks[row * ((groups + 7) / 8) + g / 8];",
            "w->marks[row * ((groups + 7) / 8)];",
        ),
        (
            "sums of eight codes of six bits in sixteen",
            "NAME(pairs)(a, b, bits <= 5)",
            "NAME(pairs)(a, b, bits <= 6)",
        ),
        (
            "an uneven last vector left out",
            "if (n > 1) acc = _mm256_add_epi32(acc, odd);",
            "if (n > 2) acc = _mm256_add_epi32(acc, odd);",
        ),
        (
            "groups behind the row count",
            "        if (g + 8 > groups)\n",
            "        if (g + 8 > groups + 8)\n",
        ),
        (
            "the first and the last field of a byte swapped",
            "w[3] = _mm256_and_si256(x, mask);",
            "w[3] = w[0], w[0] = _mm256_and_si256(x, mask);",
        ),
        (
            "columns behind the fourth from the first again",
            "        columns_skip(&some, GEMV_COLUMNS);\n",
            "",
        ),
        (
            "the sum of the third field not shifted",
            "for (int i = 0; i < 3; i++) acc[c][i] = _mm256_srai_epi32(acc[c][i], 6 - 2 * i);",
            "for (int i = 0; i < 2; i++) acc[c][i] = _mm256_srai_epi32(acc[c][i], 6 - 2 * i);",
        ),
    ),
    *planted(
        f"{_C}/gemm.h",
        [
            f"{_STEPS}::test_groups",
            f"{_STEPS}::test_signed_rows",
            f"{_STEPS}::test_wide_scales_and_shifts",
        ],
        (
            "the last sum of 16 bits is a whole one",
            "int n = steps - done < CHAIN(kind) ? steps - done : CHAIN(kind);",
            "int n = CHAIN(kind);",
        ),
        (
            "the first group's scale for all",
            "scale = block->scale + g * NAME(ROWS), *zero",
            "scale = block->scale, *zero",
        ),
        (
            "the first tile's group sums for all",
            "const int32_t *a = sums + (int64_t)first * block->groups;",
            "const int32_t *a = sums;",
        ),
    ),
    *planted(
        f"{_C}/x86_shifted.h",
        _SHIFTED,
        (
            "the first vector's shift for all",
            "_mm256_set1_epi32(shifts[i]);",
            "_mm256_set1_epi32(shifts[0]);",
        ),
        (
            "shifts of units of 16 one place on",
            "_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)",
            "_mm256_setr_epi32(0, 1, 1, 2, 2, 3, 3, 0)",
        ),
        (
            "offsets behind the row count",
            "            of = _mm256_and_si256(of, in);\n",
            "",
        ),
        (
            "offsets not shifted where groups are of several units",
            "return total + side * ((int64_t)1 << w->offset_shift);",
            "return total + side;",
        ),
        (
            "more blocks than 32 bits hold the sums of",
            "enum { NAME(CHAINED) = 16 };",
            "enum { NAME(CHAINED) = 64 };",
        ),
    ),
    *planted(
        f"{_C}/x86_shifted.h",
        [f"{_STEPS}::test_two_levels"],
        (
            "the first eight multiples of sixteen twice",
            "(g * unit % SUPER ? width : 0);",
            "0;",
        ),
        (
            "products of two levels rounded down",
            "_mm256_set1_epi32(1 << w->level_shift >> 1)",
            "_mm256_setzero_si256()",
        ),
        (
            "multiples of scales for offsets in vectors",
            "NAME(eight_products)(eight + behind, width,",
            "NAME(eight_products)(eight, width,",
        ),
        (
            "large factors of scales taken for negative ones",
            "_mm256_setr_epi64x(-1, -1, 0, 0)",
            "_mm256_setzero_si256()",
        ),
        (
            "the last multiple of offsets without its upper bits",
            "10, 9, 10, 10, 11, 11, 12);",
            "10, 9, 10, 10, 11, 10, 12);",
        ),
    ),
    *planted(
        f"{_C}/gemm_shifted.h",
        _SHIFTED,
        (
            "the first column's shifts for all",
            "SET(by[(int64_t)c * of->n_shifts]);",
            "SET(by[0]);",
        ),
        (
            "the last part of a group alone",
            "acc[c][i] = ADD(acc[c][i], sum[c][i]);",
            "acc[c][i] = sum[c][i];",
        ),
        (
            "the first group's offset for all",
            "LOAD(block->offset + g * NAME(ROWS) + i * LANES)",
            "LOAD(block->offset + i * LANES)",
        ),
        (
            "codes without groups from zero on",
            "!w->scale ? w->bits ? 1 : 128 : own",
            "!w->scale ? 0 : own",
        ),
    ),
    *planted(
        f"{_C}/x86_wide.h",
        _SHIFTED,
        ("even lanes for odd ones", "MUL64(SHIFT64(a, 32), b)", "MUL64(a, b)"),
        (
            "odd lanes of the last group alone",
            "ADD64(sum, MUL64(SHIFT64(a, 32), b))",
            "MUL64(SHIFT64(a, 32), b)",
        ),
        (
            "lanes where they are in a vector of 32 bits",
            "((lane) % 2 * (LANES / 2) + (lane) / 2)",
            "(lane)",
        ),
    ),
    *planted(
        f"{_C}/x86_attend.h",
        [f"{_STEPS}::test_attention"],
        (
            "keys without the offset that makes them unsigned",
            "offset[c] = -128 * sums[c];",
            "offset[c] = 0;",
        ),
        (
            "the first blocks of every page again",
            "for (int b = 0, page = 0, in = skip; b < blocks; page++, in = 0) {",
            "for (int b = 0, page = 0, in = skip; b < blocks; page++) {",
        ),
        (
            "high bytes of weights once",
            "a[i] + 256 * (int64_t)b[i];",
            "a[i] + (int64_t)b[i];",
        ),
        (
            "the last query of four is the third",
            "default: NAME(value_sums_of)(pages, per, skip, blocks, w, head_dim, acc, 4);",
            "default: NAME(value_sums_of)(pages, per, skip, blocks, w, head_dim, acc, 3);",
        ),
    ),
    *planted(
        f"{_C}/target_avx512.c",
        [f"{_STEPS}::test_groups", f"{_STEPS}::test_signed_rows"],
        (
            "codes and activations swapped",
            "#define MACS(acc, w, x) macs_avx512vl(acc, w, x)",
            "#define MACS(acc, w, x) macs_avx512vl(acc, x, w)",
        ),
        (
            "differences of 512 bits the other way",
            "#define SUB _mm512_sub_epi32",
            "#define SUB(a, b) _mm512_sub_epi32(b, a)",
        ),
        (
            "half of a vector is stored",
            "#define STORE(p, v) _mm512_storeu_si512(p, v)",
            "#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_castsi512_si256(v))",
        ),
    ),
    *planted(
        f"{_C}/target_avxvnni.c",
        [f"{_STEPS}::test_groups", f"{_STEPS}::test_signed_rows"],
        (
            "codes and activations swapped",
            "#define MACS(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)",
            "#define MACS(acc, w, x) _mm256_dpbusd_avx_epi32(acc, x, w)",
        ),
        (
            "sums halved on the way",
            "#define MACS(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)",
            "#define MACS(acc, w, x) _mm256_dpbusd_avx_epi32(_mm256_srai_epi32(acc, 1), w, x)",
        ),
        (
            "differences the other way",
            "#define SUB _mm256_sub_epi32",
            "#define SUB(a, b) _mm256_sub_epi32(b, a)",
        ),
    ),
    *planted(
        f"{_C}/avx512_few.h",
        [f"{_STEPS}::test_groups", f"{_STEPS}::test_ternary", f"{_STEPS}::test_signed_rows"],
        (
            "the second row of a pair lost",
            "if (two) out[1] += sums[FEW_COLUMNS + c];",
            "if (!two) out[1] += sums[FEW_COLUMNS + c];",
        ),
        (
            "the second block in the first one's group",
            "int h = next ? ((2 * i + 1) * BLOCK + 32 * f) / w->group : g;",
            "int h = g;",
        ),
        (
            "zero points of the last groups lost",
            "(groups - g < 16 ? (1 << (groups - g)) - 1 : 0xFFFF);",
            "(groups - g < 16 ? 0 : 0xFFFF);",
        ),
    ),
]
"""Faults of every target that this kind of machine has; ARM's cannot be run on it."""
