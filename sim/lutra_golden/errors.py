"""Errors a user can cause: one line that says what was wrong, what was expected, what to do."""

__all__ = ["LutraError"]


class LutraError(Exception):
    """A one-line message for the user; the command line prints it and exits with 2."""
