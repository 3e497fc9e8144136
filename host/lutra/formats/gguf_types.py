"""The types of tensors that GGUF files have, and which of them are read.

Numbers are those of ``ggml_type`` in https://github.com/ggml-org/ggml, but for 36, of Microsoft's
fork, and 142 and 143, of PrismML's. Two forks gave numbers of their own to what the others use
otherwise; a type that is ``shared`` is told apart by the bytes up to the next tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import ml_dtypes
import numpy as np

from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["NUMBERS", "TYPES", "TensorType", "kinds_of"]


@dataclass(frozen=True)
class TensorType:
    """A type of tensor: values of a block, its bytes, and bytes that follow the last block."""

    number: int
    name: str
    block: int
    block_bytes: int
    tail_bytes: int = 0
    dtype: np.dtype[np.generic] | None = None
    """NumPy type of the floating-point types, whose blocks are single values."""
    shared: bool = False
    """True if another layout has the same number in some files."""
    by_package: bool = False
    """True if the package ``gguf`` decodes it."""


TYPES: Sequence[TensorType] = (
    TensorType(0, "F32", 1, 4, dtype=np.dtype("<f4")),
    TensorType(1, "F16", 1, 2, dtype=np.dtype("<f2")),
    TensorType(2, "Q4_0", 32, 18),
    TensorType(3, "Q4_1", 32, 20),
    TensorType(6, "Q5_0", 32, 22),
    TensorType(7, "Q5_1", 32, 24),
    TensorType(8, "Q8_0", 32, 34),
    TensorType(10, "Q2_K", 256, 84),
    TensorType(11, "Q3_K", 256, 110),
    TensorType(12, "Q4_K", 256, 144),
    TensorType(13, "Q5_K", 256, 176),
    TensorType(14, "Q6_K", 256, 210),
    TensorType(16, "IQ2_XXS", 256, 66, by_package=True),
    TensorType(17, "IQ2_XS", 256, 74, by_package=True),
    TensorType(18, "IQ3_XXS", 256, 98, by_package=True),
    TensorType(19, "IQ1_S", 256, 50, by_package=True),
    TensorType(20, "IQ4_NL", 32, 18),
    TensorType(21, "IQ3_S", 256, 110, by_package=True),
    TensorType(22, "IQ2_S", 256, 82, by_package=True),
    TensorType(23, "IQ4_XS", 256, 136),
    TensorType(28, "F64", 1, 8, dtype=np.dtype("<f8")),
    TensorType(29, "IQ1_M", 256, 56, by_package=True),
    TensorType(30, "BF16", 1, 2, dtype=np.dtype(ml_dtypes.bfloat16)),
    TensorType(34, "TQ1_0", 256, 54),
    TensorType(35, "TQ2_0", 256, 66),
    TensorType(36, "I2_S", 128, 32, tail_bytes=32),
    TensorType(39, "MXFP4", 32, 17, shared=True),  # TL2 in Microsoft's fork
    TensorType(40, "NVFP4", 64, 36),
    TensorType(41, "Q1_0", 128, 18),
    TensorType(42, "Q2_0", 64, 18, shared=True),
    TensorType(42, "Q2_0_G128", 128, 34, shared=True),  # PrismML's older files
    TensorType(142, "PQ2_0", 128, 34),
    TensorType(143, "PTQ1_0", 128, 28),
)
"""Types that are read."""

NUMBERS: Mapping[int, Sequence[TensorType]] = {
    kind.number: [each for each in TYPES if each.number == kind.number] for kind in TYPES
}
"""Types by their numbers in files."""

_OTHERS = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 37: "I8_S or IQ4_NL_4_8",
    38: "TL1 or IQ4_NL_8_8",
}  # fmt: skip


def kinds_of(number: int, where: str) -> Sequence[TensorType]:
    """The types with this number, that can be decoded here; LutraError begins with ``where``."""
    kinds = NUMBERS.get(number)
    if kinds is None:
        supported = ", ".join(dict.fromkeys(kind.name for kind in TYPES))
        raise LutraError(
            f"{where} has the type {_OTHERS.get(number, f'number {number}')}; supported are "
            f"{supported}: convert the model to one of these"
        )
    if kinds[0].by_package and find_spec("gguf") is None:
        raise LutraError(
            f"{where} has the type {kinds[0].name}, which the package gguf decodes, and that is "
            f"missing: run `{install_command('gguf')}`"
        )
    return kinds
