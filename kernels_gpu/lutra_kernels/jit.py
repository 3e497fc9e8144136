"""``triton.jit``, with inline assembly emulated where the interpreter runs.

Kernel modules take ``jit`` from here and ``triton.language`` as ``tl`` from Triton itself, which
wants to see that name among a kernel's globals.
"""

from collections.abc import Callable
from typing import Protocol, cast

import triton
import triton.language as tl

from lutra_kernels.arrays import INTERPRETED
from lutra_kernels.layout import cdiv

__all__ = ["Kernel", "cdiv", "jit", "jit_general"]

if INTERPRETED:
    from lutra_kernels.interpret import calls, inline_asm

    inline_asm.install()
    calls.install()


class Kernel(Protocol):
    """Result of ``jit``: launched with a grid, or called within other kernels."""

    arg_names: list[str]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...

    def __call__(self, *args: object, **kwargs: object) -> tl.tensor: ...


def jit(function: Callable[..., object]) -> Kernel:
    """``triton.jit``."""
    return cast(Kernel, triton.jit(function))


def jit_general(*names: str) -> Callable[[Callable[..., object]], Kernel]:
    """:func:`jit` of a kernel with numbers whose values, such as 1, make no kernel of their own."""

    def decorate(function: Callable[..., object]) -> Kernel:
        return cast(Kernel, triton.jit(do_not_specialize=list(names))(function))

    return decorate
