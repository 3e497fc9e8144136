"""Runs of an accelerator: by a descriptor and one doorbell, or register by register."""

import struct
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
    ENDS_MAX,
    HEADER,
    HEADER_BYTES,
    Descriptor,
    Kind,
    line_bytes,
)
from lutra_golden.control.failure import Failure
from lutra_golden.control.registers import (
    STATUS_DONE,
    STATUS_ERROR,
)
from lutra_golden.control.result import RESULT, RESULT_BYTES, Result, result_bytes
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["DescriptorRuns", "Ended", "RegisterRuns", "Runs", "Tile"]

_WORD = struct.Struct("<I")
_TAG_AT = 4 * HEADER["tag"].first


def _words_at(*names: str) -> struct.Struct:
    """Format of values of a result block, in the order of their addresses."""
    text, at = "<", 0
    for name in names:
        word = RESULT[name]
        text += f"{4 * (word.first - at)}x" + "IQ"[word.count - 1]
        at = word.first + word.count
    return struct.Struct(text)


_RESULT = _words_at("status", "tag", "n_results", "cycles")
_CHECKSUM = _words_at("checksum")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Tokens of a pass: chunk after chunk, with logits from ``logits_from`` on."""

    tokens: Sequence[int]
    chunks: Sequence[ChunkEntry]
    logits_from: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """End of a run: ``argmax`` and packed ``scale`` of the tokens that have logits.

    ``status`` is as the register STATUS, ``cycles`` None where there is no clock. Of a run that
    failed, there are results of the passes before that, all of which can be relied on.
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


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Bytes of a result block and of a descriptor of one shape, in which tag, chunks and tokens
    change: ``body`` packs the latter two."""

    shape: tuple[object, ...]
    block: bytearray
    body: struct.Struct


class DescriptorRuns:
    """Writes a descriptor, rings, and reads the result block, which lies in front of it.

    Of a descriptor like the one before only what changed is packed again.
    """

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
        self.greedy_tokens = (self._room - RESULT_BYTES) // 8
        """Most greedy tokens of a run: those whose results fit the block, 32 or more."""
        self._base = transport.allocate(self.n_bytes(config))
        self._sound = Descriptor(
            fingerprint=config.fingerprint,
            result_base=self._base,
            weight_base=context["WEIGHT_BASE"],
            logits_base=context["LOGITS_BASE"],
            logits_stride=context["LOGITS_STRIDE"],
        )
        self._tag = 0
        self._prepared: _Prepared | None = None
        self._result = b""

    @staticmethod
    def n_bytes(config: AcceleratorConfig) -> int:
        """Bytes of the largest descriptor and result block."""
        line, n = line_bytes(config), config.pass_tokens
        words = 3 * n + ENDS_MAX
        return result_bytes(line, n) + round_up(HEADER_BYTES + 4 * words, line)

    def run(
        self,
        program: Placed,
        tile: Tile,
        timeout_s: float | None,
        n_greedy: int = 0,
        ends: Sequence[int] = (),
    ) -> Ended:
        """Run a program on a tile to its end; make ``n_greedy`` tokens, or up to one of ``ends``.

        There is room for the results of :attr:`greedy_tokens`.
        """
        self._tag = (self._tag + 1) & 0xFFFFFFFF
        return self._carry_out(self._encode(program, tile, n_greedy, tuple(ends)), timeout_s)

    def checksum(self, address: int, n_bytes: int, timeout_s: float | None) -> tuple[Ended, int]:
        """Checksum of a range of memory, as the accelerator reads it, and the end of its run."""
        self._tag = (self._tag + 1) & 0xFFFFFFFF
        sums = replace(
            self._sound,
            kind=Kind.CHECKSUM,
            tag=self._tag,
            program_base=address,
            program_bytes=n_bytes,
            watchdog=self.watchdog_cycles,
        )
        ended = self._carry_out(bytes(self._room) + sums.encode(self._line), timeout_s)
        (found,) = _CHECKSUM.unpack_from(self._result)
        return ended, found

    def _carry_out(self, block: bytes, timeout_s: float | None) -> Ended:
        """Write a result block of zeros with a descriptor behind it, ring, and wait."""
        transport = self._transport
        # the result block of the run before would say that this one is done
        transport.write(self._base, block)
        transport.ring(self._base + self._room)
        cycles = transport.wait(timeout_s)
        self._result = transport.read(self._base, self._room)
        return self._decode(self._result, cycles)

    def _encode(self, program: Placed, tile: Tile, n_greedy: int, ends: tuple[int, ...]) -> bytes:
        """Result block of zeros, and the descriptor."""
        chunks, tokens = tile.chunks, tile.tokens
        of_tile = tile.logits_from, len(chunks), len(tokens)
        shape = program, self.watchdog_cycles, *of_tile, n_greedy, ends
        prepared = self._prepared
        if prepared is None or shape != prepared.shape:
            descriptor = replace(
                self._sound,
                program_base=program.address,
                program_bytes=program.n_bytes,
                logits_from=tile.logits_from,
                n_greedy=n_greedy,
                watchdog=self.watchdog_cycles,
                chunks=tuple(chunks),
                tokens=tuple(tokens),
                ends=ends,
            )
            # in one step: an interrupt leaves the one before, or none of it
            prepared = self._prepared = _Prepared(
                shape=shape,
                block=bytearray(bytes(self._room) + descriptor.encode(self._line)),
                body=struct.Struct(f"<{2 * len(chunks) + len(tokens)}I"),
            )
        words = [word for entry in chunks for word in entry.words]
        _WORD.pack_into(prepared.block, self._room + _TAG_AT, self._tag)
        prepared.body.pack_into(prepared.block, self._room + HEADER_BYTES, *words, *tokens)
        return bytes(prepared.block)

    def _decode(self, data: bytes, cycles: int | None) -> Ended:
        """End of the run that this result block is of."""
        status, tag, n_results, counted = _RESULT.unpack_from(data)
        if not status & STATUS_DONE or tag != self._tag:
            return self._without_result(cycles)
        failure = Result.decode(data).failure if status & STATUS_ERROR else Failure()
        words = struct.unpack_from(f"<{2 * n_results}I", data, RESULT_BYTES)
        return Ended(
            status=status,
            failure=failure,
            argmax=words[::2],
            scale=words[1::2],
            cycles=cycles or counted or None,
        )

    def _without_result(self, cycles: int | None) -> Ended:
        """End of a run of which no result was written."""
        transport = self._transport
        status, failure = read_failure(transport)
        if failure.code:
            # it could not be read, or its result not be written
            return Ended(status=status, failure=failure, argmax=[], scale=[], cycles=cycles)
        if isinstance(transport, RegisterTransport) and not status & STATUS_DONE:
            raise DeviceError(
                f"device {transport.name} was reset during a run: see that no other program uses "
                "the board, and run again"
            )
        raise DeviceError(
            f"device {transport.name} wrote no result of its run: its memory does not answer, or "
            "gives another descriptor than was written; load the model again"
        )

    def forget(self) -> None:
        """Nothing is to be written again: a descriptor has it all."""

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run."""
        if not any(self._result):
            return {}
        counters = Result.decode(self._result).counters
        return counters if any(counters.values()) else {}


def read_failure(transport: Transport) -> tuple[int, Failure]:
    """STATUS, and the failure of the last run; nothing where registers are out of reach."""
    if not isinstance(transport, RegisterTransport):
        return 0, Failure()
    status = transport.read_register("STATUS")
    if not status & STATUS_ERROR:
        return status, Failure()
    address = read_pair(transport, "ERROR_ADDRESS")
    return status, Failure.of(transport.read_register("ERROR"), address)
