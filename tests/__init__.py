"""Tests; a package, so that none of another distribution takes its name (PYNQ 4.0.0 has one)."""
