"""Chat templates in a process of their own: the same prompts, and limits that hold."""

import os
import time
from collections.abc import Sequence

import pytest

from lutra.text.chat_template import ChatTemplate
from lutra.text.template_process import TemplateProcess
from lutra_golden.errors import LutraError

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TALK = [{"role": "user", "content": 'a "quoted"\nline, \N{SNOWMAN}'}]


def test_prompts_are_those_of_the_template() -> None:
    tokens = {"bos_token": "<s>"}
    expected = ChatTemplate(TEMPLATE, tokens).render(TALK)
    with TemplateProcess(TEMPLATE, tokens) as process:
        assert [process.render(TALK) for _ in range(3)] == [expected] * 3


def test_errors_are_those_of_the_template() -> None:
    for source, message in (
        ("{% if", r"^the chat template is not Jinja \(line 1"),
        ("{{ raise_exception('no') }}", "^the chat template refuses these messages: no$"),
    ):
        with TemplateProcess(source, {}) as process:
            for _ in range(2):
                with pytest.raises(LutraError, match=message):
                    process.render(TALK)


def test_a_template_is_checked_without_a_conversation() -> None:
    with TemplateProcess("{{ raise_exception('no') }}", {}) as process:
        process.check()
    with TemplateProcess("{% if", {}) as process:
        with pytest.raises(LutraError, match=r"^the chat template is not Jinja \(line 1"):
            process.check()


def test_a_template_takes_a_bounded_time() -> None:
    """The next conversation has a new process."""
    slow = "{{ (messages[0].content * 4000000)|wordwrap(1) }}"
    with TemplateProcess(slow, {}, seconds=2.0) as process:
        begun = time.monotonic()
        with pytest.raises(LutraError, match=r"^the process of the chat template took more than 2"):
            process.render([{"role": "user", "content": "ab"}])
        assert time.monotonic() - begun < 60
        process._seconds = 600.0
        assert process.render([{"role": "user", "content": ""}]) == ""


def test_a_template_takes_bounded_memory() -> None:
    """What is too much for it is none of this process's."""
    large = "{% set ns = namespace(x='a' * 9999999) %}" + "{% set ns.x = ns.x ~ ns.x %}" * 30
    with TemplateProcess(large, {}, memory_bytes=256 << 20) as process:
        with pytest.raises(LutraError, match="chat template"):
            process.render(TALK)


def test_the_process_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_API_KEY", "secret")
    with TemplateProcess(TEMPLATE, {}) as process:
        process.render(TALK)
        assert process._process is not None
        path = f"/proc/{process._process.pid}/environ"
        if not os.path.exists(path):
            pytest.skip("not Linux")
        with open(path, "rb") as file:
            assert b"secret" not in file.read()


def test_a_process_that_is_killed_is_replaced() -> None:
    with TemplateProcess("ok", {}) as process:
        assert process.render(TALK) == "ok"
        assert process._process is not None
        process._process.kill()
        process._process.wait()
        with pytest.raises(LutraError, match=r"^the process of the chat template ended"):
            process.render(TALK)
        assert process.render(TALK) == "ok"


def test_closing_ends_the_process() -> None:
    found: Sequence[object] = ()
    with TemplateProcess("ok", {}) as process:
        process.render(TALK)
        child = process._process
        found = [child]
    assert found[0] is not None and child is not None
    assert child.poll() is not None
