"""Hardware: core."""
