"""Calls of functions: what a conversation offers, and what an answer calls.

Models write a call as Hermes does, and Qwen after it: an object of ``name`` and ``arguments``
between ``<tool_call>`` and ``</tool_call>``, which their chat templates tell them.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from lutra.text.stop import StopFilter

__all__ = ["OPENING", "Call", "CallFilter", "calls_grammar", "find_calls"]

OPENING = "<tool_call>"
"""The beginning of a call, in answers and in templates that know of calls."""
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A call of the function ``name``, with its ``arguments`` as JSON."""

    id: str
    name: str
    arguments: str

    @property
    def body(self) -> dict[str, object]:
        """The call as OpenAI's clients read it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def calls_grammar(functions: Mapping[str, Mapping[str, object]]) -> str:
    """Grammar of an answer that is one call of a function; ``functions`` are the schemas of their
    arguments by their names."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": dict(schema)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, schema in functions.items()
    ]
    # the mark of a rule of GBNF must not be in the text of a schema
    compact = {"anyOf": calls, "x-guidance": {"whitespace_flexible": False}}
    schema = json.dumps(compact).replace("::=", "\\u003a:=")
    return f'start: "<tool_call>\\n" call "\\n</tool_call>"\ncall: %json {schema}\n'


def find_calls(text: str, names: Sequence[str], most: int | None = None) -> tuple[str, list[Call]]:
    """The text before the first call, and the calls, ``most`` of them; all text and none if one of
    them is no call of these functions."""
    calls: list[Call] = []
    for found in _CALL.findall(text):
        try:
            call: object = json.loads(found)
        except (ValueError, RecursionError):
            return text, []
        fields = cast("dict[str, object]", call) if isinstance(call, dict) else {}
        name, arguments = fields.get("name"), fields.get("arguments", {})
        if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
            return text, []
        calls.append(Call(f"call_{secrets.token_hex(12)}", name, json.dumps(arguments)))
    return (text.partition(OPENING)[0].rstrip(), calls[:most]) if calls else (text, [])


class CallFilter:
    """Lets the text of an answer through up to its first call, and finds the calls at its end."""

    def __init__(self, names: Sequence[str], most: int | None = None) -> None:
        self._names, self._most = names, most
        self._filter, self._text, self._sent = StopFilter([OPENING]), "", 0

    def push(self, text: str) -> str:
        """Text that is clear with ``text``."""
        self._text += text
        clear = self._filter.push(text)
        self._sent += len(clear)
        return clear

    def flush(self) -> tuple[str, list[Call]]:
        """Text that is left, and the calls."""
        content, calls = find_calls(self._text, self._names, self._most)
        return content[self._sent :], calls
