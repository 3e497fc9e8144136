"""The tree keeps its promises: mirrored paths, one-way imports, nothing of one machine."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pyproject import PYPROJECT, ROOT

PACKAGES = sorted(path.parent for path in ROOT.glob("*/lutra*/py.typed"))
MODULES = [path for package in PACKAGES for path in sorted(package.rglob("*.py"))]
# topics that compute, so that every block in them has a golden model
ARITHMETIC = {"arith", "attention", "matmul", "vector"}
# blocks that only put others together; their model is the interpreter
COMPOSITIONS = {Path("vector/unit")}
# blocks that are parts of others: the golden model that says what they compute
PARTS = {
    Path("matmul/activations"): Path("matmul/engine"),
    Path("matmul/accumulate"): Path("matmul/grouped"),
    Path("matmul/lane"): Path("matmul/lookup"),
    Path("vector/group_shifts"): Path("vector/norm"),
    Path("vector/head_scales"): Path("vector/rope"),
}
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.-])/(work|root|home/\w+|Users/\w+)/")


def _syntax(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def _is_block(module: Path) -> bool:
    """True if ``module`` makes hardware: a class of it can be elaborated."""
    return any(
        isinstance(statement, ast.FunctionDef) and statement.name == "elaborate"
        for cls in _syntax(module).body
        if isinstance(cls, ast.ClassDef)
        for statement in cls.body
    )


HARDWARE = ROOT / "hw/lutra_hw"
BLOCKS = [
    path.relative_to(HARDWARE).with_suffix("")
    for path in MODULES
    if path.is_relative_to(HARDWARE) and _is_block(path)
]

COMPUTING = [b for b in BLOCKS if b.parts[0] in ARITHMETIC and b not in COMPOSITIONS]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_a_test_that_hangs_is_ended(tmp_path: Path) -> None:
    """By the settings of this project, which know no plugin for it; others run on."""
    path = tmp_path / "test_hang.py"
    path.write_text("import time\ndef test_hang():\n    time.sleep(3600)\n")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(path)]
    command += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "Timeout (0:00:01)!" in done.stderr
    assert "test_hang.py" in done.stderr
    options = PYPROJECT["tool"]["pytest"]["ini_options"]
    assert options["faulthandler_timeout"] == 1800


def _tracked() -> list[Path]:
    """Files that are in the repository, or will be with the next commit."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_has_its_test(block: Path) -> None:
    assert (ROOT / "tests/hw" / block.parent / f"test_{block.name}.py").exists()


@pytest.mark.parametrize("block", COMPUTING, ids=str)
def test_every_arithmetic_block_has_its_golden_model(block: Path) -> None:
    model = PARTS.get(block, block)
    assert (ROOT / "sim/lutra_golden" / model).with_suffix(".py").exists()


def test_parts_are_blocks() -> None:
    assert PARTS.keys() <= set(BLOCKS)


@pytest.mark.parametrize("package", PACKAGES, ids=_name)
def test_packages_are_ordinary(package: Path) -> None:
    folders = {path.parent for path in package.rglob("*.py")}
    assert [path for path in sorted(folders) if not (path / "__init__.py").exists()] == []


def test_every_package_is_shipped() -> None:
    shipped = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(shipped) == sorted(map(_name, PACKAGES))


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_every_module_has_all(module: Path) -> None:
    statements = _syntax(module).body
    names = {
        target.id
        for statement in statements
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        for target in getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(target, ast.Name)
    }
    only_docstring = all(isinstance(statement, ast.Expr) for statement in statements)
    assert "__all__" in names or only_docstring or module.name == "__main__.py"


@pytest.mark.parametrize("package", ["hw/lutra_hw", "flows/lutra_flows"])
def test_tables_of_the_readme_have_every_module(package: str) -> None:
    """A row has the modules named in its first cell; the heading names a package within."""
    root, rows = ROOT / package, list[Path]()
    folder: Path | None = None
    for line in (root.parent / "README.md").read_text(encoding="utf-8").splitlines():
        first = line.removeprefix("|").partition("|")[0].strip() if line.startswith("|") else ""
        if re.match(r"(block|module)\b", first):
            named = re.search(r"`(.*)`", first)
            folder = root.parent / named[1].replace(".", "/") if named else root
        elif not line.startswith("|"):
            folder = None
        elif folder is not None:
            rows += [folder / f"{name}.py" for name in re.findall(r"`([^`]+)`", first)]
    modules = {path for path in MODULES if path.is_relative_to(root)}
    assert set(rows) == {path for path in modules if path.name != "__init__.py"}


def test_no_file_holds_a_path_of_one_machine() -> None:
    found = [
        f"{_name(path)}:{number}: {line.strip()[:100]}"
        for path in _tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


PAGES = [
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    # a change log names what is gone
    if path.name != "CHANGELOG.md"
]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    folders = "|".join(sorted({package.parent.name for package in PACKAGES}))
    paths = re.findall(rf"`((?:{folders}|tests|tools|docs)/[\w/.-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = re.findall(r"python -m (lutra\w*(?:\.\w+)*)", text)
    modules += re.findall(r"`(lutra_\w+(?:\.[a-z]\w*)+)`", text)
    assert [module for module in modules if not _is_module(module)] == []


def _is_module(name: str) -> bool:
    """True for a module or package of ours, or a name that a module of ours has."""
    package = next(path for path in PACKAGES if path.name == name.partition(".")[0])
    path = package.parent / name.replace(".", "/")
    module = path.parent.with_suffix(".py")
    return (
        path.is_dir()
        or path.with_suffix(".py").exists()
        or (module.exists() and path.name in module.read_text(encoding="utf-8"))
    )


def test_imports_go_one_way() -> None:
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
