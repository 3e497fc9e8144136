"""Proofs about ``lutra.hw.axi``."""
