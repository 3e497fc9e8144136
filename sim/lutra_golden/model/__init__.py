"""The packed model: its parts, its computation, and the cache of a sequence."""
