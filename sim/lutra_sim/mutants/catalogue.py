"""All faults by package, and those that no test notices yet."""

from collections.abc import Mapping, Sequence

from lutra_sim.mutants import (
    boards,
    cpu,
    cpu_targets,
    devices,
    estimates,
    golden,
    golden_control,
    host,
    hw,
    hw_fabric,
    hw_units,
    kernels,
    kernels_runner,
    packing,
    plans,
    remote,
    xrt,
)
from lutra_sim.mutants.mutant import Mutant

__all__ = ["MUTANTS", "PACKAGES", "SURVIVORS"]

PACKAGES: Mapping[str, Sequence[Mutant]] = {
    "hw": (*hw.MUTANTS, *hw_units.MUTANTS, *hw_fabric.MUTANTS, *xrt.HW, *boards.HW),
    "golden": (*golden.MUTANTS, *golden_control.MUTANTS, *boards.GOLDEN),
    "host": (
        *host.MUTANTS,
        *packing.MUTANTS,
        *plans.MUTANTS,
        *estimates.MUTANTS,
        *remote.MUTANTS,
        *devices.MUTANTS,
        *xrt.HOST,
        *boards.HOST,
    ),
    "cpu": (*cpu.MUTANTS, *cpu_targets.MUTANTS),
    "kernels": (*kernels.MUTANTS, *kernels_runner.MUTANTS),
}
"""The faults of each package."""
MUTANTS = [mutant for mutants in PACKAGES.values() for mutant in mutants]
"""Faults of many kinds, in every kind of block."""
SURVIVORS: Mapping[str, str] = {}
"""Names of faults that the tests do not notice, with the reason."""
