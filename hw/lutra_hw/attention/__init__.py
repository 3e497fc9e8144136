"""Hardware: attention."""
