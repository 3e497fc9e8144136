"""Benches: attention."""
