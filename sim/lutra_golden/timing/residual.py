"""Cycles of the residual addition and of logits."""

__all__ = ["logits_cycles", "residual_cycles"]


def residual_cycles(n_words: int, token_count: int) -> int:
    """Cycles of a residual addition from the acceptance of its command to ``done``."""
    return token_count * (n_words + 2) + 6 if token_count else 1


def logits_cycles(n_words: int, token_first: int, token_count: int) -> int:
    """Cycles of a run of logits from the acceptance of its command to ``done``, without stalls."""
    return token_first + token_count * (n_words + 1) + 8 if token_count else 3
