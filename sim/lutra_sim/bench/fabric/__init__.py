"""Benches: fabric."""
