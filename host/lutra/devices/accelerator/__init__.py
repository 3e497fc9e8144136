"""Accelerators: one driver, and the transports by which it reaches hardware or a simulation."""
