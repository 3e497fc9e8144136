"""A server for tests: a small model on the golden device, at a free port of this machine."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.host.gate import WAIT_S
from tests.host.random_model import Shape, write_model

from lutra import LLM
from lutra.devices.golden import GoldenDevice
from lutra.server.app import make_app
from lutra.server.limits import Limits
from lutra.server.run import HttpServer, address, listen
from lutra.server.service import Service

__all__ = ["CONTEXT", "TEMPLATE", "Served", "served", "small_model"]

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Served:
    """A server that runs: where it is, and what is behind it."""

    url: str
    llm: LLM
    service: Service

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        """Ask for a path."""
        return httpx.post(self.url + path, json=body, timeout=WAIT_S, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask for a path."""
        return httpx.get(self.url + path, timeout=WAIT_S, **options)


def small_model(folder: Path) -> Path:
    """A model of the least sizes, with room for conversations."""
    shape = Shape(
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=CONTEXT,
    )
    return write_model(folder, shape)


@contextmanager
def served(
    model: Path,
    device: GoldenDevice | str = "golden",
    limits: Limits | None = None,
    template: str | None = TEMPLATE,
    grace: float = 1.0,
    **options: Any,
) -> Generator[Served]:
    """A server with these limits; ``options`` are those of its application."""
    limits = limits or Limits()
    service = Service(limits)
    listening = listen("127.0.0.1", 0)
    with LLM(model, device, parallel=limits.parallel) as llm:
        if template is not None:
            llm.set_chat_template(template)  # for what answers are compared with
        with HttpServer(make_app(service, **options), listening, grace):
            service.start(llm, template)
            try:
                yield Served(address(listening), llm, service)
            finally:
                service.close()
