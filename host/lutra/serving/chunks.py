"""Tokens of prompts in a pass: few where others wait for theirs (Sarathi-Serve, section 4)."""

__all__ = ["LEAST_CHUNK", "PASS_S", "SMOOTHING", "PromptPace", "prompt_room"]

PASS_S = 0.25
"""Seconds that a pass with chunks of prompts should take where requests wait for their tokens."""
LEAST_CHUNK = 16
"""Tokens of prompts in such a pass, however slow the device is."""
SMOOTHING = 0.3
"""Share of the latest pass in what is expected of the next one."""


def prompt_room(pass_tokens: int, n_decoding: int, token_s: float | None) -> int:
    """Tokens of prompts beside one token each of ``n_decoding`` requests past theirs.

    Prompts get the rest of a pass of ``pass_tokens``. Where that is less than their least share,
    half a pass or :data:`LEAST_CHUNK`, whichever is less, they get the rest of one more. While
    others wait, they get no more than takes :data:`PASS_S`, at ``token_s`` seconds a token of a
    prompt if that is known, or :data:`LEAST_CHUNK`.
    """
    least = min(LEAST_CHUNK, -(-pass_tokens // 2))
    passes = -(-(n_decoding + least) // pass_tokens)
    most = passes * pass_tokens - n_decoding
    if not n_decoding or not token_s:
        return most
    return min(max(int(PASS_S / token_s), LEAST_CHUNK), most)


class PromptPace:
    """Room for prompts in a pass, from the seconds that a token of a prompt has taken so far."""

    def __init__(self) -> None:
        self.token_s: float | None = None
        """Seconds of a token, None before the first pass that tells."""

    def room(self, pass_tokens: int, n_decoding: int) -> int:
        """:func:`prompt_room` at the pace so far."""
        return prompt_room(pass_tokens, n_decoding, self.token_s)

    def took(self, n_tokens: int, seconds: float) -> None:
        """Note a pass with so many tokens of prompts; few tell little."""
        if n_tokens >= LEAST_CHUNK:
            latest = seconds / n_tokens
            before = self.token_s or latest
            self.token_s = before + SMOOTHING * (latest - before)
