"""Copies of what Linux shows on three machines: a KV260, a PYNQ-Z2, and a host with a U55C."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lutra.doctor.machine import Machine

__all__ = ["alveo", "closed", "kv260", "package", "write", "z2"]

PYXRT = """
class device: ...
class kernel: ...
class run: ...
class bo: ...
class hw_context: ...
xclBOSyncDirection = ert_cmd_state = xrt_info_device = None
"""


def write(root: Path, files: Mapping[str, str]) -> None:
    """Files with their folders."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def package(root: Path, name: str, version: str) -> None:
    """An installed package of Python."""
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    write(root, {f"site/{name}-{version}.dist-info/METADATA": text})


def _machine(root: Path, environment: Mapping[str, str], python: tuple[int, int]) -> Machine:
    return Machine(
        root=root,
        environment=environment,
        search=[str(root / "site")],
        python=python,
        may_open=lambda path: True,
    )


def kv260(root: Path) -> Machine:
    """Ubuntu 22.04 for Kria with PYNQ 4.0, by root."""
    write(
        root,
        {
            "proc/device-tree/compatible": "xlnx,zynqmp-sk-kv260-rev1\0xlnx,zynqmp-smk-k26-rev1\0"
            "xlnx,zynqmp-smk-k26\0xlnx,zynqmp\0",
            "proc/device-tree/model": "ZynqMP SMK-K26 Rev1/B/A\0",
            "proc/device-tree/chosen/pynq_board": "KV260\0",
            "proc/sys/kernel/osrelease": "5.15.0-1027-xilinx-zynqmp\n",
            "proc/meminfo": "MemTotal:        4036000 kB\nCmaTotal:        1024000 kB\n"
            "CmaFree:          980000 kB\n",
            "sys/class/fpga_manager/fpga0/state": "operating\n",
            "sys/kernel/debug/clk/pl0_ref/clk_rate": "187498125\n",
            "sys/class/uio/uio4/name": "fabric\n",
            "sys/module/zocl/refcnt": "1\n",
            "dev/mem": "",
            "dev/uio4": "",
            "dev/dri/renderD128": "",
        },
    )
    package(root, "pynq", "4.0.0")
    package(root, "numpy", "1.26.4")
    return _machine(root, {"XILINX_XRT": "/usr"}, (3, 12))


def z2(root: Path) -> Machine:
    """PYNQ's image 3.0.1 for the Z2, by root, with memory for an agent."""
    write(
        root,
        {
            "proc/device-tree/compatible": "xlnx,zynq-7000\0",
            "proc/device-tree/model": "TUL PYNQ-Z2\0",
            "proc/device-tree/chosen/pynq_board": "Pynq-Z2\0",
            "proc/sys/kernel/osrelease": "5.15.19-xilinx-v2022.1\n",
            "proc/meminfo": "MemTotal:         505000 kB\nCmaTotal:         131072 kB\n"
            "CmaFree:          120000 kB\n",
            "sys/class/fpga_manager/fpga0/state": "operating\n",
            "sys/kernel/debug/clk/fclk0/clk_rate": "100000000\n",
            "sys/class/uio/uio0/name": "fabric\n",
            "sys/class/u-dma-buf/udmabuf0/size": "134217728\n",
            "sys/bus/platform/drivers/zocl-drm/uevent": "",
            "dev/mem": "",
            "dev/uio0": "",
            "dev/dri/renderD128": "",
        },
    )
    package(root, "pynq", "3.0.1")
    package(root, "numpy", "1.26.4")
    return _machine(root, {"XILINX_XRT": "/usr"}, (3, 10))


def alveo(root: Path) -> Machine:
    """Ubuntu on a server with a U55C and XRT 2.16."""
    write(
        root,
        {
            "proc/sys/kernel/osrelease": "5.15.0-91-generic\n",
            "opt/xilinx/xrt/version.json": '{"BUILD_VERSION": "2.16.204"}',
            "opt/xilinx/xrt/bin/xbutil": "",
            "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
            "dev/dri/renderD128": "",
            "site/pyxrt.py": PYXRT,
        },
    )
    for number, driver in ((0, "xclmgmt"), (1, "xocl")):
        function = root / f"sys/bus/pci/devices/0000:3b:00.{number}"
        write(function, {"vendor": "0x10ee\n"})
        folder = root / "sys/bus/pci/drivers" / driver
        folder.mkdir(parents=True)
        (function / "driver").symlink_to(folder)
    return _machine(root, {}, (3, 10))


def closed(machine: Machine, *names: str) -> Machine:
    """The machine for somebody who may not open files of these names."""
    return replace(machine, may_open=lambda path: path.name not in names)
