"""Devices that serve requests together, simulated by events."""
