"""Faults in what the Triton kernels share, and in what runs them, under the interpreter."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_K = "kernels_gpu/lutra_kernels"
_DEVICE = "kernels_gpu/test_device.py"

MUTANTS = [
    *planted(
        f"{_K}/activations.py",
        ["kernels_gpu/vector/test_norm.py::test_residual_stream"],
        (
            "bytes of one plane",
            "empty((m * a_bits // 8, padded_depth(k)), np.int8)",
            "empty((m, padded_depth(k)), np.int8)",
        ),
        ("rows that are not filled up", "padded_depth(k)), np.int8)", "k), np.int8)"),
        (
            "one sum for all groups",
            "k // group if group else 1), np.int32)",
            "1), np.int32)",
        ),
    ),
    *planted(
        f"{_K}/arith/tables.py",
        ["kernels_gpu/arith/test_exp2.py", "kernels_gpu/arith/test_silu.py"],
        ("drops a bit lower", "base | drop << 18", "base | drop << 17"),
        (
            "rises where the gaps are",
            "SILU_RISE = tl.constexpr(len(_RSQRT) + len(_EXP2[0]) + len(_SILU[0]))",
            "SILU_RISE = tl.constexpr(len(_RSQRT) + len(_EXP2[0]))",
        ),
        (
            "segments of the exponential one on",
            "EXP2_FIRST = tl.constexpr(len(_RSQRT))",
            "EXP2_FIRST = tl.constexpr(len(_RSQRT) + 1)",
        ),
    ),
    *planted(
        f"{_K}/arrays.py",
        ["kernels_gpu/test_arrays.py", "kernels_gpu/test_pool.py"],
        (
            "rows from the first on",
            "return HostArray(array.data[first:last])",
            "return HostArray(array.data[: last - first])",
        ),
        (
            "new memory is zero",
            "raw = np.full(n_bytes + _ALIGNMENT, POISON, np.uint8)",
            "raw = np.zeros(n_bytes + _ALIGNMENT, np.uint8)",
        ),
        (
            "an upload is the array itself",
            "        copy = _aligned(source.shape, source.dtype)\n",
            "        copy = source\n",
        ),
    ),
    *planted(
        f"{_K}/attention/step.py",
        ["kernels_gpu/attention/test_step.py"],
        (
            "keys where values are",
            "k_ptr, base, slot, half, is_key[:, None]",
            "k_ptr, base, slot, half, is_value[:, None]",
        ),
        (
            "scales of keys for queries",
            "w = tl.where(is_query, scale_q, tl.where",
            "w = tl.where(is_query, scale_k, tl.where",
        ),
        (
            "keys in the page before",
            "page = tl.load(table_ptr + m * n_pages + position // PAGE,",
            "page = tl.load(table_ptr + m * n_pages + tl.maximum(position - 1, 0) // PAGE,",
        ),
        ("queries of the first group", "index = m * H + g * G + row", "index = m * H + row"),
    ),
    *planted(
        f"{_K}/cache.py",
        ["kernels_gpu/test_pool.py", f"{_DEVICE}::test_results_come_in_the_order_of_the_steps"],
        ("rows of eight bits for four", "row = head_dim * bits // 8", "row = head_dim"),
        (
            "the scales of a page not counted",
            "(self.head_dim * self.bits // 8 + 4)",
            "(self.head_dim * self.bits // 8)",
        ),
        (
            "queries of the first rows",
            "(rows_of(array, first, last) for array in (self.q, self.scale, self.out))",
            "(rows_of(array, 0, last - first) for array in (self.q, self.scale, self.out))",
        ),
    ),
    *planted(
        f"{_K}/layout.py",
        ["kernels_gpu/test_layout.py"],
        ("low bytes not signed", "low = ((rest + 128) & 255) - 128", "low = rest & 255"),
        (
            "high bytes of what is not offset",
            "rest = a.astype(np.int32) - LOW_OFFSET",
            "rest = a.astype(np.int32)",
        ),
        (
            "sums of other activations",
            "return a.reshape(m, k // group, group).sum(axis=2,",
            "return a.reshape(m, group, k // group).sum(axis=1,",
        ),
    ),
    *planted(
        f"{_K}/matmul/fields.py",
        ["kernels_gpu/matmul/test_gemv.py::test_formats"],
        ("planes of six bits the other way", "6: (4, 2),", "6: (2, 4),"),
        (
            "fields from the bottom of a byte",
            "return 4 * field if bits == 4 else 8 - bits * (field + 1)",
            "return 4 * field if bits == 4 else bits * field",
        ),
        (
            "sums not carried from word to word",
            'total = "$9" if word == 0 else "s"',
            'total = "$9"',
        ),
    ),
    *planted(
        f"{_K}/matmul/linear.py",
        ["kernels_gpu/matmul/test_linear.py"],
        ("a prepared output is not used", "return gemv(a, w, out=out)", "return gemv(a, w)"),
        (
            "one token more for the kernel of few",
            "if a.m <= M_MAX:",
            "if a.m <= M_MAX + 1:",
        ),
        (
            "expanded products of sixteen bits",
            "if a.a_bits == 8 and w.minimum",
            "if w.minimum",
        ),
    ),
    *planted(
        f"{_K}/matmul/lut.py",
        ["kernels_gpu/matmul/test_lut.py"],
        ("nibbles swapped", "t_ptr + byte * 32 + 16 + (w >> 4)", "t_ptr + byte * 32 + (w >> 4)"),
        ("fields from the bottom of a byte", "field = 8 // BITS - 1 - (nibble", "field = (nibble"),
        (
            "ternary codes from zero on",
            "total -= 2 * tl.load(sum_ptr)",
            "total -= tl.load(sum_ptr)",
        ),
    ),
    *planted(
        f"{_K}/matmul/matrix.py",
        [
            "kernels_gpu/matmul/test_gemv.py::test_sums_that_need_64_bits",
            "kernels_gpu/matmul/test_gemv.py::test_sixteen_bit_activations",
            "kernels_gpu/matmul/test_gemv.py::test_the_largest_sums",
        ],
        ("sums of 32 bits for all", "return self.peak * Q_MAX[a_bits] >= 1 << 31", "return False"),
        (
            "low bytes lack half",
            "offset = upload(2 * LOW_OFFSET * weighted.sum(axis=1))",
            "offset = upload(LOW_OFFSET * weighted.sum(axis=1))",
        ),
        (
            "scales of nine bits in a byte",
            "return values.astype(np.uint8 if int(values.max(initial=0)) < 256 else np.uint16)",
            "return values.astype(np.uint8 if int(values.max(initial=0)) < 512 else np.uint16)",
        ),
    ),
    *planted(
        f"{_K}/matmul/operands.py",
        [
            "kernels_gpu/matmul/test_gemv.py::test_what_is_refused",
            "kernels_gpu/matmul/test_gemv.py::test_the_rules_tile_and_a_prepared_output",
        ],
        ("sums of other groups taken", "if a.group != w.group:", "if a.group > w.group:"),
        ("depths that differ", "if a.k != w.k:", "if a.k > w.k:"),
        (
            "16 bits without sums of codes",
            "if a.a_bits == 16 and w.offset is None:",
            "if a.a_bits == 16 and w.n < 0:",
        ),
    ),
    *planted(
        f"{_K}/matmul/slices.py",
        ["kernels_gpu/matmul/test_gemm.py::test_formats"],
        (
            "halves of a field of one bit swapped",
            "upper = (1 - (i % 32) // 16).to(tl.int8)[None, :]",
            "upper = ((i % 32) // 16).to(tl.int8)[None, :]",
        ),
        (
            "codes of eight bits unsigned",
            '"xor.b32 $0, $1, 0x80808080;"',
            '"xor.b32 $0, $1, 0x00808080;"',
        ),
        (
            "the second half of a plane is the first",
            "(part // 2 if PLANES[bits][plane] == 4 else 0)",
            "0",
        ),
        (
            "fields of two bits from the bottom",
            "source = {1: 6 - 2 * part, 2: 6 - 2 * part,",
            "source = {1: 6 - 2 * part, 2: 2 * part,",
        ),
    ),
    *planted(
        f"{_K}/model.py",
        [
            f"{_DEVICE}::test_sessions_side_by_side[qwen2-window-W2A8-8-2]",
            f"{_DEVICE}::test_sessions_side_by_side[qwen3-W2A16-4-1]",
        ],
        (
            "gates added with the scale of what goes up",
            "self.norm(norms.ffn, gated, gate_scale, up_scale)",
            "self.norm(norms.ffn, gated, up_scale, gate_scale)",
        ),
        (
            "a layer's own product for the one before",
            "input_norm = self.after_layer(norms.input)",
            "self._down = layer.down_proj.scale; input_norm = self.after_layer(norms.input)",
        ),
        ("no window", "            window=layer.window,\n", "            window=0,\n"),
        (
            "keys' norm for queries",
            "np.stack([norms.query, norms.key])",
            "np.stack([norms.key, norms.query])",
        ),
    ),
    *planted(
        f"{_K}/pool.py",
        ["kernels_gpu/test_pool.py"],
        (
            "pages always follow one another",
            "and pages[at + n] == pages[at] + n:",
            "and True:",
        ),
        ("halves of a byte swapped", "rows = low & 15 | high << 4", "rows = high & 15 | low << 4"),
        (
            "grown caches are empty",
            "            copy(rows_of(new, 0, cache.n_pages), old)\n",
            "            pass\n",
        ),
        (
            "all layers have grown as far as the first",
            "there = min(cache.n_pages for cache in self.caches)",
            "there = self.caches[0].n_pages",
        ),
        ("more memory than there may be", "spare, most - there)", "spare)"),
        (
            "a page is copied from where it is to go",
            "copy(rows_of(array, target, target + 1), rows_of(array, source, source + 1))",
            "copy(rows_of(array, source, source + 1), rows_of(array, target, target + 1))",
        ),
    ),
    *planted(
        f"{_K}/runner.py",
        [
            f"{_DEVICE}::test_results_come_in_the_order_of_the_steps",
            f"{_DEVICE}::test_a_pass_tells_its_own_saturation",
            f"{_DEVICE}::test_layers_can_be_run_in_ranges",
            f"{_DEVICE}::test_sequences_take_turns",
            f"{_DEVICE}::test_captured_steps_when_caches_move",
        ],
        (
            "results in the order of the pass",
            "pieces[i] for i in np.argsort(order)",
            "pieces[i] for i in range(len(order))",
        ),
        (
            "pages of the sequences before",
            "if b.table is None or not np.array_equal(table, b.table):",
            "if b.table is None:",
        ),
        (
            "steps captured with caches that have moved",
            "key = plan.split, self.pool.generation",
            "key = plan.split, 0",
        ),
        (
            "the flag of the pass before",
            "        b.queries.flag.zero_()\n",
            "",
        ),
        (
            "the first layer of a range adds a product",
            "if scale is None and i > 0:",
            "if scale is None and i < 0:",
        ),
        (
            "logits of a part's first rows",
            "np.arange(end - part.n_logits, end) for part, end",
            "np.arange(end - part.n, end - part.n + part.n_logits) for part, end",
        ),
    ),
    *planted(
        f"{_K}/runner.py",
        [f"{_DEVICE}::test_embedding_and_head_in_codes"],
        (
            "sums of whole rows for a head in groups",
            "last = head.group if isinstance(head, Matrix) else 0",
            "last = 0",
        ),
    ),
    *planted(
        f"{_K}/model.py",
        [
            f"{_DEVICE}::test_embedding_and_head_in_codes",
            f"{_DEVICE}::test_a_ternary_vocabulary_and_one_with_offsets",
        ],
        (
            "the head's codes for an embedding of its own",
            "if coded.tied:",
            "if not coded.tied or coded.tied:",
        ),
        (
            "rows of the embedding worth what those of the head are",
            "last, scale = coded.head, coded.embedding.scale",
            "last, scale = coded.head, coded.head.scale",
        ),
        (
            "int16 rows of an embedding in codes",
            "if self._down is None and self.model.vocabulary is not None:",
            "if self._down is None and self.model.vocabulary is None:",
        ),
    ),
    *planted(
        f"{_K}/vector/residual.py",
        ["kernels_gpu/vector/test_norm.py"],
        (
            "a shift to the left not flagged",
            "| ((c_e + frac > 0) & (added != 0))",
            "| ((c_e + frac > 0) & (added != added))",
        ),
    ),
    *planted(
        f"{_K}/vector/sums.py",
        ["kernels_gpu/vector/test_norm.py"],
        (
            "the end of a group left out",
            "block_k = a.k // group, 1 << (group - 1).bit_length()",
            "block_k = a.k // group, 1 << (group.bit_length() - 1)",
        ),
        (
            "low bytes lack their offset",
            "a = tl.where(mask, high * 256 + a + 128, 0)",
            "a = tl.where(mask, high * 256 + a, 0)",
        ),
        (
            "high bytes of the token before",
            "high = tl.load(q_ptr + (M + m) * K + offs,",
            "high = tl.load(q_ptr + (M + tl.maximum(m - 1, 0)) * K + offs,",
        ),
    ),
    *planted(
        f"{_K}/interpret/ptx.py",
        ["kernels_gpu/interpret/test_ptx.py"],
        (
            "shifts by 32 leave what there was",
            "np.minimum(n, 32).astype(np.uint64)",
            "(n & np.uint32(31)).astype(np.uint64)",
        ),
        (
            "a table read the other way",
            "chosen & (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)",
            "chosen & (a if i & 1 else ~a) & (b if i & 2 else ~b) & (c if i & 4 else ~c)",
        ),
        ("signs of the second operand", "_bytes(b, b_signed)", "_bytes(b, a_signed)"),
    ),
    *planted(
        f"{_K}/interpret/inline_asm.py",
        ["kernels_gpu/interpret/test_inline_asm.py"],
        ("every result is the first", "        first += count\n", "        first = count\n"),
        (
            "registers of one element each",
            ".reshape(-1).view(np.uint32).reshape(-1, count)",
            ".reshape(-1).astype(np.uint32).reshape(-1, count)",
        ),
        (
            "inputs that the constraints do not name",
            "if inputs != len(listed) - len(outputs):",
            "if inputs < len(listed) - len(outputs):",
        ),
    ),
]
"""Faults of modules that compute tokens, or that what they compute passes through."""
