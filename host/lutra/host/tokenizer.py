"""Text to token ids and back, and streaming that never splits a character."""

from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer

from lutra.host.errors import LutraError

__all__ = ["StreamDecoder", "Tokenizer"]


class Tokenizer:
    """A ``tokenizer.json`` of Hugging Face."""

    def __init__(self, folder: Path, bos: int) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise LutraError(f"{path} does not exist: the model folder must hold a tokenizer.json")
        try:
            self._tokenizer = HfTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise LutraError(f"{path} is not a tokenizer ({error}): copy the model again") from None
        self._bos = bos

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Return token ids, by default behind the beginning-of-text token."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise LutraError("the text holds bytes that are not UTF-8: give it in UTF-8") from None
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._bos, *ids] if add_bos else ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class StreamDecoder:
    """Turns ids into text as they come; bytes of an unfinished character wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, context: list[int]) -> None:
        self._tokenizer = tokenizer
        # the tokens before give the decoder what it joins on
        self._ids = context[-8:]
        self._seen = len(tokenizer.decode(self._ids))

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece = text[self._seen :]
        self._ids, self._seen = self._ids[-8:], 0
        self._seen = len(self._tokenizer.decode(self._ids))
        return piece

    def flush(self) -> str:
        """Return what is left of an unfinished character when no more tokens come."""
        return self._tokenizer.decode(self._ids)[self._seen :]
