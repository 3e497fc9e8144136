"""Devices of several machines under one server: placed and restarted by Ray."""
