"""Faults in the cells of the hardware that primitives make, and in the twins of these."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

# benches of the cells as primitives
_TABLES = ["hw/fabric/test_tables.py::test_bench[(3, 5, 11)-xcup]"]
_SUMS = ["hw/fabric/test_sums.py::test_bench[(4, 6, 11)-xcup]"]
_ACCUMULATE = ["hw/fabric/test_accumulate.py::test_bench[(24, 16)-xcup]"]
_DSP48E2 = "sim/lutra_sim/rtl/primitives/dsp48e2.v"
_TWINS = "sim/rtl/primitives/test_twins.py"

MUTANTS = [
    *planted(
        "hw/lutra_hw/fabric/tables.py",
        ["hw/fabric/test_tables.py::test_reads_what_was_written"],
        (
            "all readers ask what the first does",
            "r_port.addr.eq(self.index[t][n])",
            "r_port.addr.eq(self.index[t][0])",
        ),
        ("always written", "w_port.en.eq(self.en)", "w_port.en.eq(1)"),
        (
            "one value for all tables",
            "w_port.data.eq(self.values[t])",
            "w_port.data.eq(self.values[0])",
        ),
    ),
    *planted(
        "hw/lutra_hw/fabric/sums.py",
        ["hw/fabric/test_sums.py::test_one_sum_per_cycle"],
        ("an operand counted twice", "b.eq(self.i[k + 1][row])", "b.eq(self.i[k][row])"),
        ("a carry lost", "added.eq(total + (a + b))", "added.eq(total + (a + b)[: self.width])"),
        (
            "rows of an operand swapped",
            "a.eq(self.i[k][row])",
            "a.eq(self.i[k][self.n_rows - 1 - row])",
        ),
    ),
    *planted(
        "hw/lutra_hw/fabric/accumulate.py",
        ["hw/fabric/test_accumulate.py::test_accumulates"],
        (
            "first comes after double",
            "Mux(self.first, 0, Mux(",
            "Mux(self.first & ~self.double, 0, Mux(",
        ),
        ("doubled once too often", "self.acc << 1", "self.acc << 2"),
        ("the sign of what is added lost", "former + self.i)", "former + self.i.as_unsigned())"),
    ),
    *planted(
        "hw/lutra_hw/fabric/tables.py",
        _TABLES,
        (
            "a port that reads nothing writes elsewhere",
            'f"i_ADDR{port}": self.entry',
            'f"i_ADDR{port}": Const(0, ENTRY_WIDTH)',
        ),
        (
            "all readers of a RAM ask what the first does",
            '"i_ADDR{port}"] = self.index[t][n]',
            '"i_ADDR{port}"] = self.index[t][0]',
        ),
        (
            "bits of a value written one place off",
            "[bit : bit + _PORT_WIDTH]",
            "[bit + 1 : bit + 1 + _PORT_WIDTH]",
        ),
    ),
    *planted(
        "hw/lutra_hw/fabric/sums.py",
        _SUMS,
        ("a slice forgets those before it", "z = _Z_PCIN if k else _Z_ZERO", "z = _Z_ZERO"),
        ("no register before C", "p_CREG=1", "p_CREG=0"),
        ("lanes one bit too narrow", "LANE_WIDTH - self.width)", "LANE_WIDTH - 1 - self.width)"),
    ),
    *planted(
        "hw/lutra_hw/fabric/accumulate.py",
        _ACCUMULATE,
        (
            "no sign extension in the chain",
            "self.i[min(k, self.i_width - 1)]",
            "self.i[k] if k < self.i_width else Const(0, 1)",
        ),
        ("the carry of a position too early", "carry = carries[-1]", "carry = carries[-2]"),
        (
            "doubled though it begins anew",
            "0 if first else below if double else acc",
            "below if double else 0 if first else acc",
        ),
    ),
    *planted(
        "sim/lutra_sim/rtl/primitives/lut6_2.v",
        _ACCUMULATE,
        ("the lower output sees the sixth input", "INIT[{1'b0, index}]", "INIT[{I5, index}]"),
    ),
    *planted(
        "sim/lutra_sim/rtl/primitives/carry8.v",
        _ACCUMULATE,
        ("no carry comes in", "+ {8'd0, CI}", ""),
    ),
    *planted(
        "sim/lutra_sim/rtl/primitives/ram32m16.v",
        _TABLES,
        ("port H written with the data of G", "<= DIH;", "<= DIG;"),
        ("port G read at the address of H", "g[{ADDRG,", "g[{ADDRH,"),
    ),
    *planted(
        _DSP48E2,
        [f"{_TWINS}::test_dsp48e2_adds"],
        ("PCIN whatever OPMODE says", "(cascaded ? PCIN : 48'd0)", "PCIN"),
        ("C without its register", "p <= ab + c +", "p <= ab + C +"),
    ),
    *planted(
        _DSP48E2,
        [f"{_TWINS}::test_dsp48e2_refuses_modes[alumode-3]"],
        ("any ALUMODE taken", " && ALUMODE == 0", ""),
    ),
    *planted(
        _DSP48E2,
        [f"{_TWINS}::test_dsp48e2_refuses_to_stop[CEA2-0]"],
        ("a slice that stops taken", "CEA2 && CEB2", "CEB2"),
    ),
    *planted(
        _DSP48E2,
        [f"{_TWINS}::test_dsp48e2_refuses_parameters[USE_SIMD-TWO24]"],
        ("a wider SIMD mode taken", ' && USE_SIMD == "ONE48"', ""),
    ),
]
