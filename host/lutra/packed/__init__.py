"""The packed model as a file."""
