"""Tests whose tools or devices are not here skip; ``LUTRA_REQUIRE_TOOLS=1`` makes them fail."""

import importlib
import os
import signal
from functools import lru_cache
from importlib.util import find_spec

import pytest

from lutra_golden.install import install_command
from tests.host.server import browser

pytest_plugins = ["tests.host.fixtures"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # there is a worker per core: threads of products would wait for each other, and burn it
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Hear interrupts, which a shell has what it starts in the background ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count no lines, which doubles the time of a build and more of a run.

    For what runs long, or once for a configuration of blocks that other tests count.
    """
    monkeypatch.delenv("LUTRA_COVERAGE", raising=False)


@lru_cache
def _missing_for_cocotb() -> str | None:
    try:
        from lutra_sim.bench.build import check_cocotb
        from lutra_sim.rtl.toolchain import ToolchainError
    except ImportError as error:
        return f"{error}: run `{install_command('sim')}`"
    try:
        check_cocotb()
    except ToolchainError as error:
        return str(error)
    return None


@lru_cache
def _missing_for_rtl() -> str | None:
    try:
        importlib.import_module("amaranth")
        from lutra_sim.rtl.toolchain import ToolchainError, check_toolchain
    except ImportError as error:
        return f"{error}: run `{install_command('sim')}`"
    try:
        check_toolchain()
    except ToolchainError as error:
        return str(error)
    return None


@lru_cache
def _missing_for_formal() -> str | None:
    try:
        from lutra_sim.formal.prove import FormalToolsError, check_tools
    except ImportError as error:
        return f"{error}: run `{install_command('formal')}`"
    try:
        check_tools()
    except FormalToolsError as error:
        return str(error)
    return None


@lru_cache
def _missing_for_gpu() -> str | None:
    try:
        import torch
    except ImportError as error:
        return str(error)
    return None if torch.cuda.is_available() else "no CUDA device"


@lru_cache
def _missing_for_pynq() -> str | None:
    if find_spec("pynq") is None:
        return f"pynq is not installed: run `{install_command('pynq')}`"
    return None


@lru_cache
def _missing_for_browser() -> str | None:
    return browser.missing()


@lru_cache
def _missing_for_board() -> str | None:
    return None if os.environ.get("LUTRA_BOARD") else "LUTRA_BOARD does not name a board"


_MISSING = {
    "board": _missing_for_board,
    "browser": _missing_for_browser,
    "cocotb": _missing_for_cocotb,
    "formal": _missing_for_formal,
    "gpu": _missing_for_gpu,
    "pynq": _missing_for_pynq,
    "rtl": _missing_for_rtl,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in _MISSING.items():
        if item.get_closest_marker(name) is None or (reason := missing()) is None:
            continue
        if name in ("cocotb", "rtl") and os.environ.get("LUTRA_REQUIRE_TOOLS") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
