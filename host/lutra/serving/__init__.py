"""What serves generations: sequences on a device, prefixes that are known, streams of pieces."""
