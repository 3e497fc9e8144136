"""Errors as OpenAI's clients read them: what is wrong, in which field, and what to do."""

import re
from collections.abc import Mapping, Sequence
from typing import cast

from lutra.text.constraint import ConstraintError
from lutra_golden.errors import LutraError

__all__ = ["CLOSING", "FAILED", "ApiError", "from_lutra", "from_running", "from_validation"]

CLOSING = "the server is shutting down"
FAILED = "the server failed: its log says of what"
"""Messages of errors that have nothing to do with a request."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not known here: leave it out",
    "json_invalid": "the body is not JSON",
    "string_type": "must be a string",
    "string_unicode": "must be text of Unicode characters, without lone surrogates",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}
_OBJECT = ": give a JSON object as application/json"
_UNREAD = ("missing", "model_type", "model_attributes_type")
"""Faults of bodies that are no object, if they are there at all."""


class ApiError(Exception):
    """A request that is refused, with the status of HTTP and the fields of OpenAI's errors."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """The body that the client gets."""
        type = _TYPES.get(self.status, "invalid_request_error")
        fields = {"message": self.message, "type": type, "param": self.param, "code": self.code}
        return {"error": fields}


def from_lutra(error: LutraError, fields: Sequence[str], named: Mapping[str, str]) -> ApiError:
    """A refusal of Lutra, as the fault of the first of ``fields`` that the message names;
    ``named`` are those whose parameters have other names."""
    message = str(error)
    words = [named.get(each, each) for each in re.findall(r"\w+", message)]
    name = next((each for each in words if each in fields), None)
    code = "context_length_exceeded" if "the context" in message else None
    return ApiError(400, _begun(message, named), param=name, code=code)


def from_running(error: LutraError, named: Mapping[str, str]) -> ApiError:
    """The end of a generation under way: of the form that it is to have, or of the device."""
    if isinstance(error, ConstraintError):
        message = _begun(str(error), named)
        return ApiError(400, message, param=message.split()[0])
    return ApiError(500, str(error), code="device_error")


def _begun(message: str, named: Mapping[str, str]) -> str:
    """A message that begins with a parameter, with the field in its place."""
    first, space, rest = message.partition(" ")
    return named.get(first, first) + space + rest


def from_validation(errors: Sequence[Mapping[str, object]]) -> ApiError:
    """The first fault that pydantic found in a body."""
    first = errors[0]
    kind, given = str(first["type"]), cast("tuple[object, ...]", first["loc"])
    place = [each for each in given[1:] if isinstance(each, str | int)]
    if kind == "json_invalid":
        return ApiError(400, f"{_WORDS[kind]}: see character {place[0]}", code="invalid_json")
    param = ".".join(map(str, place))
    words = _WORDS.get(kind)
    if words is None:
        words = str(first["msg"])
        own = words.removeprefix("Value error, ")
        if own != words:  # a validator of our own says it all
            words = own
        else:
            words = re.sub("^(Input|List|Dictionary|String|Data) ", "", words)
            words = words.replace("should ", "must ").replace(" after validation", "")
    if not param:
        return ApiError(400, f"the body {words}{_OBJECT * (kind in _UNREAD)}")
    return ApiError(400, f"{param} {words}", param=param)
