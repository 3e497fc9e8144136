"""Chat templates: Jinja that comes with a model, which is not trusted.

It runs in Jinja's sandbox, sees the messages and the names of special tokens only, and may take a
bounded number of steps. What templates expect of their surroundings is what transformers gives
them (``apply_chat_template``).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lutra.text.messages import Message, check_messages
from lutra_golden.errors import LutraError

__all__ = ["ChatTemplate"]

_STEPS = 200_000  # passes of loops, and calls: a thousand times what a long talk takes
_LENGTH = 1 << 24  # characters of the outcome, and of what a product makes
_POWER_BITS = 1024
_ANOTHER = "give another one (--chat-template FILE, in Python set_chat_template())"


class ChatTemplate:
    """A template, compiled. ``tokens`` are special tokens by the names it has for them."""

    def __init__(self, source: str, tokens: Mapping[str, str] | None = None) -> None:
        self._tokens = dict(tokens or {})
        try:
            environment: Any = _Environment()
            tree = environment.parse(source)
            # every pass of a loop is counted
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None)
            code = environment.compile(tree)
            self._template = jinja2.Template.from_code(environment, code, environment.globals)
        except jinja2.TemplateSyntaxError as error:
            raise LutraError(
                f"the chat template is not Jinja (line {error.lineno}: {error.message}): {_ANOTHER}"
            ) from None
        # Python's own limits, of nesting, of the digits of a number
        except (RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise LutraError(
                f"the chat template is too complex ({_line(error)}): {_ANOTHER}"
            ) from None
        self._environment: _Environment = environment

    @classmethod
    def of_model(cls, name: str, source: str | None, tokens: Mapping[str, str]) -> "ChatTemplate":
        """The template that came with the model ``name``; LutraError if none did."""
        if source is None:
            raise LutraError(
                f"the model {name} has no chat template: it was not trained to chat, and "
                "continues texts (generate(), stream()); to chat, give an instruction-tuned model, "
                "or a template with set_chat_template()"
            )
        return cls(source, tokens)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[object] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt that the messages make, by default up to where the assistant answers;
        ``tools`` are those that it may call, as OpenAI's API has them."""
        check_messages(messages)
        self._environment.steps = _STEPS
        pieces: list[str] = []
        length = 0
        try:
            for piece in self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                documents=None,
                **self._tokens,
            ):
                pieces.append(piece)
                length += len(piece)
                if length > _LENGTH:
                    raise _EndlessError
        except (_EndlessError, MemoryError, RecursionError):
            raise LutraError(f"the chat template does not end: {_ANOTHER}") from None
        except SecurityError as error:
            raise LutraError(
                f"the chat template uses what templates may not use ({_line(error)}): {_ANOTHER}"
            ) from None
        except jinja2.TemplateError as error:
            raise LutraError(f"the chat template refuses these messages: {_line(error)}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise LutraError(
                f"the chat template fails on these messages ({_line(error)}): {_ANOTHER}"
            ) from None
        return "".join(pieces)


class _EndlessError(Exception):
    pass


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, and what templates find in it."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing runs before it is counted
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.steps = _STEPS
        found: Any = self
        found.filters |= {"counted": self._counted, "tojson": _to_json}
        found.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
        }
        del found.globals["lipsum"]

    def step(self) -> None:
        """Count one, up to the bound."""
        self.steps -= 1
        if self.steps < 0:
            raise _EndlessError

    def _counted(self, values: Iterable[object]) -> Iterator[object]:
        for value in values:
            self.step()
            yield value

    def call(self, context: Context, obj: object, /, *args: object, **kwargs: object) -> object:
        """Calls are counted, too: macros may call themselves."""
        self.step()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Refuse products and powers that would fill the memory."""
        if operator == "*":
            sized = [cast("str", each) for each in (left, right) if isinstance(each, str | list)]
            times = [each for each in (left, right) if isinstance(each, int)]
            if sized and times and len(sized[0]) * times[0] > _LENGTH:
                raise _EndlessError
        elif isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > _POWER_BITS:
                raise _EndlessError
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant said, for training; here it does nothing."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    """A namespace that holds no attribute of Python's own."""

    def __init__(self, /, *args: Mapping[str, object], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        for name in dict(*args, **kwargs):
            _refuse_private(name)

    def __setitem__(self, name: str, value: object) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
