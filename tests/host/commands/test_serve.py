"""``lutra serve`` as a command: from its first line to its end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest
from tests.host.commands.test_cli import Capture, fails

from lutra.cluster import actors
from lutra.commands import serve
from lutra.commands.cli import main
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

WAIT_S = 600


@contextmanager
def command(*options: str, **variables: str) -> Generator[tuple["subprocess.Popen[str]", str]]:
    """The command with the shipped model on golden, and its address."""
    arguments = [sys.executable, "-m", "lutra", "serve", "-dev", "golden", "--port", "0", *options]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    ) as process:
        try:
            line = cast("IO[str]", process.stdout).readline()
            assert line.startswith("serving tales on golden: http://127.0.0.1:"), process.stderr
            yield process, line.split()[-1]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(number: int, tmp_path: Path) -> None:
    for needed in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(needed)
    import httpx

    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[-1].content }}")
    options = ["--chat-template", str(template)]
    with command(*options, LUTRA_API_KEY="secret") as (process, url):
        assert httpx.get(f"{url}/models").status_code == 401
        found = httpx.post(
            f"{url}/chat/completions",
            json={"messages": [{"role": "user", "content": "Once upon"}], "max_tokens": 3},
            headers={"authorization": "Bearer secret"},
            timeout=WAIT_S,
        )
        assert found.json()["usage"]["completion_tokens"] == 3
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert out == ""
    lines = err.splitlines()
    # before the line of a request that has just been answered, or behind it
    assert "ending: requests under way may finish" in lines[-2:]
    assert "Traceback" not in err and "secret" not in err
    assert any("POST /v1/chat/completions 200" in line for line in lines)


def test_guesses_are_those_that_are_asked_for(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)
    asked = list[object]()

    def load(*_: object, speculation: object, **__: object) -> None:
        asked.append(speculation)
        raise LutraError("seen")

    monkeypatch.setattr(serve, "LLM", load)
    for options, expected in (((), None), (("--speculate", "off"), "off")):
        assert "seen" in fails(capsys, "serve", "-dev", "golden", "--port", "0", *options)
        assert asked.pop() == expected


def test_a_port_in_use_is_refused_before_anything_is_loaded(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)
    monkeypatch.setattr(serve, "LLM", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert fails(capsys, "serve", "--port", port).startswith(
            f"port {port} of 127.0.0.1 is in use: end the program that has it, or give"
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "the chat template is not Jinja (line 1: "),
        ("{{" + "(" * 5000 + ")" * 5000 + "}}", "the chat template is too complex ("),
    ],
)
def test_a_template_is_refused_before_anything_is_loaded(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, message: str
) -> None:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)
    monkeypatch.setattr(serve, "LLM", None)
    path = tmp_path / "template.jinja"
    path.write_text(source)
    assert fails(capsys, "serve", "--chat-template", str(path)).startswith(message)


def test_an_address_of_a_network_without_a_key_is_warned_of(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "LLM", interrupted)
    warned = []
    for key in ([], ["--api-key", "secret"]):
        assert main(["serve", "--host", "0.0.0.0", "--port", "0", *key]) == 130
        warned.append("warning: anyone who reaches http://0.0.0.0:" in capsys.readouterr().err)
    assert warned == [True, False]


def test_what_is_missing_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert fails(capsys, "serve") == (
        f"lutra serve needs fastapi, which is missing: run `{install_command('serve')}`"
    )


def test_ray_that_is_missing_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)
    monkeypatch.setattr(actors, "find_spec", lambda name: None)
    assert fails(capsys, "serve", "--ray", "auto", "--port", "0") == (
        f"--ray needs ray, which is missing: run `{install_command('ray')}`"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port: must be 0 to 65535, not 70000"),
        (["-np", "0"], "--parallel: must be 1 to 1024, not 0"),
        (["--timeout", "0"], "--timeout: must be above 0, not 0"),
        (["--api-key", "a b"], "--api-key must be printable ASCII without spaces"),
        (["--host", "x" * 64], f"host '{'x' * 64}' is none of this machine"),
        (["--chat-template", "no-such-file"], "no-such-file: No such file or directory"),
        (["--ray", "auto", "-dev", "cpu"], "give --ray-devices instead of -dev"),
        (["--ray-devices", "cpu"], "--ray-devices are those of a cluster: add --ray ADDRESS"),
    ],
)
def test_refusals(capsys: Capture, options: list[str], message: str) -> None:
    for needed in ("fastapi", "uvicorn"):
        pytest.importorskip(needed)
    assert message in fails(capsys, "serve", *options)


def test_the_key_is_not_in_the_help(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_API_KEY", "hush")
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    assert "LUTRA_API_KEY" in text and "hush" not in text
