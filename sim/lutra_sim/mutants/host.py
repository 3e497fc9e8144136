"""Faults in the host: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_DEVICE = "host/devices/cpu/test_device.py"

MUTANTS = [
    *planted(
        "host/lutra/text/sampling.py",
        ["host/text/test_sampling.py"],
        ("the token that reaches top p not kept", "params.top_p)) + 1", "params.top_p))"),
        (
            "temperature multiplies",
            "p = np.exp(below / params.temperature)",
            "p = np.exp(below * params.temperature)",
        ),
        ("min-p not heeded", "np.count_nonzero(p >= params.min_p)", "len(order)"),
        (
            "a bias is in logits, not in nats",
            "_whole(self._biases / scale)",
            "_whole(self._biases)",
        ),
        (
            "negative logits divided",
            "np.where(found > 0, found / penalty, found * penalty)",
            "found / penalty",
        ),
        (
            "generated tokens not penalised",
            "            self._constraint.push(token)\n        self._seen.add(token)\n",
            "            self._constraint.push(token)\n",
        ),
        ("one of the best fewer", "== 0 else self.top_k", "== 0 else self.top_k - 1"),
        (
            "a bias left out where few logits come",
            "if self.changes_logits or self.logprobs",
            "if self.logprobs",
        ),
        (
            "the place of a token among the best",
            "int(tokens[self._draw(logits, scale)])",
            "self._draw(logits, scale)",
        ),
        ("fractions of logits cut off", "np.rint(np.clip(", "np.trunc(np.clip("),
        ("the device draws beside a bias", "!= 0 or self._changes or", "!= 0 or"),
        ("probabilities without their sum", "below - np.log(np.exp(below).sum())", "below"),
    ),
    *planted(
        "host/lutra/text/constraint.py",
        ["host/text/test_constraint.py"],
        ("bits of a mask in the other order", 'bitorder="little"', 'bitorder="big"'),
        ("a text goes on behind its form", "bool(self._matcher.is_stopped())", "False"),
        (
            "a token that was drawn is not noted",
            "if not self._matcher.consume_token(token):",
            "if False:",
        ),
    ),
    *planted(
        "host/lutra/text/sampling.py",
        ["host/text/test_constraint.py"],
        (
            "a form ends with the first token of a pass that completes it",
            "form.complete and form.n_tokens <= n",
            "form.complete",
        ),
        (
            "tokens that do not fit",
            "int(allowed[self._draw(changed[allowed], scale)])",
            "self._draw(changed, scale)",
        ),
    ),
    *planted(
        "host/lutra/text/stop.py",
        ["host/text/test_stop.py"],
        (
            "the first to begin, not the first to end",
            "key=lambda place: (sum(place), place)",
            "key=lambda place: place",
        ),
        ("too little is held", "self._longest - 1), 0, -1)", "self._longest - 2), 0, -1)"),
        ("a shorter end is held", "0, -1):", "0, -1)[::-1]:"),
        ("text behind a stop string", 'self.found, self._held = True, ""', 'self._held = ""'),
    ),
    *planted(
        "host/lutra/serving/generation.py",
        ["host/serving/test_generation.py"],
        ("one seed for all completions", "seed=sampling.seed + index", "seed=sampling.seed"),
        (
            "the prompt is not repeated",
            "Sampler(own, generation.prompt, tokenizer",
            "Sampler(own, (), tokenizer",
        ),
        (
            "a completion goes on from the one before",
            "    begun.sequence.truncate(len(prompt))\n",
            "",
        ),
        ("what is held is lost", "            text += self._stop.flush()\n", "            pass\n"),
        (
            "the length before the stop string",
            "if self._stop.found or whole:",
            "if whole:",
        ),
        (
            "saturation of another completion",
            "saturated=begun.sequence.saturated,",
            "saturated=True,",
        ),
        ("the prompt counts as unchecked", "golden is None else True", "golden is None else None"),
    ),
    *planted(
        "host/lutra/serving/prefixes.py",
        ["host/serving/test_prefixes.py"],
        (
            "the whole prompt may be known",
            "shared = [common_prefix(each.tokens, tokens[:-1])",
            "shared = [common_prefix(each.tokens, tokens)",
        ),
        (
            "beginnings too short to be found are promised",
            "return most if most >= LEAST_PREFIX else 0",
            "return most",
        ),
        (
            "every request for a prompt leaves a sequence",
            "            if _begins(each.tokens, new.tokens):\n",
            "            if False:\n",
        ),
        (
            "beginnings stay beside what goes on from them",
            "(less if _begins(new.tokens, each.tokens) else more)",
            "more",
        ),
        ("texts with the same end begin alike", "and tokens[:n] == with_", ""),
        (
            "the earliest used of equals",
            "key=lambda i: (len(self._kept[i].tokens), -i)",
            "key=lambda i: (len(self._kept[i].tokens), i)",
        ),
        (
            "the latest dropped first",
            "dropped.append(self._kept.pop(0))",
            "dropped.append(self._kept.pop())",
        ),
        (
            "a common prefix of one token more",
            "return int(different[0]) if len(different)",
            "return int(different[0]) + 1 if len(different)",
        ),
    ),
    *planted(
        "host/lutra/serving/sequence.py",
        [
            "host/test_llm.py::test_a_difference_is_found_where_it_is",
            "host/test_llm.py::test_results_are_the_same_with_and_without_known_prefixes",
            "host/test_llm.py::test_a_known_prefix_keeps_its_saturation",
        ],
        ("saturation not compared", "        and result.saturated == expected.saturated\n", ""),
        ("the reference not cut", "            self.reference.truncate(n)\n", "            pass\n"),
        (
            "a later step moves the first saturation",
            "if saturated and self.saturated_at is None:",
            "if saturated:",
        ),
    ),
    *planted(
        "host/lutra/serving/sequence.py",
        ["host/serving/test_sequence.py"],
        (
            "the last greedy token counts as processed",
            "[token, *result.tokens[:-1]]",
            "[token, *result.tokens]",
        ),
    ),
    *planted(
        "host/lutra/serving/chunks.py",
        ["host/serving/test_chunks.py"],
        (
            "chunks as long as a pass, whoever waits",
            "if not n_decoding or not token_s:",
            "if token_s or not n_decoding:",
        ),
        (
            "chunks leave no place for others",
            "most = passes * pass_tokens - n_decoding",
            "most = passes * pass_tokens",
        ),
        (
            "a prompt has what answers leave of one pass",
            "-(-(n_decoding + least) // pass_tokens)",
            "-(-(n_decoding + 1) // pass_tokens)",
        ),
        (
            "the first pass counts as a part",
            "before = self.token_s or latest",
            "before = self.token_s or 0.0",
        ),
    ),
    *planted(
        "host/lutra/serving/batch.py",
        ["host/serving/test_batch.py"],
        ("the lowest priority first", "return -request.priority,", "return request.priority,"),
        (
            "long prompts pass short ones",
            "request.arrived + needed",
            "request.arrived - needed",
        ),
        ("short prompts always pass long ones", "request.arrived + needed", "needed"),
        (
            "more of a sequence copied than is shared",
            "self._loaded.fork(source, shared[best])",
            "self._loaded.fork(source, len(source.tokens))",
        ),
        (
            "a beginning that is coming is not waited for",
            "if shared >= LEAST_PREFIX and len(_tokens(other)) < shared:",
            "if shared > len(request.prompt):",
        ),
        (
            "prompts take no room from each other",
            "            room -= len(tokens)\n",
            "",
        ),
        (
            "the last part of a prompt has no room",
            "tokens = request.text[done : done + room]",
            "tokens = request.text[done : done + max(room - 1, 1)]",
        ),
        (
            "one failed request fails all",
            "alone = [self._run([part]) for part in parts]",
            "alone = [([error], 0.0) for _ in parts]",
        ),
        (
            "cancelled requests go on",
            "[each for each in self._running if each.cancelled]",
            "[]",
        ),
        (
            "more requests than the device may have",
            "while len(self._running) < self._most:",
            "while len(self._running) <= self._most:",
        ),
    ),
    *planted(
        "host/lutra/serving/batch.py",
        ["host/serving/test_memory.py"],
        (
            "who gave way begins with its next token",
            "                request.again = list(sequence.tokens)\n",
            "                pass\n",
        ),
        (
            "the token behind what is computed again is drawn twice",
            "last = request.next_token is None and done",
            "last = done",
        ),
        (
            "no memory is left for steps of others",
            "n_positions, spare = len(text) + 1, len(self._running)",
            "n_positions, spare = len(text) + 1, 0",
        ),
        ("the first in order gives way", "self._set_back(max(", "self._set_back(min("),
        (
            "who gives way keeps its place",
            "            self._places.give()\n            sequence.close()\n",
            "            sequence.close()\n",
        ),
        ("the prompt grows by what is computed again", "if not request.again:", "if True:"),
    ),
    *planted(
        "host/lutra/serving/loaded.py",
        ["host/serving/test_memory.py"],
        (
            "known prefixes do not give way",
            "if not self.known.drop_oldest():",
            "if True:",
        ),
    ),
    *planted(
        "host/lutra/serving/generation.py",
        [
            "host/serving/speculation/test_same_tokens.py::test_at_every_token_a_wrong_draft",
            "host/serving/speculation/test_same_tokens.py::test_the_context_bounds_drafts",
        ],
        (
            "wrong drafts stay in the session",
            "                sequence.truncate(start + len(made))\n",
            "",
        ),
        ("drafts behind the last token", "[(guesses, left - 1)]", "[(guesses, left)]"),
        ("drafts are not processed", "step = [token, *drafts]", "step = [token]"),
    ),
    *planted(
        "host/lutra/serving/batch.py",
        [
            "host/serving/speculation/test_same_tokens.py::test_requests_at_once",
            "host/serving/speculation/test_same_tokens.py::test_the_context_bounds_drafts",
        ],
        (
            "one draft too many stays in the session",
            "- len(tokens) + len(made))",
            "- len(tokens) + min(len(made) + 1, len(tokens)))",
        ),
        ("drafts behind the context", "most - n - 1)", "most - n)"),
        ("drafts are not released", "        request.drafts.close()\n", ""),
    ),
    *planted(
        "host/lutra/serving/speculation/draw.py",
        ["host/serving/speculation/test_draw.py"],
        (
            "tokens behind a wrong draft",
            "if i < len(drafts) and token != drafts[i]:",
            "if i < len(drafts) and token < 0:",
        ),
        ("the row before", "at = slice(i, i + 1)", "at = slice(max(i - 1, 0), max(i, 1))"),
        ("the likeliest token where one is drawn", "if not sampler.needs_logits:", "if True:"),
        ("the best tokens of another row", "result.best[at]", "result.best"),
        ("a right draft is the last token", "token != drafts[i]", "token == drafts[i]"),
    ),
    *planted(
        "host/lutra/serving/speculation/ngrams.py",
        ["host/serving/speculation/test_ngrams.py"],
        ("the earliest of equals", "for end in reversed(places):", "for end in places:"),
        (
            "the latest place, however short",
            "                longest, found = length, end\n",
            "                longest, found = length, end\n                break\n",
        ),
        (
            "guesses behind an end token",
            "self._guesses, self._kinds = guesses[:n],",
            "self._guesses, self._kinds = guesses,",
        ),
        ("what has come is not looked up", "self._indexed = len(text)", "self._indexed = 1 << 60"),
        (
            "all guesses are compared",
            "            if token != guess:\n",
            "            if token < 0:\n",
        ),
        ("longer matches count as shorter ones", "sum(length > most for", "sum(length < most for"),
    ),
    *planted(
        "host/lutra/serving/speculation/model.py",
        ["host/serving/speculation/test_model.py"],
        ("the large model's sampler drafts", "self._sampler.copy()", "self._sampler"),
        ("wrong drafts stay", "        sequence.truncate(done)\n", ""),
        (
            "end tokens are drafted",
            "            if token in self._ends:\n",
            "            if token < 0:\n",
        ),
        ("tokens that the large model has not", "np.pad(logits[:n],", "np.pad(logits,"),
        ("drafts behind the context", "context - len(self._text)", "context"),
        ("unlikely for ever", "        self._record.fade()\n", ""),
        (
            "prompts are read in the time of drafts",
            "self._drafter.clock() - start",
            "self._drafter.clock()",
        ),
    ),
    *planted(
        "host/lutra/serving/speculation/record.py",
        ["host/serving/speculation/test_record.py"],
        (
            "all guesses count alike",
            "self._keep * self._right[kind] + right",
            "self._right[kind] + right",
        ),
        (
            "nothing is told to others",
            "            self._before.note(kind, right)\n",
            "            pass\n",
        ),
        (
            "what was expected does not count",
            "(right + weight * share) / (n + weight)",
            "(right + share) / (n + 1)",
        ),
    ),
    *planted(
        "host/lutra/serving/speculation/costs.py",
        ["host/serving/speculation/test_costs.py"],
        ("sizes are never forgotten", "_ONCE_LASTS if size.n_passes == 1 else _LASTS", "1 << 60"),
        ("a pass that was disturbed counts", "min(seconds, _SPIKE * known.seconds)", "seconds"),
        (
            "every token takes as long",
            "return any(seconds < most * n",
            "return any(seconds > most * n",
        ),
        (
            "larger passes take no longer",
            "found.append(least + slope * (n - low))",
            "found.append(least)",
        ),
        (
            "smaller passes count",
            "for n, s in self._remembered() if n > base)",
            "for n, s in self._remembered() if n != base)",
        ),
    ),
    *planted(
        "host/lutra/serving/speculation/adaptive.py",
        ["host/serving/speculation/test_adaptive.py"],
        ("as many drafts as there may be", "if expected > fastest * took:", "if took:"),
        (
            "more drafts than there is room for",
            "[: min(max(room, 0), 2 * reach or 1)]",
            "[: 2 * reach or 1]",
        ),
        ("no pass without drafts", "age is None or age > _PLAIN_EVERY", "age is None"),
        (
            "losses without a bound",
            "if took > affordable:",
            "if took < 0:",
        ),
        (
            "guessing costs nothing",
            "gain -= min(self._spent, ",
            "gain -= min(0.0, ",
        ),
        (
            "drafts cost nothing",
            "took = seconds[n] + n * self._drafter.seconds_per_draft",
            "took = seconds[n]",
        ),
        (
            "one wrong draft after another",
            "                p *= chance\n",
            "                p = chance\n",
        ),
        ("never tried", "elif n > reach and tries and p >= _TRY:", "elif p > 1:"),
        (
            "credit without a bound",
            "-_CREDIT), _MOST_CREDIT)",
            "-_CREDIT), 1e9)",
        ),
    ),
    *planted(
        "host/lutra/serving/together.py",
        [
            "host/test_llm.py::test_prompts_of_a_list_run_together",
            "host/test_llm.py::test_completions_are_in_the_order_of_their_seeds",
        ],
        (
            "every completion of a prompt is its first",
            "writer = Writer(generation, index, stats, tokenizer, ends)",
            "writer = Writer(generation, 0, stats, tokenizer, ends)",
        ),
        (
            "completions in the order of their ends",
            "for index in sorted(own)",
            "for index in own",
        ),
    ),
    *planted(
        "host/lutra/serving/engine.py",
        ["host/serving/test_engine.py"],
        (
            "requests are taken after the end",
            "if self._error is not None:\n                raise",
            "if self._batch is None:\n                raise",
        ),
    ),
    *planted(
        "host/lutra/serving/pace.py",
        ["host/serving/test_pace.py"],
        (
            "text waits twice as long",
            "elif 2 * self.n_tokens * seconds <=",
            "elif self.n_tokens * seconds <=",
        ),
        (
            "the bound of the device exceeded",
            "min(2 * self.n_tokens, self._most)",
            "2 * self.n_tokens",
        ),
        ("a slow device makes as many as before", "max(self.n_tokens // 2, 1)", "self.n_tokens"),
    ),
    *planted(
        "host/lutra/serving/generation.py",
        [
            "host/test_llm.py::test_greedy_tokens_come_by_ever_more",
            "host/test_llm.py::test_drawn_and_checked_tokens_are_single_steps",
            "host/test_llm.py::test_a_fault_among_greedy_tokens_comes_behind_those_before_it",
            "host/test_llm.py::test_a_step_that_saturated_is_not_forgotten",
        ],
        (
            "more greedy tokens than were asked for",
            "n_wanted = min(pace.n_tokens, left)",
            "n_wanted = pace.n_tokens",
        ),
        (
            "greedy tokens are not checked",
            "if by_device and not drafts and loaded.golden is None:",
            "if by_device and not drafts:",
        ),
        (
            "a fault among greedy tokens is hidden",
            "                raise error\n",
            "                pass\n",
        ),
        (
            "saturation of greedy tokens forgotten by the next ones",
            "stats.saturated |= greedy.saturated",
            "stats.saturated = greedy.saturated",
        ),
    ),
    *planted(
        "host/lutra/devices/base.py",
        ["host/devices/test_golden.py"],
        (
            "as many of the best as the most that a step wants",
            "else slice(chunk.best)",
            "else slice(None)",
        ),
        (
            "the best alone although a step needs all logits",
            "return all(chunk.best for",
            "return any(chunk.best for",
        ),
        (
            "more of the best than a device finds",
            "if step.best <= self.most_best else 0",
            "if True else 0",
        ),
        ("fallbacks that are none", "rescored == vocab_size", "rescored > 0"),
    ),
    *planted(
        "host/lutra/devices/base.py",
        ["host/devices/test_greedy.py"],
        (
            "an interrupt leaves what was processed before it",
            "                own.lengths = before\n",
            "",
        ),
        (
            "a fault hides the tokens before it",
            "            except DeviceError as failed:\n                if not made:\n",
            "            except DeviceError as failed:\n                if True:\n",
        ),
        (
            "an end token is one of several",
            "and not (made and last in stops)",
            "",
        ),
        (
            "a token that is given ends",
            "and not (made and last in stops)",
            "and last not in stops",
        ),
        (
            "greedy tokens beyond the context",
            "n, stops = min(n, model.context - first.position), frozenset(ends)",
            "stops = frozenset(ends)",
        ),
    ),
    *planted(
        "host/lutra/serving/generation.py",
        [
            "host/test_llm.py::test_a_step_that_saturated_is_not_forgotten",
            "host/test_llm.py::test_a_known_prefix_keeps_its_saturation",
        ],
        (
            "saturation forgotten by the next step",
            "stats.saturated |= result.saturated",
            "stats.saturated = result.saturated",
        ),
        (
            "saturation of a known prefix forgotten",
            "    stats.saturated = sequence.saturated\n",
            "",
        ),
    ),
    *planted(
        "host/lutra/devices/base.py",
        [
            "host/devices/test_base.py::test_every_step_gets_its_rows_whatever_passes_hold",
            "host/devices/test_base.py::test_tokens_of_several_sessions_fill_passes",
        ],
        (
            "saturation forgotten by the next pass",
            "each.saturated |= result.saturated",
            "each.saturated = result.saturated",
        ),
        (
            "logits from the same row of every pass",
            "logits_from=min(max(chunk.logits_from - first, 0), size),",
            "logits_from=min(chunk.logits_from, size),",
        ),
        (
            "residual rows of the step before",
            "row, token = wanted.stop, token + n",
            "row, token = wanted.stop, token",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/kv.py",
        ["host/devices/test_kv.py"],
        (
            "values padded as keys are",
            "in ((0, True), (config.kv_v_offset, False)):",
            "in ((0, True), (config.kv_v_offset, True)):",
        ),
        (
            "scales of keys for values",
            "2 * n_heads] = _words(kv.value_scale)",
            "2 * n_heads] = _words(kv.key_scale)",
        ),
        (
            "the first head read for all",
            "raw = read(base + offset + g * config.kv_head_bytes,",
            "raw = read(base + offset,",
        ),
    ),
    *planted(
        "host/lutra/compile/assembler.py",
        ["host/compile/test_compiler.py::test_waits_order_every_hazard"],
        (
            "readers of what is overwritten not waited for",
            "        reads.wait_for(operation.writes, waits)\n",
            "",
        ),
        (
            "a wait for the last region only",
            "waits[unit] = max(waits[unit], index)",
            "waits[unit] = index",
        ),
        (
            "one reader too few is waited for",
            "reads.note(operation.reads, unit, counts[unit])",
            "reads.note(operation.reads, unit, counts[unit] - 1)",
        ),
    ),
    *planted(
        "host/lutra/compile/ranges.py",
        [
            "host/compile/test_ranges.py::test_halves_are_whole_beats",
            "host/compile/test_ranges.py::test_embedding_head_and_streams_are_where_they_belong",
            "host/devices/test_ranges.py::test_every_split_is_the_whole",
        ],
        ("low halves shifted too", "(low, FLAG_LOW, 0))", "(low, FLAG_LOW, HALF_BITS))"),
        ("beats cut where the tokens end", "filling = bytes(-len(high) % align)", 'filling = b""'),
        (
            "the stream stored a word short",
            "program.config) // LANES\n",
            "program.config) // LANES - 1\n",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/programs.py",
        ["host/devices/test_ranges.py::test_programs_of_ranges_are_written_once_and_kept"],
        (
            "the program used last makes room",
            "del kept[next(iter(kept))]",
            "del kept[next(reversed(kept))]",
        ),
        (
            "order of use not kept",
            "placed = kept.pop(layers, None)",
            "placed = kept.get(layers)",
        ),
        (
            "a program in the place of another",
            " if each not in taken)",
            ")",
        ),
    ),
    *planted(
        "host/lutra/devices/accelerator/device.py",
        ["host/devices/test_ranges.py::test_every_split_is_the_whole"],
        (
            "rows of the table for their tokens' ids",
            "        tokens = list(range(len(tokens)))\n",
            "        pass\n",
        ),
        (
            "streams in the order of the steps",
            "        stream[places] = np.concatenate(",
            "        stream[:] = np.concatenate(",
        ),
    ),
    *planted(
        "host/lutra/quantize/gptq.py",
        ["host/quantize/test_gptq.py"],
        (
            "the smallest columns first",
            'order = np.argsort(-found.power, kind="stable")',
            'order = np.argsort(found.power, kind="stable")',
        ),
        (
            "blocks do not change later ones",
            "rest[last:] -= effect[first:last, last:].T @ errors",
            "rest[last:] -= 0 * (effect[first:last, last:].T @ errors)",
        ),
        ("groups by place in the order", "g = columns[i] // grid.group", "g = i // grid.group"),
    ),
    *planted(
        "host/lutra/quantize/fold.py",
        [
            "host/quantize/test_fold.py::test_heads_that_share_values_share_scales",
            "host/quantize/test_fold.py::test_folding_changes_no_logit[biases-o_proj]",
            "host/quantize/test_fold.py::test_folding_changes_no_logit[biases-q_proj]",
        ],
        (
            "the norm multiplied",
            "changed[_NORMS[stack]] = norm / scale",
            "changed[_NORMS[stack]] = norm * scale",
        ),
        (
            "biases of values left",
            'changed["v_bias"] = layer.v_bias / rows',
            'changed["v_bias"] = layer.v_bias',
        ),
        ("heads do not share", "heads.max(axis=1, keepdims=True)", "heads[:, :1]"),
    ),
    *planted(
        "host/lutra/quantize/rtn.py",
        ["host/quantize/test_rtn.py"],
        (
            "importance ignored",
            "if importance is not None and importance.any():",
            "if importance is not None and not importance.any():",
        ),
        (
            "a fourth level of ternary weights",
            "levels, n_groups = 2 if ternary",
            "levels, n_groups = 3 if ternary",
        ),
        (
            "no clipped ranges",
            "_LEAST_TERNARY_CLIP if ternary else _LEAST_CLIP[bits], _N_CLIPS)",
            "0.999, _N_CLIPS)",
        ),
    ),
    *planted(
        "host/lutra/quantize/ranges.py",
        ["host/quantize/test_rtn.py", "host/quantize/test_ranges.py"],
        (
            "ternary weights about another zero point",
            "            if not self._ternary:\n",
            "            if self._ternary:\n",
        ),
        (
            "the coarsest scale one too high",
            "SCALE_MAX = (1 << SCALE_WIDTH) - 1",
            "SCALE_MAX = 1 << SCALE_WIDTH",
        ),
        (
            "an odd number of levels for two bits alone",
            "odd=levels // 2 if levels in _ODD else 0",
            "odd=levels // 2 if levels == _ODD[0] else 0",
        ),
        (
            "squares that all count the same in C",
            "weigh=pointer(self._weigh)",
            "weigh=None",
        ),
        (
            "float64 searched in C",
            "        w.dtype == np.float32\n",
            "        w.dtype != np.float16\n",
        ),
    ),
    *planted(
        "sim/lutra_golden/model/checks.py",
        [
            f"{_DEVICE}::test_sums_that_can_pass_28_bits_are_refused",
            f"{_DEVICE}::test_sums_that_squared_relu_cannot_multiply_are_refused",
        ],
        (
            "squared ReLU takes gates of any width",
            "return (1 << (GATE_WIDTH_MAX - 1)) - 1 if squared else ACC_MAX",
            "return ACC_MAX",
        ),
        (
            "the sign of a sum takes no bit",
            "return int(round_shift(peak * model.a_peak, shift)).bit_length() + 1",
            "return int(round_shift(peak * model.a_peak, shift)).bit_length()",
        ),
        (
            "gates alone are squared",
            'squared = gate is Gate.RELU2 and name in ("gate_proj", "up_proj")',
            'squared = gate is Gate.RELU2 and name == "gate_proj"',
        ),
    ),
]
"""Faults of modules that compute tokens."""
