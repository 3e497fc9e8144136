"""Proofs about ``lutra_hw.fabric``, and about the twins of primitives."""
