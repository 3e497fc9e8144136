"""Inline assembly for Triton's interpreter. Active under ``TRITON_INTERPRET=1`` only."""
