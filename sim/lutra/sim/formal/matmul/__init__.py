"""Proofs about ``lutra.hw.matmul``."""
