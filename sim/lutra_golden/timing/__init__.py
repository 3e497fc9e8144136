"""Cycle formulas: the clock cycles of the accelerator's units, and the memory behind its ports.

The formulas are exact for a unit that never waits for memory; tests of the hardware measure them.
"""
