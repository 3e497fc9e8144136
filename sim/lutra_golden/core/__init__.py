"""Golden models: core."""
