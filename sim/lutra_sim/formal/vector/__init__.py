"""Proofs about ``lutra_hw.vector``."""
