"""Bodies of requests: fields of OpenAI's API and of vLLM's, each of which does what it says.

A field that is not here is refused by its name, and so is a value that asks for what Lutra does not
do: nothing is ignored but ``user``, ``store`` and ``metadata``, which change no answer.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from lutra.server.tools import calls_grammar
from lutra.text.messages import Message
from lutra.text.sampling import SamplingParams

__all__ = [
    "ChatBody",
    "CompletionBody",
    "Content",
    "DetokenizeBody",
    "EmbeddingsBody",
    "ErrorBody",
    "GenerationBody",
    "MessageBody",
    "ResponseFormat",
    "StreamOptions",
    "TokenizeBody",
]

_T = TypeVar("_T")
_DEFAULTS = SamplingParams()
_MOST_LIKELIEST = 20
_MOST_STOPS = 16
_MOST_BIASES = 1024
_MOST_FIELDS = 64
_MOST_TOOLS = 128
_MOST_N = 128
_Whole = Annotated[int, Field(ge=0, lt=1 << 63)]
_Count = Annotated[int, Field(ge=1, lt=1 << 31)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Tokens = Annotated[list[_Whole], Field(min_length=1, fail_fast=True)]
_Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


def _either(words: str) -> WrapValidator:
    """One message for a value that is of none of several kinds."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be {words}") from None

    return WrapValidator(check)


def _at_most(most: int) -> BeforeValidator:
    """Refuse an object of many fields before each of them is looked at."""

    def check(value: object) -> object:
        if _n_fields(value) > most:
            raise ValueError(f"must have {most} fields at most")
        return value

    return BeforeValidator(check)


class _Body(BaseModel):
    """Values are of the kinds that they should be, and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: object) -> object:
        """Refuse many unknown fields before each of them is."""
        if _n_fields(value) > _MOST_FIELDS:
            raise ValueError(f"must have {_MOST_FIELDS} fields at most")
        return value


class StreamOptions(_Body):
    """Parts of a stream beside its pieces."""

    include_usage: bool = False


class JsonSchema(_Body):
    """A schema by name."""

    name: str = "answer"
    description: str | None = None
    strict: bool | None = None
    schema_: Annotated[dict[str, object], Field(alias="schema")]


class ResponseFormat(_Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _fits(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("must have a json_schema if its type is that, and only then")
        return self

    @property
    def schema_(self) -> dict[str, object] | None:
        """The schema of the answer, None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class GenerationBody(_Body):
    """How an answer is made."""

    model: str | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[_Number, Field(ge=0)] | None = None
    top_p: Annotated[_Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[_Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[_Number, Field(gt=0)] | None = None
    seed: _Whole | None = None
    stop: Annotated[
        str | Annotated[list[str], Field(max_length=_MOST_STOPS, fail_fast=True)] | None,
        _either(f"a string, or at most {_MOST_STOPS} in a list"),
    ] = None
    n: Annotated[int, Field(ge=1, le=_MOST_N)] | None = None
    logit_bias: Annotated[dict[str, _Number] | None, _at_most(_MOST_BIASES)] = None
    ignore_eos: bool = False
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] = 0
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    regex: str | None = None
    grammar: str | None = None
    frequency_penalty: _Number | None = None
    presence_penalty: _Number | None = None
    user: str | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str] | None, _at_most(_MOST_FIELDS)] = None

    @field_validator("frequency_penalty", "presence_penalty")
    @classmethod
    def _no_penalty(cls, value: float | None) -> float | None:
        if value:
            raise ValueError("other than 0 is not supported: use repetition_penalty")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _of_tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token in value or ():
            if not (token.isascii() and token.isdecimal() and len(token) < 19):
                raise ValueError('must give token ids, such as {"42": -5}')
        return value

    @field_validator("stream_options")
    @classmethod
    def _streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError('is for streams: add "stream": true')
        return value

    def sampling(self, seed: int) -> SamplingParams:
        """Parameters of the generation; ``seed`` is that of a request without one."""
        biases = {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        return SamplingParams(
            temperature=_or(self.temperature, _DEFAULTS.temperature),
            # -1 is vLLM's way to have it off
            top_k=max(_or(self.top_k, _DEFAULTS.top_k), 0),
            top_p=_or(self.top_p, _DEFAULTS.top_p),
            min_p=_or(self.min_p, _DEFAULTS.min_p),
            repetition_penalty=_or(self.repetition_penalty, _DEFAULTS.repetition_penalty),
            seed=_or(self.seed, seed),
            logit_bias=biases,
            stop=_or(self.stop, ()),
            logprobs=self.likeliest,
            n=_or(self.n, 1),
            ignore_eos=self.ignore_eos,
            json_schema=None if self.response_format is None else self.response_format.schema_,
            regex=self.regex,
            grammar=self.form,
        )

    @property
    def offered(self) -> "Sequence[ToolBody]":
        """Tools that may be called."""
        return ()

    @property
    def most_calls(self) -> int | None:
        """Calls in an answer, None for any number."""
        return None

    @property
    def form(self) -> str | None:
        """The grammar of the answer, None without one."""
        return self.grammar

    @property
    def named(self) -> Mapping[str, str]:
        """Fields by the parameters that come from them, where the names differ."""
        return {"json_schema": "response_format"}

    @property
    def likeliest(self) -> int | None:
        """Likeliest tokens that are reported with each one, None for no report."""
        return None

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most, None for as many as there is room for."""
        return self.max_tokens


class CompletionBody(GenerationBody):
    """``/v1/completions``: texts to go on from, or their tokens."""

    prompt: Annotated[
        str | _Texts | _Tokens | Annotated[list[_Tokens], Field(min_length=1, fail_fast=True)],
        _either("a string, a list of strings, or one or several lists of token ids"),
    ]
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LIKELIEST)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    @field_validator("best_of")
    @classmethod
    def _no_choice(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value not in (None, info.data.get("n") or 1):
            raise ValueError("other than n is not supported: leave it out")
        return value

    @field_validator("echo", "suffix")
    @classmethod
    def _plain(cls, value: _T) -> _T:
        if value:
            raise ValueError("is not supported: leave it out")
        return value

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts, also if there is one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        whole = [each for each in self.prompt if isinstance(each, int)]
        several = [each for each in self.prompt if not isinstance(each, int)]
        return several or [whole]

    @property
    def likeliest(self) -> int | None:
        return self.logprobs

    @property
    def most_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]
"""Text of a message, whole or in parts."""


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionBody(_Body):
    """A function that may be called, and the schema of its arguments."""

    name: _Name
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class ToolBody(_Body):
    """A tool: a function."""

    type: Literal["function"]
    function: FunctionBody


class NamedFunction(_Body):
    """A function by its name."""

    name: _Name


class NamedTool(_Body):
    """A tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(_Body):
    """A function that was called, with its arguments as JSON."""

    name: _Name
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, value: str) -> str:
        try:
            is_object = isinstance(json.loads(value), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise ValueError("must be a JSON object as text")
        return value


class CallBody(_Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class MessageBody(_Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Content | None, _either('a string, or parts such as {"type": "text", "text": ...}')
    ] = None
    name: str | None = None
    refusal: None = None
    tool_calls: Annotated[list[CallBody], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None

    def message(self) -> Message:
        """The message as templates have it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(each.text for each in content)
        role = "system" if self.role == "developer" else self.role
        found: dict[str, object] = {"role": role, "content": content}
        if self.name:
            found["name"] = self.name
        if self.tool_call_id:
            found["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            found["tool_calls"] = [
                {
                    "id": each.id,
                    "type": "function",
                    "function": {
                        "name": each.function.name,
                        "arguments": json.loads(each.function.arguments),
                    },
                }
                for each in self.tool_calls
            ]
        return found


_Messages = Annotated[list[MessageBody], Field(min_length=1, fail_fast=True)]


class ChatBody(GenerationBody):
    """``/v1/chat/completions``: a conversation to answer."""

    messages: _Messages
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_LIKELIEST)] | None = None
    tools: Annotated[list[ToolBody], Field(max_length=_MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedTool | None,
        _either('none, auto, required, or {"type": "function", "function": {"name": NAME}}'),
    ] = None
    parallel_tool_calls: bool | None = None

    @field_validator("tool_choice")
    @classmethod
    def _is_offered(cls, value: object, info: ValidationInfo) -> object:
        tools: Sequence[ToolBody] = info.data.get("tools") or ()
        if value not in (None, "none") and not tools:
            raise ValueError("is for tools: give some")
        if isinstance(value, NamedTool):
            if value.function.name not in [each.function.name for each in tools]:
                raise ValueError(f"names {value.function.name}, which is none of the tools")
        if isinstance(value, NamedTool) or value == "required":
            for name in ("response_format", "regex", "grammar"):
                if info.data.get(name) is not None:
                    raise ValueError(f"asks for a call, and {name} for another form: give one")
        return value

    @property
    def offered(self) -> Sequence[ToolBody]:
        return () if self.tool_choice == "none" else self.tools or ()

    @property
    def most_calls(self) -> int | None:
        return 1 if self.parallel_tool_calls is False else None

    @property
    def _must_call(self) -> bool:
        return self.tool_choice not in (None, "none", "auto")

    @property
    def named(self) -> Mapping[str, str]:
        calls = {"grammar": "tools"} if self._must_call else {}
        return {**super().named, "prompt": "messages", **calls}

    @property
    def form(self) -> str | None:
        if not self._must_call:
            return super().form
        named = self.tool_choice
        return calls_grammar(
            {
                each.function.name: each.function.parameters or {"type": "object"}
                for each in self.offered
                if not isinstance(named, NamedTool) or named.function.name == each.function.name
            }
        )

    @field_validator("top_logprobs")
    @classmethod
    def _reported(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError('is for answers with logprobs: add "logprobs": true')
        return value

    @field_validator("max_completion_tokens")
    @classmethod
    def _once(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") is not None:
            raise ValueError("and max_tokens are the same: give one of them")
        return value

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens


class EmbeddingsBody(_Body):
    """``/v1/embeddings``."""

    input: Annotated[
        str | _Texts | _Tokens | Annotated[list[_Tokens], Field(fail_fast=True)],
        _either("a string, a list of strings, or one or several lists of token ids"),
    ]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TokenizeBody(_Body):
    """``/tokenize``: a text (vLLM's ``prompt``, llama-server's ``content``), or a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: _Messages | None = None
    add_special_tokens: bool | None = None

    @field_validator("content", "messages")
    @classmethod
    def _one(cls, value: _T, info: ValidationInfo) -> _T:
        given = [name for name in ("prompt", "content") if info.data.get(name) is not None]
        if value is not None and given:
            raise ValueError(f"is given beside {given[0]}: give one of them")
        return value

    @field_validator("add_special_tokens")
    @classmethod
    def _of_text(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value is not None and info.data.get("messages") is not None:
            raise ValueError("is for a prompt: the template has those of messages")
        return value

    @model_validator(mode="after")
    def _some(self) -> "TokenizeBody":
        if self.prompt is None and self.content is None and self.messages is None:
            raise ValueError("has nothing to tokenize: give a prompt, or messages")
        return self


class DetokenizeBody(_Body):
    """``/detokenize``."""

    model: str | None = None
    tokens: Annotated[list[_Whole], Field(fail_fast=True)]


class ErrorFields(BaseModel):
    """The fault, in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: ErrorFields


def _n_fields(value: object) -> int:
    """Fields of an object, 0 of anything else."""
    return len(cast("dict[object, object]", value)) if isinstance(value, dict) else 0


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
