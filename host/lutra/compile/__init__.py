"""From a packed model to a program of an accelerator."""
