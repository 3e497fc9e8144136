"""Benches: the simulated device."""
