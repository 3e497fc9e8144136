"""The page at ``/``: one file with its own style and program, which asks nobody but this server."""

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from starlette.responses import Response

__all__ = ["page"]


@lru_cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The file, and the headers that let it do what it does and nothing else."""
    text = files("lutra.server").joinpath("page.html").read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _digest(text, "script"),
        "style-src": _digest(text, "style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # the text of a model stays text
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return text.encode(), headers


def _digest(text: str, tag: str) -> str:
    """A policy's source for the one element ``tag`` of the page (CSP level 3, section 2.3.1)."""
    [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def page() -> Response:
    """The page as a reply."""
    content, headers = _page()
    return Response(content, media_type="text/html", headers=headers)
