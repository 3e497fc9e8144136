"""Faults in the C library of the device cpu: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

MUTANTS = [
    *planted(
        "host/lutra/devices/cpu/csrc/scale.h",
        ["host/devices/cpu/test_device.py"],
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
        ["host/devices/cpu/test_device.py"],
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
        ("epsilon once for a head", "(int64_t)head_dim * step->eps", "(int64_t)step->eps"),
    ),
    *planted(
        "host/lutra/devices/cpu/csrc/model.c",
        ["host/devices/cpu/test_device.py", "host/devices/cpu/test_sessions.py"],
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
]
"""Faults of modules that compute tokens."""
