"""Host: devices."""
