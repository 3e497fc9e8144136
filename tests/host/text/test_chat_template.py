"""Chat templates: what they render, and what they may not do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.host.random_model import BOS, EOS, SHAPES, write_model, write_tokenizer

from lutra.llm import LLM
from lutra.text.chat_template import ChatTemplate
from lutra.text.messages import Message, check_messages
from lutra.text.sampling import SamplingParams
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}

# In the manner of Llama 3: a header for each message, the text trimmed, a date for the system.
HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "21 Nov 2026" %}{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\nToday: " + date_string + "\\n" + system + "<|eot|>" }}
{%- for message in messages %}
    {%- if message.role in ["user", "assistant"] %}
        {{- "<|head|>" + message["role"] + "<|/head|>\\n\\n" }}
        {{- message["content"] | trim + "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|head|>assistant<|/head|>\\n\\n" }}
{%- endif %}
"""
# In the manner of Qwen: names in marks, a default system message, a namespace to look back, JSON.
MARKS = """\
{%- set ns = namespace(last=-1, thinks=false) -%}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last < 0 %}{% set ns.last = index %}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- if messages[0].role != "system" %}{{ "<|start|>system\\nYou help.<|end|>\\n" }}{% endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and "</think>" in content %}
        {%- set ns.thinks = true %}
        {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
    {%- endif %}
    {{- "<|start|>" + message.role + ("*" if loop.index0 == ns.last else "") + "\\n" + content }}
    {{- "<|end|>\\n" }}
    {%- if loop.last and ns.thinks %}
        {{- {"role": message.role, "n": loop.length} | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start|>assistant\\n" }}{% endif %}
"""
# In the manner of Mistral: user and assistant take turns, or the template refuses.
TURNS = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must take turns: user, assistant, user") }}
    {%- endif %}
    {% if message["role"] == "user" %}
        {{- "[INST] " + message["content"] + " [/INST]" -}}
    {% elif message["role"] == "assistant" %}
        {%- generation %}{{ " " + message["content"] + eos_token }}{% endgeneration -%}
    {% else %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {"headers": HEADERS, "marks": MARKS, "turns": TURNS}
TALK: list[Message] = [
    {"role": "user", "content": "  Who lives in the river? "},
    {"role": "assistant", "content": "<think>a river</think>\nAn otter."},
    {"role": "user", "content": 'And „where" is <it>?'},
]


def chatted(source: str, *messages: Message) -> str:
    return ChatTemplate(source, TOKENS).render(messages or TALK[:1])


def test_headers() -> None:
    assert chatted(HEADERS) == (
        "<|bos|><|head|>system<|/head|>\n\nToday: 21 Nov 2026\n<|eot|>"
        "<|head|>user<|/head|>\n\nWho lives in the river?<|eot|>"
        "<|head|>assistant<|/head|>\n\n"
    )


def test_marks() -> None:
    assert chatted(MARKS, *TALK) == (
        "<|start|>system\nYou help.<|end|>\n"
        "<|start|>user\n  Who lives in the river? <|end|>\n"
        "<|start|>assistant\nAn otter.<|end|>\n"
        '<|start|>user*\nAnd „where" is <it>?<|end|>\n'
        '{"role": "user", "n": 3}'
        "<|start|>assistant\n"
    )


def test_turns() -> None:
    assert chatted(TURNS, *TALK) == (
        "<|bos|>[INST]   Who lives in the river?  [/INST] <think>a river</think>\nAn otter.<|eos|>"
        '[INST] And „where" is <it>? [/INST]'
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("n_messages", [1, 3])
def test_transformers_renders_the_same(
    name: str, system: bool, answer: bool, n_messages: int, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path)
    source = TEMPLATES[name]
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), **TOKENS, chat_template=source
    )
    talk: list[Message] = [{"role": "system", "content": " Be brief.\n"}] if system else []
    talk += TALK[:n_messages]
    template = ChatTemplate(source, TOKENS)
    if system and name == "turns":
        with pytest.raises(LutraError, match="refuses these messages: roles must take turns: us"):
            template.render(talk, add_generation_prompt=answer)
        return
    expected = library.apply_chat_template(talk, tokenize=False, add_generation_prompt=answer)
    found = template.render(talk, add_generation_prompt=answer)
    assert found == expected
    tokens = Tokenizer(tmp_path, BOS).encode_template(found)
    assert tokens == library(expected, add_special_tokens=False)["input_ids"]


def test_what_templates_find() -> None:
    assert (
        chatted("{{ 'a<b' | tojson }}{{ [1, 'é'] | tojson(indent=1) }}") == '"a<b"[\n 1,\n "é"\n]'
    )
    assert len(chatted("{{ strftime_now('%Y-%m-%d') }}")) == 10
    assert chatted(
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    )
    assert chatted("{% if tools is none and documents is none %}none{% endif %}") == "none"
    assert chatted("{% for x in nothing %}{{ x }}{% else %}empty{% endfor %}") == "empty"
    # a block's line leaves nothing behind
    assert chatted("a\n    {% if true %}\nb\n    {% endif %}\nc\n") == "a\nb\nc"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ ('%s' | attr('format')).__self__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
    ],
)
def test_the_sandbox_is_not_left(source: str) -> None:
    """It is refused, or nothing comes of it."""
    try:
        found = chatted(source)
    except LutraError as error:
        found = str(error)
        message = "the chat template (uses what templates may not use|refuses these messages)"
        assert re.match(message, found)
    else:
        assert found == ""


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace(__call__=1) %}",
    ],
)
def test_what_templates_may_not(source: str) -> None:
    message = r"^the chat template uses what templates may not use \(.*\): give another one \(--ch"
    with pytest.raises(LutraError, match=message):
        chatted(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
    ],
)
def test_no_file_is_read(source: str) -> None:
    with pytest.raises(LutraError, match=r"^the chat template .*: "):
        chatted(source)


@pytest.mark.parametrize(
    "source",
    [
        # loops in loops, that write nothing
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        # loops over text
        "{% set s = 'x' * 2000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) + f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ 'x' * 1000000000000 }}",
        "{{ 9 ** 9999999 }}",
        "{% for i in range(99) %}{{ 'x' * 1000000 }}{% endfor %}",
    ],
)
def test_an_end_comes(source: str) -> None:
    message = "the chat template does not end: give another one (--chat-template FILE, in Python "
    with pytest.raises(LutraError, match=f"^{re.escape(message)}"):
        chatted(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", r"is not Jinja \(line 1: .*\): give another one \(--chat-template F"),
        ("\n{{ x | nothing }}", r"is not Jinja \(line 2: No filter named 'nothing'.*\): give"),
        ("{{ messages[9].content }}", "refuses these messages: .*has no element 9"),
        ("{{ 1 / 0 }}", r"fails on these messages \(division by zero\): give another one"),
        ("{{ 'a' + 1 }}", r"fails on these messages \(.*\): give another one"),
        ("{{ range(999999) }}", r"fails on these messages \(.*\): give another one"),
        ("{% for i in [1] %}" * 120 + "{% endfor %}" * 120, r"is too complex \(.*\): give another"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", r"is (too complex|not Jinja) \(.*\): give"),
    ],
)
def test_a_template_that_fails(source: str, message: str) -> None:
    with pytest.raises(LutraError, match=rf"^the chat template {message}"):
        chatted(source)


@pytest.mark.parametrize(
    "message",
    [{"role": "pirate", "content": "x"}, {"role": "user"}, {"role": "user", "content": 1}],
)
def test_messages_that_are_none(message: Message) -> None:
    expected = (
        r"^a message must have a role \(system, user, assistant, tool\) and a content of text"
    )
    with pytest.raises(LutraError, match=expected):
        chatted("x", message)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", "messages must be a list of role and content, not str"),
        (None, "messages must be a list of role and content, not NoneType"),
        ({"role": "user", "content": "x"}, "messages must be a list of role and content, not dict"),
        (["Hello"], "a message must have a role and a content, not be str"),
    ],
)
def test_what_is_no_conversation(messages: object, message: str) -> None:
    with pytest.raises(LutraError, match=f"^{message}$"):
        check_messages(messages)


# -- with a model


def chat_model(folder: Path, template: str | None = TURNS) -> LLM:
    write_model(folder, SHAPES["least"])
    fields: dict[str, object] = {**TOKENS, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return LLM(folder, "golden")


def test_an_answer(tmp_path: Path) -> None:
    llm = chat_model(tmp_path)
    greedy = SamplingParams(temperature=0)
    messages: list[Message] = [{"role": "user", "content": "hi"}]
    found = "".join(piece.text for piece in llm.chat(messages, 5, greedy))
    tokens = list(llm.stats.tokens)
    assert 1 <= len(tokens) <= 5
    # the same as a run on what the template gives
    prompt = [BOS, *llm.tokenizer.encode("[INST] hi [/INST]", add_bos=False)]
    assert llm.stats.prompt_tokens == len(prompt)
    plain = llm.generate("[INST] hi [/INST]", 5, greedy)
    assert (plain.text, plain.tokens) == (found, tokens)


def test_a_special_token_in_a_message_is_text(tmp_path: Path) -> None:
    llm = chat_model(tmp_path)
    messages: list[Message] = [{"role": "user", "content": "a<|eos|>"}]
    list(llm.chat(messages, 1))
    plain = llm.tokenizer.encode("[INST] a<|eos|> [/INST]")
    assert EOS not in plain
    assert llm.stats.prompt_tokens == len(plain)


def test_an_answer_ends_with_the_context(tmp_path: Path) -> None:
    llm = chat_model(tmp_path)
    llm.eos = frozenset()
    messages: list[Message] = [{"role": "user", "content": "hi"}]
    list(llm.chat(messages, 1000))
    assert llm.stats.prompt_tokens + llm.stats.generated_tokens == llm.context
    long: list[Message] = [{"role": "user", "content": "x" * 99}]
    with pytest.raises(LutraError, match=r"^the prompt has 115 tokens, the context 32: short"):
        list(llm.chat(long))


def test_a_model_without_a_template(tmp_path: Path) -> None:
    llm = chat_model(tmp_path / "plain", None)
    message = (
        "the model plain has no chat template: it was not trained to chat, and continues texts "
        "(generate(), stream()); to chat, give an instruction-tuned model, or a template with "
        "set_chat_template()"
    )
    with pytest.raises(LutraError, match=f"^{re.escape(message)}$"):
        llm.chat([{"role": "user", "content": "hi"}])
    none: Any = None
    with pytest.raises(LutraError, match=r"^a chat template must be Jinja as a string, not None"):
        llm.set_chat_template(none)
    llm.set_chat_template("{{ bos_token }}{{ messages[0].content }}")
    list(llm.chat([{"role": "user", "content": "hi"}], 1))
    assert llm.stats.prompt_tokens == 3
