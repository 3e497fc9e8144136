"""The tokenizer's files and special tokens."""

import json

import pytest

pytest.importorskip("torch")

from tokenizers import Tokenizer

from lutra_flows.train.tokenizer import BOS, BOS_ID, EOS, EOS_ID, save_tokenizer, train_tokenizer

TEXTS = ["The fox and the goose went to the mill.\n", "The goose said nothing at all.\n"] * 5


def test_specials_come_first_and_bytes_survive(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=280)
    assert (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)) == (BOS_ID, EOS_ID)
    save_tokenizer(tokenizer, tmp_path, max_tokens=256)
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "The goose: \u00a3 5,\n  \u2014 and tabs\t."
    ids = loaded.encode(text).ids
    assert ids[0] == BOS_ID
    assert loaded.decode(ids) == text
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == (BOS, EOS)


def test_training_twice_gives_the_same_tokenizer():
    assert train_tokenizer(TEXTS, vocab_size=280).to_str() == (
        train_tokenizer(TEXTS, vocab_size=280).to_str()
    )


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size must be at least 258 .*, not 257"):
        train_tokenizer(TEXTS, vocab_size=257)
