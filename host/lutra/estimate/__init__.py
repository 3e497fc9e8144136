"""Speed of a model on a board that is not here, from its shape and cycle formulas."""
