"""A checkpoint: configuration and tensors under Hugging Face's names, whatever file they are in."""

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lutra.checkpoints.weights import Dense, Encoded, Weight
from lutra.formats.config_file import ConfigFile

__all__ = ["Checkpoint"]


class Checkpoint(Protocol):
    """Source of an architecture's tensors and settings.

    Names are those of Hugging Face's tensors without ``.weight``; tensors are read when they are
    asked for. LutraError names the file and the tensor if it is missing, has another shape than is
    asked for, or holds infinities or NaNs.
    """

    path: Path
    """File or folder, for messages."""
    config: ConfigFile
    activation_bits: int
    """Bits of activations that its weights were quantised for: 16 if those alone were; 8 for
    weights in floating point, too."""

    def names(self) -> Collection[str]:
        """Names of all matrices and vectors, biases as ``name.bias``."""
        ...

    def expect(self, name: str, *shape: int) -> None:
        """LutraError where the header shows that the vector, or the matrix of a linear layer, is
        missing or has another shape; nothing else is read."""
        ...

    def linear(self, name: str, n: int, k: int) -> Weight:
        """The matrix of a linear layer, ``[n, k]``."""
        ...

    def matrix(self, name: str, n: int, k: int) -> Dense | Encoded:
        """A matrix that is no linear layer's, such as the embedding."""
        ...

    def vector(self, name: str, n: int) -> NDArray[np.float32]:
        """A vector of ``n`` values: a norm's weights (by name), a bias (``name.bias``)."""
        ...
