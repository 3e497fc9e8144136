"""Planted faults that the tests must catch: a check of the tests themselves."""
