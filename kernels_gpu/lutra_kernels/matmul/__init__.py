"""Products of packed weights and integer activations, exact."""
