"""Hardware: control."""
