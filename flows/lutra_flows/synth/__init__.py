"""Synthesis of a matmul engine, or of the accelerator, with Yosys: what it takes, and a table of
all engines side by side."""
