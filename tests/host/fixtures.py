"""Random models and their programs, made once per session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.host.random_model import GROUP, LLAMAS, SHAPES, config_for, load, write_model

from lutra import progress
from lutra.compile.compiler import compile_model
from lutra.compile.program import Program
from lutra.models.decoder import Decoder
from lutra.quantize.pack import pack_model
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel


@pytest.fixture(autouse=True)
def still_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the lines of long steps out of what a slow machine's tests read from standard error."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the random model with this name."""
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_model(root / name, (SHAPES | LLAMAS)[name]))


@pytest.fixture(scope="session")
def checkpoint(model_folder: Callable[[str], Path]) -> Callable[[str], Decoder]:
    return cache(lambda name: load(model_folder(name)))


@pytest.fixture(scope="session")
def packed(checkpoint: Callable[[str], Decoder]) -> Callable[[str], PackedModel]:
    return cache(lambda name: pack_model(checkpoint(name)))


@pytest.fixture(scope="session")
def program(packed: Callable[[str], PackedModel]) -> Callable[[str], Program]:
    """Program of the random model with this name, for the smallest configuration."""
    return cache(lambda name: compile_model(packed(name), config_for(SHAPES[name])))


@pytest.fixture(scope="session")
def llama(model_folder: Callable[[str], Path]) -> Callable[[str], Decoder]:
    return cache(lambda name: load(model_folder(name)))


@pytest.fixture(scope="session")
def packed_llama(llama: Callable[[str], Decoder]) -> Callable[[str, str], PackedModel]:
    """The random Llama model with this name in this format."""
    return cache(lambda name, format: pack_model(llama(name), Format.parse(format), GROUP))
