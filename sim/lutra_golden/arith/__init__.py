"""Golden models: arith."""
