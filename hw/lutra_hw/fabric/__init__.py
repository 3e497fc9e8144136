"""Hardware: cells that are laid out by hand for an FPGA's primitives, each also in plain form."""
