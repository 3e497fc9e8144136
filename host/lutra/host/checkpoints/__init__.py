"""Checkpoints of every kind behind one protocol, and the files they are read from."""

from pathlib import Path

from lutra.host.checkpoints.base import Checkpoint
from lutra.host.checkpoints.huggingface import HuggingFaceCheckpoint

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder of Hugging Face's layout; tensors are read when they are asked for."""
    return HuggingFaceCheckpoint(path)
