"""Benches, proofs, planted faults and the Verilated accelerator."""
