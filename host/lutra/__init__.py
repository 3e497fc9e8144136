"""Lutra's host runtime: models, compiler, devices, generation and the command line.

Names are imported when they are used, so that a command starts, and can be interrupted, at once.
"""

from typing import TYPE_CHECKING

__all__ = [
    "LLM",
    "Completion",
    "FinishReason",
    "Logprob",
    "Logprobs",
    "LutraError",
    "Mismatch",
    "Piece",
    "RunStats",
    "SamplingParams",
    "StepProgress",
    "Stream",
    "__version__",
]

if TYPE_CHECKING:
    from lutra.llm import LLM
    from lutra.progress import StepProgress
    from lutra.serving.results import Completion, FinishReason, Logprob, Logprobs, Piece, RunStats
    from lutra.serving.sequence import Mismatch
    from lutra.serving.stream import Stream
    from lutra.text.sampling import SamplingParams
    from lutra_golden.errors import LutraError

    __version__: str

else:
    _MODULES = {
        "LLM": "lutra.llm",
        "Completion": "lutra.serving.results",
        "FinishReason": "lutra.serving.results",
        "Logprob": "lutra.serving.results",
        "Logprobs": "lutra.serving.results",
        "LutraError": "lutra_golden.errors",
        "Mismatch": "lutra.serving.sequence",
        "Piece": "lutra.serving.results",
        "RunStats": "lutra.serving.results",
        "SamplingParams": "lutra.text.sampling",
        "StepProgress": "lutra.progress",
        "Stream": "lutra.serving.stream",
    }

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return _version()
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return [*__all__, *(name for name in globals() if name.startswith("__"))]

    def _version() -> str:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lutra-fpga")
        except PackageNotFoundError:  # run from the sources, without being installed
            return "0+unknown"
