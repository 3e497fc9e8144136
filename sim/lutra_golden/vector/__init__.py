"""Golden models: vector."""
