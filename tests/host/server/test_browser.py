"""The page in Chromium: a text is continued, figures move, an answer is stopped, errors are words.

``LUTRA_SCREENSHOT=docs/serving.png`` keeps the picture of a run on the simulated accelerator.
"""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytestmark = pytest.mark.browser

for _needed in ("fastapi", "uvicorn", "playwright"):
    pytest.importorskip(_needed)

from playwright.sync_api import expect
from tests.host.gate import gated, until
from tests.host.server.browser import chromium
from tests.host.server.served import Served, served, small_model

from lutra import LLM, SamplingParams
from lutra.models import find_model

if TYPE_CHECKING:
    from playwright.sync_api import JSHandle, Page

PROMPT = "Once upon a time there was a king"
WAIT_MS = 120_000
TWO_HEIGHTS = re.compile(r",([\d.]+) (?:\S+ )*\d+,(?!\1(?: |$))")
"""Points of a line that is not level."""
GREEDY = SamplingParams(temperature=0)
expect.set_options(timeout=WAIT_MS)


@contextmanager
def opened(server: Served, folder: Path, **options: object) -> Generator["Page"]:
    """The server's page; nothing else is asked for, and its policy forbids nothing it does."""
    with chromium(folder / "profile", **options) as context:
        context.set_default_timeout(WAIT_MS)
        asked, said = list[str](), list[str]()
        context.on("request", lambda request: asked.append(request.url))
        page = context.pages[0]
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.url)
        yield page
    assert {url for url in asked if not url.startswith(f"{server.url}/")} == set()
    # the browser itself notes every status of 400 and more
    refused = "Failed to load resource: the server responded with a status of"
    assert [each for each in said if not each.startswith(refused)] == []


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(find_model("tales"), template=None) as found:
        yield found


def ask(page: "Page", prompt: str, n_tokens: int) -> None:
    """Let a text be continued greedily."""
    if not page.get_by_label("Temperature").is_visible():
        page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill(str(n_tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Text to continue").fill(prompt)
    page.get_by_role("button", name="Send").click()


def noted(page: "Page", element: str) -> "JSHandle":
    """Every text that an element has from now on, as a list: the next one may come soon."""
    return page.evaluate_handle(
        """(id) => {
          const element = document.getElementById(id), texts = [];
          new MutationObserver(() => texts.push(element.textContent))
            .observe(element, { childList: true, characterData: true, subtree: true });
          return texts;
        }""",
        element,
    )


def test_a_text_is_continued_and_watched(server: Served, tmp_path: Path) -> None:
    expected = server.llm.generate(PROMPT, 48, GREEDY)
    with opened(server, tmp_path) as page, gated(server.llm.device, 24) as gate:
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#served")).to_have_text("tales in W1.58A8 on golden")
        assert page.title() == "tales - Lutra"
        before, rates = page.locator("#made").inner_text(), noted(page, "rate")
        ask(page, PROMPT, 48)
        # as it comes
        expect(page.locator(".answer")).to_have_text(re.compile(r"\w"))
        assert page.locator(".turn").get_attribute("aria-busy") == "true"
        expect(page.locator("#state")).to_have_text("answering")
        until(lambda: any(re.search("[1-9]", each) for each in rates.json_value()))
        gate.open()
        expect(page.locator(".turn .note")).to_have_text(re.compile(r"^48 tokens, .* tokens/s, "))
        assert page.locator(".answer").text_content() == expected.text
        assert page.locator(".asked").text_content() == PROMPT
        expect(page.locator("#made")).not_to_have_text(before)
        expect(page.locator("#first")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        expect(page.locator("#prefixes")).to_have_text(re.compile("^[1-9]"))
        expect(page.locator("#device")).to_contain_text("all layers on golden")
        expect(page.locator("#units")).to_contain_text(re.compile(r"processor.* of \d+ cores"))
        expect(page.locator("#chart polyline")).to_have_attribute("points", TWO_HEIGHTS)
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(".turn")).to_have_count(0)


def test_an_answer_is_stopped(server: Served, tmp_path: Path) -> None:
    with opened(server, tmp_path) as page, gated(server.llm.device, 9) as gate:
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        before = server.get("/status").json()["completions"]
        ask(page, "The", 240)
        expect(page.locator(".answer")).to_have_text(re.compile(r"\w"))
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".turn .note")).to_have_text(re.compile("^stopped, first text after"))
        until(lambda: server.service.inside == 0)
        gate.open()
        until(lambda: server.llm.requests() == (0, 0))
        completions = server.get("/status").json()["completions"]
        assert completions == before | {"abort": before["abort"] + 1}
        # and the next one comes
        ask(page, "A cat", 4)
        expect(page.locator(".turn .note").last).to_have_text(re.compile("^4 tokens, "))


def test_errors_are_shown_in_words(server: Served, tmp_path: Path) -> None:
    with opened(server, tmp_path) as page:
        ask(page, "word " * 300, 4)
        expect(page.get_by_role("alert")).to_have_text(re.compile("^The prompt has 30. tokens"))
        # what was written is not lost
        assert page.get_by_label("Text to continue").input_value() == "word " * 300
        ask(page, "A cat", 4)
        expect(page.locator(".turn .note")).to_have_text(re.compile("^4 tokens, "))
        expect(page.locator("#problem")).to_be_hidden()


def test_a_key_is_asked_for(tmp_path: Path) -> None:
    with (
        served(find_model("tales"), template=None, key="secret") as server,
        opened(server, tmp_path) as page,
    ):
        key, use = page.get_by_label("API key"), page.get_by_role("button", name="Use this key")
        expect(key).to_be_visible()
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        for wrong, words in (
            ("guess", "The API key is wrong or missing: send it as Authorization: Bearer KEY"),
            ("päss word", "A key is printable ASCII without spaces."),
        ):
            key.fill(wrong)
            use.click()
            expect(page.get_by_role("alert")).to_have_text(words)
        key.fill("secret")
        use.click()
        expect(key).to_be_hidden()
        ask(page, PROMPT, 4)
        expect(page.locator(".turn .note")).to_have_text(re.compile("^4 tokens, "))
        # nothing of it is left behind
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [
            0,
            0,
            "",
        ]
        page.reload()
        expect(key).to_be_visible()
        assert key.input_value() == ""


def test_a_conversation(tmp_path: Path) -> None:
    """With a model that has a template: each message brings those before it along."""
    with (
        served(small_model(tmp_path / "small")) as server,
        opened(server, tmp_path) as page,
    ):
        talk = list[dict[str, str]]()
        expect(page.locator("#state")).to_have_text("ready")
        page.get_by_text("Settings").click()
        page.get_by_label("Tokens at most").fill("6")
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("System prompt").fill("You are a king.")
        for i, text in enumerate(("Hi", "And you?")):
            page.get_by_label("Message", exact=True).fill(text)
            page.get_by_label("Message", exact=True).press("Enter")
            expect(page.locator(".turn .note")).to_have_count(i + 1)
            expect(page.locator(".turn .note").last).to_have_text(re.compile("tokens"))
            talk.append({"role": "user", "content": text})
            whole = [{"role": "system", "content": "You are a king."}, *talk]
            with server.llm.chat(whole, 6, GREEDY) as stream:
                expected = "".join(piece.text for piece in stream)
            assert page.locator(".answer").last.text_content() == expected
            if expected:
                talk.append({"role": "assistant", "content": expected})


def test_a_server_that_ends_is_noticed(tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as context:
        page = context.pages[0]
        with served(small_model(tmp_path / "small")) as server:
            page.goto(server.url)
            expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#state")).to_have_text(re.compile("^The server does not answer: see"))


@pytest.mark.parametrize(
    ("scheme", "background"), [("light", "rgb(246, 247, 246)"), ("dark", "rgb(16, 21, 20)")]
)
def test_it_fits_a_phone(server: Served, tmp_path: Path, scheme: str, background: str) -> None:
    size = {"width": 360, "height": 740}
    with opened(server, tmp_path, viewport=size, color_scheme=scheme) as page:
        ask(page, PROMPT, 24)
        expect(page.locator(".turn .note")).to_have_text(re.compile("^24 tokens, "))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)


@pytest.mark.rtl
def test_units_of_the_simulated_accelerator(tmp_path: Path) -> None:
    """Shares of a pass, as the device's own counters have them; the picture is of this."""
    with (
        served(find_model("tales"), "rtl", template=None) as server,
        opened(server, tmp_path, viewport={"width": 1120, "height": 960}) as page,
    ):
        page.get_by_text("Settings").click()
        page.get_by_label("Tokens at most").fill("40")
        page.get_by_label("Seed").fill("7")
        page.get_by_text("Settings").click()
        page.get_by_label("Text to continue").fill(PROMPT)
        # between two passes, where a device gives its counters; the prompt has had two
        with gated(server.llm.device, 33, taken=False):
            page.get_by_role("button", name="Send").click()
            expect(page.locator("#made")).to_have_text(re.compile("^31 generated"))
            expect(page.locator("#units")).to_contain_text(re.compile(r"matmul\d+ % working"))
            expect(page.locator("#units-note")).to_contain_text("latest pass, simulated")
            expect(page.locator("#device")).to_contain_text("MHz")
            kept = os.environ.get("LUTRA_SCREENSHOT") or tmp_path / "page.png"
            page.screenshot(path=kept)
        assert Path(kept).read_bytes().startswith(b"\x89PNG")
        expect(page.locator(".turn .note")).to_have_text(re.compile("^40 tokens, "))
        with LLM("tales", "golden") as llm:
            expected = llm.generate(PROMPT, 40, SamplingParams(seed=7)).text
        assert page.locator(".answer").text_content() == expected
