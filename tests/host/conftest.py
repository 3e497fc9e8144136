"""Random models and their programs, made once per session."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.host.random_model import SHAPES, config_for, write_model

from lutra.host.compiler import compile_model
from lutra.host.models.bitnet import BitNet, load_bitnet
from lutra.host.packing import PackedModel, pack_bitnet
from lutra.host.program import Program


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the random model with this name."""
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_model(root / name, SHAPES[name]))


@pytest.fixture(scope="session")
def checkpoint(model_folder: Callable[[str], Path]) -> Callable[[str], BitNet]:
    return cache(lambda name: load_bitnet(model_folder(name)))


@pytest.fixture(scope="session")
def packed(checkpoint: Callable[[str], BitNet]) -> Callable[[str], PackedModel]:
    return cache(lambda name: pack_bitnet(checkpoint(name)))


@pytest.fixture(scope="session")
def program(packed: Callable[[str], PackedModel]) -> Callable[[str], Program]:
    """Program of the random model with this name, for the smallest configuration."""
    return cache(lambda name: compile_model(packed(name), config_for(SHAPES[name])))
