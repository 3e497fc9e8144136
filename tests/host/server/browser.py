"""Chromium for tests, without a window, with a profile of its own, and asking nobody outside."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lutra_golden.install import install_command

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

__all__ = ["chromium", "missing"]

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def _program() -> str | None:
    return next(filter(None, map(shutil.which, _PROGRAMS)), None)


def missing() -> str | None:
    """What tests in a browser lack here, None if it is all there."""
    if find_spec("playwright") is None:
        return f"playwright is not installed: run `{install_command('dev')}`"
    if _program() is None:
        return f"none of {', '.join(_PROGRAMS)} is on PATH: install Chromium"
    return None


@contextmanager
def chromium(profile: Path, **options: Any) -> Generator["BrowserContext"]:
    """A browser whose profile is the new folder ``profile``; ``options`` are Playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=_program(),
            headless=True,
            args=list(_FLAGS),
            **options,
        )
        try:
            yield context
        finally:
            context.close()
