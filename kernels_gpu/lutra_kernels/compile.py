"""Kernels compiled without a GPU, and facts about their machine code: spills, loads, instructions.

Triton brings ``ptxas`` and the disassembler. The hot loop is the innermost loop with the most dot
products or matrix instructions in it; per weight means per weight that a thread reads.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lutra_kernels import interpreted
from lutra_kernels.jit import Kernel

__all__ = ["ARCHITECTURES", "Compiled", "compile_kernel"]

ARCHITECTURES = (80, 90, 100)
"""Compute capabilities, times ten, that every kernel is compiled for."""
_BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
_PRODUCT = ("IDP", "IMMA", "IGMMA", "UTCIMMA", "UTCQMMA")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel's machine code. ``registers`` per thread, ``stack`` and ``shared`` in bytes."""

    name: str
    arch: int
    registers: int
    stack: int
    shared: int
    num_warps: int
    sass: str

    def _opcodes(self, first: int, last: int) -> Counter[str]:
        lines = self.sass.splitlines()[first:last]
        return Counter(found[1] for line in lines if (found := _INSTRUCTION.search(line)))

    @cached_property
    def opcodes(self) -> Counter[str]:
        """Number of occurrences of each instruction in the code."""
        return self._opcodes(0, len(self.sass))

    @cached_property
    def loop(self) -> Counter[str]:
        """Instructions of the hot loop; none where there is no loop."""
        labels: dict[str, int] = {}
        best = Counter[str]()
        for i, line in enumerate(self.sass.splitlines()):
            if found := _LABEL.match(line.strip()):
                labels[found[1]] = i
            elif (found := _BRANCH.search(line)) and found[1] in labels:
                body = self._opcodes(labels[found[1]], i + 1)
                # of nested loops the inner ones come first and have the products
                if _count(body, *_PRODUCT) > _count(best, *_PRODUCT):
                    best = body
        return best

    def count(self, *prefixes: str, loop: bool = False) -> int:
        """Instructions whose name begins with one of ``prefixes``, in the loop or in all."""
        return _count(self.loop if loop else self.opcodes, *prefixes)

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count("LDL", "STL")

    def per_weight(self, weights: float) -> float:
        """Instructions of the hot loop for each of the weights that a thread takes in it."""
        return self.loop.total() / weights

    def dot_weights(self, tokens: int) -> float:
        """Weights of a thread in the hot loop, by its dp4a, four products each."""
        return 4 * self.count("IDP", loop=True) / tokens

    def matrix_weights(self, tokens: int) -> float:
        """Weights of a thread in the hot loop, by its matrix instructions, whose left operand they
        are: 64 x 32 in 128 threads (sm_90), or 16 x 32 in 32, there once for every 8 tokens."""
        per_warp = 16 * self.count("IMMA", loop=True) / (tokens / 8)
        return 16 * self.count("IGMMA", loop=True) + per_warp


def _count(opcodes: Mapping[str, int], *prefixes: str) -> int:
    return sum(n for name, n in opcodes.items() if name.startswith(prefixes))


def _tool(name: str, *arguments: str) -> str:
    command = [str(_BIN / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_kernel(
    kernel: Kernel,
    arguments: Mapping[str, str],
    constants: Mapping[str, object],
    *,
    arch: int,
    num_warps: int = 4,
    num_stages: int = 3,
    unaligned: Sequence[str] = (),
) -> Compiled:
    """Compile ``kernel`` for one architecture.

    ``arguments`` are types as Triton writes them (``*i8``, ``i32``); pointers and integers are
    taken as multiples of 16, as a launch would find them, but for those in ``unaligned``.
    """
    if interpreted():
        raise RuntimeError("kernels cannot be compiled in a process that interprets them")
    names = list(kernel.arg_names)
    signature = {name: arguments.get(name, "constexpr") for name in names}
    missing = [n for n, kind in signature.items() if kind == "constexpr" and n not in constants]
    if missing:
        raise ValueError(f"arguments or constants must have {', '.join(missing)}")
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name in arguments and name not in unaligned
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=hints)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    done = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(done.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", str(cubin))
        sass = _tool("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {usage}")
    return Compiled(
        name=str(done.metadata.name),
        arch=arch,
        registers=int(found[1]),
        stack=int(found[2]),
        shared=int(done.metadata.shared),
        num_warps=num_warps,
        sass=sass,
    )
