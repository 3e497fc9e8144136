"""Watchdog of a run: counts cycles in which nothing moves."""

from collections.abc import Sequence

__all__ = ["expiries"]


def expiries(limit: int, moves: Sequence[bool]) -> list[int]:
    """Cycles in which the watchdog of a run expires.

    It does in the cycle after ``limit`` cycles in a row without a move, and counts anew from there;
    never with a ``limit`` of 0. ``moves`` says of each cycle of the run whether something moved.
    """
    found, quiet = list[int](), 0
    for cycle, moved in enumerate(moves):
        expired = 0 < limit == quiet
        if expired:
            found.append(cycle)
        quiet = 0 if moved or expired else quiet + 1
    return found
