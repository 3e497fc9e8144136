"""Golden models: matmul."""
