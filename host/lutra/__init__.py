"""Lutra's host runtime: models, compiler, devices, generation and the command line."""

from importlib.metadata import PackageNotFoundError, version

from lutra.llm import LLM
from lutra.progress import StepProgress
from lutra.serving.results import Completion, Piece, RunStats
from lutra.text.sampling import SamplingParams
from lutra_golden.errors import LutraError

__all__ = [
    "LLM",
    "Completion",
    "LutraError",
    "Piece",
    "RunStats",
    "SamplingParams",
    "StepProgress",
    "__version__",
]

try:
    __version__ = version("lutra-fpga")
except PackageNotFoundError:  # run from the sources, without being installed
    __version__ = "0+unknown"
