"""Checks of a machine before anything runs on it: ``lutra doctor``."""
