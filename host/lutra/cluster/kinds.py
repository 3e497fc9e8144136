"""Kinds of devices by the resources of Ray that nodes have, and the device that each becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lutra.arguments import either
from lutra.devices.choose import DEVICES, DeviceOptions
from lutra.devices.hardware import alveo_functions, zynq_family
from lutra_golden.errors import LutraError

__all__ = ["CPU", "RESOURCES", "NodeDevice", "wanted"]

CPU = "cpu"
RESOURCES = {"fpga": "fpga", "gpu": "GPU", CPU: "CPU"}
"""Resources of Ray by the kind of a device.

``fpga`` is given to a node when it is started (``--resources '{"fpga": 1}'``); Ray finds processors
and GPUs itself, and says which GPU it gives.
"""
_DEVICES = {"fpga": "fpga", "gpu": "cuda", CPU: "cpu"}


@dataclass(frozen=True, kw_only=True)
class NodeDevice:
    """A device of some node: its kind, its name there (``fpga`` is the board that is found), the
    options that it is made with, and how many units of its resource it takes."""

    kind: str
    name: str
    options: DeviceOptions = field(default_factory=DeviceOptions)
    units: int = 1

    @property
    def resources(self) -> Mapping[str, float]:
        """Resources of Ray that it takes."""
        return {RESOURCES[self.kind]: self.units}

    @property
    def name_there(self) -> str:
        """Its name, asked on the node itself."""
        if self.name != "fpga":
            return self.name
        if zynq_family() is not None:
            return "pynq"
        if alveo_functions():
            return "xrt"
        raise LutraError("this node has the resource fpga and no board: start it without")


def wanted(text: str | None, has: Mapping[str, float], options: DeviceOptions) -> list[NodeDevice]:
    """Devices of a text such as ``fpga,gpu`` or ``2*cpu:golden``, if there are resources for them.

    Left out, it is one for each ``fpga`` and each GPU, or one ``cpu`` if there is none. ``options``
    are those of boards, and the threads of a ``cpu``, 1 if left out, which takes as many units.
    """
    if text is None:
        counts = {kind: int(has.get(RESOURCES[kind], 0)) for kind in ("fpga", "gpu")}
        parts = [f"{n}*{kind}" for kind, n in counts.items() if n] or [CPU]
    else:
        parts = text.split(",")
    found = [device for part in parts for device in _devices(part.strip(), options)]
    for kind, resource in RESOURCES.items():
        units = sum(each.units for each in found if each.kind == kind)
        if units > has.get(resource, 0):
            raise LutraError(
                f"{units} of the resource {resource} are asked for, the cluster has "
                f"{has.get(resource, 0):g}: ask for fewer devices, or add a node"
            )
    return found


def _devices(part: str, options: DeviceOptions) -> list[NodeDevice]:
    number, star, rest = part.rpartition("*")
    kind, _, name = rest.partition(":")
    if kind not in RESOURCES or (star and not (number.isascii() and number.isdigit())):
        raise LutraError(
            f"a device of a cluster is {either(RESOURCES)}, with a number (2*cpu) and a name "
            f"(fpga:xrt) if need be, not {part!r}"
        )
    name = name or _DEVICES[kind]
    usable = [each for each in DEVICES if each != "auto"]
    if name != "fpga" and name not in usable:
        raise LutraError(f"the device of {kind} must be {either(usable)}, not {name!r}")
    own = DeviceOptions(
        config=options.config if kind == "fpga" else None,
        engine=options.engine if kind == "fpga" else None,
        emulate=options.emulate if kind == "fpga" else None,
        bitstream=options.bitstream if kind == "fpga" else None,
        threads=(options.threads or 1) if name == "cpu" else None,
    )
    if name != "fpga":
        own.check(name)
    units = (own.threads or 1) if kind == CPU else 1
    return [NodeDevice(kind=kind, name=name, options=own, units=units)] * int(number or 1)
