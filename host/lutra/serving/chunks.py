"""Tokens of prompts in a pass: few where others wait for theirs (Sarathi-Serve, section 4)."""

__all__ = ["LEAST_CHUNK", "PASS_S", "SMOOTHING", "PromptPace"]

PASS_S = 0.25
"""Seconds that a pass with chunks of prompts should take where requests wait for their tokens."""
LEAST_CHUNK = 16
"""Tokens of prompts in such a pass, however slow the device is."""
SMOOTHING = 0.3
"""Share of the latest pass in what is expected of the next one."""


class PromptPace:
    """Room for prompts in a pass, from the seconds that a token of a prompt has taken so far."""

    def __init__(self) -> None:
        self.token_s: float | None = None
        """Seconds of a token, None before the first pass that tells."""

    def room(self, pass_tokens: int, n_decoding: int) -> int:
        """Tokens of prompts in the next pass of ``pass_tokens`` at most, beside ``n_decoding``
        requests that are past theirs."""
        most = max(pass_tokens - n_decoding, 1)
        if not n_decoding or not self.token_s:
            return most
        return min(max(int(PASS_S / self.token_s), LEAST_CHUNK), most)

    def took(self, n_tokens: int, seconds: float) -> None:
        """Note a pass with so many tokens of prompts; few tell little."""
        if n_tokens >= LEAST_CHUNK:
            latest = seconds / n_tokens
            before = self.token_s or latest
            self.token_s = before + SMOOTHING * (latest - before)
