"""A device that is lent within this process, for tests."""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lutra.devices.base import Device
from lutra.devices.remote.device import RemoteDevice
from lutra.devices.remote.lender import LendingServer
from lutra.devices.remote.link import LentAddress
from lutra.devices.remote.shape import LinkShape

__all__ = ["Lent", "lent"]


@dataclass
class Lent:
    """A lender, its address, and the lines that it logs."""

    server: LendingServer
    address: LentAddress
    log: list[str] = field(default_factory=list[str])

    def device(self, key: bytes | None = None, shape: LinkShape | None = None) -> RemoteDevice:
        """The device, as its host has it."""
        return RemoteDevice(self.address, key, shape=shape)


@contextmanager
def lent(device: Device, key: bytes | None = None) -> Generator[Lent]:
    """Lend a device by loopback."""
    log = list[str]()
    listening = socket.create_server(("127.0.0.1", 0))
    with LendingServer(device, listening, key, log.append) as server:
        yield Lent(server, LentAddress("127.0.0.1", server.port), log)
