"""The vocabulary in a GGUF file's metadata, as a tokenizer.

Two kinds are read: ``gpt2``, byte-level BPE with merges, whose text is split by the pattern that
``tokenizer.ggml.pre`` names, and ``llama``, SentencePiece's BPE, which merges the two neighbours
whose joint piece has the highest score. The latter becomes BPE with merges in the order of scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from lutra.formats.gguf import Metadata
from lutra.formats.gguf_splitting import PRE_TOKENIZERS, Splitting
from lutra_golden.errors import LutraError

__all__ = ["Vocabulary", "end_tokens", "read_vocabulary"]

_PREFIX = "tokenizer.ggml"
_TOKENS = f"{_PREFIX}.tokens"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# finding the merges of a piece takes the square of its length
_PIECE_MAX = 512
# control tokens that end a turn, by the names that families of models give them: files that name
# one end of text only would not stop at the other
_ENDS = frozenset((
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
    "<end_of_turn>", "<EOT>",
))  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer that adds no special tokens by itself, and what the file says of them."""

    tokenizer: Tokenizer
    size: int
    """Tokens that the file has."""
    bos: int | None
    eos: tuple[int, ...]
    """All tokens that end a text or a turn."""
    add_bos: bool
    """True if texts begin with ``bos``."""
    chat_template: str | None


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """The tokenizer of a file; LutraError if it is of another kind, or damaged."""
    kind = metadata.text(f"{_PREFIX}.model")
    if kind not in ("gpt2", "llama"):
        raise LutraError(
            f"{metadata.path}: {_PREFIX}.model {kind!r} is not supported; supported are gpt2 and "
            "llama: use a model with one of these"
        )
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    add_bos = kind == "llama"
    if kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens, types)
    else:
        splitting = _splitting(metadata, tokens)
        add_bos = splitting.add_bos
        tokenizer = _byte_level(metadata, tokens, splitting)
    _add_special(tokenizer, tokens, types)
    bos = None
    if f"{_PREFIX}.bos_token_id" in metadata:
        bos = _token_id(metadata, "bos_token_id", len(tokens))
    add_bos = metadata.flag(f"{_PREFIX}.add_bos_token", add_bos and bos is not None)
    if add_bos and bos is None:
        raise LutraError(
            f"{metadata.path}: {_PREFIX}.add_bos_token is set, but there is no bos_token_id: "
            "convert the model again"
        )
    template = metadata.text("tokenizer.chat_template", default="")
    return Vocabulary(tokenizer, len(tokens), bos, end_tokens(metadata), add_bos, template or None)


def end_tokens(metadata: Metadata) -> tuple[int, ...]:
    """Tokens that end a text or a turn: those the file names, and those with well-known names."""
    if _TOKENS not in metadata:
        return ()
    tokens = _tokens(metadata)
    types = _types(metadata, len(tokens))
    named = [
        _token_id(metadata, key, len(tokens))
        for key in ("eos_token_id", "eot_token_id", "eom_token_id")
        if f"{_PREFIX}.{key}" in metadata
    ]
    known = [i for i, text in enumerate(tokens) if text in _ENDS and types[i] == _CONTROL]
    return tuple(dict.fromkeys(named + known))


def _tokens(metadata: Metadata) -> list[str]:
    return metadata.strings(_TOKENS)


def _types(metadata: Metadata, n: int) -> NDArray[np.int64]:
    found = metadata.numbers(f"{_PREFIX}.token_type")
    if found is None:
        return np.full(n, _NORMAL)
    if len(found) != n or found.dtype.kind not in "iu":
        raise LutraError(
            f"{metadata.path}: {_PREFIX}.token_type must be {n} whole numbers, one per token: "
            "convert the model again"
        )
    return found.astype(np.int64)


def _token_id(metadata: Metadata, key: str, n: int) -> int:
    value = metadata.whole(f"{_PREFIX}.{key}", minimum=0)
    if value >= n:
        raise LutraError(f"{metadata.path}: {_PREFIX}.{key} must be below {n}, not {value}")
    return value


def _numbered(metadata: Metadata, tokens: Sequence[str]) -> dict[str, int]:
    """Tokens to their ids."""
    # the first of those that are the same
    ids = dict(zip(reversed(tokens), range(len(tokens) - 1, -1, -1), strict=True))
    if len(ids) != len(tokens):
        i, text = next((i, text) for i, text in enumerate(tokens) if ids[text] != i)
        raise LutraError(
            f"{metadata.path}: tokens {ids[text]} and {i} are both {text!r}: "
            "convert the model again"
        )
    return ids


def _splitting(metadata: Metadata, tokens: Sequence[str]) -> Splitting:
    key = f"{_PREFIX}.pre"
    # files of 2B-4T do not say that they have Llama 3's vocabulary
    default = "llama-bpe" if "<|begin_of_text|>" in tokens else "default"
    name = metadata.text(key, default)
    if name not in PRE_TOKENIZERS:
        raise LutraError(
            f"{metadata.path}: {key} {name!r} is not supported; supported are "
            f"{', '.join(PRE_TOKENIZERS)}: use a model with one of these"
        )
    return PRE_TOKENIZERS[name]


def _byte_level(metadata: Metadata, tokens: Sequence[str], splitting: Splitting) -> Tokenizer:
    ids = _numbered(metadata, tokens)
    merges: list[tuple[str, str]] = []
    for i, merge in enumerate(metadata.strings(f"{_PREFIX}.merges")):
        left, _, right = merge.partition(" ")
        if not left:  # a part may begin with a space only if it is one
            left, _, right = merge[1:].partition(" ")
            left = merge[:1] + left
        if left not in ids or right not in ids or left + right not in ids:
            raise LutraError(
                f"{metadata.path}: merge {i}, {merge[:60]!r}, must join two tokens to a third: "
                "convert the model again"
            )
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=splitting.whole))
    if splitting.normal_form:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.make()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(
    metadata: Metadata, tokens: Sequence[str], types: NDArray[np.int64]
) -> Tokenizer:
    path = metadata.path
    scores = metadata.numbers(f"{_PREFIX}.scores")
    if scores is None or len(scores) != len(tokens) or not np.isfinite(scores.astype("f8")).all():
        raise LutraError(
            f"{path}: {_PREFIX}.scores must be {len(tokens)} finite numbers, one per token: "
            "convert the model again"
        )
    if metadata.numbers(f"{_PREFIX}.precompiled_charsmap") is not None:
        raise LutraError(
            f"{path}: {_PREFIX}.precompiled_charsmap is not supported: use a model without it"
        )
    ids = _numbered(metadata, tokens)
    joined = {
        text: float(scores[i]) for text, i in ids.items() if types[i] in (_NORMAL, _USER, _UNUSED)
    }
    longest = max(map(len, joined), default=0)
    if longest > _PIECE_MAX:
        raise LutraError(
            f"{path}: tokens must have at most {_PIECE_MAX} characters, not {longest}: "
            "convert the model again"
        )
    ranked = [
        (-score, -len(text[:i]), ids[text[:i]], text[:i], text[i:])
        for text, score in joined.items()
        for i in range(1, len(text))
        if text[:i] in joined and text[i:] in joined
    ]
    ranked.sort()
    merges = [(left, right) for _, _, _, left, right in ranked]
    unknown = next((text for text, i in ids.items() if types[i] == _UNKNOWN), None)
    has_bytes = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    tokenizer = Tokenizer(
        models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    )
    tokenizer.normalizer, tokenizer.decoder = _spaces(metadata)
    return tokenizer


def _spaces(metadata: Metadata) -> tuple[normalizers.Normalizer, decoders.Decoder]:
    """SentencePiece's handling of spaces: a mark stands for one, and one begins each text."""
    steps: list[normalizers.Normalizer] = []
    if metadata.flag(f"{_PREFIX}.remove_extra_whitespaces", False):
        ends = normalizers.Replace(Regex(rf"\A +|[ {_SPACE}]+\z"), "")
        steps += [ends, normalizers.Replace(Regex(" {2,}"), " ")]
    back: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if metadata.flag(f"{_PREFIX}.add_space_prefix", True):
        steps.append(normalizers.Prepend(_SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps), decoders.Sequence(back)


class _Adding(Protocol):
    """The part of a tokenizer whose types its stubs leave open."""

    def add_tokens(self, tokens: list[AddedToken]) -> int: ...
    def add_special_tokens(self, tokens: list[AddedToken]) -> int: ...


def _add_special(tokenizer: Tokenizer, tokens: Sequence[str], types: NDArray[np.int64]) -> None:
    """Tokens that are found in text before anything else; control tokens are not shown."""
    found: dict[bool, list[AddedToken]] = {False: [], True: []}
    for i in np.nonzero((types == _CONTROL) | (types == _UNKNOWN) | (types == _USER))[0].tolist():
        if tokens[i]:
            special = bool(types[i] != _USER)
            found[special].append(AddedToken(tokens[i], normalized=False, special=special))
    adding = cast("_Adding", tokenizer)
    adding.add_special_tokens(found[True])
    adding.add_tokens(found[False])
