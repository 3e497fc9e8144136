"""Benches: matmul."""
