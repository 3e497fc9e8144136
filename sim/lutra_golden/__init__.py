"""Golden models: parameters and exact NumPy functions."""
