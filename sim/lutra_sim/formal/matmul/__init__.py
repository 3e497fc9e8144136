"""Proofs about ``lutra_hw.matmul``."""
