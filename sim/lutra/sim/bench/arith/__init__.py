"""Benches: arith."""
