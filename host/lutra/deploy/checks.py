"""Checks of a board before anything is copied to it: versions, rights, identity, room."""

from collections.abc import Mapping, Sequence
from typing import Any

from lutra.deploy.link import DeployError

__all__ = ["check_agent_host", "check_package_host", "check_rights", "check_room", "describe"]

_OLDEST_PYTHON, _OLDEST_PYNQ = (3, 10), (3, 0, 1)
_ROOM_BYTES = 64 << 20  # that stay free
_AGENT_ADVICE = "copy the agent with --agent, and run models on this PC"

Facts = Mapping[str, Any]


def _version(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")[:3]
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def describe(facts: Facts, *, agent: bool) -> str:
    """One line of a board's facts."""
    names = facts["names"] or [facts["python"]["card"] or facts["machine"]]
    python, packages = facts["python"], facts["python"]["packages"]
    versions = [f"Python {_dotted(facts['far_python'] if agent else python['version'])}"]
    if not agent:
        versions += [f"{name} {packages[name]}" for name in ("numpy", "pynq") if packages[name]]
    versions += [f"kernel {facts['kernel']}", f"{facts['free_bytes'] / 1e9:.1f} GB free"]
    return f"{names[0]}: {', '.join(versions)}"


def check_package_host(target: str, facts: Facts, runtime: str, *, emulated: bool) -> None:
    """Refuse a machine on which the package, and the device ``runtime``, cannot run."""
    python = facts["python"]
    path, version = python["path"], tuple(python["version"])
    if facts["system"] != "Linux":
        raise DeployError(f"{target} runs {facts['system']}, Lutra's boards run Linux")
    if version < _OLDEST_PYTHON:
        raise DeployError(
            f"{path} on {target} is Python {_dotted(version)}, Lutra needs "
            f"{_dotted(_OLDEST_PYTHON)} or later: name another with --python, or {_AGENT_ADVICE}"
        )
    if facts["machine"].startswith("armv"):
        raise DeployError(
            f"{target} is {facts['machine']}, for which there is no NumPy that Lutra runs with: "
            f"{_AGENT_ADVICE}"
        )
    if python["packages"]["pip"] is None:
        raise DeployError(
            f"{path} on {target} has no pip: run `apt install python3-pip` there, or name another "
            "Python with --python"
        )
    if emulated:
        return
    if runtime == "xrt":
        _check_card(target, python["card"])
    else:
        _check_pynq(target, path, python["packages"]["pynq"])


def _check_pynq(target: str, path: str, version: str | None) -> None:
    if version is None:
        raise DeployError(
            f"{path} on {target} has no package pynq: install PYNQ (docs/boards.md), or name the "
            "Python that has it with --python"
        )
    if _version(version) < _OLDEST_PYNQ:
        raise DeployError(
            f"{target} has pynq {version}, Lutra drives {_dotted(_OLDEST_PYNQ)} and later: take a "
            "newer image"
        )


def _check_card(target: str, card: str | None) -> None:
    if card is None:
        raise DeployError(
            f"{target} has no module pyxrt: install XRT 2.14 or later there, with its Python "
            "module in /opt/xilinx/xrt/python"
        )
    if card.startswith("none: "):
        raise DeployError(
            f"XRT on {target} finds no card ({card.removeprefix('none: ')}): see `xbutil examine`"
        )


def check_agent_host(target: str, facts: Facts) -> None:
    """Refuse a machine on which the agent has nothing to lend."""
    if not facts["buffers"]:
        raise DeployError(
            f"{target} has no contiguous memory in /sys/class/u-dma-buf: load the module "
            "u-dma-buf there, for example `modprobe u-dma-buf udmabuf0=0x10000000`"
        )


def check_rights(target: str, facts: Facts, what: str) -> Sequence[str]:
    """Beginning of a command that runs as root there: nothing for root, otherwise sudo."""
    if facts["is_root"]:
        return []
    if facts["sudo"]:
        return ["sudo", "-n"]
    raise DeployError(
        f"{what} needs root, which the user of {target} is not: log in as root, or let that user "
        "run sudo without a password"
    )


def check_room(target: str, facts: Facts, n_bytes: int) -> None:
    """Refuse a disk that has no room for ``n_bytes`` more."""
    free = facts["free_bytes"] - _ROOM_BYTES
    if n_bytes > free:
        raise DeployError(
            f"{target} has {max(free, 0) / 1e6:,.0f} MB of disk to use, {n_bytes / 1e6:,.0f} MB "
            "are needed: free some space, or leave out what is there already"
        )
