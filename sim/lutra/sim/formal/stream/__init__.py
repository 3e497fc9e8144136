"""Proofs about ``lutra.hw.stream``."""
