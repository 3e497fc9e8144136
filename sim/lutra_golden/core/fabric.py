"""Families of FPGA fabric that cells of the hardware are built for."""

from lutra_golden.strings import StringEnum

__all__ = ["Fabric"]


class Fabric(StringEnum):
    """The fabric that components of `lutra_hw.fabric` are made of; their values never differ."""

    GENERIC = "generic"
    """Plain operators and memories: for simulation, and for FPGAs without cells of their own."""
    XCUP = "xcup"
    """Primitives of UltraScale+: LUT6_2, CARRY8, RAM32M16 and DSP48E2."""
