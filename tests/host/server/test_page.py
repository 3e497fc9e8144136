"""The page at ``/`` as it is sent: by itself, and under a policy that lets it do no more."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

for _needed in ("fastapi", "uvicorn", "httpx"):
    pytest.importorskip(_needed)

import httpx
from tests.host.server.served import served, small_model

from lutra.server.app import make_app
from lutra.server.limits import Limits
from lutra.server.run import HttpServer, address, listen, local_names
from lutra.server.service import Service


@pytest.fixture(scope="module")
def page() -> httpx.Response:
    """The page of a server whose model is still being loaded, and which has a key."""
    service, listening = Service(Limits()), listen("127.0.0.1", 0)
    with HttpServer(make_app(service, key="secret"), listening):
        found = httpx.get(address(listening))
    service.close()
    return found


def test_it_comes_without_a_key_and_before_the_model(page: httpx.Response) -> None:
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "secret" not in page.text


def test_its_policy_allows_its_own_program_alone(page: httpx.Response) -> None:
    policy = dict(
        each.strip().split(" ", 1) for each in page.headers["content-security-policy"].split(";")
    )
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        [content] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(name) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_it_names_nothing_outside(page: httpx.Response) -> None:
    found = set(re.findall(r"https?://[^'\"\s)]+", page.text))
    assert found == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"@import|<(?:script|img|iframe)[^>]* src=|\son\w+=", page.text)
    assert "localStorage" not in page.text and "cookie" not in page.text


def test_every_control_has_a_label(page: httpx.Response) -> None:
    controls = re.findall(r"<(?:input|textarea)\b[^>]*\bid=\"(\w+)\"", page.text)
    assert len(controls) > 4
    assert set(controls) == set(re.findall(r"<label for=\"(\w+)\"", page.text))


def test_it_is_under_the_server_s_own_name_alone(tmp_path: Path) -> None:
    model = small_model(tmp_path / "small")
    with served(model, hosts=local_names("127.0.0.1")) as server:
        assert server.get("/").status_code == 200
        assert server.get("/", headers={"host": "evil.example"}).status_code == 403
