"""Benches: core."""
