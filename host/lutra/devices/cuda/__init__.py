"""The device ``cuda``: packed models on a GPU."""
