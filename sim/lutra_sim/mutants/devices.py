"""Faults in what lowers models and runs them: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_COMPILER = "host/compile/test_compiler.py"
_INTERPRETED = "host/devices/test_interpreted.py"
_BINDING = "host/devices/cpu/test_binding.py"
_STEPS = "host/devices/cpu/test_steps.py"
_SESSIONS = "host/devices/cpu/test_sessions.py"

_SHARES = ["host/devices/test_shares.py"]

MUTANTS = [
    *planted(
        "sim/lutra_golden/model/shares.py",
        ["golden/model/test_shares.py"],
        (
            "values in proportion to queries",
            '"v_proj": self.keys,',
            '"v_proj": self.queries,',
        ),
        ("rows cut anywhere", "(min(round(end / unit) * unit, n) for", "(min(round(end), n) for"),
        ("heads in proportion to rows", "rows if heads is None else heads", "rows"),
        ("heads of any size", "built_head_dim(model.head_dim) != model.head_dim:", "0:"),
    ),
    *planted(
        "host/lutra/devices/shares.py",
        _SHARES,
        (
            "the last of equals",
            "[best.argmax(axis=0), every]",
            "[-1 - best[::-1].argmax(axis=0), every]",
        ),
        (
            "numbers within the share",
            "return logits.argmax(axis=1) + rows.start",
            "return logits.argmax(axis=1)",
        ),
        (
            "the first columns for all",
            "part[:, first : first + len(each)]",
            "part[:, : len(each)]",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/meeting.py",
        _SHARES,
        ("gates in proportion to the stream", "CRange.of(rows.inner)", "CRange.of(rows.hidden)"),
        ("nobody leaves", "if not library().lutra_cpu_meet(self.place):", "if 0:"),
        (
            "errors are lost in the library",
            "            errors.append(error)\n            return 0\n",
            "            return 0\n",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/model.c",
        _SHARES,
        (
            "the first heads for everybody",
            "h += h < queries ? job->share.heads.first : model->heads - queries;",
            "h += h < queries ? 0 : model->heads - queries;",
        ),
        (
            "heads of others attend, too",
            "    if (own.last > job->share.heads.last) own.last = job->share.heads.last;\n",
            "    own.last = job->share.heads.last;\n",
        ),
        ("shares are not waited for", "    if (!job->share.meet) return 1;\n", "    return 1;\n"),
    ),
    *planted(
        "host/lutra/compile/compiler.py",
        ["system/test_architectures.py::test_centres_of_keys_are_in_their_places"],
        (
            "centres in the order of the model's elements",
            "layer.bias.centre[_pair_halves(len(layer.bias.centre), d, lanes)]",
            "layer.bias.centre",
        ),
    ),
    *planted(
        "host/lutra/compile/compiler.py",
        [
            f"{_INTERPRETED}::test_the_program_gives_the_logits_of_the_model",
            f"{_INTERPRETED}::test_rows_that_fill_up_the_vocabulary_never_win",
        ],
        (
            "gate and up one behind the other",
            "both = stack((gate.weights, up.weights)).rows(_interleave(f, LANES))",
            "both = stack((gate.weights, up.weights))",
        ),
        (
            "every run of the head begins the arg-max anew",
            "flags=flags | (FLAG_FIRST if first == 0 else 0),",
            "flags=flags | FLAG_FIRST,",
        ),
        (
            "scales of the head's first rows for all",
            "word, region = self._params(row_scales[chunk])",
            "word, region = self._params(row_scales[: chunk.stop - chunk.start])",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/lowered.py",
        ["golden/model/test_padding.py"],
        (
            "a mean over padded heads",
            "            model.n_heads * model.head_dim,\n",
            "            layer.o_proj.depth,\n",
        ),
    ),
    *planted(
        "host/lutra/compile/compiler.py",
        ["host/compile/test_configure.py::test_a_shift_that_groups_exceed"],
        (
            "sums shifted by more, of weights that are not larger",
            "weights, shift = weights.scaled(more), shift + more",
            "shift = shift + more",
        ),
    ),
    *planted(
        "host/lutra/compile/compiler.py",
        ["system/test_vocabulary.py::test_programs_are_the_golden_device"],
        (
            "accumulators of codes twice the logits",
            "np.full(n, 1 << LOGIT_SHIFT, np.int16)",
            "np.full(n, 2 << LOGIT_SHIFT, np.int16)",
        ),
        (
            "high halves of rows where they are",
            "self._rows(high, HALF_BITS)",
            "self._rows(high, 0)",
        ),
        (
            "low halves in the place of whole rows",
            "self._rows(low, 0, FLAG_LOW)",
            "self._rows(low, 0)",
        ),
        (
            "rows of the embedding as much as those of the head are worth",
            "x = embedded(doubled, embedding.scale, model.residual_frac)",
            "x = embedded(doubled, model.vocabulary.head.scale, model.residual_frac)",
        ),
    ),
    *planted(
        "host/lutra/compile/fit.py",
        [
            "system/test_vocabulary.py::test_engines_that_run_them",
            "system/test_vocabulary.py::test_what_a_configuration_lacks_for_the_head",
        ],
        (
            "codes in groups for the ternary engine",
            "ternary &= coded is None or coded.head.stored.group is None",
            "ternary &= coded is None or coded.head.stored.group is not None",
        ),
        (
            "offsets of the head let through",
            "if has_offsets(model) and not m.offset_width:",
            "if model.offsets and not m.offset_width:",
        ),
        (
            "sums of the head not looked at",
            "        _check_linear(model, config, coded, gated=False)\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/compile/fit.py",
        ["host/compile/test_configure.py::test_groups_of_activations_need_their_configuration"],
        (
            "groups of another size taken",
            "if model.a_groups != m.a_groups:",
            "if (model.a_groups is None) != (m.a_groups is None):",
        ),
    ),
    *planted(
        "host/lutra/compile/fit.py",
        ["host/compile/test_configure.py::test_a_shift_that_groups_exceed"],
        (
            "scales counted before they become larger",
            "scale_bits + max(0, m.shift_min - shift)",
            "scale_bits",
        ),
    ),
    *planted(
        "host/lutra/compile/configure.py",
        [
            "host/compile/test_configure.py::test_a_longer_context_is_measured",
            "host/compile/test_configure.py::test_hardware_that_a_named_configuration_lacks",
            "host/compile/test_configure.py::test_a_named_configuration_has_the_models_activations",
        ],
        (
            "a context that is too short taken",
            "if model.context > config.max_context:",
            "if False:",
        ),
        (
            "activations of eight bits for all",
            "            a_width=model.a_bits,\n            depth_tile=",
            "            depth_tile=",
        ),
        (
            "norms of heads where there is no hardware for them",
            "(model.biased and not vector.qkv_bias) or (model.head_normed and not vector.qk_norm)",
            "model.biased and not vector.qkv_bias",
        ),
    ),
    *planted(
        "host/lutra/compile/fit.py",
        [
            f"{_COMPILER}::test_a_sum_leaves_room_for_half_of_what_is_rounded",
            f"{_COMPILER}::test_what_a_grouped_engine_lacks_is_named",
            f"{_COMPILER}::test_groups_that_are_no_whole_tiles",
            f"{_COMPILER}::test_chunks_of_the_head_are_whole_words_of_logits",
            "host/compile/test_configure.py::test_squared_relu_of_grouped_weights[W4A8]",
        ],
        (
            "half of what is rounded left out",
            "highest = (peak * model.a_peak << more) + ((1 << shift << more) >> 1)",
            "highest = peak * model.a_peak << more",
        ),
        (
            "a gate's shift not counted",
            "needed, built = sum_bits(model, peak, linear.shift), config.vector.gate_width",
            "needed, built = sum_bits(model, peak, linear.shift + 1), config.vector.gate_width",
        ),
        (
            "groups of half a depth tile taken",
            "if m.grouped and weights.group % m.depth_tile:",
            "if m.grouped and 2 * weights.group % m.depth_tile:",
        ),
        (
            "the vocabulary not filled up to whole words",
            "return round_up(model.vocab_size, LANES * max(2, config.logits_blocks))",
            "return round_up(model.vocab_size, LANES * 2)",
        ),
    ),
    *planted(
        "host/lutra/compile/program.py",
        [
            f"{_COMPILER}::test_program_is_what_a_model_needs",
            f"{_COMPILER}::test_segments_follow_each_other",
            f"{_INTERPRETED}::test_tiles_of_any_size_agree",
        ],
        (
            "the last segment not counted",
            "return max((each.offset + len(each.data) for each in self.of(kind)), default=0)",
            "return max((each.offset for each in self.of(kind)), default=0)",
        ),
        (
            "logits of one token",
            "return self.config.pass_tokens * self.logits_stride",
            "return self.logits_stride",
        ),
        (
            "segments of the other kinds",
            "if segment.kind is kind)",
            "if segment.kind is not kind)",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/device.py",
        [
            "host/devices/test_runs.py::test_sequences_share_passes_either_way",
            "host/devices/test_runs.py::test_results_of_chunks_that_change_places",
            f"{_INTERPRETED}::test_a_failed_run_is_an_error_of_one_line",
            f"{_INTERPRETED}::test_an_abort_that_was_interrupted_is_done_before_the_next_run",
        ],
        (
            "every chunk at the first one's position",
            "ChunkEntry(chunks[i].position, len(own), session.address)",
            "ChunkEntry(chunks[0].position, len(own), session.address)",
        ),
        (
            "arg-max counted from the tile's first token",
            "argmax=np.array([ended.argmax[m - first] for m in wanted], np.int64),",
            "argmax=np.array([ended.argmax[m - wanted[0]] for m in wanted], np.int64),",
        ),
        (
            "logits of the tile's first token for all",
            "base + m *",
            "base + 0 *",
        ),
        (
            "a run that was given up counts as ended",
            "        if self._busy:\n            self._abort()\n        self._busy = True",
            "        self._busy = True",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/device.py",
        ["host/devices/test_greedy.py"],
        (
            "the last token that counts of a run that failed is dropped",
            "made, error = ended.argmax, failed",
            "made, error = ended.argmax[:-1], failed",
        ),
        (
            "tokens of a run that another program disturbed are kept",
            "if ended is None or not ended.status & STATUS_ERROR:",
            "if ended is None:",
        ),
        (
            "the last greedy token not counted",
            "session.advance(layers, len(made))",
            "session.advance(layers, len(made) - 1)",
        ),
        (
            "end tokens left out of the descriptor",
            "self._timeout_s, n, own)",
            "self._timeout_s, n)",
        ),
        (
            "end tokens counted that the model has not",
            "for end in ends if 0 <= end < program.vocab_size)",
            "for end in ends)",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/runs.py",
        ["host/devices/test_greedy.py"],
        (
            "end tokens of the descriptor before",
            "shape = program, self.watchdog_cycles, *of_tile, n_greedy, ends",
            "shape = program, self.watchdog_cycles, *of_tile, n_greedy",
        ),
        (
            "as many tokens as the descriptor before",
            "shape = program, self.watchdog_cycles, *of_tile, n_greedy, ends",
            "shape = program, self.watchdog_cycles, *of_tile, ends",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/interpreted.py",
        ["host/devices/test_runs.py", f"{_INTERPRETED}::test_another_accelerator_is_refused"],
        (
            "the other word of a base kept",
            "words = [low, high]\n            words[index] = value",
            "words = [0, 0]\n            words[index] = value",
        ),
        (
            "an abort leaves descriptors in the queue",
            "        self.interpreter.doorbells.clear()\n",
            "",
        ),
        (
            "the failure of the run before",
            "        self._failure = Failure()\n        try:",
            "        try:",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/runs.py",
        ["host/devices/test_runs.py"],
        (
            "a result that is not done taken",
            "if not status & STATUS_DONE or tag != self._tag:",
            "if tag != self._tag:",
        ),
        (
            "the result of another run taken",
            "if not status & STATUS_DONE or tag != self._tag:",
            "if not status & STATUS_DONE:",
        ),
        (
            "pages of the first chunk for all",
            "transport.write_register(name, word, i)",
            'transport.write_register(name, word, i if name == "CHUNK" else 0)',
        ),
        (
            "registers that a reset cleared are not written again",
            '"""Write all registers again."""\n        self._placed',
            '"""Write all registers again."""\n        _',
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/transport.py",
        ["host/devices/test_heap.py"],
        (
            "what lies behind a hole is overlapped",
            "            if first - at >= size:\n",
            "            if first - at > 0:\n",
        ),
        (
            "a hole that just fits is not taken",
            "            if first - at >= size:\n",
            "            if first - at > size:\n",
        ),
        (
            "memory is never given back",
            "if ticket is None or ticket == self._tickets.get(at):",
            "if False:",
        ),
        (
            "what another has is given back by a late ticket",
            "if ticket is None or ticket == self._tickets.get(at):",
            "if True:",
        ),
    ),
    *planted(
        "host/lutra/devices/golden.py",
        ["host/devices/test_golden.py"],
        (
            "rows of every chunk from the first on",
            "slice(first, first + n), chunk.position))",
            "slice(0, n), chunk.position))",
        ),
        (
            "logits of the first chunk's rows",
            "wanted.append(np.arange(first + chunk.logits_from, first + n))",
            "wanted.append(np.arange(chunk.logits_from, n))",
        ),
        (
            "saturation of the pass before",
            "        decoder.saturation.seen = False\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/sessions.py",
        [
            "host/devices/test_golden.py",
            "host/devices/test_base.py",
            f"{_SESSIONS}::test_truncate_and_fork",
            f"{_SESSIONS}::test_ranges_of_layers",
        ],
        (
            "a cut makes short layers longer",
            "self.lengths = [min(n, length) for length in self.lengths]",
            "self.lengths = [n for length in self.lengths]",
        ),
        (
            "all layers advance with some",
            "        for i in layers:\n            lengths[i] += n",
            "        for i in range(len(lengths)):\n            lengths[i] += n",
        ),
        (
            "a fork is as long as what it was made of",
            "            other.lengths = lengths\n",
            "            other.lengths = self.lengths\n",
        ),
        (
            "layers that are filled unequally far",
            "if len(lengths) != 1:",
            "if not lengths:",
        ),
    ),
    *planted(
        "host/lutra/devices/pages.py",
        ["host/devices/test_pages.py"],
        (
            "pages that others hold are written",
            "shared = [i for i in held if pool.is_shared(self.pages[i])]",
            "shared = list[int]()",
        ),
        (
            "a position less is copied",
            "min(length - i * size, size)",
            "min(length - i * size - 1, size)",
        ),
        (
            "a page is free when the first of its holders leaves",
            "            if not self._holders[page]:\n",
            "            if True:\n",
        ),
        ("what is to be left is taken", "if n + spare > free:", "if n > free:"),
        (
            "only whole pages are shared",
            "pages = other.pages[: -(-n // self.pool.page)]",
            "pages = other.pages[: n // self.pool.page]",
        ),
    ),
    *planted(
        "host/lutra/devices/paged.py",
        ["host/devices/cpu/test_pages.py"],
        (
            "all of a sequence is made its own",
            "first = self.length if first is None else first",
            "first = 0",
        ),
        (
            "a fork has what all layers have",
            "self.table.share(source.table, max(lengths))",
            "self.table.share(source.table, min(lengths))",
        ),
        (
            "pages for the first token of a chunk",
            "stop = chunk.position + len(chunk.tokens)",
            "stop = chunk.position + 1",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/cache.py",
        [
            f"{_SESSIONS}::test_padded_heads_are_exported_without_padding",
            f"{_SESSIONS}::test_export_and_restore_at_every_position",
        ],
        (
            "values padded as keys are",
            "np.ascontiguousarray(v[..., s.places(False)]),",
            "np.ascontiguousarray(v[..., s.places(True)]),",
        ),
        (
            "scales of keys for values",
            "for each in (kv.key_scale, kv.value_scale)], np.int32)",
            "for each in (kv.key_scale, kv.key_scale)], np.int32)",
        ),
        (
            "all pages in one place",
            "return self._slabs[slab] + place * self.page_bytes",
            "return self._slabs[slab] + 0 * place",
        ),
        (
            "padding is what was there before",
            "elements = np.zeros((2, s.n_kv_heads, n, s.built), np.int8)\n        elements[0]",
            "elements = np.full((2, s.n_kv_heads, n, s.built), 127, np.int8)\n        elements[0]",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/binding.py",
        [
            f"{_BINDING}::test_rows_of_several_sequences_share_passes[grouped-4-scalar]",
            f"{_BINDING}::test_layers_one_after_another",
            f"{_STEPS}::test_one_group_of_any_depth",
            f"{_STEPS}::test_several_groups_of_any_depth",
        ],
        (
            "logits of a chunk's first tokens",
            'rows["wanted"][wanted:] = 1',
            'rows["wanted"][: n - wanted] = 1',
        ),
        (
            "groups are never cut",
            "if group % (parts * _UNIT) == 0 and group // parts * largest < 1 << 31:",
            "if group % (parts * _UNIT) == 0:",
        ),
        (
            "a zero point for each part of another group",
            "zero = _repeated(scale, parts), zero.repeat(parts, axis=1)",
            "zero = _repeated(scale, parts), np.tile(zero, parts)",
        ),
        (
            "every position is a sequence's first",
            'rows["position"] = np.arange(position, position + n)',
            'rows["position"] = np.arange(n)',
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/device.py",
        [f"{_SESSIONS}::test_sessions_side_by_side", f"{_SESSIONS}::test_ranges_of_layers"],
        (
            "every chunk begins a sequence",
            "rows.set(at, chunk.session.cache, chunk.position, tokens, chunk.logits_from)",
            "rows.set(at, chunk.session.cache, 0, tokens, chunk.logits_from)",
        ),
        (
            "logits worth the tokens' scales alone",
            "scale=result.scale * self.model.head_scale,",
            "scale=result.scale,",
        ),
        (
            "a stream's layers counted from the first",
            "rows, chunks[0].layers, np.concatenate(streams) if streams else None",
            "rows, range(len(chunks[0].layers)), np.concatenate(streams) if streams else None",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/interface.py",
        ["host/devices/cpu/test_interface.py"],
        (
            "a member in another place",
            '("bias_frac", c_int32),\n        ("head_norm_frac", c_int32),',
            '("head_norm_frac", c_int32),\n        ("bias_frac", c_int32),',
        ),
        (
            "sizes of members for their offsets",
            "found += [int(getattr(structure, name).offset) for name in _members(structure)]",
            "found += [int(getattr(structure, name).size) for name in _members(structure)]",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/binding.py",
        [f"{_STEPS}::test_two_levels"],
        (
            "offsets of two levels not shifted",
            "offset_shift=stored.offset_shift if levels is None else levels.offset_shift,",
            "offset_shift=stored.offset_shift,",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/interface.py",
        [f"{_STEPS}::test_two_levels"],
        (
            "bytes of a record of scales alone",
            "offsets=bool(self.level_offsets)",
            "offsets=False",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/interface.py",
        [f"{_STEPS}::test_attention"],
        (
            "tables of the exponential swapped",
            "(base, drop), (gap, rise) =",
            "(drop, base), (gap, rise) =",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/library.py",
        [
            "host/devices/cpu/test_build.py::test_a_library_of_another_version_is_refused",
            f"{_STEPS}::test_norms",
            f"{_STEPS}::test_targets_have_the_numbers_of_their_names",
        ],
        (
            "a library of another version taken",
            "    if built() != version().encode():\n        return False\n",
            "",
        ),
        (
            "exponents and mantissas swapped",
            "CScale(int(scale.m), int(scale.e))",
            "CScale(int(scale.e), int(scale.m))",
        ),
        (
            "the target before",
            "return list(names).index(name)",
            "return max(list(names).index(name) - 1, 0)",
        ),
    ),
    *planted(
        "host/lutra/devices/cpu/steps.py",
        [f"{_STEPS}::test_heads", f"{_STEPS}::test_residual", f"{_STEPS}::test_attention"],
        (
            "fractions of bias and gamma swapped",
            "pointer(values), bias_frac, pointer(gamma), gamma_frac, eps,",
            "pointer(values), gamma_frac, pointer(gamma), bias_frac, eps,",
        ),
        (
            "mantissas for exponents",
            "np.stack([scale.m, scale.e], axis=-1), np.int32)",
            "np.stack([scale.e, scale.m], axis=-1), np.int32)",
        ),
        (
            "saturation never told",
            "return out, bool(saturated)",
            "return out, False",
        ),
    ),
    *planted(
        "host/lutra/devices/choose.py",
        ["host/quantize/test_defaults.py::test_an_accelerator_gets_what_its_hardware_has"],
        (
            "groups of any size taken for those that models are packed with",
            "activation_groups=m.a_groups == ActivationGroups()",
            "activation_groups=m.a_groups is not None",
        ),
        (
            "codes of embedding and head for engines without groups",
            "vocabulary=m.grouped,",
            "vocabulary=True,",
        ),
        (
            "boards packed for as if they were made for the model",
            "return COMMON_PARTS if is_built or ungrouped else",
            "return COMMON_PARTS if ungrouped else",
        ),
        (
            "parts that a chosen engine has not",
            "return COMMON_PARTS if is_built or ungrouped else",
            "return COMMON_PARTS if is_built else",
        ),
    ),
    *planted(
        "host/lutra/devices/cuda/device.py",
        [
            "kernels_gpu/test_device.py::test_a_pass_tells_its_own_saturation",
            "kernels_gpu/test_device.py::test_who_was_forked_writes_a_copy_too",
            "kernels_gpu/test_device.py::test_a_gpu_that_is_full",
        ],
        (
            "logits of as many tokens as have none",
            "n_logits=len(chunk.tokens) - chunk.logits_from,",
            "n_logits=chunk.logits_from,",
        ),
        (
            "a page is copied over the one that is kept",
            "self.kv.copy_page(source, target)",
            "self.kv.copy_page(target, source)",
        ),
        (
            "what is restored is written for all that hold the page",
            "self.make_room(kv.length, first=0)",
            "self.make_room(kv.length, first=kv.length)",
        ),
        ("a full GPU ends requests", "with _refusing(NoRoom):", "with _refusing():"),
        (
            "saturation not told",
            "            saturated=result.saturated,\n",
            "            saturated=False,\n",
        ),
    ),
]
"""Faults of modules that compute tokens, or that what they compute passes through."""
