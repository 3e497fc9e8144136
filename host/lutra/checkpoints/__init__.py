"""Checkpoints of every kind behind one protocol, and the files they are read from."""

from pathlib import Path

from lutra.checkpoints.base import Checkpoint
from lutra.checkpoints.gguf import GgufCheckpoint
from lutra.checkpoints.huggingface import HuggingFaceCheckpoint
from lutra.formats.gguf import is_gguf

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder of Hugging Face's layout or a GGUF file; tensors are read when asked for."""
    return GgufCheckpoint(path) if is_gguf(path) else HuggingFaceCheckpoint(path)
