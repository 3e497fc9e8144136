"""Behavioural twins of an FPGA's primitives, which cells of the hardware are made of."""
