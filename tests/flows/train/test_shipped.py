"""The model that is shipped: small, complete, and able to begin a tale."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from tokenizers import Tokenizer

from lutra_flows.train.export import load_checkpoint
from lutra_flows.train.tokenizer import BOS, EOS
from lutra_flows.train.train import MODELS

DATA = Path(__file__).resolve().parents[3] / "host/lutra/models/data"

pytestmark = pytest.mark.parametrize("name", MODELS)


def test_the_folder_is_complete_and_small(name):
    files = {path.name: path.stat().st_size for path in (DATA / name).iterdir()}
    assert files.keys() == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < {"tales": 4_000_000, "tales-llama": 5_000_000}[name]


def test_the_model_is_the_recipes_and_knows_how_tales_begin(name):
    model = load_checkpoint(DATA / name)
    tokenizer = Tokenizer.from_file(str(DATA / name / "tokenizer.json"))
    assert model.params == MODELS[name].model
    assert tokenizer.get_vocab_size() == model.params.vocab_size

    tokens = tokenizer.encode("Once upon a").ids
    with torch.no_grad():
        best = int(model(torch.tensor([tokens]))[0, -1].argmax())
    assert tokenizer.decode([best]) == " time"


def test_the_card_names_what_it_must(name):
    card = (DATA / name / "README.md").read_text(encoding="utf-8")
    for words in ("apache-2.0", "perplexity", "measured", "Gutenberg", "GITenberg", BOS, EOS):
        assert words in card
