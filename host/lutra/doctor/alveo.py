"""Checks of a host with an Alveo card, for the device ``xrt``."""

import json
from collections.abc import Iterator
from typing import Any

from lutra.devices.hardware import alveo_functions, driver_of
from lutra.doctor.machine import Finding, Machine, Reporter, version_of
from lutra.doctor.shared import bitstreams, dotted, permissions

__all__ = ["alveo_checks"]

_CARD = Reporter("xrt")
_XRT = "opt/xilinx/xrt"
_OLDEST = (2, 14)
_INSTALL = "install it from AMD's page of the card: `sudo apt install ./xrt_*-xrt.deb`"
_SETUP = "`source /opt/xilinx/xrt/setup.sh`"
_DRIVERS = ("xocl", "xclmgmt")  # of the function for users, and of the one for the card's owner
_NAMES = ("device", "kernel", "run", "bo", "xclBOSyncDirection", "ert_cmd_state", "xrt_info_device")
"""Names of ``pyxrt`` that the driver uses, of any version."""


def alveo_checks(machine: Machine) -> Iterator[Finding]:
    """Card, kernel, drivers, permissions, XRT, its Python module, bitstreams."""
    functions = alveo_functions(machine.root)
    if functions:
        text = f"functions {', '.join(each.name for each in functions)} of the PCI bus"
        yield _CARD.good("card", text)
        yield from _drivers(machine)
        yield from _permissions(machine)
    else:
        text = "no FPGA of AMD's is on the PCI bus"
        yield _CARD.error("card", text, "simulate one: `lutra run -dev xrt --emulate u55c`")
    yield from _xrt(machine)
    yield _module(machine)
    if functions:
        yield from bitstreams("xrt")


def _drivers(machine: Machine) -> Iterator[Finding]:
    """Kernel, and its modules, which are compiled anew for each kernel."""
    release = machine.text("proc/sys/kernel/osrelease") or "unknown"
    served = {driver_of(each) for each in alveo_functions(machine.root)}
    absent = [
        name
        for name in _DRIVERS
        if name not in served
        and not machine.has_driver(name)
        and not machine.all(f"lib/modules/{release}/**/{name}.ko*")
    ]
    if absent:
        text = f"{release} has no module {' and '.join(absent)}, XRT was built for another kernel"
        yield _CARD.error("kernel", text, "`sudo dkms autoinstall`")
    else:
        yield _CARD.good("kernel", release)
    for name in _DRIVERS:
        mend = f"`sudo modprobe {name}`"
        if name in served:
            yield _CARD.good(f"driver {name}", "serves the card")
        elif name == "xocl":
            yield _CARD.error("driver xocl", "serves no card", mend)
        else:
            # a virtual machine has the function for users only
            text = "serves no card, which cannot be reset from here then"
            yield _CARD.warning("driver xclmgmt", text, mend)


def _permissions(machine: Machine) -> Iterator[Finding]:
    nodes = machine.all("dev/dri/renderD*")
    if nodes:
        mend = "`sudo usermod -aG render,video $USER`, and log in again"
        yield from permissions(machine, nodes, mend, _CARD)
    else:
        text = "there is no /dev/dri/renderD*, which xocl makes"
        yield _CARD.error("permissions", text, "`sudo modprobe xocl`")


def _xrt(machine: Machine) -> Iterator[Finding]:
    text = machine.text(f"{_XRT}/version.json")
    if text is None:
        yield _CARD.error("XRT", "not installed in /opt/xilinx/xrt", _INSTALL)
        return
    try:
        version = version_of(str(json.loads(text)["BUILD_VERSION"]))
    except (ValueError, KeyError, TypeError):
        version = ()
    if version < _OLDEST:
        found = dotted(version) or "of an unknown version"
        text = f"XRT {found} is not {dotted(_OLDEST)} or later"
        yield _CARD.error("XRT", text, _INSTALL)
    else:
        yield _CARD.good("XRT", f"XRT {dotted(version)}")
    if machine.path(f"{_XRT}/bin/xbutil").exists():
        yield _CARD.good("xbutil", f"in /{_XRT}/bin")
    else:
        text = f"not in /{_XRT}/bin: a card that hangs cannot be reset"
        yield _CARD.warning("xbutil", text, "`sudo apt install --reinstall xrt`")


def _module(machine: Machine) -> Finding:
    """The module ``pyxrt``, and the interface that it has."""
    try:
        pyxrt: Any = machine.module("pyxrt")
    except ImportError as refused:
        text = f"cannot be imported ({' '.join(str(refused).split())})"
        return _CARD.error("pyxrt", text, _SETUP)
    lacking = [name for name in _NAMES if not hasattr(pyxrt, name)]
    if lacking:
        text = f"has no {', '.join(lacking)}: it is not that of XRT 2.14 or later"
        return _CARD.error("pyxrt", text, _SETUP)
    interface = "with" if hasattr(pyxrt, "hw_context") else "without"
    return _CARD.good("pyxrt", f"interface {interface} hw_context")
