"""Hardware: stream."""
