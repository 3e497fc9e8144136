"""Golden models: axi."""
