"""Which cell a bench is for, and in which fabric."""

from dataclasses import dataclass

from lutra_golden.core.fabric import Fabric
from lutra_hw.fabric.accumulate import Accumulate
from lutra_hw.fabric.sums import PackedSum
from lutra_hw.fabric.tables import LookupTables

__all__ = ["AccumulateCell", "SumCell", "TablesCell"]


@dataclass(frozen=True, kw_only=True)
class TablesCell:
    """Parameters for :mod:`lutra_sim.bench.fabric.tb_tables`."""

    fabric: Fabric
    n_tables: int
    n_readers: int
    width: int

    def component(self) -> LookupTables:
        """The cell."""
        return LookupTables(self.n_tables, self.n_readers, self.width, self.fabric)


@dataclass(frozen=True, kw_only=True)
class SumCell:
    """Parameters for :mod:`lutra_sim.bench.fabric.tb_sums`."""

    fabric: Fabric
    n_rows: int
    n_operands: int
    width: int

    def component(self) -> PackedSum:
        """The cell."""
        return PackedSum(self.n_rows, self.n_operands, self.width, self.fabric)


@dataclass(frozen=True, kw_only=True)
class AccumulateCell:
    """Parameters for :mod:`lutra_sim.bench.fabric.tb_accumulate`."""

    fabric: Fabric
    width: int
    i_width: int

    def component(self) -> Accumulate:
        """The cell."""
        return Accumulate(self.width, self.i_width, self.fabric)
