"""Faults in what makes packed models and reads them: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_BLOCKS = "host/checkpoints/test_gguf_blocks.py"
_FILE = "host/packed/test_file.py"
_KEPT = "host/packed/test_kept.py"

MUTANTS = [
    *planted(
        "host/lutra/checkpoints/gguf_codebooks.py",
        [
            f"{_BLOCKS}::test_every_grid_is_exact",
            f"{_BLOCKS}::test_codes_of_codebooks",
            f"{_BLOCKS}::test_scales_that_are_not_finite",
        ],
        (
            "even factors of groups",
            "numbers(blocks).astype(np.float32) + 1)",
            "numbers(blocks).astype(np.float32))",
        ),
        (
            "the sign of an eighth in the factor",
            "return _words(blocks[..., 34:], 2) >> 12 & 7",
            "return _words(blocks[..., 34:], 2) >> 12",
        ),
        (
            "nibbles the other way round",
            "np.stack([raw & _LOW, raw >> _FOUR], axis=-1)",
            "np.stack([raw >> _FOUR, raw & _LOW], axis=-1)",
        ),
        (
            "two quarters of a scattered scale swapped",
            "return blocks[..., -7::4] >> _FOUR | blocks[..., -5::4] & _HIGH",
            "return blocks[..., -5::4] >> _FOUR | blocks[..., -7::4] & _HIGH",
        ),
        (
            "a block decoded with its own scattered scale",
            "            plain[..., -7::2] &= _LOW\n",
            "",
        ),
        ("codes without their zero point", " + np.float32(self.zero)", ""),
    ),
    *planted(
        "host/lutra/checkpoints/gguf_blocks.py",
        [
            f"{_BLOCKS}::test_every_grid_is_exact",
            f"{_BLOCKS}::test_ternary_if_all_scales_are_equal",
            f"{_BLOCKS}::test_a_fourth_code_is_kept",
            f"{_BLOCKS}::test_a_matrix_of_several_pieces",
        ],
        (
            "high bits of a scale of six for those of a minimum",
            "(c >> 4) | (b >> 6) << 4",
            "(c >> 4) | (a >> 6) << 4",
        ),
        (
            "products of the last piece alone",
            "                kept.put(rows, part)\n",
            "                kept.put(slice(len(part.factor)), part)\n",
        ),
        ("a number that is none for 480", "np.where(raw == 0x7F, 0, scale)", "scale"),
        (
            "the sign of a ternary scale lost",
            "return Ternary(codes if scale > 0 else -codes, abs(scale))",
            "return Ternary(codes, abs(scale))",
        ),
        (
            "ternary with a fourth code",
            "if len(scales) > 1 or weight.codes.max(initial=0) > 2:",
            "if len(scales) > 1:",
        ),
        (
            "an offset less for each piece but the last",
            "            offset[rows] = found.offset\n",
            "            offset[: len(found.offset)] = found.offset\n",
        ),
    ),
    *planted(
        "host/lutra/packed/file.py",
        [
            f"{_FILE}::test_fraction_bits_are_kept",
            f"{_FILE}::test_codes_of_embedding_and_head",
            f"{_FILE}::test_codes_that_can_not_be",
            f"{_FILE}::test_one_bit_is_seen",
            f"{_FILE}::test_a_number_that_was_changed_is_seen",
            f"{_FILE}::test_numbers_that_can_not_be",
            f"{_FILE}::test_tensors_that_can_not_be",
        ],
        (
            "a tied head written twice",
            "    if not vocabulary.tied:\n        arrays |= found",
            "    if vocabulary.tied:\n        arrays |= found",
        ),
        (
            "a shift of coded rows let through",
            "    if first.shift:\n",
            "    if first.shift > SHIFT_MAX:\n",
        ),
        (
            "a bit of the tensors may change",
            'if not unchanged and file.get("sha256") != _sha256(path):',
            'if not unchanged and file.get("sha256") is None:',
        ),
        (
            "fraction bits of the embedding for those of the residual stream",
            "        residual_frac=residual_frac,\n        embedding=embedding",
            "        residual_frac=RESIDUAL_FRAC_MAX,\n        embedding=embedding",
        ),
        (
            "codes of the head beyond its range",
            "(head.min() < -HEAD_MAX or head.max() > HEAD_MAX or rows.min() < 1)",
            "(head.max() > HEAD_MAX or rows.min() < 1)",
        ),
        (
            "layers of more bits than were promised",
            "if w.bits > self.w_bits:",
            "if w.bits > self.w_bits + 4:",
        ),
    ),
    *planted(
        "host/lutra/quantize/widths.py",
        ["host/quantize/test_widths.py::test_of_several_types"],
        ("a matrix counts once", "self._bits += w.bits * n", "self._bits += w.bits"),
        (
            "the last matrix says if all are ternary",
            "self.trits = self.trits and w.trits",
            "self.trits = w.trits",
        ),
        (
            "the last matrix says how wide all are",
            "self.w_bits = max(self.w_bits, w.bits)",
            "self.w_bits = w.bits",
        ),
        (
            "a type counts once",
            "widths.add(found.weights, sizes[kind])",
            "widths.add(found.weights)",
        ),
    ),
    *planted(
        "host/lutra/packed/kept.py",
        [
            f"{_KEPT}::test_every_setting_counts",
            f"{_KEPT}::test_the_content_counts_and_the_place_does_not",
            f"{_KEPT}::test_an_entry_that_was_damaged_is_made_again",
            f"{_KEPT}::test_all_code_that_packs_counts",
        ],
        (
            "another version takes what this one packed",
            "names = (lutra.__name__, *_LIBRARIES)",
            "names = _LIBRARIES",
        ),
        ("only modules count", '_ENDS = (".py", ".c", ".h")', '_ENDS = (".py",)'),
        (
            "settings do not count",
            "json.dumps([contents, dict(settings), VERSION, _code()], sort_keys=True)",
            "json.dumps([contents, VERSION, _code()], sort_keys=True)",
        ),
        (
            "files are known by their names",
            "contents = [[each.name, _content(each, seen, before_reading)] for each in files]",
            "contents = [[each.name] for each in files]",
        ),
        (
            "a damaged entry is taken",
            "unchanged=_stamp(folder) == _recorded(folder)",
            "unchanged=True",
        ),
    ),
    *planted(
        "host/lutra/packed/layers.py",
        [
            f"{_FILE}::test_a_round_trip",
            f"{_FILE}::test_a_round_trip_of_bitnet",
            f"{_FILE}::test_numbers_that_can_not_be",
            f"{_FILE}::test_five_bits_and_two_zero_points",
            f"{_FILE}::test_zero_points_that_can_not_be",
        ],
        (
            "products that are shifted by the bits of multiples",
            '"shift": levels.shift}',
            '"shift": levels.bits}',
        ),
        (
            "two zero points in the other order",
            "[two.first, two.second], two.marks",
            "[two.second, two.first], two.marks",
        ),
        (
            "two zero points that are one",
            "not 0 <= whole[0] < whole[1] <= _ZERO_MAX",
            "not 0 <= whole[0] <= whole[1] <= _ZERO_MAX",
        ),
        (
            "centres of keys are not read",
            'if file.flag("key_centre"):',
            "if False:",
        ),
        (
            "norms of keys for queries",
            'arrays["query_norm"] = layer.head_norms.query',
            'arrays["query_norm"] = layer.head_norms.key',
        ),
        (
            "a window is not kept",
            'numbers: dict[str, object] = {"window": layer.window}',
            'numbers: dict[str, object] = {"window": 0}',
        ),
        (
            "matrices of a stack with shifts of their own",
            "if len(set(shifts)) > 1:",
            "if len(set(shifts)) > 2:",
        ),
        (
            "a mantissa of one bit less",
            "normal = 1 << (SCALE.m_width - 1) <= m < 1 << SCALE.m_width",
            "normal = 1 << (SCALE.m_width - 2) <= m < 1 << SCALE.m_width",
        ),
    ),
    *planted(
        "host/lutra/packed/store.py",
        [
            f"{_FILE}::test_layers_that_were_stored_before_are_the_same",
            f"{_FILE}::test_other_settings_find_nothing",
            f"{_FILE}::test_a_layer_is_there_whole_or_not_at_all",
            f"{_FILE}::test_a_damaged_layer_is_packed_again",
            "host/commands/test_pack.py::test_two_at_a_time",
            "host/commands/test_pack.py::test_a_checkpoint_that_is_refused_midway",
        ],
        (
            "layers of a checkpoint that is refused stay",
            "                shutil.rmtree(self.folder, ignore_errors=True)\n                raise",
            "                raise",
        ),
        (
            "layers of other settings taken",
            'self.folder = out / f"{_PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:16]}"',
            'self.folder = out / f"{_PREFIX}{len(text) * 0}"',
        ),
        (
            "layers of other settings stay",
            'for folder in self._out.glob(f"{_PREFIX}*"):',
            "for folder in (self.folder,):",
        ),
        (
            "two processes at a time",
            "fcntl.LOCK_EX | fcntl.LOCK_NB",
            "fcntl.LOCK_SH | fcntl.LOCK_NB",
        ),
        (
            "the first layer for all",
            'return self.folder / f"layer-{i:04d}"',
            'return self.folder / f"layer-{0 * i:04d}"',
        ),
    ),
    *planted(
        "host/lutra/quantize/__init__.py",
        [
            "host/quantize/test_driver.py::test_integers_of_a_checkpoint_pass_as_they_are",
            "host/quantize/test_pack.py::test_every_model_has_a_format_of_its_own",
            "host/quantize/test_pack.py::test_matrices_are_the_quantised_ones",
            "host/commands/test_pack.py::test_activations_in_groups",
            "host/quantize/test_defaults.py::test_parts_are_what_the_device_runs",
            "host/quantize/test_defaults.py::test_models_that_need_no_groups",
            "host/quantize/test_defaults.py::test_a_group_in_the_format",
            "host/quantize/test_defaults.py::test_a_float_matrix_beside_integers_gets_eight_bits",
        ],
        (
            "groups of activations of any bits",
            "if a_groups is not None and format.a_bits != 8:",
            "if a_groups is not None and format.a_bits < 8:",
        ),
        (
            "grouped checkpoints in eight bits",
            "affine=weight.offset is not None and not offsets)",
            "affine=not offsets)",
        ),
        (
            "float matrices beside ternary ones in two bits",
            "return _FLOAT_BITS if format is None or one_scale else format.w_bits",
            "return _FLOAT_BITS if format is None else format.w_bits",
        ),
        (
            "groups for a model that was trained without",
            "groups = None if trained or default_format",
            "groups = None if default_format",
        ),
        (
            "offsets on devices that have none",
            "keep = (chosen and capabilities.offsets) if offsets is None else offsets",
            "return groups, chosen if offsets is None else offsets",
        ),
        (
            "the group of a format ignored",
            "return named or group or DEFAULT_GROUP",
            "return group or DEFAULT_GROUP",
        ),
        (
            "groups of the default size",
            "return round_to_nearest(dense.dequantized(), bits, group, ternary=ternary)",
            "return round_to_nearest(dense.dequantized(), bits, DEFAULT_GROUP, ternary=ternary)",
        ),
    ),
    *planted(
        "host/lutra/quantize/awq.py",
        [
            "host/quantize/test_fold.py::test_ranges_are_clipped_by_what_comes_in",
            "host/quantize/test_fold.py::test_awq_has_less_error_than_rounding[biases]",
        ],
        (
            "powers of inputs that were not divided",
            "power = inputs[stack].power / scale[stack] ** 2",
            "power = inputs[stack].power * scale[stack] ** 2",
        ),
        (
            "scales multiplied twice in the search",
            "found = round_to_nearest(w * s, bits, target.group, power).dequantized() / s",
            "found = round_to_nearest(w * s, bits, target.group, power).dequantized()",
        ),
        (
            "the last of the exponents",
            "        if error < least:\n",
            "        if True:\n",
        ),
    ),
    *planted(
        "host/lutra/quantize/balance.py",
        ["host/quantize/test_balance.py"],
        (
            "keys multiplied, too",
            "k_proj=_scaled(layer.k_proj, np.reciprocal(keys))",
            "k_proj=_scaled(layer.k_proj, keys)",
        ),
        (
            "biases of keys left out",
            "k_bias=None if layer.k_bias is None else layer.k_bias / keys",
            "k_bias=layer.k_bias",
        ),
        ("the whole ratio, not its root", "_floored(largest)) / 2", "_floored(largest))"),
        (
            "the mean of the queries that share keys",
            ".max(axis=1)\n    ratio",
            ".mean(axis=1)\n    ratio",
        ),
        ("norms of queries divided, too", "q_norm=layer.q_norm * by", "q_norm=layer.q_norm / by"),
        ("a factor common to a head", "ratio -= np.median(ratio, axis=1, keepdims=True)", "pass"),
        ("sizes with the centre", "(k) - centre[:, None])", "(k))"),
        (
            "a centre that factors have not divided",
            "centre.reshape(-1) / keys",
            "centre.reshape(-1)",
        ),
        ("centres of fast pairs", "slow = np.abs(turned) < math.pi", "slow = np.abs(turned) >= 0"),
        ("the arc's beginning, not its middle", "(table[0] + table[-1]) / 2", "table[0]"),
        (
            "the whole ratio of queries and keys",
            "math.log2(key / query) / 2",
            "math.log2(key / query)",
        ),
        ("queries without the factor of softmax", "query *= math.log2(math.e)", "query *= 8"),
    ),
    *planted(
        "host/lutra/quantize/budget.py",
        ["host/quantize/test_budget.py"],
        (
            "room of the last item for all",
            "room -= int(sizes[item, chosen[item]])",
            "room -= int(sizes[item, 0])",
        ),
        (
            "sizes rounded down",
            "sizes = -(-weights[:, None] * np.array(CHOICES) // unit)",
            "sizes = weights[:, None] * np.array(CHOICES) // unit",
        ),
        (
            "divergences summed over windows",
            "n_tokens += len(p)",
            "n_tokens = len(p)",
        ),
        (
            "no uniform plan",
            "plans = [BitPlan(_uniform(sensitivity, b)) for b in CHOICES if b <= budget]",
            "plans = [BitPlan(_uniform(sensitivity, CHOICES[0]))]",
        ),
    ),
    *planted(
        "host/lutra/quantize/calibration.py",
        ["host/quantize/test_calibration.py"],
        (
            "the mean of the last window",
            "self.mean += size.sum(axis=0, dtype=np.float64)",
            "self.mean = size.sum(axis=0, dtype=np.float64)",
        ),
        (
            "peaks with their sign",
            "self.peak = np.maximum(self.peak, size.max(axis=0))",
            "self.peak = np.maximum(self.peak, single.max(axis=0))",
        ),
        (
            "windows of a token less than their length",
            "text[starts[:, None] + np.arange(body)]",
            "text[starts[:, None] + np.arange(body - 1)]",
        ),
        (
            "a sliding window is not followed",
            "layer, window = in_float(layer), self.model.config.windows[i]",
            "layer, window = in_float(layer), self.model.config.windows[0]",
        ),
    ),
    *planted(
        "host/lutra/quantize/driver.py",
        [
            "host/quantize/test_driver.py::test_an_interrupted_run_ends_as_one_that_was_not[gptq]",
            "host/quantize/test_driver.py::test_a_layer_is_fitted_to_what_those_in_front_make",
            "host/quantize/test_driver.py::test_settings_tell_runs_apart",
        ],
        (
            "the stream is that before the first layer",
            "        if states is not None and i + 1 < n_layers:\n",
            "        if states is not None and i + 1 < 0:\n",
        ),
        (
            "groups do not tell runs apart",
            '            "group": self.group,\n',
            "",
        ),
        (
            "a layer that was stored is not followed",
            "            packer.follow(i, reference_layer(model.config, packed))\n",
            "            pass\n",
        ),
    ),
    *planted(
        "host/lutra/quantize/imported.py",
        ["host/quantize/test_imported.py", "host/quantize/test_vocabulary.py"],
        (
            "rows of embedding and head where the first ones are",
            "        packed[rows] = to_b128(codes, bits)",
            "        packed[: len(codes)] = to_b128(codes, bits)",
        ),
        (
            "five bits of embedding and head in six",
            "next(width for width in CODE_BITS if width >= kept_bits",
            "next(width for width in W_BITS if width >= kept_bits",
        ),
        (
            "zero points of negative scales",
            "zero = np.where(negative, 2 * levels - zero, zero)",
            "zero = np.where(negative, levels - zero, zero)",
        ),
        (
            "zero points in whole steps",
            "zero = np.rint(2 * weight.zero).astype(np.int64)",
            "zero = 2 * np.rint(weight.zero).astype(np.int64)",
        ),
        (
            "a power of two that the largest scale is beyond",
            "(math.frexp(top)[1] - 16)",
            "(math.frexp(top)[1] - 17)",
        ),
        (
            "the finest step for the largest that is exact",
            "return finest * (used & -used)",
            "return finest",
        ),
        (
            "scales of one lot that are whole for all",
            "if len(whole) == len(found):",
            "if whole:",
        ),
        (
            "the worse of two steps",
            "of_top < of_finest",
            "of_top > of_finest",
        ),
        (
            "codes of the first cell's groups mirrored",
            "np.repeat(cells[..., 0], group // cell, axis=1)",
            "np.tile(cells[..., 0], group // cell)",
        ),
        (
            "single offsets for doubled ones",
            "2 * offset.astype(np.float64) / step",
            "offset.astype(np.float64) / step",
        ),
        (
            "offsets that 16 bits do not hold",
            "rounded = np.rint(doubled / (1 << shift))",
            "rounded = np.rint(doubled / (1 << shift) * 2)",
        ),
        (
            "factors in steps of their products",
            "factor * ((1 << shift) / step)",
            "factor * (1 / step)",
        ),
        (
            "factors that are exact rounded",
            "if (np.rint(units) != units).any():",
            "if True:",
        ),
        (
            "single factors of offsets for doubled ones",
            "(2 * (1 << shift) / step)",
            "((1 << shift) / step)",
        ),
        (
            "scales alone decide on the shift of multiples",
            "most = max(most, int(offsets.multiple.max(initial=0)))",
            "most = max(most, 0)",
        ),
    ),
    *planted(
        "host/lutra/quantize/vocabulary.py",
        [
            "host/quantize/test_vocabulary.py",
            "host/quantize/test_defaults.py::test_codes_of_a_file_are_kept_where_a_device_runs_them",
        ],
        (
            "grids in groups of any size",
            "isinstance(found, Grouped) and found.group % _LEAST_GROUP == 0:",
            "isinstance(found, Grouped):",
        ),
        (
            "one of two in codes",
            "if runs and all(kept) else None",
            "if runs and any(kept) else None",
        ),
        (
            "codes with offsets on devices without",
            "(offsets or not each.affine)",
            "(True or not each.affine)",
        ),
        (
            "codes of a file rounded again",
            "if isinstance(matrix, Encoded) and kept_bits(matrix, offsets=offsets) <= bits:",
            "if isinstance(matrix, Encoded) and kept_bits(matrix, offsets=offsets) < bits:",
        ),
        ("a logit worth half", "rows.unit * 2.0 ** (shift - 1)", "rows.unit * 2.0 ** (shift - 2)"),
        ("the head for the embedding", "rows = _coded(head, bits", "rows = _coded(embedding, bits"),
        (
            "eight bits for scales of any spread",
            "8 if top <= _SPREAD * float(np.median(step[step > 0])) else 16",
            "8",
        ),
        (
            "the coarsest step",
            "np.copyto(best, step, where=error < least)",
            "np.copyto(best, step, where=error < 0)",
        ),
        (
            "codes about another zero",
            "        nearest += np.float32(levels / 2)\n",
            "        nearest += np.float32(levels // 2)\n",
        ),
    ),
    *planted(
        "host/lutra/quantize/pack.py",
        [
            "host/quantize/test_pack.py::test_weights_are_kept_and_their_scales_rounded_once",
            "host/quantize/test_pack.py::test_the_residual_stream_keeps_headroom",
            "host/quantize/test_pack.py::test_a_shift_is_the_least_that_keeps_the_accumulators[W4A16-llama]",
            "host/quantize/test_balance.py::test_what_is_packed_is_the_balanced_model",
            "host/quantize/test_driver.py::test_every_method_packs_every_variant[rtn-biases]",
            "host/quantize/test_driver.py::test_every_method_packs_every_variant[rtn-qk-norm]",
        ],
        (
            "a bit less of headroom",
            "_fraction_bits(16 * self._peak, (1 << 31) - 1))",
            "_fraction_bits(self._peak, (1 << 31) - 1))",
        ),
        (
            "activations of eight bits for all",
            "model.replaced(model.layers, wanted.a_bits",
            "model.replaced(model.layers, 8",
        ),
        (
            "layers that are not balanced",
            "quantize_layer(packer.balanced(layer), bits, group, ",
            "quantize_layer(layer, bits, group, ",
        ),
        (
            "a factor of two in the scale of what is not shifted",
            "matrix.scale * factor * 2.0 ** (shift - 1)",
            "matrix.scale * factor * 2.0**shift",
        ),
        (
            "biases of queries not scaled",
            "values = [layer.q_bias * (1 if normed else softmax), layer.k_bias, layer.v_bias]",
            "values = [layer.q_bias, layer.k_bias, layer.v_bias]",
        ),
        (
            "peaks of the first rows alone",
            "2 * int(np.abs(codes, out=codes).sum(axis=1).max())",
            "2 * int(np.abs(codes[:1]).sum(axis=1).max())",
        ),
        (
            "norms of queries not scaled",
            "both = np.stack([layer.q_norm * softmax, layer.k_norm]).astype(np.float64)",
            "both = np.stack([layer.q_norm, layer.k_norm]).astype(np.float64)",
        ),
    ),
    *planted(
        "host/lutra/quantize/reference.py",
        [
            "host/quantize/test_driver.py::test_every_method_packs_every_variant[rtn-biases]",
            "host/quantize/test_pack.py::test_the_reference_rounds_a_cache_of_four_bits",
        ],
        (
            "scales of what was shifted",
            "return float(scale_to_float(linear.scale)) / 2.0 ** (linear.shift - 1)",
            "return float(scale_to_float(linear.scale)) / 2.0**linear.shift",
        ),
        (
            "biases of keys and values swapped",
            'extra["q_bias"], extra["k_bias"], extra["v_bias"] = np.split',
            'extra["q_bias"], extra["v_bias"], extra["k_bias"] = np.split',
        ),
        (
            "values rounded as keys are",
            "value_bits=model.value_bits if model.value_bits < 8 else None,",
            "value_bits=model.key_bits if model.key_bits < 8 else None,",
        ),
    ),
    *planted(
        "host/lutra/quantize/smoothquant.py",
        [
            "host/quantize/test_fold.py::test_smoothing_by_the_papers_formula",
            "host/quantize/test_fold.py::test_inputs_that_gain_nothing_are_not_smoothed",
        ],
        (
            "strengths the wrong way",
            "np.where(used, x, ones) ** alpha / np.where(used, w, ones) ** (1 - alpha)",
            "np.where(used, x, ones) ** (1 - alpha) / np.where(used, w, ones) ** alpha",
        ),
        (
            "scales not about one",
            "middle = np.sqrt(found[used].max() * found[used].min())",
            "middle = 1.0",
        ),
        (
            "nothing is never a candidate",
            "candidates = [np.ones_like(x_peak), *(smoothing",
            "candidates = [*(smoothing",
        ),
    ),
]
"""Faults of modules that decide what a packed model holds."""
