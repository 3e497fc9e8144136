"""Targets of this machine and of an emulated 64-bit Arm compute the same bits, in C alone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.cpu.build import compile_library, library_path
from lutra.devices.cpu.interface import golden_header
from lutra.devices.cpu.library import target_names

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = Path(__file__).with_name("targets.c")
INCLUDE = ROOT / "host/lutra/devices/cpu/csrc"
ARM_CC, ARM = "aarch64-linux-gnu-gcc", "qemu-aarch64"
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")


def build(compiler: str, library: Path, folder: Path) -> Path:
    """The program, linked with a library."""
    program = folder / "targets"
    command = [compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}", str(PROGRAM)]
    command += [str(library), f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def digests(*command: str | Path) -> dict[str, str]:
    """Digest of each target that the program finds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of this machine's targets, each of which test_steps.py compares with golden."""
    program = build("cc", library_path(golden_header()), tmp_path_factory.mktemp("here"))
    return digests(program)


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program and the library for aarch64."""
    for tool in (ARM_CC, ARM):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: install gcc-aarch64-linux-gnu and qemu-user")
    folder = tmp_path_factory.mktemp("arm")
    library = folder / "liblutra_cpu.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "CC", ARM_CC)
        compile_library(library, golden_header())
    return build(ARM_CC, library, folder)


def test_every_target_of_this_machine(here: dict[str, str]) -> None:
    assert [*here] == [name for name, available in target_names().items() if available]
    assert len(set(here.values())) == 1


@pytest.mark.parametrize(
    ("processor", "targets"),
    [
        ("max", ["neon", "armv8", "scalar"]),
        # of Zynq UltraScale+, without dot products
        ("cortex-a53", ["armv8", "scalar"]),
    ],
)
def test_every_target_of_arm(
    processor: str, targets: list[str], arm_program: Path, here: dict[str, str]
) -> None:
    found = digests(ARM, "-cpu", processor, "-L", ARM_LIBRARIES, arm_program)
    assert found == dict.fromkeys(targets, here["scalar"])
