"""Rounding and saturation inside kernels."""
