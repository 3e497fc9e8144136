"""Planted faults in the RTL that the tests must catch: a check of the tests themselves."""
