"""The command that installs Lutra's optional packages, for messages that name it."""

import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

__all__ = ["DISTRIBUTION", "install_command"]

DISTRIBUTION = "lutra-fpga"
"""Name on PyPI; ``lutra`` there is somebody else's."""


def install_command(*extras: str) -> str:
    """Command that installs Lutra with ``extras`` of pyproject.toml into this Python.

    It names the checkout, or the folder that Lutra was installed from, and PyPI otherwise; paths
    are relative where the current folder is the one to install from.
    """
    names = f"[{','.join(extras)}]" if extras else ""
    checkout = _checkout()
    source = checkout or _installed_from()
    here = Path.cwd() if source == Path.cwd() else None
    python = Path(sys.executable)
    python = python.parent.resolve() / python.name
    if here and python.is_relative_to(here):
        python = python.relative_to(here)
    # environments of uv have no pip
    pip = ["-m", "pip", "install"] if find_spec("pip") else None
    command = [str(python), *pip] if pip else ["uv", "pip", "install", "--python", str(python)]
    target = DISTRIBUTION if source is None else "." if here else str(source)
    options = ["-e"] if checkout else []
    return shlex.join([*command, *options, target + names])


def _checkout() -> Path | None:
    """Root of the sources that run, None if an installed copy runs."""
    root = Path(__file__).resolve().parents[2]
    is_source = Path(__file__).resolve().parent == root / "sim" / "lutra_golden"
    return root if is_source and (root / "pyproject.toml").is_file() else None


def _installed_from() -> Path | None:
    """Folder or file that pip installed Lutra from, None if it came from PyPI or is gone."""
    # rarely needed, and slow to import
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        text = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    if not text:
        return None
    url = urlsplit(str(json.loads(text)["url"]))
    path = Path(url2pathname(url.path))
    return path if url.scheme == "file" and path.exists() else None
