"""Proofs about ``lutra_hw.control``."""
