"""Where recorded references are, and how a checkpoint is known to be the one they are of."""

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tests.host.cases.checkpoints import Held

__all__ = ["DEFAULTS", "LOGITS", "digest"]

LOGITS = Path(__file__).with_name("references.npz")
"""``NAME: logits`` float32 ``[T, V]`` and ``NAME: digest`` for each case."""
DEFAULTS = Path(__file__).with_name("config_defaults.json")
"""Values of fields that ``config.json`` leaves out, by architecture, and transformers' version."""


def digest(path: Path, held: Held) -> str:
    """Hash of the weights that a reference was computed with."""
    weights = held.weights
    if weights is None:
        weights = load_file(path / "model.safetensors")
    found = hashlib.sha256()
    for name, values in sorted(weights.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(np.ascontiguousarray(values).view(np.uint8).tobytes())
    return found.hexdigest()[:16]
