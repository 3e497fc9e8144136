"""Hardware: vector."""
