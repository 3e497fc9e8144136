"""Lists of matrices that stay in floating point."""

from pathlib import Path

import pytest

from lutra.checkpoints.exemptions import is_exempt
from lutra.formats.config_file import ConfigFile
from lutra_golden.errors import LutraError

NAME = "model.layers.1.mlp.down_proj"


def config(listed: object) -> ConfigFile:
    said = {"quantization_config": {"modules_to_not_convert": listed}}
    return ConfigFile(Path("config.json"), said)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (NAME, True),
        ("down_proj", True),
        ("mlp.down_proj", True),
        ("model.layers.1", True),
        ("model.layers.1.mlp", True),
        ("model.layers.1.", True),
        ("model.layers", True),
        ("model.lay", False),
        ("model.layers.1.mlp.down", False),
        ("model.layers.1.mlp.up_proj", False),
        ("layers.1", False),  # neither its beginning nor its end
        ("lm_head", False),
        ("model.*down_proj", True),
        (".*mlp", True),
        ("model.layers.*", True),
        ("model.*m", False),
        ("model.*l.*", True),
        ("model.*mlp.*up_proj", False),
        ("model.*down_proj.*mlp", False),
    ],
)
def test_entries(entry: str, expected: bool) -> None:
    assert is_exempt(config([entry]), NAME) == expected
    assert is_exempt(config(["lm_head", entry]), NAME) == expected


def test_numbers_that_begin_alike() -> None:
    assert not is_exempt(config(["model.layers.1"]), "model.layers.10.mlp.down_proj")
    assert is_exempt(config(["model.*.1"]), "model.11.layers.1.mlp")


def test_no_list() -> None:
    assert not is_exempt(config(None), NAME)
    assert not is_exempt(config([]), NAME)


@pytest.mark.parametrize("entry", [3, "", "a+", "(x)", "^model", None])
def test_entries_that_are_refused(entry: object) -> None:
    with pytest.raises(LutraError, match="modules_to_not_convert must hold names of layers, with"):
        is_exempt(config([entry]), NAME)


def test_many_wildcards_take_no_time() -> None:
    assert not is_exempt(config([".*" * 200 + "x"]), NAME * 100)
