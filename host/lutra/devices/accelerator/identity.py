"""Identity of an accelerator: that it is the one a program was made for."""

import numpy as np

from lutra.devices.accelerator.transport import (
    PAGE,
    DoorbellTransport,
    RegisterTransport,
    Transport,
    read_pair,
)
from lutra.devices.base import DeviceError
from lutra_golden.control.blocks import unpack
from lutra_golden.control.checksum import checksum
from lutra_golden.control.descriptor import (
    DESCRIPTOR_VERSION,
    Descriptor,
    Kind,
    line_bytes,
)
from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import IDENT, STATUS_DONE, STATUS_ERROR, VERSION, ErrorCode
from lutra_golden.control.result import RESULT, RESULT_BYTES
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["IDENTITY_BYTES", "check_identity"]

IDENTITY_BYTES = 2 * PAGE
"""Bytes of memory that are needed for a moment."""
_TIMEOUT_S = 10.0


def check_identity(transport: Transport, config: AcceleratorConfig) -> None:
    """Refuse an accelerator that is not one of ``config``: by its registers, or by a run."""
    if isinstance(transport, RegisterTransport):
        _by_registers(transport, config)
    elif isinstance(transport, DoorbellTransport):
        _by_run(transport, config)


def _by_registers(transport: RegisterTransport, config: AcceleratorConfig) -> None:
    if (ident := transport.read_register("IDENT")) != IDENT:
        raise _no_accelerator(transport, f"answers with {ident:#010x} instead of {IDENT:#010x}")
    if (version := transport.read_register("VERSION")) != VERSION:
        raise DeviceError(
            f"device {transport.name} has version {version} of the register map, this Lutra drives "
            f"{VERSION}: build the accelerator again"
        )
    _check_fingerprint(transport, config, read_pair(transport, "FINGERPRINT"))


def _by_run(transport: DoorbellTransport, config: AcceleratorConfig) -> None:
    """Have the accelerator compute the checksum of the descriptor that asks for it.

    Its result block has the identity, and the checksum shows that both see the same memory.
    """
    line, base = line_bytes(config), transport.allocate(IDENTITY_BYTES)
    try:
        # in pages of their own, so that they are lines of any configuration
        descriptor = Descriptor(
            fingerprint=config.fingerprint,
            result_base=base + PAGE,
            kind=Kind.CHECKSUM,
            program_base=base,
            program_bytes=line,
        )
        data = descriptor.encode(line)
        transport.write(base, data + bytes(IDENTITY_BYTES - len(data)))
        transport.ring(base)
        transport.wait(_TIMEOUT_S)
        result = unpack(RESULT, transport.read(base + PAGE, RESULT_BYTES))
    finally:
        transport.free(base)
    if not result["status"] & STATUS_DONE or result["ident"] != IDENT:
        raise _no_accelerator(
            transport, f"does not carry out descriptors of version {DESCRIPTOR_VERSION}"
        )
    failure = Failure.of(result["error"], result["error_address"])
    if failure.code != ErrorCode.FINGERPRINT and result["status"] & STATUS_ERROR:
        raise DeviceError(f"device {transport.name}: {failure.describe(config)}")
    _check_fingerprint(transport, config, result["fingerprint"])
    if result["checksum"] != checksum(np.frombuffer(data, np.uint8)):
        raise DeviceError(
            f"the accelerator of device {transport.name} reads other bytes than were written: "
            "check the memory of the card"
        )


def _no_accelerator(transport: Transport, why: str) -> DeviceError:
    return DeviceError(
        f"device {transport.name} {why}: it is no Lutra accelerator, load its bitstream again"
    )


def _check_fingerprint(transport: Transport, config: AcceleratorConfig, fingerprint: int) -> None:
    if fingerprint != config.fingerprint:
        raise DeviceError(
            f"device {transport.name} is built from configuration {fingerprint:016x}, the program "
            f"for {config.name} ({config.fingerprint:016x}): build the accelerator again, or "
            "use the configuration that it was built from"
        )
