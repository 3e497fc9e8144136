"""Compiles the CPU device's library where there is a compiler: into the wheel, or in place."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

_PACKAGE = "lutra/devices/cpu"


class LibraryHook(BuildHookInterface[Any]):
    """The wheel is for one platform with the library, for any without.

    An editable install runs from the checkout, whose folder gets the library.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and name the file to include in a wheel."""
        build = self._module("build")
        # the package's own imports would need what a user installs
        sys.path.insert(0, str(Path(self.root) / "sim"))
        try:
            golden = self._module("interface").golden_header()
        finally:
            sys.path.pop(0)
        if version == "editable":
            try:
                build.compile_in_place(golden)
            except build.BuildError as error:
                self.app.display_warning(f"{error}; it is compiled when it is first used")
            return
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / build.LIBRARY
        try:
            build.compile_library(library, golden)
        except build.BuildError as error:
            self.app.display_warning(f"{error}; the wheel goes without it")
            return
        build_data["force_include"][str(library)] = f"{_PACKAGE}/{build.LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(sys_tags()).platform}"

    def _module(self, name: str) -> ModuleType:
        """A module of the device, loaded without its package."""
        source = Path(self.root) / "host" / _PACKAGE / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"lutra_cpu_{name}", source)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
