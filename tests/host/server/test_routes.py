"""Routes of the server, with OpenAI's own client: answers are those of :class:`lutra.LLM`."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

for _needed in ("fastapi", "uvicorn", "openai", "httpx"):
    pytest.importorskip(_needed)

import httpx
import openai
from tests.host.gate import until
from tests.host.server.served import CONTEXT, Served, served, small_model

from lutra import SamplingParams
from lutra.server.metrics import Metrics
from lutra.serving.generation import Writer
from lutra.text.chat_template import ChatTemplate

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(small_model(tmp_path_factory.mktemp("models") / "small")) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_completion_is_that_of_the_model(server: Served, client: openai.OpenAI) -> None:
    sampling = SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, seed=7, n=2)
    expected = server.llm.generate(PROMPT, 12, sampling)
    found = client.completions.create(
        model="small",
        prompt=PROMPT,
        max_tokens=12,
        temperature=0.9,
        top_p=0.9,
        seed=7,
        n=2,
        extra_body={"top_k": 50, "min_p": 0.01},
    )
    texts = [expected.text, *(each.text for each in expected.alternatives)]
    assert [each.text for each in found.choices] == texts
    assert [each.finish_reason for each in found.choices] == ["length", "length"]
    n = len(server.llm.encode(PROMPT))
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (n, 24)
    assert found.usage.total_tokens == n + 24


def test_what_is_left_out_is_as_elsewhere(server: Served, client: openai.OpenAI) -> None:
    """But for the seed, which another request has not; 16 tokens are OpenAI's default."""
    expected = server.llm.generate(PROMPT, 16, SamplingParams(seed=3))
    found = client.completions.create(model="small", prompt=PROMPT, seed=3)
    assert found.choices[0].text == expected.text
    drawn: set[tuple[float | None, ...]] = set()
    for _ in range(4):
        # texts may be alike, as most tokens are bytes that are no character
        hot: dict[str, Any] = {"temperature": 2, "extra_body": {"top_k": 0}, "logprobs": 1}
        found = client.completions.create(model="small", prompt=PROMPT, **hot)
        assert found.choices[0].logprobs is not None
        drawn.add(tuple(found.choices[0].logprobs.token_logprobs or ()))
    assert len(drawn) > 1


def test_several_prompts_and_their_tokens(server: Served, client: openai.OpenAI) -> None:
    prompts = ["the sea", "a king", "so"]
    expected = server.llm.generate(prompts, 6, SamplingParams(temperature=0, n=2))
    texts = [each.text for first in expected for each in (first, *first.alternatives)]
    for given in (prompts, [server.llm.encode(each) for each in prompts]):
        options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "n": 2}
        found = client.completions.create(model="small", prompt=given, **options)
        assert [each.text for each in found.choices] == texts
        assert [each.index for each in found.choices] == list(range(6))
        pieces = [""] * 6
        for chunk in client.completions.create(model="small", prompt=given, stream=True, **options):
            pieces[chunk.choices[0].index] += chunk.choices[0].text
        assert pieces == texts


def test_a_stream_has_the_same_text_and_its_usage(server: Served, client: openai.OpenAI) -> None:
    whole = client.completions.create(model="small", prompt=PROMPT, max_tokens=20, seed=5)
    text, usages, reasons = "", [], []
    for chunk in client.completions.create(
        model="small",
        prompt=PROMPT,
        max_tokens=20,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    ):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            text += choice.text
            reasons.append(choice.finish_reason)
    assert text == whole.choices[0].text
    assert reasons[-1] == "length" and set(reasons[:-1]) == {None}
    assert usages[-1] is not None and set(usages[:-1]) == {None}
    assert usages[-1].completion_tokens == 20


def test_the_last_event_is_done(server: Served) -> None:
    found = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    events = found.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for each in events[:-2]:
        assert "usage" not in json.loads(each.removeprefix("data: "))


def test_a_chat_is_that_of_the_model(server: Served, client: openai.OpenAI) -> None:
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<|eos|> Hi"}]
    with server.llm.chat(talk, 10, SamplingParams(seed=4)) as stream:
        expected = "".join(piece.text for piece in stream)
    parts = [talk[0], {"role": "user", "content": [{"type": "text", "text": talk[1]["content"]}]}]
    messages: Any = parts
    for name in ("max_tokens", "max_completion_tokens"):
        options: dict[str, Any] = {name: 10, "seed": 4, "model": "small", "messages": messages}
        found = client.chat.completions.create(**options)
        assert found.choices[0].message.content == expected
        assert found.choices[0].message.role == "assistant"
    deltas = [
        chunk.choices[0]
        for chunk in client.chat.completions.create(
            model="small", messages=messages, max_tokens=10, seed=4, stream=True
        )
    ]
    assert deltas[0].delta.role == "assistant"
    assert "".join(each.delta.content or "" for each in deltas) == expected
    assert deltas[-1].finish_reason == "length"


def test_a_chat_goes_on_to_the_end_of_the_context(server: Served) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, "temperature": 0}
    usage = server.post("/v1/chat/completions", body).json()["usage"]
    assert usage["total_tokens"] == CONTEXT
    # as much as there is room for, if more is asked for
    more = body | {"max_tokens": 10_000}
    assert server.post("/v1/chat/completions", more).json()["usage"] == usage | {
        "prompt_tokens_details": {"cached_tokens": usage["prompt_tokens"] - 1}
    }


def test_logprobs(server: Served, client: openai.OpenAI) -> None:
    sampling = SamplingParams(seed=2, logprobs=3)
    expected = server.llm.generate(PROMPT, 5, sampling).logprobs
    assert expected is not None
    found = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=5, seed=2, logprobs=3
    )
    own = found.choices[0].logprobs
    assert own is not None and own.top_logprobs is not None and own.text_offset is not None
    assert own.tokens == [each.own.text for each in expected]
    assert own.token_logprobs == [each.own.logprob for each in expected]
    assert own.top_logprobs[0] == {each.text: each.logprob for each in expected[0].top}
    assert own.text_offset[:2] == [0, len(expected[0].own.text)]

    talk: Any = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(
        model="small", messages=talk, max_tokens=5, logprobs=True, top_logprobs=2, seed=1
    )
    content = chat.choices[0].logprobs
    assert content is not None and content.content is not None
    assert len(content.content) == 5
    first = content.content[0]
    assert len(first.top_logprobs) == 2
    assert bytes(first.bytes or []).decode() == first.token


def test_stop_strings_and_biases(server: Served, client: openai.OpenAI) -> None:
    text = server.llm.generate(PROMPT, 20, SamplingParams(temperature=0)).text
    stop = text[5:7]
    found = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=20, temperature=0, stop=[stop]
    )
    assert found.choices[0].finish_reason == "stop"
    assert found.choices[0].text == text[: text.index(stop)]
    biased = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=4, temperature=0, logit_bias={"66": 100}
    )
    assert biased.choices[0].text == server.llm.tokenizer.decode([66]) * 4


def test_models(server: Served, client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "small" == client.models.retrieve("small").id
    assert server.get("/v1/models").json()["data"][0]["meta"]["n_vocab"] == 304
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-5' is not here"):
        client.models.retrieve("gpt-5")


def test_tokens_there_and_back(server: Served) -> None:
    tokens = server.llm.encode("the sea")
    for name in ("prompt", "content"):
        assert server.post("/tokenize", {name: "the sea"}).json()["tokens"] == tokens
    plain = server.post("/tokenize", {"prompt": "the sea", "add_special_tokens": False}).json()
    assert plain["tokens"] == tokens[1:] and plain["count"] == len(tokens) - 1
    assert server.post("/detokenize", {"tokens": tokens}).json()["prompt"] == "the sea"
    talk = [{"role": "user", "content": "Hi"}]
    found = server.post("/tokenize", {"messages": talk}).json()["tokens"]
    assert found == server.llm.encode_chat(talk)


def test_health_and_figures(server: Served) -> None:
    assert server.get("/health").json() == {"status": "ok"}

    def value(name: str) -> float:
        lines = server.get("/metrics").text.splitlines()
        return float(next(each for each in lines if each.startswith(name)).split()[-1])

    before = value("vllm:generation_tokens_total"), value("vllm:time_to_first_token_seconds_count")
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    assert value("vllm:generation_tokens_total") == before[0] + 3
    assert value("vllm:time_to_first_token_seconds_count") == before[1] + 1
    assert value("vllm:num_requests_running") == value("vllm:num_requests_waiting") == 0
    assert value('vllm:request_success_total{model_name="small",finished_reason="length"}') > 0
    assert value('vllm:inter_token_latency_seconds_bucket{model_name="small",le="+Inf"}') > 0


def test_figures_of_guessed_tokens(server: Served) -> None:
    figures = Metrics("small", lambda: (0, 0))
    sampling = SamplingParams(temperature=0)
    done = server.llm.generate(PROMPT, 4, sampling)
    stats = replace(done.stats, drafted_tokens=5, accepted_tokens=3)
    figures.ended([replace(done, stats=stats)] * 2, 1.0)
    for name, n in (("draft", 10), ("accepted", 6)):
        assert f'vllm:spec_decode_num_{name}_tokens_total{{model_name="small"}} {n}\n' in (
            figures.text()
        )


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/status", "/v1/models"])
def test_probes_ask_for_the_head_alone(server: Served, path: str) -> None:
    found = httpx.head(server.url + path)
    assert (found.status_code, found.content) == (200, b"")
    assert found.headers["content-type"] == server.get(path).headers["content-type"]


CASES: list[tuple[str, Any, int, str | None, str]] = [
    ("completions", {}, 400, "prompt", "prompt is required"),
    ("completions", {"prompt": 3}, 400, "prompt", "prompt must be a string, a list of strings, or"),
    ("completions", {"prompt": []}, 400, "prompt", "prompt must be a string, a list of strings"),
    ("completions", {"prompt": [[1], "a"]}, 400, "prompt", "prompt must be a string, a list of"),
    ("completions", {"prompt": [304]}, 400, "prompt", "token 304 of the prompt is outside the voc"),
    ("completions", {"prompt": "a" * 300}, 400, "prompt", "the prompt has 301 tokens, the context"),
    ("completions", {"prompt": "\ud800"}, 400, "prompt", "the text holds bytes that are not UTF-8"),
    ("completions", {"prompt": "a", "top_n": 1}, 400, "top_n", "top_n is not known here: leave it"),
    ("completions", {"prompt": "a", "echo": True}, 400, "echo", "echo is not supported: leave it"),
    ("completions", {"prompt": "a", "suffix": "b"}, 400, "suffix", "suffix is not supported: leav"),
    ("completions", {"prompt": "a", "best_of": 3}, 400, "best_of", "best_of other than n is not"),
    ("completions", {"prompt": "a", "n": 0}, 400, "n", "n must be greater than or equal to 1"),
    ("completions", {"prompt": ["a"] * 100, "n": 100}, 400, "n", "prompts and n make 10000 compl"),
    (
        "completions",
        {"prompt": ["a"] * 300},
        400,
        "prompt",
        "prompts and n make 300 completions, m",
    ),
    ("completions", {"prompt": "a", "temperature": "1"}, 400, "temperature", "temperature must be"),
    (
        "completions",
        {"prompt": "a", "temperature": -1},
        400,
        "temperature",
        "temperature must be g",
    ),
    ("completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "max_tokens must be"),
    (
        "completions",
        {"prompt": "a", "max_tokens": True},
        400,
        "max_tokens",
        "max_tokens must be a w",
    ),
    (
        "completions",
        {"prompt": "a", "stop": 3},
        400,
        "stop",
        "stop must be a string, or at most 16",
    ),
    ("completions", {"prompt": "a", "stop": ""}, 400, "stop", "a stop string must not be empty"),
    ("completions", {"prompt": "a", "logprobs": 21}, 400, "logprobs", "logprobs must be less than"),
    (
        "completions",
        {"prompt": "a", "logit_bias": {"a": 1}},
        400,
        "logit_bias",
        "logit_bias must give token ids",
    ),
    (
        "completions",
        {"prompt": "a", "logit_bias": {"304": 1}},
        400,
        "logit_bias",
        "logit_bias has token 304, outside the vocabulary",
    ),
    (
        "completions",
        {"prompt": "a", "logit_bias": {str(i): 1 for i in range(2000)}},
        400,
        "logit_bias",
        "logit_bias must have 1024 fields at most",
    ),
    (
        "completions",
        {"prompt": "a", "frequency_penalty": 0.5},
        400,
        "frequency_penalty",
        "frequency_penalty other than 0 is not supported: use repetition_penalty",
    ),
    (
        "completions",
        {"prompt": "a", "stream_options": {}},
        400,
        "stream_options",
        'stream_options is for streams: add "stream": true',
    ),
    ("completions", {"prompt": "a", "model": "b"}, 404, "model", "the model 'b' is not here: this"),
    ("completions", {f"f{i}": 1 for i in range(99)}, 400, None, "the body must have 64 fields at"),
    ("completions", [], 400, None, "the body must be an object"),
    (
        "chat/completions",
        {"messages": []},
        400,
        "messages",
        "messages must have at least 1 item, not 0",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages.0.content",
        "messages.0.content must be a string, or parts such as",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "king", "content": "a"}]},
        400,
        "messages.0.role",
        "messages.0.role must be 'system', 'developer', 'user', 'assistant' or 'tool'",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2},
        400,
        "top_logprobs",
        'top_logprobs is for answers with logprobs: add "logprobs": true',
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        | {"max_completion_tokens": 1},
        400,
        "max_completion_tokens",
        "max_completion_tokens and max_tokens are the same: give one of them",
    ),
    ("completions", None, 400, None, "the body must be an object: give a JSON object as a"),
    ("../tokenize", {}, 400, None, "the body has nothing to tokenize: give a prompt, or messages"),
    ("../tokenize", {"prompt": "a", "content": "b"}, 400, "content", "content is given beside pro"),
    ("../tokenize", {"content": "\ud800"}, 400, "content", "the text holds bytes that are not UTF"),
    (
        "../tokenize",
        {"content": "a", "messages": [{"role": "user"}]},
        400,
        "messages",
        "messages is given beside content: give one of them",
    ),
    (
        "../tokenize",
        {"messages": [{"role": "user"}], "add_special_tokens": True},
        400,
        "add_special_tokens",
        "add_special_tokens is for a prompt: the template has those of messages",
    ),
    ("embeddings", {"input": "a"}, 404, "model", "the model small makes no embeddings: it was"),
    ("nothing", {}, 404, None, "there is no /v1/nothing here"),
    ("models", {}, 405, None, "/v1/models is not asked with POST"),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "message"), CASES)
def test_refusals(
    server: Served, path: str, body: object, status: int, param: str | None, message: str
) -> None:
    """Each says which field, and why."""
    found = server.post(f"/v1/{path}", None, content=json.dumps(body), headers=AS_JSON)
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (status, param)
    assert error["message"].startswith(message)
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


AS_JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is not JSON: see character 1"),
        (b'{"prompt": "\xff"}', "the body is not JSON in UTF-8: see byte 12"),
        ('{"prompt": "\xe4"}'.encode("latin-1"), "the body is not JSON in UTF-8: see byte 12"),
        (b"[" * 100_000, "the body is not JSON that can be read"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "the body is not JSON that can be read"),
        (b"", "the body is required: give a JSON object as a"),
    ],
)
def test_bodies_that_are_no_json(server: Served, content: bytes, message: str) -> None:
    found = server.post("/v1/completions", None, content=content, headers=AS_JSON)
    assert found.status_code == 400
    assert found.json()["error"]["message"].startswith(message)


def test_json_must_say_that_it_is(server: Served) -> None:
    """Forms of web pages, which any page may send here, are not read."""
    headers = {"content-type": "text/plain"}
    found = server.post("/v1/completions", None, content=b'{"prompt": "a"}', headers=headers)
    assert found.status_code == 400
    assert "as application/json" in found.json()["error"]["message"]


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with served(small_model(tmp_path / "plain"), template=None) as server:
        body: dict[str, object] = {"messages": [{"role": "user", "content": "Hi"}]}
        tool = {"type": "function", "function": {"name": "f"}}
        for more in ({}, {"tools": [tool]}):
            found = server.post("/v1/chat/completions", body | more)
            assert found.status_code == 400
            assert found.json()["error"]["message"] == (
                "the model plain has no chat template, and continues texts: ask /v1/completions, "
                "or start the server with --chat-template FILE"
            )
            assert found.json()["error"]["param"] == "messages"


def test_a_template_that_refuses(tmp_path: Path) -> None:
    template = "{{ raise_exception('no talk') }}"
    with served(small_model(tmp_path / "shy"), template=template) as server:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        found = server.post("/v1/chat/completions", body)
        assert found.status_code == 400
        assert "the chat template refuses these messages: no talk" in found.text


def test_a_template_is_compiled_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never in the server's."""

    def refused(*_: object) -> None:
        raise AssertionError("here")

    with served(small_model(tmp_path / "own")) as server:
        monkeypatch.setattr(ChatTemplate, "__init__", refused)
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        assert server.post("/v1/chat/completions", body).status_code == 200


@pytest.mark.parametrize("prompts", [1, 2])
def test_a_stream_says_that_the_server_failed(
    server: Served, monkeypatch: pytest.MonkeyPatch, prompts: int
) -> None:
    """Whatever it failed of: else a stream that was cut off would look like a whole one."""

    def fails(writer: Writer, *_: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(Writer, "push", fails)
    body = {"prompt": ["a"] * prompts, "max_tokens": 2}
    found = server.post("/v1/completions", body | {"stream": True})
    last = json.loads(found.text.removeprefix("data: "))
    assert last["error"]["code"] == "internal_error"
    assert server.post("/v1/completions", body).json() == last
    until(lambda: server.llm.requests() == (0, 0))
