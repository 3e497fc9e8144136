"""Proofs about ``lutra_hw.axi``."""
