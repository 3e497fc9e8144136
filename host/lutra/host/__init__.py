"""Lutra's host runtime: models, compiler, devices, generation and the command line."""

from lutra.host.engine import LLM, Completion, Piece
from lutra.host.errors import LutraError
from lutra.host.sampling import SamplingParams

__all__ = ["LLM", "Completion", "LutraError", "Piece", "SamplingParams"]
