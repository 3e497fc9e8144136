"""The command that installs an extra works from where the user stands."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from lutra_golden import install
from lutra_golden.install import install_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A copy of Lutra that runs from site-packages; its metadata are the files in the result."""
    files: dict[str, str] = {}
    found = SimpleNamespace(read_text=files.get)
    monkeypatch.setattr(install, "__file__", "/venv/lib/python3.11/lutra_golden/install.py")
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: found)
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(install, "find_spec", lambda name: object())
    return files


def test_in_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv/bin/python"))
    monkeypatch.chdir(ROOT)
    assert install_command("synth") == ".venv/bin/python -m pip install -e '.[synth]'"
    assert install_command() == ".venv/bin/python -m pip install -e ."
    # from another folder, by absolute paths
    monkeypatch.chdir(tmp_path)
    python = f"{ROOT}/.venv/bin/python"
    assert install_command("synth") == f"{python} -m pip install -e '{ROOT}[synth]'"


def test_another_python_than_the_checkouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "executable", "/opt/other env/bin/python3")
    monkeypatch.chdir(ROOT)
    expected = "'/opt/other env/bin/python3' -m pip install -e '.[sim,dev]'"
    assert install_command("sim", "dev") == expected


def test_installed_from_a_folder(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a clone"
    source.mkdir()
    installed["direct_url.json"] = json.dumps({"url": source.as_uri(), "dir_info": {}})
    expected = f"/venv/bin/python -m pip install '{source}[gpu]'"
    assert install_command("gpu") == expected
    monkeypatch.chdir(source)
    assert install_command("gpu") == "/venv/bin/python -m pip install '.[gpu]'"


@pytest.mark.parametrize(
    "url", [None, "https://example.org/lutra_fpga-0.1.0-py3-none-any.whl", "file:///no/such/folder"]
)
def test_installed_from_elsewhere(installed: dict[str, str], url: str | None) -> None:
    if url:
        installed["direct_url.json"] = json.dumps({"url": url})
    assert install_command("gpu") == "/venv/bin/python -m pip install 'lutra-fpga[gpu]'"


def test_a_copy_without_metadata(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert install_command() == "/venv/bin/python -m pip install lutra-fpga"


def test_an_environment_without_pip(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    expected = "uv pip install --python /venv/bin/python 'lutra-fpga[sim]'"
    assert install_command("sim") == expected
