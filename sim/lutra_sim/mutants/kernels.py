"""Faults in the Triton kernels, which are interpreted: the tests beside each must notice them."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

MUTANTS = [
    *planted(
        "kernels_gpu/lutra_kernels/arith/fixed.py",
        ["kernels_gpu/arith/test_fixed.py"],
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
]
"""Faults of modules that compute tokens."""
