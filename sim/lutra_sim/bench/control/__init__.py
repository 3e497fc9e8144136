"""Benches: control."""
