"""Norms, rotary embedding and what else lies between matrix products."""
