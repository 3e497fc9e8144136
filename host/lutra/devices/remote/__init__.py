"""Devices of other machines and processes: lent there, used here over Lutra's own links."""
