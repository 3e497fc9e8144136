"""Proofs about ``lutra_hw.attention``."""
