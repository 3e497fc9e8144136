"""Lutra on a board: files, packages and the self-test, through SSH."""
