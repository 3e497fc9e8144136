"""Quality of a model: its perplexity, and a packed model compared with its checkpoint."""
