"""Hardware: arith."""
