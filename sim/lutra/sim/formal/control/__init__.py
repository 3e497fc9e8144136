"""Proofs about ``lutra.hw.control``."""
