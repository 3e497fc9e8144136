"""Golden models: control."""
