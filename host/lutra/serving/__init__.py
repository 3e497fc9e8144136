"""Serving of generations: sequences on a device, known prefixes, streams of pieces."""
