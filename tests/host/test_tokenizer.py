"""Text to tokens and back; no character is ever streamed in parts."""

import random
from pathlib import Path

import pytest
from tests.host.random_model import BOS, EOS, N_TOKENIZER, write_tokenizer

from lutra.host.errors import LutraError
from lutra.host.models import find_model
from lutra.host.tokenizer import StreamDecoder, Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TEXTS = [
    "Once upon a time",
    "  two  spaces and\n\na blank line\t.",
    "Der Fischotter läuft über die Brücke: »ÄÖÜß«",
    "\N{OTTER}\N{WHITE SMILING FACE}\N{VARIATION SELECTOR-16} 日本語 \N{FAMILY}",
    "e\N{COMBINING ACUTE ACCENT} and \N{ZERO WIDTH JOINER}",
    REPLACEMENT + " said the king",
    "the" * 20,
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path, BOS)


def stream(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    """The pieces of ``ids``, and what is left at the end."""
    decoder = StreamDecoder(tokenizer, prompt)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@pytest.mark.parametrize("text", ["", *TEXTS])
def test_round_trip(text: str, tokenizer: Tokenizer) -> None:
    for each in (tokenizer, Tokenizer(find_model("tales"), 0)):
        ids = each.encode(text)
        assert ids[0] == BOS
        assert each.encode(text, add_bos=False) == ids[1:]
        assert each.decode(ids) == text


def test_size_and_merges(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == N_TOKENIZER
    assert len(tokenizer.encode("the", add_bos=False)) == 1
    assert len(tokenizer.encode("ü", add_bos=False)) == 2
    assert Tokenizer(find_model("tales"), 0).vocab_size == 2048


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "a king", "\N{OTTER}\N{OTTER}\N{OTTER}"])
def test_no_piece_splits_a_character(text: str, prompt: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text, add_bos=False)
    pieces = stream(tokenizer, tokenizer.encode(prompt), ids)
    assert len(ids) >= len(text) // 3
    assert "".join(pieces) == text
    if REPLACEMENT in text:
        return
    assert not any(REPLACEMENT in piece for piece in pieces)
    # a character comes with its last byte
    n_bytes, so_far = 0, ""
    for i, piece in zip(ids, pieces, strict=False):
        n_bytes += 1 if i < 258 else len(tokenizer.decode([i]))
        so_far += piece
        assert so_far == text.encode()[:n_bytes].decode(errors="ignore")


def test_an_emoji_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x\N{OTTER}y", add_bos=False)
    assert len(ids) == 6
    assert stream(tokenizer, [BOS], ids) == ["x", "", "", "", "\N{OTTER}", "y", ""]


def test_an_unfinished_character_is_left_for_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x\N{OTTER}", add_bos=False)
    assert stream(tokenizer, [BOS], ids[:-1]) == ["x", "", "", "", REPLACEMENT]


def test_bytes_that_are_no_character_are_replaced(tokenizer: Tokenizer) -> None:
    """A model may write anything; what follows is not held back."""
    lead = tokenizer.encode("ü", add_bos=False)[0]
    the = tokenizer.encode("the", add_bos=False)[0]
    pieces = stream(tokenizer, [BOS], [lead, lead, the, the])
    assert pieces == ["", "", REPLACEMENT * 2 + "the", "the", ""]


def test_any_bytes_stream_to_what_they_decode_to(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for _ in range(30):
        prompt = [rng.randrange(2, N_TOKENIZER) for _ in range(12)]
        ids = [rng.randrange(2, N_TOKENIZER) for _ in range(40)]
        text, whole = "".join(stream(tokenizer, [BOS], ids)), tokenizer.decode(ids)
        assert text == whole
        # behind a prompt that ends inside a character, nothing is lost either
        stream(tokenizer, prompt, ids)


def test_special_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    the = tokenizer.encode("the", add_bos=False)[0]
    assert tokenizer.decode([BOS, the, EOS]) == "the"
    assert stream(tokenizer, [BOS], [the, BOS, the]) == ["the", "", "the", ""]


def test_bytes_that_are_not_unicode_are_refused(tokenizer: Tokenizer) -> None:
    """What Python makes of an argument in Latin-1."""
    message = "^the text holds bytes that are not UTF-8: give it in UTF-8$"
    with pytest.raises(LutraError, match=message):
        tokenizer.encode("K\udcf6nig")


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    message = r"tokenizer\.json does not exist: the model folder must hold a tokenizer\.json$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path, BOS)


@pytest.mark.parametrize("text", ["", "{}", '{"model": ', "\x00\xff"])
def test_a_broken_tokenizer(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    message = r"tokenizer\.json is not a tokenizer \(.*\): copy the model again$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path, BOS)
