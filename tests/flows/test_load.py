"""Load on a server: what is counted, against a small one."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

for _needed in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(_needed)

from tests.host.gate import gated, until
from tests.host.server.served import Served, served, small_model

from lutra.server.limits import Limits
from lutra_flows.load import main

KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = small_model(tmp_path_factory.mktemp("models") / "small")
    with served(model, limits=Limits(parallel=4, queue=4), key="k") as found:
        yield found


def figures(capsys: pytest.CaptureFixture[str], url: str, *options: str) -> dict[str, object]:
    assert main(["--url", url, "--api-key", "k", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_a_load_shows(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--streams", "3", "--requests", "8", "-p", "5", "9", "-n", "6", "--distinct", "4"]
    found = figures(capsys, server.url, *options, "--temp", "0.8", "--check")
    assert (found["requests"], found["lost"], found["wrong"]) == (8, {}, 0)
    seconds = found["seconds"]
    assert isinstance(seconds, float)
    assert found["answer_tokens_per_s"] == pytest.approx(8 * 6 / seconds)
    assert found["total_tokens_per_s"] == pytest.approx((8 * 6 + 4 * 5 + 4 * 9) / seconds)
    assert found["memory_begin"] is not None
    assert main(["--url", server.url, "--api-key", "k", "--requests", "2", "-n", "3"]) == 0
    assert "| requests lost | none |" in capsys.readouterr().out


def test_requests_that_are_refused_are_counted(
    server: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first answer, alone, has 30 passes; then four requests run, and four wait."""

    def refused() -> int:
        return server.get("/status", headers=KEY).json()["requests"]["refused"]

    expected = refused() + 12
    with ThreadPoolExecutor() as pool, gated(server.llm.device, 31) as gate:
        opened = pool.submit(lambda: (until(lambda: refused() == expected), gate.open()))
        options = ["--streams", "20", "--requests", "20", "-n", "30"]
        found = figures(capsys, server.url, *options)
        opened.result()
    lost = found["lost"]
    assert isinstance(lost, dict)
    assert (found["requests"], sum(lost.values())) == (8, 12)
    assert all(each.startswith("status 429") for each in lost)


def test_wrong_answers_are_counted(
    server: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lutra_flows import load

    asked, body = 0, load.Load.body

    def another(self: load.Load, i: int) -> dict[str, object]:
        nonlocal asked
        asked += 1
        return body(self, i) | ({"prompt": [3, 4, 5]} if asked == 2 else {})

    monkeypatch.setattr(load.Load, "body", another)
    options = ["--streams", "1", "--requests", "2", "--distinct", "1", "-n", "20", "--check"]
    assert figures(capsys, server.url, *options)["wrong"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streams", "0"], "--streams must be 1 or more, not 0"),
        (["--url", "ftp://a"], "--url must be of the form http://HOST:PORT, not ftp://a"),
        (["--api-key", "wrong"], "status 401: "),
    ],
)
def test_refusals(
    server: Served, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", server.url, *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
