"""Actors of Ray that lend devices, and the device of them all.

Ray places actors where their resources are, starts them again when they or their nodes end, and
tells of it. All else travels over Lutra's own links: models, tokens, keys and values.
"""

import logging
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from lutra.closing import Closing
from lutra.cluster.kinds import NodeDevice, wanted
from lutra.devices.choose import DeviceOptions, make_device
from lutra.devices.hardware import LENT_SCHEME
from lutra.devices.remote.device import RemoteDevice
from lutra.devices.remote.lender import LendingServer
from lutra.devices.remote.link import LentAddress
from lutra.serving.plans.device import PlannedDevice
from lutra.serving.plans.layout import Plan
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.model.packed import PackedModel

__all__ = ["LOCAL", "Lending", "RayCluster"]

LOCAL = "local"
"""The address of a cluster that is started here, for as long as it is used."""
_LOG = logging.getLogger(__name__)
_START_S = 120.0  # until all actors lend their devices
_ASK_S, _CONNECT_S = 10.0, 5.0
_WATCH_S = 1.0
_KEY_BYTES = 32


class Lending:
    """An actor: lends a device of its node, at an address of that, as long as it lives."""

    def __init__(self, device: NodeDevice, key: bytes) -> None:
        host: str = import_module("ray.util").get_node_ip_address()
        made = make_device(device.name_there, device.options)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, 0), family=family)
        self._server = LendingServer(made, listening, key, _LOG.info)
        place = f"[{host}]" if ":" in host else host
        self._address = f"{LENT_SCHEME}{place}:{self._server.port}"

    def address(self) -> str:
        """The address that the device is lent at."""
        return self._address


class RayCluster(Closing):
    """The devices ``names`` (see :func:`~lutra.cluster.kinds.wanted`) of the Ray cluster at
    ``address``, one actor each, as one :attr:`device`: each request is wholly on one of them.

    A device whose actor or node ends is left out, and its requests go on elsewhere; once Ray has
    started the actor again, it is taken back.
    """

    def __init__(
        self, address: str, names: str | None = None, options: DeviceOptions | None = None
    ) -> None:
        self._ray = _ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            _join(self._ray, address)
        self._key = os.urandom(_KEY_BYTES)
        self._ended = threading.Event()
        self._actors: list[Any] = []
        try:
            has = cast("dict[str, float]", self._ray.cluster_resources())
            self.devices: Sequence[NodeDevice] = wanted(names, has, options or DeviceOptions())
            """The devices, by number."""
            self._actors = [self._started(each) for each in self.devices]
            remotes = [RemoteDevice(each, self._key) for each in self._addresses()]
        except BaseException:
            self.close()
            raise
        labels = [f"{each.kind}#{i + 1}" for i, each in enumerate(self.devices)]
        self.device = PlannedDevice(remotes, _side_by_side, labels=labels)
        """One device of all."""
        self._remotes = remotes
        self._watcher = threading.Thread(target=self._watch, name="lutra ray", daemon=True)
        self._watcher.start()

    @property
    def places(self) -> list[str]:
        """The devices, and where they are."""
        return [
            f"{label} ({each.name}) at {remote.address.host}"
            for label, each, remote in zip(
                self.device.labels, self.devices, self._remotes, strict=True
            )
        ]

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._ended.set()
        if hasattr(self, "_watcher"):
            self._watcher.join()
            self.device.close()
        for each in self._actors:
            with suppress(Exception):  # of Ray: it has gone already
                self._ray.kill(each)
        if self._own:
            self._ray.shutdown()

    def _started(self, device: NodeDevice) -> Any:
        resources = dict(device.resources)
        actor = self._ray.remote(Lending).options(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_restarts=-1,
        )
        return actor.remote(device, self._key)

    def _addresses(self) -> list[LentAddress]:
        """Addresses of all devices, once they are lent."""
        asked = [each.address.remote() for each in self._actors]
        try:
            found = self._ray.get(asked, timeout=_START_S)
        except self._ray.exceptions.GetTimeoutError:
            kinds = ", ".join(each.kind for each in self.devices)
            raise LutraError(
                f"not all of {kinds} were there within {_START_S:g} s: see what else has these "
                "resources (`ray status`)"
            ) from None
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise LutraError(f"a device of the cluster cannot be lent: {_line(cause)}") from None
        return [LentAddress.parse(each) for each in found]

    def _watch(self) -> None:
        """Take devices back whose actors were started again."""
        while not self._ended.wait(_WATCH_S):
            out = [i for i in range(len(self.devices)) if i not in self.device.sites]
            there = [i for i in out if self._found(i)]
            if there:
                try:
                    self.device.take_back()
                except LutraError as error:
                    _LOG.warning("a device was not taken back: %s", error)

    def _found(self, i: int) -> bool:
        """Ask an actor where its device is lent now; False if it is nowhere."""
        try:
            found = self._ray.get(self._actors[i].address.remote(), timeout=_ASK_S)
        except self._ray.exceptions.RayError:
            return False
        self._remotes[i].move(LentAddress.parse(found))
        return True


def _side_by_side(model: PackedModel, sites: Sequence[int]) -> Sequence[Plan]:
    """Whole requests on each device."""
    return [Plan.on(site, len(model.layers)) for site in sites]


def _line(error: object) -> str:
    """The last line of an error that came with a traceback."""
    return str(error).strip().splitlines()[-1]


def _ray() -> Any:
    # nothing is sent to its makers
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if find_spec("ray") is None:
        raise LutraError(f"--ray needs ray, which is missing: run `{install_command('ray')}`")
    return import_module("ray")


def _join(ray: Any, address: str) -> None:
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isascii() and port.isdigit():
            # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise LutraError(
            f"no Ray cluster answers at {address} ({_line(error)}): start one (`ray start --head`)"
            f", or give --ray {LOCAL}"
        ) from None
