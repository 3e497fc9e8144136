"""Benches: vector."""
