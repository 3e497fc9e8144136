"""Compiles the CPU device's library into the wheel where there is a compiler."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

_PACKAGE = "lutra/devices/cpu"


class LibraryHook(BuildHookInterface[Any]):
    """The wheel is for one platform with the library, for any without."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the file to include."""
        # an editable install compiles when the device is first used
        if version == "editable":
            return
        source = Path(self.root) / "host" / _PACKAGE / "build.py"
        spec = importlib.util.spec_from_file_location("lutra_cpu_build", source)
        assert spec is not None and spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / build.LIBRARY
        try:
            build.compile_library(library)
        except build.BuildError as error:
            self.app.display_warning(f"{error}; the wheel goes without it")
            return
        build_data["force_include"][str(library)] = f"{_PACKAGE}/{build.LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(sys_tags()).platform}"
