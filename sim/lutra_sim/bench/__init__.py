"""Benches, and the drivers and monitors they share."""
