"""Checks of boards on copies of three machines: healthy, and with each fault planted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.doctor.trees import alveo, closed, kv260, package, write, z2

from lutra.devices.accelerator.hwh import hwh
from lutra.doctor import basics
from lutra.doctor.alveo import alveo_checks
from lutra.doctor.examine import examine, is_wrong
from lutra.doctor.machine import Finding, Level, Machine
from lutra.doctor.zynq import zynq_checks
from lutra_golden.core.boards import BOARDS
from lutra_golden.core.configs import KV260, NANO, PYNQ_Z2, U55C
from lutra_golden.install import install_command
from lutra_golden.timing.boards import find_profile

Make = Callable[[Path], Machine]
Plant = Callable[[Path, Machine], Machine | None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Place of bitstreams: one of each board, as `lutra build` leaves them."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache/bitstreams"
    for name, suffix, config in (
        ("kv260", ".bit", KV260),
        ("z2", ".bit", PYNQ_Z2),
        ("u55c", ".xclbin", U55C),
    ):
        facts = {"configuration": config.name, "fingerprint": f"{config.fingerprint:016x}"}
        write(folder, {f"{name}{suffix}": "", f"{name}.json": json.dumps(facts)})
        if suffix == ".bit":
            text = hwh(find_profile("kv260"), config)
            write(folder, {f"{name}.hwh": text})
    return folder


def checks(machine: Machine) -> list[Finding]:
    found = list(zynq_checks(machine)) if machine.path("proc/device-tree").exists() else []
    return found or list(alveo_checks(machine))


ZYNQ = (
    "board, device tree, kernel, driver zocl, FPGA manager, driver uio, CMA memory, permissions, "
    "clock, PYNQ, NumPy, XRT, bitstream, bitstream"
)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (
            kv260,
            ZYNQ,
        ),
        (
            alveo,
            "card, kernel, driver xocl, driver xclmgmt, permissions, XRT, xbutil, pyxrt, bitstream",
        ),
    ],
)
def test_a_healthy_machine(make: Make, names: str, tmp_path: Path) -> None:
    found = checks(make(tmp_path))
    assert {each.level for each in found} == {Level.OK}
    assert [each.name for each in found] == names.split(", ")
    assert all(each.mend is None and "\n" not in each.text for each in found)


def test_a_healthy_z2(tmp_path: Path) -> None:
    """Its memory is small, and it is told so; the agent's is there."""
    found = {each.name: each for each in checks(z2(tmp_path))}
    assert [name for name, each in found.items() if each.level != Level.OK] == ["CMA memory"]
    assert found["CMA memory"].level == Level.WARNING
    assert found["CMA memory"].text == "117 MiB of 128 MiB are free, which limits models"
    assert found["driver u-dma-buf"].device == "board"
    assert found["board"].text == "TUL PYNQ-Z2 (TUL PYNQ-Z2)"
    assert BOARDS["pynq_z2"].config is PYNQ_Z2


def without(*names: str) -> Plant:
    """Files and folders that are missing."""

    def plant(root: Path, _machine: Machine) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return plant


def with_files(**files: str) -> Plant:
    """Files with another text; a dash of a keyword stands for a slash."""

    def plant(root: Path, _machine: Machine) -> None:
        write(root, {name.replace("__", "/"): text for name, text in files.items()})

    return plant


def of_another(**changes: object) -> Plant:
    return lambda _root, machine: replace(machine, **changes)


def shut(*names: str) -> Plant:
    return lambda _root, machine: closed(machine, *names)


def installed(name: str, version: str) -> Plant:
    def plant(root: Path, _machine: Machine) -> None:
        for old in (root / "site").glob(f"{name}-*"):
            shutil.rmtree(old)
        package(root, name, version)

    return plant


MISSING = "kernel, run, bo, xclBOSyncDirection, ert_cmd_state, xrt_info_device"
PIP = f"`{install_command('pynq')}`"
CMA = "add cma=1000M to the kernel's command line, and `sudo reboot`"


@pytest.mark.parametrize(
    ("make", "plant", "name", "level", "text", "mend"),
    [
        (
            kv260, with_files(**{"proc__device-tree__compatible": "xlnx,zynqmp\0",
                                 "proc__device-tree__chosen__pynq_board": "ZCU104\0",
                                 "proc__device-tree__model": "ZynqMP ZCU104\0"}),
            "board", "warning", "ZynqMP ZCU104 is none that Lutra has a configuration for",
            "see `lutra build --help`",
        ),
        (
            kv260, without("proc/device-tree/chosen"), "device tree", "error",
            "no chosen/pynq_board, by which PYNQ knows a board; Kria-PYNQ adds it",
            "`sudo bash install.sh -b KV260`",
        ),
        (
            kv260, with_files(proc__sys__kernel__osrelease="5.15.0-91-generic\n"),
            "kernel", "warning", "5.15.0-91-generic is no kernel of AMD's, drivers may be missing",
            "`sudo apt install linux-image-xilinx-zynqmp`",
        ),
        (
            z2, with_files(proc__sys__kernel__osrelease="6.1.0-armmp\n"),
            "kernel", "warning", "6.1.0-armmp is no kernel of AMD's, drivers may be missing",
            "boot PYNQ's image for this board",
        ),
        (
            kv260, without("sys/module/zocl"), "driver zocl", "error",
            "not loaded: there is no memory for buffers", "`sudo modprobe zocl`",
        ),
        (
            z2, without("sys/bus/platform/drivers/zocl-drm"), "driver zocl", "error",
            "not loaded: there is no memory for buffers", "`sudo modprobe zocl`",
        ),
        (
            kv260, without("sys/class/fpga_manager"), "FPGA manager", "error",
            "the kernel has none: no bitstream can be loaded", "boot PYNQ's image for this board",
        ),
        (
            kv260, with_files(sys__class__fpga_manager__fpga0__state="write error\n"),
            "FPGA manager", "warning", "the last bitstream could not be loaded (write error)",
            "load another: `lutra run -dev auto`",
        ),
        (
            kv260, without("sys/class/uio"), "driver uio", "warning",
            "no UIO device: without interrupts, registers are read to see the end of a run",
            "`sudo modprobe uio_pdrv_genirq of_id=generic-uio`",
        ),
        (
            z2, without("sys/class/u-dma-buf"), "driver u-dma-buf", "warning",
            "not loaded: the agent has no memory",
            "`sudo modprobe u-dma-buf udmabuf0=0x8000000`",
        ),
        (
            kv260, with_files(proc__meminfo="MemTotal: 4036000 kB\n"), "CMA memory", "error",
            "the kernel sets none aside", CMA,
        ),
        (
            kv260, with_files(proc__meminfo="CmaTotal: 1024000 kB\nCmaFree: 1024 kB\n"),
            "CMA memory", "error", "1 MiB of 1,000 MiB are free",
            f"end the program that has it, or {CMA}",
        ),
        (
            kv260, shut("mem"), "permissions", "error", "root may not open /dev/mem",
            "become root: `sudo -i`",
        ),
        (
            z2, shut("uio0", "renderD128"), "permissions", "error",
            "root may not open /dev/uio0, /dev/dri/renderD128", "become root: `sudo -i`",
        ),
        (
            kv260, with_files(sys__kernel__debug__clk__pl0_ref__clk_rate="99999000\n"),
            "clock", "warning",
            "the fabric runs at 100.0 MHz, configuration kv260 is built for 187.5",
            "PYNQ sets it with the bitstream: `lutra run -dev auto`",
        ),
        (kv260, without("site/pynq-4.0.0.dist-info"), "PYNQ", "error", "not installed", PIP),
        (
            kv260, installed("pynq", "2.7.0"), "PYNQ", "error",
            "PYNQ 2.7.0 is none of 3.0.1 up to, not including, 4.1", PIP,
        ),
        (
            z2, installed("pynq", "4.0.0"), "PYNQ", "error",
            "PYNQ 4.0.0 does not know Zynq-7000 any more",
            "`python -m pip install --upgrade 'pynq<4'`",
        ),
        (
            kv260, installed("numpy", "2.4.6"), "NumPy", "error",
            "NumPy 2.4.6: PYNQ needs one below 2", "`python -m pip install --upgrade 'numpy<2'`",
        ),
        (
            kv260, of_another(environment={}), "XRT", "error",
            "XILINX_XRT is not set, without which PYNQ looks for no board",
            "`source /etc/profile.d/xrt_setup.sh`",
        ),
        (
            alveo, without("sys/bus/pci/devices"), "card", "error",
            "no FPGA of AMD's is on the PCI bus",
            "simulate one: `lutra run -dev xrt --emulate u55c`",
        ),
        (
            alveo,
            without("sys/bus/pci/devices/0000:3b:00.1/driver", "sys/bus/pci/drivers/xocl"),
            "kernel", "error",
            "5.15.0-91-generic has no module xocl, XRT was built for another kernel",
            "`sudo dkms autoinstall`",
        ),
        (
            alveo, without("sys/bus/pci/devices/0000:3b:00.1/driver"), "driver xocl", "error",
            "serves no card", "`sudo modprobe xocl`",
        ),
        (
            alveo, without("sys/bus/pci/devices/0000:3b:00.0"), "driver xclmgmt", "warning",
            "serves no card, which cannot be reset from here then", "`sudo modprobe xclmgmt`",
        ),
        (
            alveo, without("dev/dri"), "permissions", "error",
            "there is no /dev/dri/renderD*, which xocl makes", "`sudo modprobe xocl`",
        ),
        (
            alveo, shut("renderD128"), "permissions", "error",
            "root may not open /dev/dri/renderD128",
            "`sudo usermod -aG render,video $USER`, and log in again",
        ),
        (
            alveo, without("opt/xilinx/xrt/version.json"), "XRT", "error",
            "not installed in /opt/xilinx/xrt",
            "install it from AMD's page of the card: `sudo apt install ./xrt_*-xrt.deb`",
        ),
        (
            alveo, with_files(**{"opt__xilinx__xrt__version.json": '{"BUILD_VERSION": "2.12.4"}'}),
            "XRT", "error", "XRT 2.12.4 is not 2.14 or later",
            "install it from AMD's page of the card: `sudo apt install ./xrt_*-xrt.deb`",
        ),
        (
            alveo, with_files(**{"opt__xilinx__xrt__version.json": "[]"}),
            "XRT", "error", "XRT of an unknown version is not 2.14 or later",
            "install it from AMD's page of the card: `sudo apt install ./xrt_*-xrt.deb`",
        ),
        (
            alveo, without("opt/xilinx/xrt/bin"), "xbutil", "warning",
            "not in /opt/xilinx/xrt/bin: a card that hangs cannot be reset",
            "`sudo apt install --reinstall xrt`",
        ),
        (
            alveo, without("site/pyxrt.py"), "pyxrt", "error",
            "cannot be imported (No module named 'pyxrt')", "`source /opt/xilinx/xrt/setup.sh`",
        ),
        (
            alveo, with_files(**{"site__pyxrt.py": "class device: ..."}), "pyxrt", "error",
            f"has no {MISSING}: it is not that of XRT 2.14 or later",
            "`source /opt/xilinx/xrt/setup.sh`",
        ),
    ],
)  # fmt: skip
def test_a_fault(
    make: Make,
    plant: Plant,
    name: str,
    level: str,
    text: str,
    mend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It shows in its line, with what mends it, and an error makes the board unusable."""
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    root = tmp_path / "tree"
    machine = make(root)
    machine = plant(root, machine) or machine
    device = "xrt" if make is alveo else "pynq"
    found = list((alveo_checks if make is alveo else zynq_checks)(machine))
    (line,) = (each for each in found if each.name == name and each.level != Level.OK)
    assert (line.level, line.text, line.mend) == (level, text, mend)
    assert is_wrong(found, machine, device) == (level == "error")
    assert not is_wrong(found, machine, "cpu")


@pytest.mark.parametrize("make", [kv260, z2])
def test_python_after_pynqs(make: Make, tmp_path: Path) -> None:
    machine = replace(make(tmp_path), python=(3, 13), search=[])
    (line,) = (each for each in zynq_checks(machine) if each.name == "PYNQ")
    assert line.text == "not installed, and it ends before Python 3.13"
    assert line.mend == "install Lutra in an older one: `python3.12 -m venv .venv`"


def test_an_older_interface_of_xrt(tmp_path: Path) -> None:
    machine = alveo(tmp_path)
    text = (tmp_path / "site/pyxrt.py").read_text().replace("class hw_context", "class other")
    write(tmp_path, {"site/pyxrt.py": text})
    (line,) = (each for each in alveo_checks(machine) if each.name == "pyxrt")
    assert (line.level, line.text) == (Level.OK, "interface without hw_context")


# -- bitstreams


def lines(machine: Machine) -> list[tuple[str, str]]:
    return [(each.level, each.text) for each in checks(machine) if each.name == "bitstream"]


def test_bitstreams(cache: Path, tmp_path: Path) -> None:
    machine = kv260(tmp_path / "tree")
    good = [
        ("ok", f"kv260.bit, configuration kv260, fingerprint {KV260.fingerprint:016x}"),
        ("ok", f"z2.bit, configuration pynq_z2, fingerprint {PYNQ_Z2.fingerprint:016x}"),
    ]
    assert lines(machine) == good
    (cache / "z2.hwh").unlink()
    assert lines(machine) == [good[0], ("error", "z2.bit has no .hwh file")]
    shutil.copy(cache / "kv260.hwh", cache / "z2.hwh")
    _, (level, text) = lines(machine)
    assert level == "error"
    assert text.startswith(
        f"z2.bit has files of different builds beside it, {PYNQ_Z2.fingerprint:016x} by its .json "
        f"and {KV260.fingerprint:016x} by its .hwh: copy all from one build"
    )


def test_a_bitstream_of_another_lutra(cache: Path, tmp_path: Path) -> None:
    machine = alveo(tmp_path / "tree")
    facts = {"configuration": "u55c", "fingerprint": "0123456789abcdef"}
    write(cache, {"u55c.json": json.dumps(facts)})
    ((level, text),) = lines(machine)
    assert level == "error" and text.endswith(
        f"({U55C.fingerprint:016x}): build it again with `lutra build --board u55c`"
    )
    write(cache, {"u55c.json": "{"})
    ((level, text),) = lines(machine)
    assert level == "error" and "u55c.json cannot be read (" in text
    (cache / "u55c.json").unlink()
    ((level, text),) = lines(machine)
    assert text.startswith("u55c.xclbin does not say what it was built from: copy the lutra.json o")
    (cache / "u55c.xclbin").unlink()
    ((level, text),) = lines(machine)
    assert text.startswith(f"has no bitstream in {cache}: make one with `lutra build --board NAME`")


def test_a_name_that_is_a_fingerprint(cache: Path, tmp_path: Path) -> None:
    machine = alveo(tmp_path / "tree")
    for path in cache.glob("u55c*"):
        path.unlink()
    write(cache, {f"{NANO.fingerprint:016x}.xclbin": ""})
    name = f"{NANO.fingerprint:016x}"
    assert lines(machine) == [("ok", f"{name}.xclbin, configuration unknown, fingerprint {name}")]


# -- which checks are made


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that need no board are there, and not built for it."""
    monkeypatch.setattr(basics, "describe", lambda name, _progress: f"this is {name}")


@pytest.mark.usefixtures("plain")
def test_a_plain_machine_has_no_checks_of_boards(tmp_path: Path) -> None:
    machine = replace(kv260(tmp_path), root=tmp_path / "nothing", search=[])
    found = [each for each in examine(machine) if each.device in ("pynq", "xrt", "board")]
    assert found == []
    asked = [each for each in examine(machine, "pynq") if each.device == "pynq"]
    assert [(each.name, each.level) for each in asked] == [("board", "error"), ("PYNQ", "error")]
    assert asked[0].mend == "simulate one: `lutra run -dev pynq --emulate kv260`"
    assert is_wrong(asked, machine, "pynq") and not is_wrong(asked, machine, None)


@pytest.mark.usefixtures("plain")
def test_boards_that_are_here_are_asked_for(tmp_path: Path) -> None:
    machine = kv260(tmp_path)
    assert not is_wrong(list(examine(machine)), machine, None)
    shutil.rmtree(tmp_path / "sys/module/zocl")
    found = list(examine(machine))
    assert is_wrong(found, machine, None) and is_wrong(found, machine, "pynq")
    assert not is_wrong(found, machine, "golden")
