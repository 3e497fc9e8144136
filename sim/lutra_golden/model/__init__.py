"""The packed model: what it is made of, what it computes, and what a sequence leaves behind."""
