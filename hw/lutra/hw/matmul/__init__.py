"""Hardware: matmul."""
