"""Calls of functions: offered to the template, found in answers, whole and in streams."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for _needed in ("fastapi", "uvicorn", "openai", "httpx", "llguidance"):
    pytest.importorskip(_needed)

import openai
from tests.host.server.served import Served, served, small_model

from lutra.server.tools import CallFilter, find_calls

TEMPLATE = (
    "{% if tools %}{% for t in tools %}[{{ t.function.name }}]{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
)
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "time", "description": "<|eos|>"}},
]


def tool_of(parameters: object) -> Any:
    """A tool whose arguments have this schema."""
    return {"type": "function", "function": {"name": "run", "parameters": parameters}}


def json_schema(schema: object) -> Any:
    """The form of an answer of this schema."""
    return {"type": "json_schema", "json_schema": {"schema": schema}}


TALK: Any = [{"role": "user", "content": "Hi"}]
NAMES = ["weather", "time"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = small_model(tmp_path_factory.mktemp("models") / "small")
    with served(model, template=TEMPLATE) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_is_asked_for_fits_its_schema(client: openai.OpenAI, choice: Any) -> None:
    tools = TOOLS[:1] if choice == "required" else TOOLS
    n_calls = 0
    for seed in range(4):
        found = client.chat.completions.create(
            model="small", messages=TALK, tools=tools, tool_choice=choice, seed=seed
        ).choices[0]
        if found.finish_reason == "length":
            continue  # white space of JSON may go on for ever
        n_calls += 1
        assert found.finish_reason == "tool_calls"
        assert found.message.tool_calls is not None
        [call] = found.message.tool_calls
        assert call.type == "function" and call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in ("Ulm", "Oslo")
    assert n_calls


def test_a_stream_has_the_call_at_its_end(server: Served, client: openai.OpenAI) -> None:
    text = 'Let me see. <tool_call>\n{"name": "time", "arguments": {"zone": 1}}\n</tool_call>'
    form = {"grammar": f"start: {json.dumps(text)}"}
    options: dict[str, Any] = {"model": "small", "messages": TALK, "tools": TOOLS}
    whole = client.chat.completions.create(**options, extra_body=form).choices[0]
    assert whole.message.content == "Let me see."
    assert whole.message.tool_calls is not None
    [made] = whole.message.tool_calls
    assert made.type == "function" and json.loads(made.function.arguments) == {"zone": 1}
    content, calls, reason = "", [], None
    for chunk in client.chat.completions.create(**options, extra_body=form, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason
    assert (content, reason) == ("Let me see. ", "tool_calls")
    [call] = calls
    assert call.function is not None and call.function.name == "time"
    assert json.loads(call.function.arguments or "") == {"zone": 1}


def test_tools_are_offered_unless_none_may_be_called(server: Served) -> None:
    body = {"messages": TALK, "tools": TOOLS, "max_tokens": 1}
    tokens = {}
    for choice in ("auto", "none"):
        answer = server.post("/v1/chat/completions", body | {"tool_choice": choice}).json()
        tokens[choice] = answer["usage"]["prompt_tokens"]
    offered = server.llm.encode_chat(TALK, [each["function"] | each for each in TOOLS])
    assert tokens == {"auto": len(offered), "none": len(server.llm.encode_chat(TALK))}


def test_calls_of_before_are_in_the_prompt(server: Served) -> None:
    function = {"name": "weather", "arguments": '{"city": "Ulm"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    talk = [
        *TALK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    found = server.post("/v1/chat/completions", {"messages": talk, "max_tokens": 1})
    plain = [*TALK, {"role": "assistant", "content": "Ulm"}, {"role": "tool", "content": "rain"}]
    n = len(server.llm.encode_chat(plain))
    assert found.json()["usage"]["prompt_tokens"] == n


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tool_choice": "auto"}, "tool_choice", "tool_choice is for tools: give some"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "run"}}},
            "tool_choice",
            "tool_choice names run, which is none of the tools",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "regex": "a"},
            "tool_choice",
            "tool_choice asks for a call, and regex for another form: give one",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools.0.function.name",
            "tools.0.function.name must match pattern",
        ),
        (
            {"tools": [tool_of({"type": "no"})], "tool_choice": "required"},
            "tools",
            "tools is not understood (at 2(7): failed to compile JSON schema: Invalid type: no",
        ),
        (
            {"tools": [tool_of({"not": {}})], "tool_choice": "required", "max_tokens": 99},
            "tools",
            "tools ",
        ),
        (
            {"response_format": json_schema({"type": "no"})},
            "response_format",
            "response_format is not understood (Invalid type: no)",
        ),
        (
            {"response_format": json_schema({}), "regex": "a"},
            "response_format",
            "response_format and regex are given together: give one of them",
        ),
    ],
)
def test_refusals(server: Served, fields: dict[str, Any], param: str, message: str) -> None:
    found = server.post("/v1/chat/completions", {"messages": TALK} | fields)
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(message)


def test_a_template_that_knows_no_calls(tmp_path: Path) -> None:
    with served(small_model(tmp_path / "plain"), template="x") as plain:
        found = plain.post("/v1/chat/completions", {"messages": TALK, "tools": TOOLS})
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "tools"


def test_what_is_no_call_is_text() -> None:
    for text in (
        "no call",
        "<tool_call>{</tool_call>",
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "time", "arguments": 3}</tool_call>',
        "<tool_call>3</tool_call>",
        '<tool_call>{"name": "time"',
    ):
        assert find_calls(text, NAMES) == (text, [])
        pieces = CallFilter(NAMES)
        sent = "".join(map(pieces.push, text))
        rest, calls = pieces.flush()
        assert (sent + rest, calls) == (text, [])


def test_several_calls() -> None:
    one, other = (json.dumps({"name": "time", "arguments": {"a": i}}) for i in range(2))
    text = f"<tool_call>\n{one}\n</tool_call>\n<tool_call>{other}</tool_call>"
    content, calls = find_calls(text, NAMES)
    assert content == ""
    assert [each.arguments for each in calls] == ['{"a": 0}', '{"a": 1}']
    assert len({each.id for each in calls}) == 2
    assert [each.arguments for each in find_calls(text, NAMES, 1)[1]] == ['{"a": 0}']
