"""Devices that simulate the stand-in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lutra_golden.core.config import AcceleratorConfig
from lutra_sim.rtl import build
from lutra_sim.rtl.device import Simulator

MEMORY_BYTES = 1 << 16


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> AcceleratorConfig:
    """Configuration whose accelerator is the stand-in, for the time of the test."""
    module = pytest.importorskip("lutra_sim.bench.rtl.stand_in")
    source = Path(module.__file__).read_text(encoding="utf-8")
    monkeypatch.setattr(build, "_generate", module.generate)
    monkeypatch.setattr(build, "_hardware_sources", lambda: source)
    return module.CONFIG


@pytest.fixture
def open_device(
    stand_in: AcceleratorConfig, request: pytest.FixtureRequest
) -> Callable[..., Simulator]:
    """Makes devices with the stand-in that are closed after the test."""

    def make(*arguments: Any, config: AcceleratorConfig = stand_in, **options: Any) -> Simulator:
        device = Simulator(config, MEMORY_BYTES, *arguments, **options)
        request.addfinalizer(device.close)
        return device

    return make
