"""Golden models: attention."""
