"""``python -m lutra_flows.train --data DIR --out DIR``: text in, packed checkpoint out."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lutra_flows.train.card import model_card
from lutra_flows.train.evaluate import perplexity, sample, text_windows
from lutra_flows.train.export import export_checkpoint, load_checkpoint
from lutra_flows.train.text import (
    drop_apparatus,
    encode_stories,
    epoch_windows,
    split_stories,
)
from lutra_flows.train.tokenizer import BOS_ID, EOS_ID, save_tokenizer, train_tokenizer
from lutra_flows.train.train import MODELS, TALES, train

__all__ = ["main"]

_log = logging.getLogger("lutra_flows.train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lutra_flows.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder: train.txt, valid.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder for the packed checkpoint")
    parser.add_argument(
        "--model", choices=tuple(MODELS), default="tales", help="model to train (default: tales)"
    )
    parser.add_argument("--run", type=Path, help="folder for checkpoints; resumes from it")
    parser.add_argument("--steps", type=int, help="steps, if not the recipe's own")
    parser.add_argument("--batch-size", type=int, default=TALES.batch_size)
    parser.add_argument("--seed", type=int, default=TALES.seed)
    parser.add_argument("--card", action="store_true", help="write the model's card, README.md")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-bfloat16", action="store_true", help="multiply in float32")
    parser.add_argument("--compile", action="store_true", help="use torch.compile (needs C++)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train the tokenizer and the model, then write the checkpoint in Hugging Face's layout."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    if args.compile:
        # Compiled code otherwise adds up the embedding's gradient in whatever order threads run.
        torch.use_deterministic_algorithms(True)
    params = replace(
        MODELS[args.model],
        n_steps=args.steps or MODELS[args.model].n_steps,
        batch_size=args.batch_size,
        seed=args.seed,
        bfloat16=not args.no_bfloat16,
    )
    window = params.model.max_position_embeddings
    text = drop_apparatus((args.data / "train.txt").read_text(encoding="utf-8"))
    tokenizer = train_tokenizer(text.splitlines(True), vocab_size=params.model.vocab_size)
    save_tokenizer(tokenizer, args.out, max_tokens=window)
    stories = encode_stories(tokenizer, split_stories(text))
    _log.info("%d stories, %d tokens", len(stories), sum(len(s.body) for s in stories))

    # A seventh of the validation text, spread evenly, is enough to see where training stands.
    valid_text = (args.data / "valid.txt").read_text(encoding="utf-8")
    valid_ids = np.array(tokenizer.encode(valid_text, add_special_tokens=False).ids)
    valid = text_windows(valid_ids, window=window, bos=BOS_ID)[0][:-1:7]

    result = train(
        params,
        lambda epoch: epoch_windows(
            stories, window=window, bos=BOS_ID, eos=EOS_ID, seed=params.seed, epoch=epoch
        ),
        valid=valid,
        run=args.run,
        compile_model=args.compile,
    )
    export_checkpoint(result.model, args.out, bos=BOS_ID, eos=EOS_ID)

    # What is measured is what is shipped: the packed file, read back.
    exported = load_checkpoint(args.out)
    measured = perplexity(exported, tokenizer, valid_text)
    _log.info("wrote %s: perplexity %.3f", args.out, measured.perplexity)
    if args.card:
        story = sample(exported, tokenizer, "Once upon a time", seed=params.seed)
        card = model_card(params, measured, story, seconds=result.seconds, threads=args.threads)
        (args.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
