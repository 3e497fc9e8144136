"""All faults by package, and those that no test notices yet."""

from collections.abc import Mapping, Sequence

from lutra_sim.mutants import cpu, golden, host, hw, kernels
from lutra_sim.mutants.mutant import Mutant

__all__ = ["MUTANTS", "PACKAGES", "SURVIVORS"]

PACKAGES: Mapping[str, Sequence[Mutant]] = {
    "hw": hw.MUTANTS,
    "golden": golden.MUTANTS,
    "host": host.MUTANTS,
    "cpu": cpu.MUTANTS,
    "kernels": kernels.MUTANTS,
}
"""The faults of each package."""
MUTANTS = [mutant for mutants in PACKAGES.values() for mutant in mutants]
"""Faults of many kinds, in every kind of block."""
SURVIVORS: Mapping[str, str] = {}
"""Names of faults that the tests do not notice, with the reason."""
