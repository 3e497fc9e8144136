"""How good a model is: perplexity, and a packed model beside its source."""
