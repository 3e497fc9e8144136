"""The driver of an accelerator, simulated or real: one, over any transport."""

import weakref
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.compile.fit import round_up
from lutra.compile.program import Program, SegmentKind
from lutra.compile.ranges import stream_halves
from lutra.devices.accelerator.identity import IDENTITY_BYTES, check_identity
from lutra.devices.accelerator.image import check_image
from lutra.devices.accelerator.kv import read_layer, write_layer
from lutra.devices.accelerator.programs import Placed, Programs
from lutra.devices.accelerator.runs import (
    DescriptorRuns,
    Ended,
    RegisterRuns,
    Runs,
    Tile,
)
from lutra.devices.accelerator.transport import (
    PAGE,
    DoorbellTransport,
    FindableTransport,
    Heap,
    RegisterTransport,
    Transport,
    abort,
)
from lutra.devices.base import BaseDevice, Chunk, DeviceError, GreedyResult, PassResult
from lutra.devices.power import Sensed
from lutra.devices.sessions import BaseSession
from lutra_golden.arith.scale import packed_scale_to_float
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import ENDS_MAX
from lutra_golden.control.registers import (
    STATUS_ERROR,
    STATUS_REFUSED,
    STATUS_SATURATED,
)
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.capabilities import COMMON_PARTS, Capabilities
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import find_profile

__all__ = ["TIMEOUT_S", "AcceleratorDevice", "AcceleratorSession"]

Progress = Callable[[str, float], None]
TIMEOUT_S = 600.0
"""Seconds in which a run must end, if nothing else is said."""
_SESSIONS_BYTES = 1 << 30  # of memory for sessions, beside the model
_LOGIT = np.dtype("<i4")
_WATCHDOG_CYCLES = 1 << 20  # far beyond what the memory may take to answer


class AcceleratorSession(BaseSession):
    """A range of the accelerator's memory."""

    def __init__(self, device: "AcceleratorDevice", n_layers: int, address: int) -> None:
        super().__init__(device, n_layers)
        self._accelerator, self.address = device, address
        # a session that is dropped gives its memory back, too
        ticket = device.memory.ticket(address)
        self._memory = weakref.finalize(self, device.free, device.epoch, address, ticket)

    def _read(self, layer: int, n: int) -> LayerKv:
        device, model = self._accelerator, self._accelerator.model
        return read_layer(
            device.config, device.transport.read, self._layer(layer), n, model.n_kv_heads,
            model.head_dim,
        )  # fmt: skip

    def _write(self, layer: int, kv: LayerKv) -> None:
        device = self._accelerator
        write_layer(device.config, device.transport.write, self._layer(layer), kv)

    def _layer(self, layer: int) -> int:
        return self.address + layer * self._accelerator.config.kv_layer_bytes

    def _release(self) -> None:
        self._memory()


def _tile(chunks: Sequence[Chunk]) -> tuple[Tile, list[int], list[int]]:
    """The tile of a pass, and in it the tokens of the chunks, and those whose logits are asked for.

    Logits are computed from ``logits_from`` to the end: chunks without any come first, and then
    the one with most tokens before its first. Behind the first layer tokens only count.
    """

    def rank(i: int) -> tuple[bool, int]:
        return chunks[i].logits_from < len(chunks[i].tokens), -chunks[i].logits_from

    at: dict[int, int] = {}
    tokens: list[int] = []
    entries: list[ChunkEntry] = []
    for i in sorted(range(len(chunks)), key=rank) if len(chunks) > 1 else (0,):
        session, own = chunks[i].session, chunks[i].tokens
        assert isinstance(session, AcceleratorSession)
        at[i] = len(tokens)
        tokens += own
        entries.append(ChunkEntry(chunks[i].position, len(own), session.address))
    places, wanted = list[int](), list[int]()
    for i, chunk in enumerate(chunks):
        own = range(at[i], at[i] + len(chunk.tokens))
        places += own
        wanted += own[chunk.logits_from :]
    if chunks[0].layers.start:
        tokens = list(range(len(tokens)))
    first = min(wanted, default=len(tokens))
    return Tile(tokens=tokens, chunks=entries, logits_from=first), places, wanted


class AcceleratorDevice(BaseDevice[AcceleratorSession]):
    """Compiles a model, places the program in memory, and runs it pass by pass.

    ``config`` is a configuration or the name of one, ``engine`` the matmul engine of a named one.
    ``capabilities`` are parts of packed models that its hardware has or is built with.
    A run that does not end within ``timeout_s``, or in which nothing moves for ``watchdog_cycles``
    of its clock (0 is never), is an error, as is an accelerator of another configuration. Whatever
    goes wrong in a run, it is aborted, and the next one is right.
    """

    def __init__(
        self,
        transport: Transport,
        config: str | AcceleratorConfig = "nano",
        engine: str | None = None,
        *,
        timeout_s: float | None = TIMEOUT_S,
        watchdog_cycles: int = _WATCHDOG_CYCLES,
        capabilities: Capabilities = COMMON_PARTS,
        memory_limit: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(memory_limit=memory_limit)
        self.name, self.transport = transport.name, transport
        self._choice, self._timeout_s, self._progress = (config, engine), timeout_s, progress
        self.watchdog_cycles, self.capabilities = watchdog_cycles, capabilities
        self._program: Program | None = None
        self._given: Program | None = None
        self.addresses: dict[str, int] = {}
        """Addresses of the program, its weights and the logits, by the register that holds each."""
        self._programs: Programs | None = None
        self._runs: Runs | None = None
        self.memory = Heap(0)
        """Memory of sessions, allocated with the model."""
        self._busy = False

    @property
    def pass_tokens(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Most tokens of a pass."""
        return (self._program.config if self._program else NANO).pass_tokens

    @property
    def program(self) -> Program:
        """The program of the model that is loaded."""
        if self._program is None:
            raise LutraError("no model is loaded: call load(model) first")
        return self._program

    @property
    def runs(self) -> Runs:
        """How runs are started: by descriptors if the transport has a doorbell."""
        if self._runs is None:
            raise LutraError("no model is loaded: call load(model) first")
        return self._runs

    @property
    def config(self) -> AcceleratorConfig:
        """The configuration that runs the model."""
        return self.program.config

    # -- loading

    def find(self) -> None:
        """See that what the transport leads to is here, before a model is made ready for it.

        LutraError says what is missing.
        """
        if isinstance(self.transport, FindableTransport):
            self.transport.find()

    def configuration_for(self, model: PackedModel) -> AcceleratorConfig:
        """The configuration that the device is to have for ``model``."""
        return configure(model, *self._choice)

    def load_program(self, model: PackedModel, program: Program) -> None:
        """Take ``model`` with a program that it was compiled to before."""
        with self.process.adopt():
            self._given = program
            try:
                self.load(model)
            finally:
                self._given = None

    def _load(self, model: PackedModel) -> None:
        program = self._given
        if program is None:
            program = compile_model(model, self.configuration_for(model), self._progress)
        self._place(program)

    def _place(self, program: Program) -> None:
        """Open the transport and put the program into its memory."""
        sizes = {
            "WEIGHT_BASE": program.weight_bytes,
            "LOGITS_BASE": program.logits_bytes,
        }
        needed = sum(round_up(size, PAGE) for size in sizes.values())
        needed += max(round_up(program.kv_bytes, PAGE), _SESSIONS_BYTES)
        needed += Programs.n_bytes(program)
        needed += round_up(DescriptorRuns.n_bytes(program.config), PAGE) + IDENTITY_BYTES
        self._program = program
        transport = self.transport
        transport.open(program.config, needed)
        check_identity(transport, program.config)
        self._programs = Programs(program, transport)
        context = {name: transport.allocate(size) for name, size in sizes.items()}
        self.addresses = {"PROGRAM_BASE": self._programs.whole.address} | context
        for segment in program.of(SegmentKind.WEIGHTS):
            transport.write(context["WEIGHT_BASE"] + segment.offset, segment.data)
        context["LOGITS_STRIDE"] = program.logits_stride
        watchdog = self.watchdog_cycles
        if isinstance(transport, DoorbellTransport):
            self._runs = DescriptorRuns(transport, program.config, context, watchdog)
        else:
            assert isinstance(transport, RegisterTransport)
            self._runs = RegisterRuns(transport, context, watchdog)
        self.memory = self._session_memory(program)
        self._busy = False
        if transport.verify_load:
            check_image(program, self.addresses, self._checksum, self.name, self._progress)

    def _session_memory(self, program: Program) -> Heap:
        """Memory of all sessions: as much as is wanted, or else as there is in a row."""
        least = round_up(program.kv_bytes, PAGE)
        size = max(least, _SESSIONS_BYTES)
        while True:
            try:
                return Heap(size, self.transport.allocate(size))
            except DeviceError:
                if size == least:
                    raise
                size = max(least, round_up(size // 2, PAGE))

    def _unload(self) -> None:
        self._program, self._programs, self._runs, self.addresses = None, None, None, {}
        self.transport.close()

    # -- sessions

    def _session_bytes(self, model: PackedModel) -> int:
        return round_up(self.program.kv_bytes, PAGE)

    def _memory(self) -> int:
        return self.memory.free_bytes

    def _session(self, model: PackedModel) -> AcceleratorSession:
        program, transport = self.program, self.transport
        try:
            address = self.memory.allocate(program.kv_bytes)
        except DeviceError:
            # by their number there is room: interrupts left memory that is nobody's
            sessions = [each for each in self._sessions if isinstance(each, AcceleratorSession)]
            self.memory.keep({each.address for each in sessions})
            address = self.memory.allocate(program.kv_bytes)
        session = AcceleratorSession(self, program.n_layers, address)
        for offset, n_bytes in program.zeros:
            transport.zero(session.address + offset, n_bytes)
        return session

    def free(self, epoch: int, address: int, ticket: int) -> None:
        """Give back the memory of a session, unless its model is gone already."""
        if epoch == self.epoch:
            self.memory.free(address, ticket)

    # -- running

    @property
    def greedy_tokens(self) -> int:
        """Most tokens of a descriptor; 1 where runs are started by registers."""
        runs = self._runs
        return runs.greedy_tokens if isinstance(runs, DescriptorRuns) else 1

    @contextmanager
    def _running(self) -> Generator[None]:
        """Mark a run; whatever is raised in it, it is aborted, as is one that was given up."""
        if self._busy:
            self._abort()
        self._busy = True
        try:
            yield
        except BaseException:
            # should this be interrupted too, the next run does it
            self._abort()
            raise
        self._busy = False

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        with self._running():
            layers = chunks[0].layers
            tile, places, wanted = _tile(chunks)
            if layers.start:
                self._put_stream(chunks, places)
            assert self._programs is not None
            ended = self.runs.run(self._programs.of(layers), tile, self._timeout_s)
            self._check_end(ended)
            if layers.stop < self.program.n_layers:
                return self._collect_stream(places, ended)
            return self._collect_logits(tile.logits_from, wanted, ended)

    def _greedy(
        self, session: BaseSession, token: int, n: int, ends: Collection[int]
    ) -> GreedyResult:
        program, runs = self.program, self.runs
        own = sorted(int(end) for end in ends if 0 <= end < program.vocab_size)
        if not isinstance(runs, DescriptorRuns) or len(own) > ENDS_MAX:
            return super()._greedy(session, token, n, ends)
        assert isinstance(session, AcceleratorSession) and self._programs is not None
        layers, n = range(program.n_layers), min(n, runs.greedy_tokens)
        entry = ChunkEntry(session.position(layers), 1, session.address)
        tile = Tile(tokens=[token], chunks=[entry], logits_from=0)
        ended: Ended | None = None
        error: DeviceError | None = None
        try:
            with self._running():
                ended = runs.run(self._programs.whole, tile, self._timeout_s, n, own)
                self._check_end(ended)
                made = ended.argmax
                if not 1 <= len(made) <= n:
                    raise DeviceError(
                        f"device {self.name} has results of {len(made)} tokens, but 1 to {n} were "
                        "to be made: load the model again"
                    )
        except DeviceError as failed:
            if ended is None or not ended.status & STATUS_ERROR:
                raise
            # what counts is in memory, and so are its keys and values
            made, error = ended.argmax, failed
            if not 1 <= len(made) <= n:
                raise
        session.advance(layers, len(made))
        return GreedyResult(
            tokens=made,
            saturated=bool(ended.status & STATUS_SATURATED),
            cycles=ended.cycles,
            error=error,
        )

    def run_code(self, code: bytes, tile: Tile) -> Ended:
        """Run other code than the program's on a tile, for tests of the accelerator.

        DeviceError as of a pass; then the next run is right.
        """
        with self.held():
            address = self.transport.allocate(len(code))
            try:
                with self._running():
                    self.transport.write(address, code)
                    ended = self.runs.run(Placed(address, len(code)), tile, self._timeout_s)
                    self._check_end(ended)
                    return ended
            finally:
                self.transport.free(address)

    def checksum(self, address: int, n_bytes: int) -> int:
        """Checksum of a range of memory, as the accelerator reads it; it takes descriptors."""
        with self.held():
            return self._checksum(address, n_bytes)

    def _checksum(self, address: int, n_bytes: int) -> int:
        assert isinstance(self.runs, DescriptorRuns)
        with self._running():
            ended, found = self.runs.checksum(address, n_bytes, self._timeout_s)
            self._check_end(ended)
            return found

    def stored(self, tokens: Sequence[int], n: int) -> NDArray[np.int32]:
        """The first ``n`` words that the last run stored for each of ``tokens``: see LOGITS."""
        with self.held():
            return self._rows(tokens, n)

    def _abort(self) -> None:
        """End the run that is under way; reset an accelerator that does not do so."""
        if not abort(self.transport):
            self.runs.forget()
            self.transport.reset()
        self._busy = False

    def _put_stream(self, chunks: Sequence[Chunk], places: Sequence[int]) -> None:
        """Write the residual streams of the chunks, whose tokens are at ``places`` of the tile."""
        program, base = self.program, self.addresses["WEIGHT_BASE"]
        stream = np.empty((len(places), program.hidden_size), np.int32)
        stream[places] = np.concatenate(
            [chunk.residual for chunk in chunks if chunk.residual is not None]
        )
        for offset, half in zip(program.halves, stream_halves(program, stream), strict=True):
            self.transport.write(base + offset, half)

    def _check_end(self, ended: Ended) -> None:
        """Raise DeviceError unless the run ended well."""
        if ended.status & STATUS_ERROR:
            after = "" if ended.cycles is None else f", after {ended.cycles} cycles"
            failure = ended.failure.describe(self.config)
            raise DeviceError(f"device {self.name}{after}: {failure}")
        if ended.status & STATUS_REFUSED:
            raise DeviceError(
                f"device {self.name} was written to during a run: close the other program that "
                "uses it"
            )

    def _rows(self, tokens: Sequence[int], n: int) -> NDArray[np.int32]:
        """The first ``n`` words that the run stored for each of ``tokens``."""
        base, stride = self.addresses["LOGITS_BASE"], self.program.logits_stride
        read = self.transport.read
        data = b"".join([read(base + m * stride, 4 * n) for m in tokens])
        return np.frombuffer(data, _LOGIT).reshape(-1, n)

    def _collect_stream(self, places: Sequence[int], ended: Ended) -> PassResult:
        """Residual stream of the pass that has ended."""
        return PassResult(
            residual=self._rows(places, self.program.hidden_size),
            saturated=bool(ended.status & STATUS_SATURATED),
            cycles=ended.cycles,
        )

    def _collect_logits(self, first: int, wanted: Sequence[int], ended: Ended) -> PassResult:
        """Logits of the pass that has ended, which begin with token ``first``."""
        program = self.program
        scale = [packed_scale_to_float(ended.scale[m - first]) for m in wanted]
        return PassResult(
            logits=self._rows(wanted, program.vocab_size),
            scale=np.array(scale, np.float64) * program.head_scale,
            argmax=np.array([ended.argmax[m - first] for m in wanted], np.int64),
            saturated=bool(ended.status & STATUS_SATURATED),
            cycles=ended.cycles,
        )

    def facts(self) -> Mapping[str, str | int]:
        """Configuration, engine, clock and fingerprints of what runs the model, and on what."""
        program = self._program
        if program is None:
            return {}
        config = program.config
        emulated = self.transport.emulated
        # a board's clock generator does not give every rate
        clock_hz = config.clock_hz if emulated is None else find_profile(emulated).clock_hz
        return ({} if emulated is None else {"emulated": emulated}) | {
            "config": config.name,
            "engine": config.engine,
            "target_clock_hz": clock_hz,
            "fingerprint": f"{config.fingerprint:016x}",
            "program_fingerprint": program.fingerprint,
        }

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run; empty where there are none."""
        with self.held():
            return self.runs.counters()

    def power(self) -> Mapping[str, float]:
        """Watts by sensor of the board, now; empty where the transport reads none."""
        return self.transport.power() if isinstance(self.transport, Sensed) else {}
