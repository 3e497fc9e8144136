"""Host: formats."""
