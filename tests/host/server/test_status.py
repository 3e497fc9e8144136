"""Live figures: what ``/status`` says of requests, tokens, the device, its plan and its units."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

for _needed in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(_needed)

import httpx
from tests.host.gate import WAIT_S, gated, until
from tests.host.server.served import TEMPLATE, served, small_model

from lutra import LLM
from lutra.devices.base import DeviceError
from lutra.devices.golden import GoldenDevice
from lutra.server.app import make_app
from lutra.server.limits import Limits
from lutra.server.run import HttpServer, address, listen
from lutra.server.service import Service
from lutra_golden.control.registers import COUNTERS

BODY = {"prompt": "Once upon a time", "max_tokens": 4, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "small")


class Counting(GoldenDevice):
    """The golden device, with counters that are made up."""

    name = "rtl"

    def counters(self) -> Mapping[str, int]:
        return {name: 10 * (i + 1) for i, name in enumerate(COUNTERS)}


def test_figures_of_a_request(model: Path) -> None:
    with served(model, limits=Limits(parallel=3, queue=5)) as server:
        before = server.get("/status").json()
        assert before["model"] == {"id": "small", "format": "W1.58A8", "context": 256, "chat": True}
        assert before["device"] == {"name": "golden", "facts": {}, "notes": []}
        assert before["limits"] == {"parallel": 3, "queue": 5}
        assert before["requests"] == {"running": 0, "waiting": 0, "refused": 0}
        assert before["first_token_s"] == {"latest": None, "mean": None}
        assert before["prefixes"] == {"count": 0, "bytes": 0}
        assert before["units"] is None
        assert before["process"]["cores"] >= 1 and before["process"]["cpu_s"] > 0
        for _ in range(2):
            server.post("/v1/completions", BODY)
        after = server.get("/status").json()
        assert after["uptime_s"] > before["uptime_s"]
        n = len(server.llm.encode(str(BODY["prompt"])))
        assert after["tokens"] == {"prompt": 2 * n, "known": n - 1, "generated": 8}
        assert after["completions"] == {"stop": 0, "length": 2, "abort": 0, "error": 0}
        latest, mean = after["first_token_s"]["latest"], after["first_token_s"]["mean"]
        assert 0 < latest < after["uptime_s"] and 0 < mean < after["uptime_s"]
        assert after["between_tokens_s"]["mean"] > 0
        assert after["prefixes"]["count"] >= 1 and after["prefixes"]["bytes"] > 0


def test_tokens_count_as_they_are_made(model: Path) -> None:
    """Those of an answer that is cut off, too."""
    with served(model) as server, gated(server.llm.device, 9) as gate:

        def generated() -> int:
            return server.get("/status").json()["tokens"]["generated"]

        body = BODY | {"stream": True, "max_tokens": 200}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=WAIT_S):
            until(lambda: generated() == 8)
        until(lambda: server.service.inside == 0)
        gate.open()
        until(lambda: server.llm.requests() == (0, 0))
        assert generated() == 8


def test_tokens_of_several_completions(model: Path) -> None:
    with served(model) as server:
        server.post("/v1/completions", BODY | {"prompt": ["a", "b"], "n": 2})
        assert server.get("/status").json()["tokens"]["generated"] == 16


def test_units_of_a_device_that_counts(model: Path) -> None:
    with served(model, Counting()) as server:
        # a status does not wait long for the thread that reads them
        until(lambda: server.get("/status").json()["units"] is not None)
        units = server.get("/status").json()["units"]
    assert units["kind"] == "simulated" and units["cycles"] == 10
    assert units["units"][0] == {"unit": "load", "busy": 20, "waiting": 30}
    assert [each["unit"] for each in units["units"]] == ["load", "matmul", "vector", "attention"]
    assert units["beats"] == {"weight_read": 100, "data_read": 110, "data_write": 120}


def test_a_device_in_a_pass_is_not_waited_for(model: Path) -> None:
    """Its counters come with a later status; so do those of one that fails."""
    device = Counting()
    with served(model, device) as server, ThreadPoolExecutor() as pool:
        read, answers = device.counters, list[Mapping[str, int]]()

        def busy() -> Mapping[str, int]:
            with device.held():
                answers.append(read())
                return answers[-1]

        device.counters = busy
        with device.held():
            asked = pool.submit(server.get, "/status")
            assert asked.result(WAIT_S).json()["units"] is None
            assert not answers
        until(lambda: server.get("/status").json()["units"] is not None)

        def fails() -> Mapping[str, int]:
            raise DeviceError("the bus is broken")

        device.counters = fails
        assert server.get("/status").json()["units"]["cycles"] == 10


def test_requests_that_run_and_wait(model: Path) -> None:
    with (
        served(model, limits=Limits(parallel=1, queue=2)) as server,
        ThreadPoolExecutor() as pool,
        gated(server.llm.device) as gate,
    ):
        asked = [pool.submit(server.post, "/v1/completions", BODY) for _ in range(2)]
        until(lambda: server.llm.requests() == (1, 1))
        found = server.get("/status").json()["requests"]
        gate.open()
        assert all(each.result().status_code == 200 for each in asked)
    assert found == {"running": 1, "waiting": 1, "refused": 0}


def test_the_plan_of_several_devices(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    service, listening = Service(Limits()), listen("127.0.0.1", 0)
    with LLM(model, ["golden", "golden"]) as llm, HttpServer(make_app(service), listening):
        llm.set_chat_template(TEMPLATE)
        service.start(llm)
        httpx.post(f"{address(listening)}/v1/completions", json=BODY, timeout=WAIT_S)
        found = httpx.get(f"{address(listening)}/status").json()
        service.close()
    assert found["device"]["name"] == "plan"
    assert "golden" in found["device"]["facts"]["plan"]
    assert found["prefixes"]["count"] == 1


def test_status_is_for_those_with_the_key(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And is not in the log, which a page that watches would fill."""
    caplog.set_level("INFO", "lutra.server")
    with served(model, key="secret") as server:
        assert server.get("/status").status_code == 401
        found = server.get("/status", headers={"authorization": "Bearer secret"})
        assert found.status_code == 200
    assert "GET /status 401" in caplog.text and "GET /status 200" not in caplog.text
