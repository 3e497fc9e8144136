"""Models by their id: what is asked of the Hub, and what is said if it does not come."""

import re
import sys
from pathlib import Path

import pytest

hub = pytest.importorskip("huggingface_hub")

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lutra.checkpoints.hub import is_id
from lutra.models import find_model
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command

FAILURES: dict[type[Exception], str] = {
    RepositoryNotFoundError: "is neither a folder or file here nor a model on the Hugging Face "
    "Hub: check its spelling, or log in with `hf auth login` if it is private",
    GatedRepoError: "is gated on the Hugging Face Hub: accept its terms there, "
    "log in with `hf auth login`, and try again",
    LocalEntryNotFoundError: "is neither a folder or file here nor downloaded, and the Hugging "
    "Face Hub cannot be reached: check the path, or connect to the network and try again",
    HfHubHTTPError: r"could not be downloaded from the Hugging Face Hub \(500 Server Error\): try "
    "again; what came already is kept",
    OSError: r"could not be downloaded from the Hugging Face Hub \(500 Server Error\): try again; "
    "what came already is kept",
}


def replace_download(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[object]:
    """Replace the library's answer; returns the list of its calls."""
    asked: list[object] = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.extend([name, options])
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


def test_an_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace_download(monkeypatch, tmp_path)
    assert find_model("otter/Lutra-1.5B") == tmp_path
    name, options = asked
    assert name == "otter/Lutra-1.5B"
    assert isinstance(options, dict)
    assert options["allow_patterns"] == ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
    assert "*/*" in options["ignore_patterns"]


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace_download(monkeypatch, tmp_path)
    (tmp_path / "otter" / "lutra").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("otter/lutra") == Path("otter/lutra")
    assert not asked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("otter/lutra", True),
        ("Qwen/Qwen2.5-0.5B-Instruct", True),
        ("1bitLLM/bitnet_b1_58-large", True),
        ("lutra", False),
        ("./lutra", False),
        ("../lutra", False),
        ("/lutra", False),
        ("lutra/", False),
        ("some/where/else", False),
        ("models/lutra.gguf", False),
        ("otter/lu tra", False),
    ],
)
def test_what_an_id_is(name: str, expected: bool) -> None:
    assert is_id(name) == expected


@pytest.mark.parametrize("kind", FAILURES)
def test_a_model_that_does_not_come(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    # the library's own constructors want an answer of the HTTP library
    error = kind.__new__(kind)
    error.args = ("500 Server Error\nand more",)
    replace_download(monkeypatch, error)
    with pytest.raises(LutraError, match=f"^model 'otter/lutra' {FAILURES[kind]}$"):
        find_model("otter/lutra")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    command = re.escape(install_command())
    message = f"to download it huggingface_hub is missing: run `{command}`, or give a folder$"
    with pytest.raises(LutraError, match=message):
        find_model("otter/lutra")


def test_a_path_that_is_no_id() -> None:
    message = (
        r"^model 'no/such/place' is neither a folder nor a shipped model \(.*tales.*\): give the "
        r"folder that holds config\.json and model\.safetensors, a GGUF file, or an id of the "
        r"Hugging Face Hub \(owner/model\)$"
    )
    with pytest.raises(LutraError, match=message):
        find_model("no/such/place")
