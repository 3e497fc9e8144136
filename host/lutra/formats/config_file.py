"""The content of a ``config.json``, checked field by field."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from lutra_golden.errors import LutraError

__all__ = ["ConfigFile"]


class ConfigFile:
    """The content of a ``config.json`` and its checks; errors name the file, field and value."""

    def __init__(self, path: Path, content: Mapping[str, object]) -> None:
        self.path, self._raw = path, content

    @classmethod
    def read(cls, path: Path) -> "ConfigFile":
        """Read a file."""
        try:
            content: object = json.loads(path.read_text(encoding="utf-8"))
            # JSON can spell half of a character, which is no text for anyone
            json.dumps(content, ensure_ascii=False).encode()
        except FileNotFoundError:
            raise LutraError(
                f"{path} does not exist: give a model folder, a GGUF file or a shipped name"
            ) from None
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits included
            raise LutraError(f"{path} is not JSON ({error}): copy the model again") from None
        return cls(path, _object(content))

    def with_defaults(self, defaults: Mapping[str, object]) -> "ConfigFile":
        """The same file, with values for fields that it leaves out; null is a value."""
        return ConfigFile(self.path, {**defaults, **self._raw})

    @property
    def content(self) -> Mapping[str, object]:
        """All fields."""
        return self._raw

    def get(self, name: str, within: str | None = None) -> object:
        """A field, of the object ``within`` if given; None where it is missing."""
        return (_object(self._raw.get(within)) if within else self._raw).get(name)

    def require(self, name: str, value: object, *expected: object, advice: str) -> None:
        """Refuse a value that is not supported."""
        if value not in expected:
            choice = " or ".join(map(repr, expected))
            raise LutraError(
                f"{self.path}: {name} {value!r} is not supported; supported is {choice}: {advice}"
            )

    @property
    def architecture(self) -> str:
        """The one name in ``architectures``."""
        named = self.get("architectures")
        if isinstance(named, list):
            names = cast("list[object]", named)
            if len(names) == 1 and isinstance(names[0], str):
                return names[0]
        raise LutraError(
            f"{self.path}: architectures must be a list of one name, not {named!r}: "
            "copy the model again"
        )

    def real(self, name: str, within: str | None = None, *, default: float | None = None) -> float:
        """A positive number."""
        value = self.get(name, within)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LutraError(f"{self.path}: {name} must be a number, not {value!r}")
        if not 0 < value < math.inf:
            raise LutraError(f"{self.path}: {name} must be positive, not {value}")
        return float(value)

    def whole(
        self,
        name: str,
        within: str | None = None,
        *,
        default: int | None = None,
        maximum: int = 1 << 24,
    ) -> int:
        """A positive whole number up to ``maximum``."""
        value = self.get(name, within)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LutraError(f"{self.path}: {name} must be a positive whole number, not {value!r}")
        if value > maximum:
            raise LutraError(f"{self.path}: {name} must be at most {maximum}, not {value}")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise LutraError(f"{self.path}: {name} must be true or false, not {value!r}")
        return value

    def tokens(self, name: str, *, skip_unknown: bool = False) -> tuple[int, ...]:
        """Token ids: one, a list of them, or none; ``skip_unknown`` leaves out those beyond the
        vocabulary, which no text has."""
        value, size = self.get(name), self.whole("vocab_size")
        if value is None:
            return ()
        ids = cast("list[object]", value) if isinstance(value, list) else [value]
        known: list[int] = []
        for each in ids:
            whole = isinstance(each, int) and not isinstance(each, bool)
            if not whole or each < 0 or (each >= size and not skip_unknown):
                raise LutraError(
                    f"{self.path}: {name} must be a token id in 0..{size - 1}, not {each!r}"
                )
            if each < size:
                known.append(each)
        return tuple(known)


def _object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
