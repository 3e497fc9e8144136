"""Faults in the golden models of runs, ports and configurations."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

_GOLDEN = "sim/lutra_golden"

MUTANTS = [
    *planted(
        f"{_GOLDEN}/axi/packed.py",
        ["golden/axi/test_packed.py"],
        (
            "words that fill no beat need none",
            "return -(-n_words * self.period_beats // self.period_words)",
            "return n_words * self.period_beats // self.period_words",
        ),
        (
            "periods that are no power of two",
            "1 < period <= _PERIOD_MAX and not period & (period - 1)",
            "1 < period <= _PERIOD_MAX",
        ),
        (
            "a word that ends with a beat ends in the next one",
            "return (beat, rest) if rest else (beat - 1, self.period_words)",
            "return beat, rest",
        ),
    ),
    *planted(
        f"{_GOLDEN}/axi/stripe.py",
        ["golden/axi/test_stripe.py"],
        (
            "lanes as far apart as their beats together",
            "stride = whole.count * params.beat_bytes",
            "stride = whole.count * params.whole_bytes",
        ),
        (
            "lanes of beats that lie side by side in memory",
            "return beats.transpose(1, 0, 2).reshape(-1)",
            "return beats.reshape(-1)",
        ),
        (
            "a stream of a whole lane after the other",
            "return lanes.transpose(1, 0, 2).reshape(-1)",
            "return lanes.reshape(-1)",
        ),
    ),
    *planted(
        f"{_GOLDEN}/axi/width.py",
        ["golden/axi/test_width.py"],
        (
            "the beat that a transfer ends in not counted",
            "end = -(-(words.addr + words.count * params.word_bytes) // params.beat_bytes)",
            "end = (words.addr + words.count * params.word_bytes) // params.beat_bytes",
        ),
        (
            "words from the beginning of their beat",
            "skipped = 0 if params.narrows else words.addr % params.beat_bytes",
            "skipped = 0",
        ),
        (
            "strobes of the last word alone",
            "strobes |= strobe << at",
            "strobes = strobe << at",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/ap_ctrl.py",
        ["golden/control/test_ap_ctrl.py"],
        ("a stale answer counts", "if n_over and not self._stale:", "if n_over:"),
        (
            "an end of two is one",
            "self._finish(n_over)",
            "self._finish(1)",
        ),
        (
            "a refusal before those that run",
            "self._has_room and not self.outstanding",
            "self._has_room",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/blocks.py",
        ["golden/control/test_blocks.py"],
        (
            "a value of one bit more",
            "if not 0 <= value < 1 << word.width:",
            "if not 0 <= value <= 1 << word.width:",
        ),
        (
            "bits beyond a value's width read",
            "& ((1 << word.width) - 1)",
            "& ((1 << WORD_WIDTH * word.count) - 1)",
        ),
        (
            "words with the high byte first",
            'return np.array(words, "<u4")',
            'return np.array(words, ">u4")',
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/check.py",
        ["golden/control/test_check.py", "golden/control/test_descriptor.py"],
        (
            "room for the last token that is made, too",
            "max(n_greedy - 1, 0)",
            "n_greedy",
        ),
        (
            "logits of the last sequence alone",
            "first_without = tile[0].tokens.stop if",
            "first_without = tile[-1].tokens.stop if",
        ),
        (
            "tables as aligned as weights",
            '"WEIGHT_BASE": max(load, weights),',
            '"WEIGHT_BASE": weights,',
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/checksum.py",
        ["golden/control/test_checksum.py"],
        (
            "the bit that wraps is lost",
            "words = (words << np.uint64(1)) ^ (wrapped * np.uint64(CHECKSUM_TAPS))",
            "words = words << np.uint64(1)",
        ),
        (
            "a zero behind an odd number of words",
            "words = np.concatenate([np.zeros(1, np.uint64), words])",
            "words = np.concatenate([words, np.zeros(1, np.uint64)])",
        ),
        (
            "pairs of pairs multiplied as pairs",
            "factor = int(_product(np.array([factor], np.uint64), factor)[0])",
            "factor = 2",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/chunks.py",
        ["golden/control/test_chunks.py"],
        (
            "a chunk of more tokens than are left",
            "count = min(entry.n_tokens or left, left)",
            "count = entry.n_tokens or left",
        ),
        ("a chunk of no tokens behind the last", "if first == n_tokens:", "if first > n_tokens:"),
        (
            "all positions behind the tokens' bits",
            "chunk & (1 << POSITION_WIDTH) - 1,",
            "chunk & (1 << POSITION_WIDTH + TOKENS_WIDTH) - 1,",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/descriptor.py",
        ["golden/control/test_descriptor.py"],
        (
            "a line of zeros behind whole lines",
            "return data + bytes(-len(data) % line)",
            "return data + bytes(line - len(data) % line)",
        ),
        (
            "words that must be zero may be anything",
            "        and pack(HEADER, HEADER_BYTES, header) == data\n",
            "",
        ),
        (
            "chunks for a part of the tokens",
            "if len(table) != len(descriptor.chunks) or table[-1].tokens.stop != n:",
            "if len(table) != len(descriptor.chunks):",
        ),
        ("one end token more than there is room for", "> ENDS_MAX", "> ENDS_MAX + 1"),
    ),
    *planted(
        f"{_GOLDEN}/control/failure.py",
        ["golden/control/test_failure.py"],
        (
            "weights belong to attention",
            "Purpose.WEIGHTS: Unit.MATMUL,",
            "Purpose.WEIGHTS: Unit.ATTENTION,",
        ),
        (
            "parts read from the next bit on",
            "name: word >> first & ((1 << width) - 1)",
            "name: word >> (first + 1) & ((1 << width) - 1)",
        ),
        (
            "a purpose that there is none of",
            "self.code == ErrorCode.BUS and self.purpose < len(Purpose)",
            "self.code == ErrorCode.BUS",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/interpreter.py",
        ["golden/control/test_descriptor_runs.py"],
        (
            "a token that is made stands where the last one was",
            "ChunkEntry(chunk.position + chunk.n_tokens, 1, chunk.kv_base)",
            "ChunkEntry(chunk.position + chunk.n_tokens - 1, 1, chunk.kv_base)",
        ),
        (
            "the token after a chunk's first fed back",
            "self.argmax[chunk.tokens.stop - 1]",
            "self.argmax[chunk.tokens.start]",
        ),
        (
            "all sequences must end",
            "if not set(made).isdisjoint(descriptor.ends):",
            "if set(made) <= set(descriptor.ends):",
        ),
        (
            "saturation of the last pass alone",
            "result.status |= STATUS_SATURATED * self.saturated",
            "result.status = STATUS_SATURATED * self.saturated",
        ),
        (
            "results count before they are written",
            "self.write_results(address, pairs)\n        result.argmax += argmax\n",
            "result.argmax += argmax\n        self.write_results(address, pairs)\n",
        ),
        (
            "results of a later pass lie upon the first",
            "+ RESULT_BYTES + 8 * len(result.argmax)",
            "+ RESULT_BYTES",
        ),
        (
            "the descriptor that came last is next",
            "self.run_descriptor(self.doorbells.popleft())",
            "self.run_descriptor(self.doorbells.pop())",
        ),
        (
            "the descriptor that runs takes a place of the queue",
            "len(self.doorbells) <= QUEUE_DEPTH",
            "len(self.doorbells) < QUEUE_DEPTH",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/registers.py",
        ["golden/control/test_registers.py", "golden/control/test_failure.py"],
        (
            "two arrays in one place",
            '"CHUNK_KV": Register(\n        0x600,',
            '"CHUNK_KV": Register(\n        0x5C0,',
        ),
        ("a purpose of two bits", '"purpose": (4, 3,', '"purpose": (4, 2,'),
        (
            "chunks without their tokens",
            "        POSITION_WIDTH + TOKENS_WIDTH,\n    ),",
            "        POSITION_WIDTH,\n    ),",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/result.py",
        ["golden/control/test_result.py"],
        (
            "arg-max and scale swapped where they are read",
            "argmax=words[::2],\n            scale=words[1::2],",
            "argmax=words[1::2],\n            scale=words[::2],",
        ),
        (
            "counters of one word",
            "Word(_COUNTERS_AT + 2 * i,",
            "Word(_COUNTERS_AT + i,",
        ),
        (
            "the last line cut off",
            "return -(-(RESULT_BYTES + 8 * n_results) // line) * line",
            "return (RESULT_BYTES + 8 * n_results) // line * line",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/watchdog.py",
        ["golden/control/test_watchdog.py"],
        (
            "a limit of 0 expires at once",
            "expired = 0 < limit == quiet",
            "expired = limit == quiet",
        ),
        (
            "expires in every cycle from then on",
            "quiet = 0 if moved or expired else quiet + 1",
            "quiet = 0 if moved else quiet + (not expired)",
        ),
        ("a cycle late", "expired = 0 < limit == quiet", "expired = 0 < limit < quiet"),
    ),
    *planted(
        f"{_GOLDEN}/core/config.py",
        ["golden/core/test_config.py"],
        (
            "scales where values are",
            "return 2 * self.n_kv_heads * self.kv_head_bytes",
            "return self.n_kv_heads * self.kv_head_bytes",
        ),
        (
            "scales of keys alone",
            "return 1 << (8 * self.n_kv_heads - 1).bit_length()",
            "return 1 << (4 * self.n_kv_heads - 1).bit_length()",
        ),
        (
            "a data word need not hold a position's scales",
            "return max(INSTRUCTION_BYTES, self.head_dim, self.kv_scale_bytes)",
            "return max(INSTRUCTION_BYTES, self.head_dim)",
        ),
        (
            "ports do not count in the fingerprint",
            'del content["name"], content["clock_hz"]',
            'del content["name"], content["clock_hz"], content["ports"]',
        ),
    ),
    *planted(
        f"{_GOLDEN}/core/configs.py",
        [
            "host/compile/test_configure.py::test_offsets_of_groups",
            "host/compile/test_configure.py::test_a_shift_that_groups_exceed",
        ],
        (
            "offsets as wide as the narrowest",
            "needed = max(needed, bits_signed(offsets) + max(0, shift_min - linear.shift))",
            "needed = max(needed, 16)",
        ),
        (
            "scales of matrices that shift by less as narrow as others",
            "linear.source.scale_bits + max(0, shift_min - linear.shift)",
            "linear.source.scale_bits",
        ),
    ),
    *planted(
        f"{_GOLDEN}/core/configs.py",
        ["host/compile/test_configure.py::test_offsets_in_two_levels"],
        (
            "offsets in two levels taken for none",
            "            source = source.one_level()",
            "            pass",
        ),
    ),
    *planted(
        f"{_GOLDEN}/control/interpreter.py",
        ["system/test_groups.py::test_programs_are_the_golden_device[short-groups-mac]"],
        (
            "groups of attention's output that reach into the next head",
            "groups=self.config.attention_groups",
            "groups=self.config.matmul.a_groups",
        ),
    ),
    *planted(
        f"{_GOLDEN}/core/configs.py",
        ["system/test_vocabulary.py::test_a_configuration_is_measured_for_the_head"],
        (
            "groups of the head not looked at",
            "sizes.append(model.vocabulary.head.stored.group or 0)",
            "sizes.append(0)",
        ),
        (
            "offsets of the head forgotten",
            "return model.offsets or (coded is not None and coded.head.stored.has_offsets)",
            "return model.offsets",
        ),
    ),
    *planted(
        f"{_GOLDEN}/timing/decode.py",
        ["system/test_vocabulary.py::test_fewer_bits_of_the_head_take_fewer_cycles"],
        (
            "a head in codes counted as five trits",
            "if model.vocabulary is not None:",
            "if model.vocabulary is not None and model.biased:",
        ),
    ),
    *planted(
        f"{_GOLDEN}/core/configs.py",
        ["golden/core/test_configs.py"],
        (
            "words of two beats",
            "word_bits > _WORD_BITS:",
            "word_bits > 2 * _WORD_BITS:",
        ),
    ),
    *planted(
        f"{_GOLDEN}/core/configs.py",
        [
            "host/compile/test_configure.py::test_buffers_hold_what_a_model_needs",
            "host/compile/test_configure.py::test_channel_wise_weights_of_great_depth",
        ],
        (
            "a sum's sign takes no bit",
            "needed = max(needed, most.bit_length() + 1)",
            "needed = max(needed, most.bit_length())",
        ),
        (
            "accumulators of queries and keys alone",
            "rows = max(q_out + 2 * kv_out,",
            "rows = max(q_out + kv_out,",
        ),
        (
            "biases are no parameters",
            "param_words=_power_of_two(4 * max(*depths, rows * model.biased) // LANES),",
            "param_words=_power_of_two(4 * max(*depths) // LANES),",
        ),
        (
            "gates alone are multiplied",
            "for linear in (layer.gate_proj, layer.up_proj):",
            "for linear in (layer.gate_proj,):",
        ),
    ),
    *planted(
        f"{_GOLDEN}/core/ports.py",
        ["golden/core/test_ports.py"],
        (
            "two ports for one purpose",
            "if not n or purpose is not Purpose.WEIGHTS:",
            "if not n:",
        ),
        (
            "lanes of two widths",
            "if len(set(values)) > 1:",
            "if len(set(values)) > 2:",
        ),
        (
            "bursts of more beats than AXI4 has",
            "maximum = min(BOUNDARY_BYTES, BEATS_MAX * self.width // 8)",
            "maximum = BOUNDARY_BYTES",
        ),
        (
            "writes among what is read",
            "each for each in Purpose if each in self.purposes and each != Purpose.WRITE",
            "each for each in Purpose if each in self.purposes",
        ),
    ),
    *planted(
        f"{_GOLDEN}/matmul/format.py",
        ["golden/matmul/test_format.py"],
        (
            "the largest activation twice as large",
            "return (1 << (self.a_bits - 1)) - 1",
            "return (1 << self.a_bits) - 1",
        ),
        ("ternary codes of one bit", "w_bits=2 if ternary else", "w_bits=1 if ternary else"),
        (
            "ternary weights of any bits",
            "if self.ternary and self.w_bits != 2:",
            "if self.ternary and self.w_bits > 2:",
        ),
    ),
    *planted(
        f"{_GOLDEN}/model/packed.py",
        ["golden/model/test_stored.py"],
        (
            "the depth of codes taken for their rows",
            "return source.n_rows if isinstance(source, StoredWeights) else len(source.codes)",
            "return source.n_rows if isinstance(source, StoredWeights) else source.codes.shape[1]",
        ),
        (
            "rows taken for the depth",
            "return source.depth if isinstance(source, StoredWeights) else source.codes.shape[1]",
            "return source.n_rows if isinstance(source, StoredWeights) else source.codes.shape[1]",
        ),
        (
            "half of the peak",
            "return self.weights.peak if self.known_peak is None else self.known_peak",
            "return self.weights.peak // 2 if self.known_peak is None else self.known_peak",
        ),
        (
            "the head's rows for an embedding of its own",
            "rows = self.head.stored.rows(slice(n))",
            "rows = self.embedding.stored.rows(slice(n))",
        ),
    ),
    *planted(
        f"{_GOLDEN}/model/shapes.py",
        [
            "host/packed/test_file.py::test_a_round_trip[llama]",
            "host/packed/test_file.py::test_a_round_trip[grouped]",
        ],
        ("queries as wide as keys", '"q_proj": (q, hidden),', '"q_proj": (kv, hidden),'),
        ("outputs the other way", '"o_proj": (hidden, q),', '"o_proj": (q, hidden),'),
        (
            "down as up",
            '"down_proj": (hidden, intermediate),',
            '"down_proj": (intermediate, hidden),',
        ),
    ),
]
"""Faults of what runs are described by, and of sizes that everything else takes from there."""
