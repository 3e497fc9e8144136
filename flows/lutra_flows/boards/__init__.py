"""Boards: projects for Vivado and Vitis, and the checks of them that need neither."""
