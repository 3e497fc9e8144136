"""Finding out which part of a device is wrong."""
