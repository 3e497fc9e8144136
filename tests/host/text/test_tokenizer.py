"""Text to tokens and back; no character is ever streamed in parts."""

import io
import json
import random
import re
import sys
from pathlib import Path

import pytest
from tests.host.random_model import BOS, EOS, N_TOKENIZER, write_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer

from lutra.models import find_model
from lutra.text.tokenizer import StreamDecoder, Tokenizer
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

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


def test_text_of_one_token(tokenizer: Tokenizer) -> None:
    [space, the, part] = tokenizer.encode(" the\N{OTTER}", add_bos=False)[:3]
    assert [tokenizer.token_text(each) for each in (space, the, part)] == [" ", "the", REPLACEMENT]
    assert [tokenizer.token_text(each) for each in (BOS, EOS)] == ["<|bos|>", "<|eos|>"]
    assert tokenizer.token_text(N_TOKENIZER + 5) == ""


def test_bytes_that_are_not_unicode_are_refused(tokenizer: Tokenizer) -> None:
    """Surrogates, into which Python decodes an argument in Latin-1."""
    message = "^the text holds bytes that are not UTF-8: give it in UTF-8$"
    with pytest.raises(LutraError, match=message):
        tokenizer.encode("K\udcf6nig")


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    message = (
        r"tokenizer\.json does not exist: the model folder must hold a tokenizer\.json or a tok"
    )
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path, BOS)


@pytest.mark.parametrize("text", ["", "{}", '{"model": ', "\x00\xff"])
def test_a_broken_tokenizer(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    message = r"tokenizer\.json is not a tokenizer \(.*\): copy the model again$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path, BOS)


# -- what begins and ends a text, and special tokens


def configure(folder: Path, **fields: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("name", ["tales", "tales-llama"])
def test_shipped_models_begin_every_text(name: str) -> None:
    tokenizer = Tokenizer(find_model(name), 0)
    assert tokenizer.encode("a king") == [0, *tokenizer.encode("a king", add_bos=False)]
    assert json.loads((find_model(name) / "tokenizer_config.json").read_text())["add_bos_token"]
    assert tokenizer.eos == {1}


@pytest.mark.parametrize(
    ("fields", "begins"),
    [
        ({}, True),  # the file's own post-processor does
        ({"add_bos_token": False}, False),
        ({"add_bos_token": True, "bos_token": "<|bos|>"}, True),
        ({"bos_token": {"content": "<|bos|>", "special": True}}, True),
        ({"bos_token": "<|eos|>"}, False),  # the post-processor puts another there
    ],
)
def test_what_begins_a_text(fields: dict[str, object], begins: bool, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    configure(tmp_path, **fields)
    tokenizer = Tokenizer(tmp_path, BOS)
    plain = tokenizer.encode("the", add_bos=False)
    assert tokenizer.encode("the") == ([BOS, *plain] if begins else plain)
    first = EOS if fields.get("bos_token") == "<|eos|>" else BOS
    assert tokenizer.encode("the", add_bos=True) == [first, *plain]


def test_a_model_that_begins_with_nothing(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    configure(tmp_path, bos_token=None)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.bos is None
    assert len(tokenizer.encode("the")) == len(tokenizer.encode("the", add_bos=True)) == 1


def test_a_flag_that_is_none(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    configure(tmp_path, add_bos_token="yes")
    message = r"tokenizer_config\.json: add_bos_token must be true or false, not 'yes'$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path, BOS)


@pytest.mark.parametrize(
    ("generation", "expected"), [({}, {1}), ({"eos_token_id": 7}, {1, 7}), (None, {1})]
)
def test_what_ends_a_text(
    generation: dict[str, object] | None, expected: set[int], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path)
    configure(tmp_path, eos_token="<|eos|>")
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert Tokenizer(tmp_path, BOS).eos == expected
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, "x"]}')
    message = r"generation_config\.json: eos_token_id must be token ids, not 'x'$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path, BOS)


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    text = "the<|eos|>the<|bos|>"
    ids = tokenizer.encode(text, add_bos=False)
    assert not {BOS, EOS} & set(ids)
    assert tokenizer.decode(ids) == text
    the = tokenizer.encode("the", add_bos=False)
    assert tokenizer.encode_template(text) == [*the, EOS, *the, BOS]
    # plain text is not changed by what came before it
    assert tokenizer.encode(text, add_bos=False) == ids


def test_special_tokens_of_somebody_else_stay_text_in_a_template(tokenizer: Tokenizer) -> None:
    message = "the<|eos|>the"
    ids = tokenizer.encode_template(f"<|bos|>{tokenizer.as_text(message)}<|eos|>")
    assert ids == [BOS, *tokenizer.encode(message, add_bos=False), EOS]
    assert tokenizer.decode(ids) == message
    # one that comes about where two meet is the template's own
    assert tokenizer.as_text("the king") == "the king"
    assert tokenizer.as_text("\ufdd0") == ""


def test_what_a_file_says_of_training_is_left_out(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    library = HfTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=9)
    library.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer(tmp_path, BOS).encode("a" * 20, add_bos=False)) == 20


def test_no_merge_is_left_out_at_random(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path, text = tmp_path / "tokenizer.json", "the king and the queen went to the river"
    expected = Tokenizer(tmp_path, BOS).encode(text)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["model"]["type"] == "BPE" and content["model"]["merges"]
    content["model"]["dropout"] = 0.9
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path, BOS)
    assert [tokenizer.encode(text) for _ in range(5)] == [expected] * 5


def test_a_text_without_tokens(tmp_path: Path) -> None:
    """Words alone, and nothing for those that are unknown."""
    write_tokenizer(tmp_path)
    words = HfTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
    words.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("a") == [0]
    message = r"^the model's tokenizer has no tokens for this text \(.+\): give another text$"
    with pytest.raises(LutraError, match=message):
        tokenizer.encode("c")


def test_a_vocabulary_of_another_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    library = HfTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_vocabulary(
        library, bos=BOS, eos=(EOS,), add_bos=True, chat_template="{{ bos_token }}"
    )
    assert tokenizer.encode("the") == Tokenizer(tmp_path, BOS).encode("the")
    assert tokenizer.eos == {EOS}
    assert tokenizer.chat_template == "{{ bos_token }}"
    assert tokenizer.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    assert Tokenizer.from_vocabulary(library, bos=None).encode("the") == [N_TOKENIZER - 1]


# -- SentencePiece, in its own file and in the library's

SENTENCES = ["the king and the queen of the otters went to the river"] * 20
HARD = [
    "the king 日本語 the",
    "\N{OTTER}\N{OTTER} e\N{COMBINING ACUTE ACCENT}",
    "königlich",
    "日",
    "a  b",
]


def train(byte_fallback: bool = True) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=out,
        vocab_size=320 if byte_fallback else 40,
        model_type="bpe",
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


@pytest.fixture
def pieces(tmp_path: Path) -> Tokenizer:
    """A folder of SentencePiece's with two tokens that its config adds."""
    (tmp_path / "tokenizer.model").write_bytes(train())
    added = {
        "320": {"content": "<|end|>", "special": True},
        "321": {"content": "<think>", "special": False},
    }
    configure(tmp_path, bos_token="<s>", eos_token="</s>", added_tokens_decoder=added)
    return Tokenizer(tmp_path)


def fallback() -> Tokenizer:
    """The same kind in the library's file: spaces are marks, other characters bytes."""
    names = ["<s>", "</s>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    names += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    model = models.BPE(
        {name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True
    )
    library = HfTokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<s>", "</s>"])
    library.add_tokens([AddedToken("<think>", special=False)])
    return Tokenizer.from_vocabulary(library, bos=0, eos=(1,), add_bos=True)


@pytest.mark.parametrize("text", HARD)
def test_sentencepiece_round_trip(text: str, pieces: Tokenizer) -> None:
    assert (pieces.bos, pieces.add_bos, pieces.eos) == (1, True, {2})
    for each in (pieces, fallback()):
        ids = each.encode(text)
        assert ids[0] == each.bos
        assert each.decode(ids) == text


@pytest.mark.parametrize("prompt", ["", "the king", "日本", "a "])
@pytest.mark.parametrize("text", HARD)
def test_sentencepiece_streams_whole_characters(text: str, prompt: str, pieces: Tokenizer) -> None:
    for each in (pieces, fallback()):
        before = each.encode(prompt)
        # what goes on from a prompt: the tokens of the whole behind those of the prompt
        ids = each.encode(prompt + text)[len(before) :]
        if each.encode(prompt + text)[: len(before)] != before:
            continue
        found = stream(each, before, ids)
        assert "".join(found) == text
        assert not any(REPLACEMENT in piece for piece in found)


def test_long_runs_of_bytes_stream_one_by_one(pieces: Tokenizer) -> None:
    """A decoder that is given a part of a run may give up all of it."""
    for each in (pieces, fallback()):
        text = "日本語" * 5
        ids = each.encode("x" + text, add_bos=False)
        ids = ids[len(ids) - 3 * len(text) :]
        found = stream(each, each.encode("x"), ids)
        assert [piece for piece in found if piece] == list(text)


def test_spaces_between_pieces_are_kept(pieces: Tokenizer) -> None:
    for each in (pieces, fallback()):
        ids = each.encode("the the the", add_bos=False)
        assert "".join(stream(each, [each.bos or 0], ids)) == "the the the"
        # behind a token that shows nothing
        end = next(iter(each.eos))
        assert "".join(stream(each, [*ids, end], ids)) == " the the the"
        assert "".join(stream(each, ids, [ids[-1], end, ids[-1]])) == " the the"


def test_text_of_one_piece(pieces: Tokenizer) -> None:
    """With the space that the first one of a text would lose."""
    ids = pieces.encode("the king\N{OTTER}", add_bos=False)
    texts = [pieces.token_text(each) for each in ids]
    assert "".join(texts).startswith(" the king")
    assert set("".join(texts)[len(" the king") :]) == {REPLACEMENT}


def test_sentencepiece_special_tokens(pieces: Tokenizer) -> None:
    text = "the<|end|>king</s>"
    ids = pieces.encode(text, add_bos=False)
    assert not {1, 2, 320} & set(ids)
    assert pieces.decode(ids) == text
    the, king = pieces.encode("the", add_bos=False), pieces.encode("king", add_bos=False)
    assert pieces.encode_template(text) == [*the, 320, *king, 2]
    assert pieces.encode_template("<s>" + pieces.as_text(text)) == [1, *ids]
    assert pieces.encode("<think>the", add_bos=False) == [321, *the]
    assert pieces.decode([*the, 320, 321, *king]) == "the<think>king"
    assert pieces.vocab_size == 322
    # a model's vocabulary may be padded: what stands for nothing shows nothing
    assert pieces.decode([*the, 400]) == "the"


def test_sentencepiece_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    command = re.escape(install_command("sentencepiece"))
    message = rf"tokenizer\.model sentencepiece is missing: run `{command}`, or use a model with a"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path)


def test_a_broken_sentencepiece_model(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"\x80\x02 no protocol buffer")
    message = r"tokenizer\.model is not a SentencePiece model \(.*\): copy the model again$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path)


def test_added_tokens_that_are_none(pieces: Tokenizer, tmp_path: Path) -> None:
    configure(tmp_path, added_tokens_decoder={"x": {"content": "<a>"}})
    message = r"added_tokens_decoder must give tokens by id, not 'x': copy the model again$"
    with pytest.raises(LutraError, match=message):
        Tokenizer(tmp_path)


# -- where a chat template is


def test_chat_templates_in_their_places(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert Tokenizer(tmp_path, BOS).chat_template is None
    configure(tmp_path, chat_template="one")
    assert Tokenizer(tmp_path, BOS).chat_template == "one"
    named = [{"name": "tools", "template": "two"}, {"name": "default", "template": "three"}]
    configure(tmp_path, chat_template=named)
    assert Tokenizer(tmp_path, BOS).chat_template == "three"
    (tmp_path / "chat_template.jinja").write_text("four", encoding="utf-8")
    assert Tokenizer(tmp_path, BOS).chat_template == "four"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(LutraError, match=r"chat_template\.jinja is not UTF-8 text: copy the mode"):
        Tokenizer(tmp_path, BOS)
    (tmp_path / "chat_template.jinja").unlink()
    configure(tmp_path, chat_template=7)
    with pytest.raises(LutraError, match=r"tokenizer_config\.json: chat_template must be text"):
        Tokenizer(tmp_path, BOS)
