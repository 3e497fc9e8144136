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
            "        passes(at, n, n)\n",
            "        passes(at + 1, n, n)\n",
        ),
        (
            "the first token is that of one prompt",
            "self.prefill.seconds * self.sequences",
            "self.prefill.seconds",
        ),
        (
            "ports of boards as wide as the configuration's",
            "1 if board is None else board_timing(board, config).weight_rate[1]",
            "1",
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
            "if board is not None:",
            "if board is None and beat == 0:",
        ),
        ("memory that was slowed down keeps up", "beat = self.beat_cycles\n", "beat = 1\n"),
        (
            "errors with the sign turned",
            "self.estimated() / self.cycles - 1",
            "1 - self.estimated() / self.cycles",
        ),
    ),
    *planted(
        "sim/lutra_golden/timing/decode.py",
        ["golden/timing/test_decode.py"],
        (
            "a part counted once for all layers",
            "part.cycles * part.times for part in parts",
            "part.cycles for part in parts",
        ),
        ("the engine's wait not seen", "waits=port > engine", "waits=port < engine"),
        (
            "bytes of beats that are narrower",
            "n_bytes=read * config.word_bytes",
            "n_bytes=read * config.kv_row_bytes",
        ),
    ),
]
