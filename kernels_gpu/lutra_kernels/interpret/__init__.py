"""What Triton's interpreter lacks: inline assembly. Active under ``TRITON_INTERPRET=1`` only."""
