"""Messages of a conversation."""

from collections.abc import Mapping, Sequence
from typing import cast

from lutra_golden.errors import LutraError

__all__ = ["ROLES", "Message", "check_messages"]

Message = Mapping[str, object]
"""``role`` and ``content``, and what templates know beside them, such as ``tool_calls``."""
ROLES = ("system", "user", "assistant", "tool")


def check_messages(messages: object) -> None:
    """Refuse what is no conversation."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise LutraError(
            f"messages must be a list of role and content, not {type(messages).__name__}"
        )
    for message in cast("Sequence[object]", messages):
        if not isinstance(message, Mapping):
            raise LutraError(
                f"a message must have a role and a content, not be {type(message).__name__}"
            )
        fields = cast("Mapping[str, object]", message)
        if fields.get("role") not in ROLES or not isinstance(fields.get("content"), str):
            raise LutraError(
                f"a message must have a role ({', '.join(ROLES)}) and a content of text, not "
                f"{dict(fields)!r}"
            )
