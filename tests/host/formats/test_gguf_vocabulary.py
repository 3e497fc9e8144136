"""Vocabularies in GGUF files: the ids that the models' own tokenizers give."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from lutra.formats.gguf import Metadata, Value
from lutra.formats.gguf_splitting import PRE_TOKENIZERS
from lutra.formats.gguf_vocabulary import read_vocabulary
from lutra_golden.errors import LutraError

PATH = Path("model.gguf")
TALE = (Path(__file__).parents[1] / "data/tale.txt").read_text(encoding="utf-8")
TEXTS = [
    "",
    " ",
    "Once upon a time, there was an otter's river.",
    "  two spaces,\n\n\ttabs\r\nand    many   ",
    "I'll they've IT'S 1234567890 3.14 x2y",
    "zwölf Boxkämpfer, 数字 \uff11\uff12 ½ 🦦🦦 e\u0301 \u212b",
    "f(x)=>{return x**2;} // --- ???!!! <s> <0x41> _",
    "aaaaaaaaaaaaaaaaa         bbb",
]


def metadata(**changes: Value | None) -> Metadata:
    """A small vocabulary of SentencePiece's kind; None leaves a key out."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "\u2581",
        "a",
        "\u2581a",
    ]
    values: dict[str, Value | None] = {
        "model": "llama",
        "tokens": tokens,
        "scores": np.array([0.0] * 259 + [-2, -1, -3], np.float32),
        "token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 3, np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}
    return Metadata(PATH, {key: value for key, value in found.items() if value is not None})


# -- SentencePiece


def trained(size: int, **options: object) -> tuple[object, Metadata]:
    """A SentencePiece model of the tale, and the same as metadata."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TALE.splitlines()),
        model_writer=out,
        vocab_size=size,
        model_type="bpe",
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"byte_fallback": True, "remove_extra_whitespaces": False, "split_digits": True}
        | options,
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    n = found.get_piece_size()
    types = [
        2 if found.is_unknown(i) else 3 if found.is_control(i) else 6 if found.is_byte(i) else 1
        for i in range(n)
    ]
    return found, metadata(
        tokens=[found.id_to_piece(i) for i in range(n)],
        scores=np.array([found.get_score(i) for i in range(n)], np.float32),
        token_type=np.array(types, np.int32),
    )


def sentences(n: int) -> list[str]:
    rng, words = random.Random(7), TALE.split()
    made = list(TEXTS)
    for i in range(n):
        at = rng.randrange(len(TALE))
        made.append(
            (
                TALE[at : at + rng.randrange(200)],
                "".join(rng.choice("aethsn \n\t.,é漢🦦_▁<>") for _ in range(rng.randrange(40))),
                " " * rng.randrange(20)
                + rng.choice(words)
                + rng.choice("ahe ") * rng.randrange(30),
                " ".join(rng.choice(words) for _ in range(rng.randrange(20))),
            )[i % 4]
        )
    return made


@pytest.mark.parametrize("size", [310, 420, 900])
def test_the_ids_of_sentencepiece(size: int) -> None:
    reference, found = trained(size)
    vocabulary = read_vocabulary(found)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.add_bos) == (1, (2,), True)
    assert vocabulary.chat_template is None
    # SentencePiece takes the names of control tokens in a text for plain text
    vocabulary.tokenizer.encode_special_tokens = True
    lengths: set[int] = set()
    for text in sentences(1500):
        expected = reference.encode(text)  # pyright: ignore[reportAttributeAccessIssue]
        ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == expected, text
        decoded = reference.decode(expected)  # pyright: ignore[reportAttributeAccessIssue]
        assert vocabulary.tokenizer.decode(ids) == decoded
        lengths.update(len(vocabulary.tokenizer.id_to_token(i) or "") for i in ids)
    assert size < 400 or max(lengths - {6}) > 4


@pytest.mark.parametrize(
    "option", ["byte_fallback", "add_dummy_prefix", "remove_extra_whitespaces"]
)
def test_options_of_sentencepiece(option: str) -> None:
    reference, found = trained(420, **{option: option == "remove_extra_whitespaces"})
    values = dict(found._values)
    if option == "add_dummy_prefix":
        values["tokenizer.ggml.add_space_prefix"] = False
    if option == "remove_extra_whitespaces":
        values["tokenizer.ggml.remove_extra_whitespaces"] = True
    vocabulary = read_vocabulary(Metadata(PATH, values))
    vocabulary.tokenizer.encode_special_tokens = True
    for text in sentences(300):
        expected = reference.encode(text)  # pyright: ignore[reportAttributeAccessIssue]
        assert vocabulary.tokenizer.encode(text, add_special_tokens=False).ids == expected, text


def test_control_and_user_tokens() -> None:
    """They are found before anything else; only control tokens are left out of text."""
    types = np.array([2, 3, 3] + [6] * 256 + [1] * 3 + [4], np.int32)
    base = metadata()
    found = metadata(
        tokens=[*base.strings("tokenizer.ggml.tokens"), "<user>"],
        scores=np.zeros(263, np.float32),
        token_type=types,
        add_bos_token=False,
    )
    vocabulary = read_vocabulary(found)
    assert vocabulary.add_bos is False
    ids = vocabulary.tokenizer.encode("a<s>a<user></s>", add_special_tokens=False).ids
    assert ids == [261, 1, 261, 262, 2]
    assert vocabulary.tokenizer.decode(ids) == "a a<user>"
    assert vocabulary.tokenizer.decode(ids, skip_special_tokens=False) == "a<s> a<user></s>"


# -- byte-level BPE

PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""Patterns from the models' ``tokenizer.json``."""


def byte_level(name: str) -> tuple[Tokenizer, Metadata]:
    """A byte-level BPE trained on the tale, as the library has it and as metadata."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    pattern = PATTERNS["gpt-2" if name in ("default", "smollm") else name]
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    if name == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|begin|>", "<|eot_id|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TALE, "12 34 567 890 1234"] * 3, trainer)
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [left + " " + right for left, right in _merges(tokenizer)]
    return tokenizer, metadata(
        model="gpt2",
        pre=name,
        tokens=tokens,
        scores=None,
        token_type=np.array([3, 3] + [1] * (len(tokens) - 2), np.int32),
        merges=merges,
        bos_token_id=0,
        eos_token_id=None,
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


@pytest.mark.parametrize("name", ["default", "gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_the_ids_of_byte_level_bpe(name: str) -> None:
    reference, found = byte_level(name)
    vocabulary = read_vocabulary(found)
    for text in sentences(300):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert vocabulary.tokenizer.encode(text, add_special_tokens=False).ids == expected, text
        assert vocabulary.tokenizer.decode(expected) == reference.decode(expected)
    assert vocabulary.bos == 0
    # the name of a token that ends a turn is known
    assert vocabulary.eos == (1,)
    assert vocabulary.add_bos == (name == "llama-bpe")


def test_ways_to_split_differ() -> None:
    split = {
        name: [each for each, _ in way.make().pre_tokenize_str("It's 12345 IT'S\n\n x")]
        for name, way in PRE_TOKENIZERS.items()
    }
    assert split["gpt-2"] == ["It", "'s", "Ġ12345", "ĠIT", "'", "S", "ĊĊ", "Ġx"]
    assert split["smollm"][2:8] == ["Ġ", "1", "2", "3", "4", "5"]
    assert split["llama-bpe"] == ["It", "'s", "Ġ", "123", "45", "ĠIT", "'S", "ĊĊ", "Ġx"]
    assert split["qwen2"] == ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "ĠIT", "'S", "ĊĊ", "Ġx"]


SPLIT = "It's 12345 IT'S aB\n\n x/ 漢字です가 été!! =>\t$x  "
PIECES = {
    "falcon_e": "It 's _ 123 45 _IT 'S _aB ~~ _x / _漢字です가 _été !! _=> ^ $x __",
    "smaug-bpe": "It 's _ 123 45 _IT 'S _aB ~~ _x / _漢字です가 _été !! _=> ^ $x __",
    "f2llmv2": "It 's _ 1 2 3 4 5 _IT 'S _aB ~~ _x / _漢字です가 _été !! _=> ^ $x __",
    "olmo": "It 's _12345 _IT ' S _aB ~~ _x / _漢字です가 _été !! _=> ^ $ x __",
    "tekken": "It 's _ 1 2 3 4 5 _IT 'S _a B ~~ _x / _漢字です가 _été !! _=> ^ $x __",
    "llama4": "It's _ 123 45 _IT'S _a B ~~ _x / _漢字です가 _été !! _=> ^ $x __",
    "deepseek-llm": "It ' s _ 12345 _IT ' S _aB ~ ~ _x / _ 漢字です가 _é t é !! _=> ^$ x __",
    "deepseek-coder": "It ' s _ 1 2 3 4 5 _IT ' S _aB ~ ~ _x / _ 漢字です가 _été !! _=>^$ x __",
    "deepseek-v3": "It 's _ 123 45 _IT 'S _aB ~~ _x / _ 漢字です 가 _été !! _=> ^ $x __",
    "starcoder": "It 's _ 1 2 3 4 5 _IT ' S _aB ~~ _x / _漢字です가 _été !! _=> ^ $ x __",
    "poro-chat": "It's _12345 _IT'S _aB ~~ _x/ _漢字です가 _été !! _=> ^ $x __",
    "viking": "It's _ 1 2 3 4 5 _IT'S _aB ~~ _x/ _漢字です가 _été !! _=> ^ $x __",
    "chameleon": "It ' s _ 1 2 3 4 5 _IT ' S _aB ~ ~ _x / _漢字です가 _été ! ! _ = > ^ $ x __",
    "tiny_aya": "It's _ 12 345 _IT'S _a B ~~ _x / _漢字です가 _été !! _=> ^ $x __",
    "kimi-k2": "It's _ 123 45 _IT'S _a B ~~ _x / _ 漢字 です가 _été !! _=> ^ $x __",
    "superbpe": "It's_ 12 345 _IT'S_aB~~_x/_漢字です가_été!!_=>^$x__",
    "exaone-moe": "It 's _ 1 2 3 4 5 _IT 'S _aB ~~ _x / _漢字です가_été !! _=> ^ $x __",
    "youtu": "It's _ 1 2 3 4 5 _IT'S _a B ~~ _x / _ 漢字です 가 _été !! _=> ^ $x __",
}
"""Pieces by what the models' patterns say, with _ ~ ^ for a space, a line feed and a tab. The
signs of deepseek-llm reach from : to ~, past the letters of ASCII."""


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_a_rule(name: str) -> None:
    back = decoders.ByteLevel()
    found = [back.decode([each]) for each, _ in PRE_TOKENIZERS[name].make().pre_tokenize_str(SPLIT)]
    shown = [each.replace(" ", "_").replace("\n", "~").replace("\t", "^") for each in found]
    assert shown == PIECES[name].split()


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_no_rule_loses_text(name: str) -> None:
    """Not a byte is lost, and pieces differ from GPT-2's where a rule is another one."""
    make = PRE_TOKENIZERS[name].make
    for text in [*TEXTS, SPLIT, "1234567 12 ١٢٣ x¼y", "한국어 텍스트 123", "'LL it'll 'd"]:
        pieces = [each for each, _ in make().pre_tokenize_str(text)]
        assert decoders.ByteLevel().decode(pieces) == text


def test_the_vocabulary_of_llama_3_without_a_name() -> None:
    _, found = byte_level("llama-bpe")
    values = dict(found._values)
    del values["tokenizer.ggml.pre"]
    assert not read_vocabulary(Metadata(PATH, values)).add_bos  # taken for GPT-2's
    tokens = values["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    values["tokenizer.ggml.tokens"] = ["<|begin_of_text|>", *tokens[1:]]
    assert read_vocabulary(Metadata(PATH, values)).add_bos


def test_the_chat_template() -> None:
    found = metadata()
    values = dict(found._values) | {"tokenizer.chat_template": "{{ messages }}"}
    assert read_vocabulary(Metadata(PATH, values)).chat_template == "{{ messages }}"


# -- what is refused

AGAIN, OTHER = "convert the model again", "use a model with one of these"
MODELS, KINDS = "gpt2 and llama", ", ".join(PRE_TOKENIZERS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "bert"},
            f": tokenizer.ggml.model 'bert' is not supported; supported are {MODELS}: {OTHER}",
        ),
        ({"model": None}, ": metadata has no tokenizer.ggml.model: copy the model again"),
        ({"tokens": None}, ": metadata has no tokenizer.ggml.tokens: copy the model again"),
        (
            {"model": "gpt2", "pre": "gemma4", "merges": []},
            f": tokenizer.ggml.pre 'gemma4' is not supported; supported are {KINDS}: {OTHER}",
        ),
        (
            {"token_type": np.zeros(3, np.int32)},
            f": tokenizer.ggml.token_type must be 262 whole numbers, one per token: {AGAIN}",
        ),
        (
            {"scores": np.full(262, np.nan, np.float32)},
            f": tokenizer.ggml.scores must be 262 finite numbers, one per token: {AGAIN}",
        ),
        (
            {"scores": None},
            f": tokenizer.ggml.scores must be 262 finite numbers, one per token: {AGAIN}",
        ),
        (
            {"precompiled_charsmap": np.zeros(3, np.uint8)},
            ": tokenizer.ggml.precompiled_charsmap is not supported: use a model without it",
        ),
        ({"bos_token_id": 262}, ": tokenizer.ggml.bos_token_id must be below 262, not 262"),
        (
            {"bos_token_id": None, "add_bos_token": True},
            f": tokenizer.ggml.add_bos_token is set, but there is no bos_token_id: {AGAIN}",
        ),
        (
            {
                "tokens": ["a", "b", "a"],
                "token_type": None,
                "scores": np.zeros(3, np.float32),
            },
            ": tokens 0 and 2 are both 'a': convert the model again",
        ),
        (
            {
                "tokens": ["a", "b" * 513, "c"],
                "token_type": None,
                "scores": np.zeros(3, np.float32),
            },
            ": tokens must have at most 512 characters, not 513: convert the model again",
        ),
        (
            {"model": "gpt2", "tokens": ["a", "b", "c"], "token_type": None, "merges": ["a b"]},
            ": merge 0, 'a b', must join two tokens to a third: convert the model again",
        ),
        (
            {"model": "gpt2", "tokens": ["a", "b", "c"], "token_type": None, "merges": [""]},
            ": merge 0, '', must join two tokens to a third: convert the model again",
        ),
    ],
)
def test_vocabularies_that_are_refused(changes: dict[str, Value | None], message: str) -> None:
    with pytest.raises(LutraError) as error:
        read_vocabulary(metadata(**changes))
    assert str(error.value) == f"{PATH}{message}"
