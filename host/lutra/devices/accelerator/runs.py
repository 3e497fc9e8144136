"""Runs of an accelerator: by a descriptor and one doorbell, or register by register."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lutra.compile.fit import round_up
from lutra.devices.accelerator.programs import Placed
from lutra.devices.accelerator.transport import (
    DoorbellTransport,
    RegisterTransport,
    Transport,
    read_pair,
)
from lutra.devices.base import DeviceError
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import (
    DESCRIPTOR_VERSION,
    ENDS_MAX,
    HEADER_BYTES,
    Descriptor,
    line_bytes,
)
from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import (
    STATUS_DONE,
    STATUS_ERROR,
)
from lutra_golden.control.result import Result, result_bytes
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["DescriptorRuns", "Ended", "RegisterRuns", "Runs", "Tile"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Tokens of a pass: chunk after chunk, with logits from ``logits_from`` on."""

    tokens: Sequence[int]
    chunks: Sequence[ChunkEntry]
    logits_from: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """End of a run: ``argmax`` and packed ``scale`` of the tokens that have logits.

    ``status`` is as the register STATUS, ``cycles`` None where there is no clock.
    """

    status: int
    failure: Failure
    argmax: Sequence[int]
    scale: Sequence[int]
    cycles: int | None


class Runs(Protocol):
    """Way to run tiles on an accelerator."""

    def run(self, program: Placed, tile: Tile, timeout_s: float | None) -> Ended:
        """Run a program on a tile to its end."""
        ...

    def forget(self) -> None:
        """Rely on nothing that was written to registers before."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run; empty where there are none."""
        ...


class RegisterRuns:
    """Writes every register that changed, starts, and reads the results from registers.

    ``context`` are registers of every run.
    """

    def __init__(
        self, transport: RegisterTransport, context: Mapping[str, int], watchdog_cycles: int
    ) -> None:
        self._transport = transport
        self._context = dict(context) | {"WATCHDOG": watchdog_cycles}
        self._placed = False
        self._program: Placed | None = None

    def run(self, program: Placed, tile: Tile, timeout_s: float | None) -> Ended:
        """Run a program on a tile to its end."""
        transport, n = self._transport, len(tile.tokens)
        if not self._placed:
            for name, value in self._context.items():
                self._write(name, value)
            self._placed = True
        if program != self._program:
            # an interrupt may leave a part of it
            self._program = None
            self._write("PROGRAM_BASE", program.address)
            self._write("PROGRAM_BYTES", program.n_bytes)
            self._program = program
        for m, token in enumerate(tile.tokens):
            transport.write_register("TOKEN", token, m)
        for i, entry in enumerate(tile.chunks):
            for name, word in zip(("CHUNK", "CHUNK_KV"), entry.words, strict=True):
                transport.write_register(name, word, i)
        self._write("N_TOKENS", n)
        self._write("LOGITS_FROM", tile.logits_from)
        transport.start()
        cycles, read = transport.wait(timeout_s), transport.read_register
        status, failure = read_failure(transport)
        wanted = range(tile.logits_from, n)
        return Ended(
            status=status,
            failure=failure,
            argmax=[read("ARGMAX", m) for m in wanted],
            scale=[read("SCALE", m) for m in wanted],
            cycles=cycles,
        )

    def forget(self) -> None:
        """Write all registers again."""
        self._placed, self._program = False, None

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        return self._transport.counters()

    def _write(self, name: str, value: int) -> None:
        self._transport.write_register(name, value & 0xFFFFFFFF)
        if name.endswith("_BASE"):
            self._transport.write_register(name, value >> 32, 1)


class DescriptorRuns:
    """Writes a descriptor, rings, and reads the result block, which lies in front of it."""

    def __init__(
        self,
        transport: DoorbellTransport,
        config: AcceleratorConfig,
        context: Mapping[str, int],
        watchdog_cycles: int,
    ) -> None:
        self._transport = transport
        self.watchdog_cycles = watchdog_cycles
        """Cycles without progress that end a run; 0 leaves them as they are."""
        self._line = line_bytes(config)
        self._room = result_bytes(self._line, config.pass_tokens)
        self._base = transport.allocate(self.n_bytes(config))
        self._counters: Mapping[str, int] = {}
        self._last = Descriptor(
            fingerprint=config.fingerprint,
            result_base=self._base,
            weight_base=context["WEIGHT_BASE"],
            logits_base=context["LOGITS_BASE"],
            logits_stride=context["LOGITS_STRIDE"],
        )

    @staticmethod
    def n_bytes(config: AcceleratorConfig) -> int:
        """Bytes of the largest descriptor and result block."""
        line, n = line_bytes(config), config.pass_tokens
        words = 3 * n + ENDS_MAX
        return result_bytes(line, n) + round_up(HEADER_BYTES + 4 * words, line)

    def run(self, program: Placed, tile: Tile, timeout_s: float | None) -> Ended:
        """Run a program on a tile to its end."""
        transport = self._transport
        descriptor = self._last = replace(
            self._last,
            tag=(self._last.tag + 1) & 0xFFFFFFFF,
            program_base=program.address,
            program_bytes=program.n_bytes,
            logits_from=tile.logits_from,
            watchdog=self.watchdog_cycles,
            chunks=tuple(tile.chunks),
            tokens=tuple(tile.tokens),
        )
        # a result block of zeros: that of the run before would say that this one is done
        transport.write(self._base, bytes(self._room) + descriptor.encode(self._line))
        transport.ring(self._base + self._room)
        cycles = transport.wait(timeout_s)
        result = Result.decode(transport.read(self._base, self._room))
        self._counters = result.counters if any(result.counters.values()) else {}
        if not result.status & STATUS_DONE or result.tag != descriptor.tag:
            status, failure = read_failure(transport)
            if failure.code:
                # it could not be read, or its result not be written
                return Ended(status=status, failure=failure, argmax=[], scale=[], cycles=cycles)
            if not status & STATUS_DONE:
                self.forget()
                raise DeviceError(
                    f"device {transport.name} was reset during a run: see that no other program "
                    "uses the board, and run again"
                )
            raise DeviceError(
                f"device {transport.name} wrote no result of its run: it does not take descriptors "
                f"of version {DESCRIPTOR_VERSION}, build the accelerator again"
            )
        return Ended(
            status=result.status,
            failure=result.failure,
            argmax=result.argmax,
            scale=result.scale,
            cycles=cycles or result.counters["cycles"] or None,
        )

    def forget(self) -> None:
        """Nothing is to be written again: a descriptor has it all."""

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        return self._counters


def read_failure(transport: Transport) -> tuple[int, Failure]:
    """STATUS, and the failure of the last run; nothing where registers are out of reach."""
    if not isinstance(transport, RegisterTransport):
        return 0, Failure()
    status = transport.read_register("STATUS")
    if not status & STATUS_ERROR:
        return status, Failure()
    address = read_pair(transport, "ERROR_ADDRESS")
    return status, Failure.of(transport.read_register("ERROR"), address)
