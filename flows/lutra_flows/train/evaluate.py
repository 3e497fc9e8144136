"""Perplexity and sampling of an exported checkpoint in float32 torch, the float reference.

``python -m lutra_flows.train.evaluate --model DIR --text FILE``
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lutra_flows.train.decoder import CausalLM
from lutra_flows.train.export import load_checkpoint
from lutra_flows.train.tokenizer import BOS_ID, EOS_ID

__all__ = ["Perplexity", "cross_entropy", "main", "perplexity", "sample", "text_windows"]


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Perplexity of a text, its standard error, and bits per character."""

    perplexity: float
    stderr: float
    bits_per_char: float
    n_tokens: int
    n_chars: int


def text_windows(
    tokens: NDArray[np.int64], *, window: int, bos: int
) -> tuple[NDArray[np.int64], int]:
    """Cut tokens into windows ``[n, window]``: ``bos``, then ``window - 1`` tokens of text.

    Every token of the text is predicted exactly once. The last window is filled up with ``bos``;
    the number of filled positions is returned beside the windows.
    """
    n_filled = -len(tokens) % (window - 1)
    body = np.append(tokens, np.full(n_filled, bos, dtype=np.int64)).reshape(-1, window - 1)
    return np.insert(body, 0, bos, axis=1), n_filled


def cross_entropy(
    model: CausalLM, windows: NDArray[np.int64], *, batch_size: int = 16
) -> NDArray[np.float64]:
    """Negative log-likelihood of every token after the first of each window, flattened."""
    training = model.training
    model.eval()
    losses: list[NDArray[np.float64]] = []
    with torch.no_grad():
        for batch in torch.from_numpy(windows).split(batch_size):
            logits = model(batch[:, :-1]).flatten(0, 1)
            loss = F.cross_entropy(logits, batch[:, 1:].flatten(), reduction="none")
            losses.append(loss.double().numpy())
    model.train(training)
    return np.concatenate(losses)


def perplexity(model: CausalLM, tokenizer: Tokenizer, text: str) -> Perplexity:
    """Perplexity over the whole text, in non-overlapping windows of the model's context."""
    tokens = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
    window = model.params.max_position_embeddings
    windows, n_filled = text_windows(tokens, window=window, bos=BOS_ID)
    losses = cross_entropy(model, windows)
    losses = losses[: len(losses) - n_filled]
    ppl = math.exp(losses.mean())
    return Perplexity(
        perplexity=ppl,
        stderr=ppl * math.sqrt(losses.var() / (len(losses) - 1)),
        bits_per_char=float(losses.sum()) / math.log(2) / len(text),
        n_tokens=len(losses),
        n_chars=len(text),
    )


def sample(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    temperature: float = 0.7,
    seed: int = 1,
) -> str:
    """Continue a prompt until the end of the story or of the context; no cache, so slow."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tokenizer.encode(prompt).ids
    model.eval()
    with torch.no_grad():
        while len(tokens) < model.params.max_position_embeddings:
            logits = model(torch.tensor([tokens]))[0, -1]
            probabilities = F.softmax(logits / temperature, -1)
            token = int(torch.multinomial(probabilities, 1, generator=generator))
            if token == EOS_ID:
                break
            tokens.append(token)
    return tokenizer.decode(tokens)


def main(argv: list[str] | None = None) -> None:
    """Print the perplexity of a text under an exported checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m lutra_flows.train.evaluate")
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="text file")
    args = parser.parse_args(argv)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    text = args.text.read_text(encoding="utf-8")
    result = perplexity(load_checkpoint(args.model), tokenizer, text)
    print(f"Final estimate: PPL = {result.perplexity:.4f} +/- {result.stderr:.5f}")
    print(
        f"{result.bits_per_char:.4f} bits per character "
        f"({result.n_tokens} tokens, {result.n_chars} characters)"
    )


if __name__ == "__main__":
    main()
