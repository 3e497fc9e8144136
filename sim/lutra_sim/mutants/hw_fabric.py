"""Faults in the cells of the hardware that an FPGA's primitives make."""

from lutra_sim.mutants.mutant import planted

__all__ = ["MUTANTS"]

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
]
