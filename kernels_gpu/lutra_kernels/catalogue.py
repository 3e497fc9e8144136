"""Kernels as launched on real shapes, compiled without a GPU, and their limits.

Each topic lists its own in ``<topic>/variants.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

from lutra_kernels.compile import Compiled, compile_kernel
from lutra_kernels.jit import Kernel

__all__ = ["TOPICS", "Variant", "faults", "variants"]

TOPICS = ("matmul", "vector", "attention")
"""Folders that have a module ``variants`` with a tuple ``VARIANTS``."""
WIDE_LOADS = ("LDG.E.128", "LDG.E.EF.128", "LDGSTS.E.BYPASS.128", "LDGSTS.E.BYPASS.EF.128")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kernel with the types of its arguments and its constants.

    ``max_registers`` per thread; ``max_per_weight`` instructions of the hot loop on sm_90 for each
    weight of a thread, where ``tokens`` share it; ``elements`` are its weights (or elements of a KV
    cache) where products do not tell how many. ``matrix``: has matrix instructions. ``wide``:
    loads 16 bytes at once. ``quick``: compiled in the quick tests.
    """

    name: str
    kernel: Kernel
    arguments: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 3
    unaligned: Sequence[str] = field(default=())
    tokens: int = 1
    max_registers: int = 255
    max_per_weight: float | None = None
    elements: float | None = None
    matrix: bool = False
    wide: bool = True
    quick: bool = False

    def compile(self, arch: int) -> Compiled:
        """This variant's machine code."""
        return compile_kernel(
            self.kernel,
            self.arguments,
            self.constants,
            arch=arch,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            unaligned=self.unaligned,
        )

    def per_weight(self, code: Compiled) -> float | None:
        """Instructions of the hot loop for each weight; None where weights cannot be counted."""
        weights = self.elements
        if weights is None and self.matrix:
            weights = code.matrix_weights(self.tokens)
        elif weights is None:
            weights = code.dot_weights(self.tokens)
        return code.per_weight(weights) if weights else None


def variants() -> list[Variant]:
    """All of every topic."""
    modules = [import_module(f"lutra_kernels.{topic}.variants") for topic in TOPICS]
    return [variant for module in modules for variant in module.VARIANTS]


def faults(variant: Variant, code: Compiled) -> list[str]:
    """Faults of the machine code, such as spills or missing instructions."""
    found: list[str] = []
    if code.spills or code.stack:
        found.append(f"{code.spills} spills, {code.stack} bytes of stack")
    if code.registers > variant.max_registers:
        found.append(f"{code.registers} registers, more than {variant.max_registers}")
    if variant.matrix and not code.count("IMMA", "IGMMA", "UTC"):
        found.append("no integer matrix instruction")
    if variant.wide and not code.count(*WIDE_LOADS):
        found.append("no load of 128 bits")
    cost = variant.per_weight(code)
    if code.arch == 90 and variant.max_per_weight is not None:
        if cost is None:
            found.append("no hot loop whose weights can be counted")
        elif cost > variant.max_per_weight:
            found.append(f"{cost:.2f} instructions per weight, more than {variant.max_per_weight}")
    return found
