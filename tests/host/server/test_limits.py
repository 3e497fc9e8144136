"""Limits of a server: keys, names, sizes, a full queue, clients that go away, its end."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest

for _needed in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(_needed)

import httpx
from tests.host.gate import WAIT_S, Gate, gated, until
from tests.host.server.served import Served, served, small_model

from lutra.devices.base import DeviceError, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.server import replies
from lutra.server.app import make_app
from lutra.server.limits import Limits
from lutra.server.run import HttpServer, address, is_loopback, listen, local_names
from lutra.server.service import Service
from lutra_golden.errors import LutraError

BODY = {"prompt": "a", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def held(model: Path) -> Iterator[tuple[Served, Gate]]:
    """A server of one request at a time, whose device is held in its first pass."""
    with (
        served(model, limits=Limits(parallel=1, queue=2)) as server,
        gated(server.llm.device) as gate,
    ):
        yield server, gate


@contextmanager
def asking(server: Served, body: object) -> Generator[None]:
    """A client that asks for a completion and goes away, without an answer, at the end."""
    place = server.url.removeprefix("http://")
    with closing(HTTPConnection(place, timeout=WAIT_S)) as client:
        headers = {"content-type": "application/json"}
        client.request("POST", "/v1/completions", json.dumps(body), headers)
        yield


def test_a_key_is_asked_for(model: Path) -> None:
    with served(model, key="secret") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            found = server.get("/v1/models", headers=headers)
            assert found.status_code == 401
            assert found.headers["www-authenticate"] == "Bearer"
            assert found.json()["error"]["code"] == "invalid_api_key"
        assert server.post("/v1/completions", BODY).status_code == 401
        assert server.get("/metrics").status_code == 401
        assert server.get("/openapi.json").status_code == 401
        right = {"authorization": "Bearer secret"}
        assert server.post("/v1/completions", BODY, headers=right).status_code == 200
        assert server.get("/health").status_code == 200


def test_other_names_are_refused(model: Path) -> None:
    """A page of the web whose name leads to this machine is not answered."""
    with served(model, hosts=local_names("127.0.0.1")) as server:
        for name, status in (("localhost:1", 200), ("[::1]:8080", 200), ("evil.example", 403)):
            assert server.get("/health", headers={"host": name}).status_code == status


def test_other_origins_read_nothing_unless_they_may(model: Path) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    for origins, allowed in (((), None), (("https://a.example",), "https://a.example")):
        with served(model, origins=origins) as server:
            found = server.get("/v1/models", headers={"origin": "https://a.example"})
            assert found.headers.get("access-control-allow-origin") == allowed
            found = server.get("/v1/models", headers={"origin": "https://b.example"})
            assert "access-control-allow-origin" not in found.headers
            before = httpx.options(f"{server.url}/v1/completions", headers=asked)
            assert before.headers.get("access-control-allow-origin") == allowed


def test_large_bodies_are_refused(model: Path) -> None:
    with served(model, limits=Limits(body_bytes=1000)) as server:
        found = server.post("/v1/completions", {"prompt": "a" * 1000})
        assert found.status_code == 413
        assert found.json()["error"]["message"] == "the body is larger than 1,000 bytes: send less"

        def parts() -> Iterator[bytes]:  # whose length is not said before
            for _ in range(20):
                yield b"a" * 100

        headers = {"content-type": "application/json"}
        url = f"{server.url}/v1/completions"
        assert httpx.post(url, content=parts(), headers=headers).status_code == 413
        assert server.post("/v1/completions", BODY).status_code == 200


def test_bodies_that_do_not_come(model: Path) -> None:
    with served(model, limits=Limits(body_seconds=0.2)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), WAIT_S) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_full_queue(held: tuple[Served, Gate]) -> None:
    """Says when to come again; who is in is answered."""
    server, gate = held
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.post, "/v1/completions", BODY) for _ in range(3)]
        until(lambda: server.service.inside == 3)
        found = server.post("/v1/completions", BODY)
        assert found.status_code == 429
        assert 1 <= int(found.headers["retry-after"]) <= 60
        assert found.json()["error"]["type"] == "rate_limit_error"
        assert server.post("/v1/completions", BODY | {"n": 4}).status_code == 400
        figures = server.get("/metrics").text
        assert "vllm:num_requests_waiting" in figures
        assert '\nlutra:num_requests_refused_total{model_name="small"} 1\n' in figures
        until(lambda: server.llm.requests() == (1, 2))
        gate.open()
        texts = {each.result().json()["choices"][0]["text"] for each in asked}
    assert len(texts) == 1
    assert server.post("/v1/completions", BODY).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away(held: tuple[Served, Gate], stream: bool) -> None:
    """Its request ends, and others take its place."""
    server, gate = held
    with asking(server, BODY | {"max_tokens": 200, "stream": stream}):
        until(lambda: gate.holds)
    until(lambda: server.service.inside == 0)
    gate.open()
    until(lambda: server.llm.requests() == (0, 0))
    assert gate.passes == 1
    assert server.post("/v1/completions", BODY).status_code == 200
    assert 'finished_reason="abort"} 1' in server.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_answers_take_a_bounded_time(
    model: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    # what comes before an answer takes no time, or that may be all that there is
    now = itertools.chain([0.0], iter(time.perf_counter, None))
    monkeypatch.setattr(replies, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    with served(model, limits=Limits(seconds=0.5)) as server, gated(server.llm.device) as gate:
        found = server.post("/v1/completions", BODY | {"stream": stream})
        gate.open()
        if stream:
            assert found.status_code == 200
            error = json.loads(found.text.removeprefix("data: "))["error"]
        else:
            assert found.status_code == 408
            error = found.json()["error"]
        assert error["code"] == "timeout"
        assert error["message"].startswith("the answer took more than 0.5 s: ask for fewer")
        until(lambda: server.llm.requests() == (0, 0))


def test_what_comes_before_an_answer_counts(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a prompt that take too long, or that nobody waits for any more."""
    go = threading.Event()
    with served(model, limits=Limits(seconds=0.5)) as server:
        encode = server.llm.tokenizer.encode

        def slow(text: str, **options: bool | None) -> list[int]:
            assert go.wait(WAIT_S)
            return encode(text, **options)

        monkeypatch.setattr(server.llm.tokenizer, "encode", slow)
        found = server.post("/v1/completions", BODY)
        assert (found.status_code, found.json()["error"]["code"]) == (408, "timeout")
        assert server.service.inside == 0
        server.service.limits = Limits()
        with asking(server, BODY):
            until(lambda: server.service.inside == 1)
        until(lambda: server.service.inside == 0)
        go.set()
        assert server.post("/v1/completions", BODY).status_code == 200


def test_answers_have_a_bounded_length(model: Path) -> None:
    with served(model, limits=Limits(tokens=5)) as server:
        found = server.post("/v1/completions", BODY | {"max_tokens": 9, "ignore_eos": True}).json()
        assert found["usage"]["completion_tokens"] == 5
        assert found["choices"][0]["finish_reason"] == "length"


def test_a_device_that_fails(model: Path) -> None:
    """Is the server's fault, and says so; the server goes on."""
    device = GoldenDevice()
    with served(model, device) as server:
        expected = server.post("/v1/completions", BODY).json()["choices"]
        run, device.run = device.run, _fails
        found = server.post("/v1/completions", BODY)
        assert found.status_code == 500
        assert found.json()["error"]["message"] == "the memory is broken"
        device.run = run
        assert server.post("/v1/completions", BODY).json()["choices"] == expected


def _fails(steps: Sequence[Step]) -> list[StepResult]:
    raise DeviceError("the memory is broken")


def test_nothing_is_taken_before_the_model_is_there() -> None:
    service, listening = Service(Limits()), listen("127.0.0.1", 0)
    with HttpServer(make_app(service), listening):
        for path in ("/health", "/metrics", "/v1/models"):
            found = httpx.get(address(listening) + path)
            assert found.status_code == 503
            assert found.json()["error"]["message"] == "the model is being loaded"
        found = httpx.post(f"{address(listening)}/v1/completions", json=BODY)
        assert found.status_code == 503
    service.close()


def test_requests_under_way_end_in_good_order(model: Path) -> None:
    """Those that are done within the grace are answered, the others are cut off."""
    device = GoldenDevice()
    with ThreadPoolExecutor() as pool, gated(device) as gate:
        with served(model, device, grace=WAIT_S) as server:
            asked = pool.submit(server.post, "/v1/completions", BODY)
            until(lambda: gate.holds)
            server.service.closing = True
            assert server.get("/health").json()["error"]["code"] == "closing"
            gate.open()
        assert asked.result().status_code == 200
    device = GoldenDevice()
    with ThreadPoolExecutor() as pool, gated(device) as gate:
        with served(model, device) as server:
            asked = pool.submit(server.post, "/v1/completions", BODY)
            stream = pool.submit(server.post, "/v1/completions", BODY | {"stream": True})
            until(lambda: gate.holds and server.service.inside == 2)
            # the model is closed after the pass, which goes on when both have their answers
            pool.submit(lambda: (wait([asked, stream]), gate.open()))
        with pytest.raises(httpx.HTTPError):
            asked.result().raise_for_status()
        # which does not look like a whole one
        last = stream.result().text.removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "closing"


def test_where_a_server_listens() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(LutraError, match=rf"^port {port} of 127.0.0.1 is in use: end the pr"):
            listen("127.0.0.1", port)
    with pytest.raises(LutraError, match=r"^host 'x{64}' is none of this machine \("):
        listen("x" * 64, 0)
    with pytest.raises(LutraError, match=r"^the server cannot listen at 203.0.113.1, port 0 \("):
        listen("203.0.113.1", 0)
    assert [is_loopback(each) for each in ("127.0.0.1", "::1", "localhost", "0.0.0.0")] == [
        True,
        True,
        True,
        False,
    ]


def test_prompts_are_in_no_log_unless_asked(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lutra.server")
    body = BODY | {"prompt": "a secret"}
    for log_prompts in (False, True):
        with served(model, log_prompts=log_prompts) as server:
            server.post("/v1/completions", body)
            server.get("/v1/%0Amodels")
        assert ("a secret" in caplog.text) == log_prompts
        assert "POST /v1/completions 200" in caplog.text
        assert "GET /v1/%0Amodels 404" in caplog.text
        caplog.clear()
