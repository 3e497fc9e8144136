"""Faults in the Triton kernels, which are interpreted: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

MUTANTS = [
    *planted(
        "kernels_gpu/lutra_kernels/arith/fixed.py",
        ["kernels_gpu/arith/test_fixed.py", "kernels_gpu/arith/test_scale.py::test_bit_length"],
        (
            "rounding down",
            "((x >> (tl.maximum(n, 1) - 1)) + 1) >> 1, x)",
            "(x >> (tl.maximum(n, 1) - 1)) >> 1, x)",
        ),
        (
            "the least value one off",
            "tl.maximum(x, -limit), limit - 1)",
            "tl.maximum(x, 1 - limit), limit - 1)",
        ),
        (
            "the lowest bit of the length not counted",
            "for i in tl.static_range(6):",
            "for i in tl.static_range(5):",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/arith/scale.py",
        ["kernels_gpu/arith/test_scale.py"],
        (
            "a zero with the larger exponent taken as the larger",
            "| (a_m == 0)) & (b_m != 0)",
            "| (a_m == 0))",
        ),
        (
            "the exponent of a product without its carry",
            "+ top.to(tl.int32) + carry)",
            "+ top.to(tl.int32))",
        ),
        ("the root's parity dropped", "((parity << 7) | ((m >> 8) & 0x7F))", "((m >> 8) & 0x7F)"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/arith/silu.py",
        ["kernels_gpu/arith/test_silu.py"],
        ("the split taken as fine", "fine = u < _FINE_LIMIT", "fine = u <= _FINE_LIMIT"),
        ("the gap rounded down", "gap = (((y >> (_SHIFT - 1)) + 1) >> 1)", "gap = (y >> _SHIFT)"),
        (
            "negative arguments give negative results twice",
            "return tl.maximum(x, 0)",
            "return tl.abs(x)",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/arith/exp2.py",
        ["kernels_gpu/arith/test_exp2.py"],
        ("powers far away come back", "tl.minimum(d >> _D_FRAC, 29)", "((d >> _D_FRAC) & 31)"),
        ("rounding down", "return ((y >> (n - 1)) + 1) >> 1", "return y >> n"),
        ("the fall cut by a bit", "((word >> 18) * rest)", "((word >> 19) * rest)"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/arith/quantize.py",
        ["kernels_gpu/arith/test_quantize.py"],
        ("-128 for -127", "tl.maximum(q, -Q_MAX), Q_MAX)", "tl.maximum(q, -Q_MAX - 1), Q_MAX)"),
        ("shifts limited to 31", "tl.maximum(-f_e, 0), 63)", "tl.maximum(-f_e, 0), 31)"),
        (
            "four bits scaled as eight",
            "_INV_M127 if Q_MAX == 127 else (_INV_M7 if",
            "_INV_M127 if Q_MAX == 127 else (_INV_M127 if",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/attention/tiles.py",
        ["kernels_gpu/attention/test_prefill.py"],
        (
            "the last key behind the window is seen",
            "(keys > position - window)",
            "(keys >= position - window)",
        ),
        (
            "halves of a byte swapped",
            "tl.where(low, packed << 4, packed) >> 4",
            "tl.where(low, packed, packed << 4) >> 4",
        ),
        (
            "scales of absent values choose the exponent",
            "counts = visible & (v_m != 0)[None, :]",
            "counts = visible",
        ),
        (
            "weights rounded down",
            "w = (((p * v_m[None, :]) >> (shift - 1)) + 1) >> 1",
            "w = (p * v_m[None, :]) >> shift",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/attention/prefill.py",
        ["kernels_gpu/attention/test_prefill.py"],
        (
            "the first block one late",
            "- window + 1, 0) // BLOCK_N\n    end",
            "- window + BLOCK_N, 0) // BLOCK_N\n    end",
        ),
        (
            "a block that begins at the last position left out",
            "tl.max(position, 0) // BLOCK_N + 1",
            "tl.cdiv(tl.max(position, 0), BLOCK_N)",
        ),
        ("shifts limited to 31", "tl.maximum(-e, 0), 63)", "tl.maximum(-e, 0), 31)"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/attention/decode.py",
        ["kernels_gpu/attention/test_decode.py"],
        (
            "the last tile of the prefix twice",
            "first = tl.maximum(first, prefix)",
            "first = tl.maximum(first, prefix - BLOCK_N)",
        ),
        (
            "a program goes on beyond its share",
            "first + tl.minimum(n_tiles - tile, stop - at)",
            "first + n_tiles - tile",
        ),
        (
            "a tile counted for the block before it",
            "(ends <= at).to(tl.int32)",
            "(ends < at).to(tl.int32)",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/matmul/gemv.py",
        ["kernels_gpu/matmul/test_gemv.py"],
        (
            "products of zero points in 32 bits",
            "acc += less * total.to(dtype)",
            "acc += (less.to(tl.int32) * total).to(dtype)",
        ),
        (
            "offsets of groups added to what is taken away",
            "less -= tl.load(minimum_ptr + g,",
            "less += tl.load(minimum_ptr + g,",
        ),
        (
            "sums of the first token for all",
            "tl.load(sum_ptr + m))",
            "tl.load(sum_ptr))",
        ),
        ("high bytes added once", "total = total << 8", "total = total << 7"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/matmul/gemm.py",
        ["kernels_gpu/matmul/test_gemm.py"],
        ("the first group's offset for all", "minimum_ptr + group)", "minimum_ptr)"),
        ("a sum taken before its last part", "== SPLIT - 1:", "== SPLIT - 2:"),
        ("tickets left", "            tl.store(tile, 0)\n", ""),
        (
            "high bytes' zero of eight-bit codes dropped",
            "(scale * (256 * 128 * GROUP))",
            "(scale * (128 * GROUP))",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/matmul/head.py",
        ["kernels_gpu/matmul/test_head.py"],
        (
            "logits rounded down",
            "saturate(round_shift_right(total * scale, LOGIT_SHIFT), LOGIT_WIDTH)",
            "saturate((total * scale) >> LOGIT_SHIFT, LOGIT_WIDTH)",
        ),
        (
            "logits wrap",
            "saturate(round_shift_right(total * scale, LOGIT_SHIFT), LOGIT_WIDTH)",
            "round_shift_right(total * scale, LOGIT_SHIFT)",
        ),
        (
            "the last of equal logits first",
            "(4294967295 - offs_n.to(tl.int64))",
            "(4294967295 - (offs_n ^ 15).to(tl.int64))",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/matmul/expand.py",
        ["kernels_gpu/matmul/test_expand.py"],
        ("carry of a negative digit dropped", "value = (value - low) >> 8", "value = value >> 8"),
        (
            "half of the range for the largest number",
            "sum(127 << (8 * i) for i in range(digits))",
            "sum(255 << (8 * i) for i in range(digits))",
        ),
        ("zero points in whole steps", "(2 * value - zero.to", "(2 * value - 2 * zero.to"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/vector/norm.py",
        ["kernels_gpu/vector/test_norm.py"],
        (
            "exponents only below the largest",
            "(peaks << shift) <= y_max",
            "(peaks << shift) < y_max",
        ),
        (
            "groups as large as they may be in heads that are smaller",
            "min(self.groups.size, self.run)",
            "self.groups.size",
        ),
        (
            "integers of groups under the scale of what they were",
            "r_e -= tl.where(r_m == 0, 0, SHIFT_MAX)",
            "r_e -= 0",
        ),
        (
            "the largest value rounds up beyond 16 bits",
            "saturate(round_shift_right(v, sh[:, None]), 16).to",
            "round_shift_right(v, sh[:, None]).to",
        ),
        ("negative gates squared", "gate = tl.maximum(gate, 0)", "gate = tl.abs(gate)"),
        (
            "low bytes of the padding are -128",
            "low = tl.where(offs < N, (q & 255) - 128, 0)",
            "low = (q & 255) - 128",
        ),
        (
            "an overflow not flagged",
            "note(flag_ptr, lost)\n    elif SOURCE == _SUMS",
            "pass\n    elif SOURCE == _SUMS",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/matmul/embedding.py",
        ["kernels_gpu/matmul/test_embedding.py"],
        (
            "halves of bytes swapped",
            "first = within // 32 % 2 * 4",
            "first = 4 - within // 32 % 2 * 4",
        ),
        (
            "fields from the bottom of a byte",
            "first = 8 - P * (within // (16 * P) + 1)",
            "first = P * (within // (16 * P))",
        ),
        (
            "the second plane where the first is",
            "tl.load(block_ptr + 16 * LOW + byte,",
            "tl.load(block_ptr + byte,",
        ),
        ("ternary codes from 0 on", "doubled = 2 * (code - 1)", "doubled = 2 * code"),
        (
            "offsets left out",
            "doubled.to(tl.int64) + tl.load(minimum_ptr",
            "doubled.to(tl.int64) + 0 * tl.load(minimum_ptr",
        ),
        (
            "rounding down",
            "x = round_shift_right(doubled.to(tl.int64) * mantissa, shift)",
            "x = (doubled.to(tl.int64) * mantissa) >> shift",
        ),
        (
            "groups of the row before",
            "group = row * (N // GROUP) + offs // GROUP",
            "group = tl.maximum(row - 1, 0) * (N // GROUP) + offs // GROUP",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/vector/rope.py",
        ["kernels_gpu/vector/test_rope.py"],
        ("sine with the wrong sign", "hi * cos + lo * sin\n", "hi * cos - lo * sin\n"),
        ("centres of queries' biases", "offs + 2 * N_KV * D", "offs"),
        (
            "centres of values, too",
            "is_key = here & ~is_query & ~is_value",
            "is_key = here & ~is_query",
        ),
        ("the second half without a centre", "y_hi -= centre_hi <<", "y_hi -= 0 * centre_hi <<"),
        ("gamma of queries for keys", "tl.where(is_query, 0, D)[:, None]", "0"),
        (
            "the largest of the first half alone",
            "tl.maximum(tl.max(tl.abs(y_lo), 1), tl.max(tl.abs(y_hi), 1))",
            "tl.max(tl.abs(y_lo), 1)",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/vector/heads.py",
        ["kernels_gpu/vector/test_rope.py"],
        ("epsilon not times the elements of a head", "<< LOG2_DIM\n", "<< 0\n"),
        ("fraction of a bias ignored", "(_FRAC - bias_frac)", "_FRAC"),
        ("sums wrap", "out = saturate(v, _WIDTH)", "out = v"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/vector/residual.py",
        ["kernels_gpu/vector/test_norm.py"],
        (
            "rounding down",
            "round_shift_right(acc.to(tl.int64) * c_m, shift)",
            "(acc.to(tl.int64) * c_m) >> shift",
        ),
        ("the sum wraps", "clamped = saturate(x + added, _WIDTH)", "clamped = x + added"),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/attention/prefill.py",
        ["kernels_gpu/attention/test_prefill.py::test_the_flag_of_saturation"],
        ("hidden scores flagged too", "lost |= outside & visible", "lost |= outside"),
        ("scores that saturate not flagged", "note(flag_ptr, lost)\n", "\n"),
        (
            "outputs that saturate not flagged",
            "note(flag_ptr, (exact != out)",
            "note(flag_ptr, (exact != exact)",
        ),
    ),
    *planted(
        "kernels_gpu/lutra_kernels/vector/heads.py",
        ["kernels_gpu/vector/test_rope.py"],
        ("heads that saturate not flagged", "return out, out != v", "return out, out != out"),
    ),
]
"""Faults of modules that compute tokens."""
