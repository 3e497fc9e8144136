"""Projects of boards with a stand-in for the Verilog, which takes minutes to write."""

from collections.abc import Callable, Mapping
from functools import lru_cache

from lutra_flows.boards.project import project_files
from lutra_golden.core.boards import BOARDS

VERILOG = "module lutra();\nendmodule\n"
Change = Callable[[str], str]
"""A planted error."""


@lru_cache
def project(name: str) -> Mapping[str, str]:
    """Files of the project of a board."""
    board = BOARDS[name]
    return project_files(board, board.part, VERILOG)


def swap(old: str, new: str) -> Change:
    """The planted error that puts ``new`` in the place of the first ``old``."""

    def change(text: str) -> str:
        assert old in text, f"{old!r} is not there"
        return text.replace(old, new, 1)

    return change


def cut(begin: str, end: str) -> Change:
    """The planted error that leaves out what lies from ``begin`` to ``end``."""

    def change(text: str) -> str:
        first = text.index(begin)
        return text[:first] + text[text.index(end, first) + len(end) :]

    return change
