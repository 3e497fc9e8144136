"""Errors on the command line."""

import sys

__all__ = ["fail"]


def fail(message: str) -> int:
    """Report an error that the user can correct in one line; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
