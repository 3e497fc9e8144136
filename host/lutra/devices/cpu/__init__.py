"""Host: the CPU as a device."""
