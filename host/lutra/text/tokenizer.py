"""Text to token ids and back, and streaming that never splits a character."""

import json
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from tokenizers import Tokenizer as HfTokenizer

from lutra.formats.config_file import ConfigFile
from lutra.formats.gguf import is_gguf
from lutra.formats.gguf_split import GgufModel
from lutra.formats.gguf_vocabulary import read_vocabulary
from lutra.process_lock import ProcessLock
from lutra.text.constraint import Constraint, Constraints
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

__all__ = ["StreamDecoder", "Tokenizer", "copy_tokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# In a special token's place it makes plain text of it; Unicode gives it to no text.
_BREAK = "\ufdd0"
_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """A model folder's ``tokenizer.json``, else its ``tokenizer.model`` of SentencePiece.

    ``bos`` is what begins a text, None if nothing does; ``add_bos`` whether it comes first unasked:
    as ``tokenizer_config.json`` says, else as the file's own post-processor does. ``eos`` are all
    tokens that end one. ``chat_template`` is Jinja, ``special_tokens`` what it calls them.
    """

    def __init__(self, folder: Path, bos: int | None = None) -> None:
        config, backend = _config(folder / "tokenizer_config.json"), _backend(folder)
        named = {name: text for name in _NAMED if (text := _text(config.get(name))) is not None}
        first = backend.id_of(named.get("bos_token"))
        bos = bos if first is None else first
        generation = _config(folder / "generation_config.json")
        ends = {*_ids(generation, "eos_token_id"), backend.id_of(named.get("eos_token"))}
        said = config.get("add_bos_token") is not None
        self._set(
            backend,
            bos=bos,
            eos={each for each in ends if each is not None},
            add_bos=config.flag("add_bos_token") if said else backend.begins_with(bos),
            chat_template=_template(folder, config),
            special_tokens=named,
        )

    @classmethod
    def open(cls, path: Path, bos: int | None = None) -> "Tokenizer":
        """The tokenizer of a model: a folder, or a GGUF file."""
        if not is_gguf(path):
            return cls(path, bos)
        found = read_vocabulary(GgufModel(path).metadata)
        return cls.from_vocabulary(
            found.tokenizer,
            size=found.size,
            bos=found.bos,
            eos=found.eos,
            add_bos=found.add_bos,
            chat_template=found.chat_template,
        )

    @classmethod
    def from_vocabulary(
        cls,
        tokenizer: HfTokenizer,
        *,
        bos: int | None,
        eos: Collection[int] = (),
        add_bos: bool = False,
        chat_template: str | None = None,
        size: int | None = None,
    ) -> "Tokenizer":
        """A tokenizer that a file of another kind holds, ``size`` tokens of its own if given."""
        self, backend = cls.__new__(cls), _Library(tokenizer, size)
        named = {"bos_token": bos, "eos_token": min(eos, default=None)}
        self._set(
            backend,
            bos=bos,
            eos=eos,
            add_bos=add_bos,
            chat_template=chat_template,
            special_tokens={
                name: text
                for name, token in named.items()
                if token is not None and (text := tokenizer.id_to_token(token)) is not None
            },
        )
        return self

    def _set(
        self,
        backend: "_Backend",
        *,
        bos: int | None,
        eos: Collection[int],
        add_bos: bool,
        chat_template: str | None,
        special_tokens: Mapping[str, str],
    ) -> None:
        self._backend, self.bos, self.eos = backend, bos, frozenset(eos)
        self.add_bos = add_bos
        self.chat_template, self.special_tokens = chat_template, dict(special_tokens)
        self._constraints: dict[frozenset[int], Constraints] = {}
        self._constraining = ProcessLock()
        longest_first = sorted(backend.special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, special ones included."""
        return self._backend.size

    @property
    def own_size(self) -> int:
        """One more than the largest id of a token that was not added later: programs add tokens
        that the model has no rows for, and that no text has."""
        return self._backend.own_size

    def check_model(self, path: Path, vocab_size: int) -> None:
        """Refuse the model at ``path`` with ``vocab_size`` tokens if this tokenizer has more."""
        if self.own_size > vocab_size:
            raise LutraError(
                f"{path} mixes two models: its tokenizer has {self.own_size} tokens, "
                f"config.json {vocab_size}: copy the model again"
            )

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of plain text, in which a special token's name stands for itself.

        Without ``add_bos`` the model's own rule says whether the beginning-of-text token comes
        first; a model that has none gets none.
        """
        ids = self._backend.encode(_checked(text), special=False)
        begin = self.add_bos if add_bos is None else add_bos
        return [self.bos, *ids] if begin and self.bos is not None else ids

    def encode_template(self, text: str) -> list[int]:
        """Token ids of a rendered chat template; special tokens are parsed, but for those that
        :meth:`as_text` has made plain."""
        if _BREAK not in _checked(text):
            return self._backend.encode(text, special=True)
        ids: list[int] = []
        end = 0
        for match in self._special.finditer(text):
            ids += self._plain(text[end : match.start()])
            ids.append(self._backend.special[match[0]])
            end = match.end()
        return ids + self._plain(text[end:])

    def _plain(self, text: str) -> list[int]:
        return self._backend.encode(text.replace(_BREAK, ""), special=False) if text else []

    def as_text(self, text: str) -> str:
        """Text to put into a template, such that special tokens that it names stay text."""
        text = text.replace(_BREAK, "")
        return self._special.sub(lambda match: match[0][0] + _BREAK + match[0][1:], text)

    def constraint(self, form: tuple[str, str] | None, ends: Collection[int]) -> Constraint | None:
        """Constraint of a text of a ``form``, see :attr:`SamplingParams.form`; None without one.
        It may end with one of the tokens ``ends``.

        The first one takes a second or two; LutraError for one that is not understood.
        """
        if form is None:
            return None
        with self._constraining.adopt():
            known = frozenset(ends)
            if known not in self._constraints:
                self._constraints[known] = Constraints(self._backend.vocabulary(), known)
            return self._constraints[known].make(*form)

    def all_as_text(self, value: object) -> object:
        """The same for all text in a value of JSON."""
        if isinstance(value, str):
            return self.as_text(value)
        if isinstance(value, Mapping):
            pairs = cast("Mapping[str, object]", value).items()
            return {self.as_text(name): self.all_as_text(each) for name, each in pairs}
        if isinstance(value, list | tuple):
            return [self.all_as_text(each) for each in cast("Iterable[object]", value)]
        return value

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return self._backend.decode(ids)

    def token_text(self, id: int) -> str:
        """Text of one token inside of a text, the name of a special one.

        Bytes that are no whole character are replacement characters.
        """
        for name, special in self._backend.special.items():
            if special == id:
                return name
        # behind another, as a text's first one may lose its space
        return self.decode([id, id])[len(self.decode([id])) :]


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy a model's tokenizer next to the packed model: the files of a folder unchanged,
    a GGUF's vocabulary as ``tokenizer.json``. Files of another tokenizer that lie there go."""
    for name in _FILES:
        (out / name).unlink(missing_ok=True)
    if not is_gguf(source):
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        return
    found = read_vocabulary(GgufModel(source).metadata)
    text = found.tokenizer.to_str(pretty=True)
    # an error of its own `save` is of no kind that says what it is
    (out / "tokenizer.json").write_text(text, encoding="utf-8")
    config: dict[str, object] = {"add_bos_token": found.add_bos}
    if found.bos is not None:
        config["bos_token"] = found.tokenizer.id_to_token(found.bos)
    if found.chat_template is not None:
        config["chat_template"] = found.chat_template
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    ends = json.dumps({"eos_token_id": list(found.eos)})
    (out / "generation_config.json").write_text(ends, encoding="utf-8")


class StreamDecoder:
    """Turns ids into text as they come; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, context: list[int]) -> None:
        self._tokenizer = tokenizer
        # The tokens before give the decoder what it joins on. They are cut where a character ends
        # only: a decoder of bytes may give up a whole run of them for one that is incomplete.
        self._before = list(context)
        self._ids: list[int] = []
        self._seen = len(tokenizer.decode(self._before))

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._before + self._ids)
        if text.endswith(_REPLACEMENT):
            return ""
        piece = text[self._seen :]
        own = len(self._tokenizer.decode(self._ids))
        if own:
            self._before, self._seen = self._ids, own
        else:
            self._before, self._seen = self._before + self._ids, len(text)
        self._ids = []
        return piece

    def flush(self) -> str:
        """Return what is left of an unfinished character when no more tokens come."""
        return self._tokenizer.decode(self._before + self._ids)[self._seen :]


class _Backend(Protocol):
    special: Mapping[str, int]
    """Special tokens by their names."""

    @property
    def size(self) -> int: ...
    @property
    def own_size(self) -> int: ...
    def encode(self, text: str, *, special: bool) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def id_of(self, token: str | None) -> int | None: ...
    def begins_with(self, bos: int | None) -> bool: ...
    def vocabulary(self) -> str: ...


class _Library:
    """``tokenizers``."""

    def __init__(self, tokenizer: HfTokenizer, own_size: int | None = None) -> None:
        # what a file says of these is for training
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):
            # BPE leaves merges out at random, so that a text has other tokens each time
            tokenizer.model.dropout = None
        self._tokenizer, self._own_size = tokenizer, own_size
        self._taking_turns = ProcessLock()  # how special tokens are taken is the library's state
        added = tokenizer.get_added_tokens_decoder()
        named = {token.content: i for i, token in added.items() if token.special}
        self.special: Mapping[str, int] = named

    @property
    def size(self) -> int:
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @property
    def own_size(self) -> int:
        if self._own_size is not None:
            return self._own_size  # reading it off takes a tenth of a second
        own = self._tokenizer.get_vocab(with_added_tokens=False)
        return max(own.values(), default=-1) + 1

    def encode(self, text: str, *, special: bool) -> list[int]:
        with self._taking_turns.adopt():
            self._tokenizer.encode_special_tokens = not special
            try:
                return self._tokenizer.encode(text, add_special_tokens=False).ids
            except Exception as error:  # the library raises bare Exception
                raise LutraError(
                    f"the model's tokenizer has no tokens for this text ({_line(error)}): give "
                    "another text"
                ) from None

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def id_of(self, token: str | None) -> int | None:
        return None if token is None else self._tokenizer.token_to_id(token)

    def begins_with(self, bos: int | None) -> bool:
        ids = self._tokenizer.encode("", add_special_tokens=True).ids
        return bos is not None and ids[:1] == [bos]

    def vocabulary(self) -> str:
        return self._tokenizer.to_str()


class _SentencePiece:
    """``sentencepiece``, and tokens that Hugging Face's files add to its own."""

    def __init__(self, path: Path, added: Mapping[int, tuple[str, bool]]) -> None:
        try:
            # by name, as it has no annotations
            library: Any = import_module("sentencepiece")
        except ImportError:
            raise LutraError(
                f"to read {path} sentencepiece is missing: run "
                f"`{install_command('sentencepiece')}`, or use a model with a tokenizer.json"
            ) from None
        try:
            self._processor: Any = library.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise LutraError(
                f"{path} is not a SentencePiece model ({_line(error)}): copy the model again"
            ) from None
        n: int = self._processor.vocab_size()
        self.own_size = n
        control = [i for i in range(n) if self._processor.is_control(i)]
        named: dict[str, int] = {self._processor.id_to_piece(i): i for i in control}
        named |= {content: i for i, (content, special) in added.items() if special}
        self.special: Mapping[str, int] = named
        self._plain = {content: i for i, (content, special) in added.items() if not special}
        self._texts = {i: content for content, i in self._plain.items()}
        self._skipped = frozenset(self.special.values())
        self._bos: int = self._processor.bos_id()

    @property
    def size(self) -> int:
        return max([self.own_size, *(1 + i for i in (*self._texts, *self._skipped))])

    def encode(self, text: str, *, special: bool) -> list[int]:
        known = {**self._plain, **self.special} if special else self._plain
        names = "|".join(map(re.escape, sorted(known, key=len, reverse=True))) or "(?!)"
        ids: list[int] = []
        end = 0
        for match in re.finditer(names, text):
            ids += self._processor.encode(text[end : match.start()])
            ids.append(known[match[0]])
            end = match.end()
        return ids + cast("list[int]", self._processor.encode(text[end:]))

    def decode(self, ids: list[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if token in self._texts:
                parts += [self._processor.decode(run), self._texts[token]]
                run = []
            elif token < self.own_size and token not in self._skipped:
                run.append(token)
        return "".join([*parts, self._processor.decode(run)])

    def id_of(self, token: str | None) -> int | None:
        if token is None:
            return None
        known = self.special.get(token, self._plain.get(token))
        if known is not None:
            return known
        found: int = self._processor.piece_to_id(token)
        return None if found == self._processor.unk_id() else found

    def begins_with(self, bos: int | None) -> bool:
        return bos is not None and bos == self._bos

    def vocabulary(self) -> str:
        raise LutraError(
            "json_schema, regex and grammar need a tokenizer.json, and this model has a "
            "tokenizer.model: leave them out"
        )


def _backend(folder: Path) -> _Backend:
    path, other = folder / "tokenizer.json", folder / "tokenizer.model"
    if not path.exists() and other.exists():
        return _SentencePiece(other, _added_tokens(folder))
    if not path.exists():
        raise LutraError(
            f"{path} does not exist: the model folder must hold a tokenizer.json or a "
            "tokenizer.model"
        )
    try:
        return _Library(HfTokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise LutraError(
            f"{path} is not a tokenizer ({_line(error)}): copy the model again"
        ) from None


def _added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Tokens that ``tokenizer_config.json`` adds: content, and whether it is special."""
    config = _config(folder / "tokenizer_config.json")
    found: dict[int, tuple[str, bool]] = {}
    for name, content in _mapping(config.get("added_tokens_decoder")).items():
        fields = _mapping(content)
        text = _text(fields)
        if not name.isdecimal() or not text:
            raise LutraError(
                f"{config.path}: added_tokens_decoder must give tokens by id, not {name!r}: "
                "copy the model again"
            )
        found[int(name)] = text, bool(fields.get("special"))
    return found


def _config(path: Path) -> ConfigFile:
    return ConfigFile.read(path) if path.exists() else ConfigFile(path, {})


def _ids(config: ConfigFile, name: str) -> Iterable[int]:
    value = config.get(name)
    if value is None:
        return ()
    ids = cast("list[object]", value) if isinstance(value, list) else [value]
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, int) or each < 0:
            raise LutraError(f"{config.path}: {name} must be token ids, not {each!r}")
    return cast("list[int]", ids)


def _template(folder: Path, config: ConfigFile) -> str | None:
    """A file of its own comes first; of several with names, the one for all cases."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise LutraError(f"{path} is not UTF-8 text: copy the model again") from None
    value = config.get("chat_template")
    if isinstance(value, list):
        named = [_mapping(each) for each in cast("list[object]", value)]
        texts = {str(each.get("name")): each.get("template") for each in named}
        value = texts.get("default", next(iter(texts.values()), None))
    if value is not None and not isinstance(value, str):
        raise LutraError(f"{config.path}: chat_template must be text: copy the model again")
    return value


def _text(value: object) -> str | None:
    """A token's text, which files give alone or as a field of an object."""
    content = _mapping(cast("object", value)).get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _mapping(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LutraError("the text holds bytes that are not UTF-8: give it in UTF-8") from None
    return text


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
