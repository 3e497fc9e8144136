"""Benches: axi."""
