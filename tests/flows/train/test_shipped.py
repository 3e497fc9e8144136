"""The model that is shipped: small, complete, and able to begin a tale."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from tokenizers import Tokenizer

from lutra.flows.train.export import load_checkpoint
from lutra.flows.train.tokenizer import BOS, EOS
from lutra.flows.train.train import TALES

TALES_DIR = Path(__file__).resolve().parents[3] / "host/lutra/host/models/data/tales"


def test_the_folder_is_complete_and_small():
    files = {path.name: path.stat().st_size for path in TALES_DIR.iterdir()}
    assert files.keys() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < 4_000_000


def test_the_model_is_the_recipes_and_knows_how_tales_begin():
    model = load_checkpoint(TALES_DIR)
    tokenizer = Tokenizer.from_file(str(TALES_DIR / "tokenizer.json"))
    assert model.params == TALES.model
    assert tokenizer.get_vocab_size() == model.params.vocab_size

    tokens = tokenizer.encode("Once upon a").ids
    with torch.no_grad():
        best = int(model(torch.tensor([tokens]))[0, -1].argmax())
    assert tokenizer.decode([best]) == " time"


def test_the_card_names_what_it_must():
    card = (TALES_DIR / "README.md").read_text(encoding="utf-8")
    for words in ("apache-2.0", "perplexity", "measured", "Gutenberg", "GITenberg", BOS, EOS):
        assert words in card
