"""Faults in estimates of speed: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

MUTANTS = [
    *planted(
        "host/lutra/estimate/speed.py",
        ["host/estimate/test_speed.py"],
        (
            "the first pass of a prompt has the head",
            "int(first + most >= prompt)",
            "int(first == 0)",
        ),
        (
            "a token is decoded behind one position more",
            "        passes(at, n, n, n)\n",
            "        passes(at + 1, n, n, n)\n",
        ),
        (
            "the first token is that of one prompt",
            "self.prefill.seconds * self.sequences",
            "self.prefill.seconds",
        ),
        (
            "boards with the memory of the simulated accelerator",
            "NANO_MEMORY if board is None else board_timing(board, config)",
            "NANO_MEMORY",
        ),
        (
            "keys and values of one sequence",
            "config.kv_layer_bytes * sequences",
            "config.kv_layer_bytes",
        ),
        ("a rotary table of half of its bytes", "2 * model.context * config.head_dim", "0"),
        (
            "weights late in one pass count as late in all",
            "before.waits and part.waits",
            "before.waits or part.waits",
        ),
        (
            "one sequence too many is advised",
            "left * sequences // memory.kv",
            "left * sequences // memory.kv + 1",
        ),
    ),
    *planted(
        "host/lutra/estimate/outline.py",
        ["host/estimate/test_outline.py"],
        (
            "Qwen3 without norms of heads",
            "architecture == QWEN2, architecture == QWEN3",
            "architecture == QWEN2, False",
        ),
        ("a head of one digit", "head[:, :1] = HEAD_MAX", "head[:, :1] = 1"),
        ("sums with the widest scales left out", "_SCALE_MAX * middle * depth", "middle * depth"),
    ),
    *planted(
        "host/lutra/estimate/points.py",
        ["host/estimate/test_points.py"],
        (
            "the memory of a board left out",
            "if board is not None:\n            return board_timing",
            "if board is None:\n            return board_timing",
        ),
        ("memory that was slowed down keeps up", "rate = 1, self.beat_cycles", "rate = 1, 1"),
        (
            "errors with the sign turned",
            "self.estimated / self.simulated - 1",
            "1 - self.estimated / self.simulated",
        ),
        (
            "errors that cancel each other out",
            "abs(record.error) for name, record in records()",
            "record.error for name, record in records()",
        ),
        (
            "a prompt's tokens count as sequences",
            "            n_sequences=self.sequences,",
            "            n_sequences=self.n_tokens,",
        ),
    ),
    *planted(
        "host/lutra/estimate/plot.py",
        ["host/estimate/test_plot.py"],
        (
            "bytes per multiply-accumulate",
            "intensity=part.n_macs / part.n_bytes",
            "intensity=part.n_bytes / part.n_macs",
        ),
        (
            "a rate per cycle",
            "macs_per_s=part.n_macs * phase.clock_hz / part.cycles",
            "macs_per_s=part.n_macs / part.cycles",
        ),
        (
            "decode drawn as prefill",
            '"decode": found.decode}',
            '"decode": found.prefill}',
        ),
    ),
    *planted(
        "sim/lutra_golden/timing/decode.py",
        ["golden/timing/test_decode.py"],
        (
            "a part counted once for all layers",
            "cycles, n_bytes = cycles + n * taken, ",
            "cycles, n_bytes = cycles + taken, ",
        ),
        (
            "the engine's wait not seen",
            "waits=n_words * word_cycles > engine",
            "waits=n_words * word_cycles < engine",
        ),
        (
            "bytes of beats that are narrower",
            "words * config.word_bytes,\n            n_macs",
            "words * config.kv_row_bytes,\n            n_macs",
        ),
        (
            "keys that come late are not waited for",
            "max(unit, tail + read + others)",
            "unit",
        ),
        (
            "tokens of several sequences see the keys of one",
            "_UNIT_START + n_sequences * max",
            "_UNIT_START + max",
        ),
        ("writes that nothing waits for", "_WRITE_END + memory.mean_write_latency", "0.0"),
        ("half of a residual stream", "tables = 2 if inside or", "tables = 1 if inside or"),
        (
            "an operation starts as fast behind another unit",
            "else _VECTOR_START\n        n = ",
            "else _OWN_START\n        n = ",
        ),
    ),
    *planted(
        "sim/lutra_golden/timing/weights.py",
        ["golden/timing/test_weights.py"],
        (
            "a ring without a FIFO before it",
            "weight_buffer_words + port.ahead_beats / per_word",
            "weight_buffer_words",
        ),
        (
            "refresh takes no time",
            "        self.word_cycles /= memory.refreshed\n",
            "",
        ),
        (
            "a full ring goes on at once",
            "late = self._resume if self.ahead >= self._room else 0.0",
            "late = 0.0",
        ),
        (
            "words that have come are waited for",
            "max(0.0, n_words - self.ahead) * self.word_cycles",
            "n_words * self.word_cycles",
        ),
        (
            "words come twice as fast while others work",
            "self.ahead + cycles / self.word_cycles)",
            "self.ahead + 2 * cycles / self.word_cycles)",
        ),
        (
            "more words than there is room for",
            "self.ahead = min(self._room, max(0.0, left))",
            "self.ahead = max(0.0, left)",
        ),
    ),
]
