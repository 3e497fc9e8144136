"""Proofs about ``lutra_hw.stream``."""
