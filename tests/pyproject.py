"""The project's metadata and settings, for tests of them."""

from pathlib import Path
from typing import Any

import tomli

__all__ = ["PYPROJECT", "ROOT"]

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
