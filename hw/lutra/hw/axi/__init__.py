"""Hardware: axi."""
