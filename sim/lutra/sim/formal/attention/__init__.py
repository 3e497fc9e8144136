"""Proofs about ``lutra.hw.attention``."""
