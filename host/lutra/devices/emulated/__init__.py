"""Boards that are not here: the simulated accelerator behind the interfaces of their runtimes."""
