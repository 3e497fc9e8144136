"""Devices hold a packed model and run steps of sessions: the protocol and its common part.

A session is one sequence on a device: its keys and values. A step is some tokens of it. Tokens of
several sessions share passes over the weights, and any device's keys and values can go on on any
other, since all of them compute the same bits.
"""

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lutra.arguments import check_whole
from lutra.closing import Closing
from lutra.devices.pages import NoRoom
from lutra.devices.sessions import BaseSession, check_layers
from lutra.process_lock import ProcessLock
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.capabilities import COMMON_PARTS
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.two_stage import TwoStageHead

__all__ = [
    "BaseDevice",
    "Chunk",
    "Device",
    "DeviceError",
    "Findable",
    "GreedyResult",
    "HeadWork",
    "PassResult",
    "Session",
    "Step",
    "StepResult",
    "available_memory",
    "check_tokens",
]


class DeviceError(LutraError):
    """A fault of the device itself: a hang, a bus error."""


class Session(Protocol):
    """One sequence on a device."""

    @property
    def length(self) -> int:
        """Positions that are filled, of the layer that has most."""
        ...

    def export(self, layers: range | None = None) -> SequenceKv:
        """Copy of the keys and values of ``layers``, of all if left out."""
        ...

    def restore(self, kv: SequenceKv) -> None:
        """Replace keys and values of the layers that ``kv`` has; the next step continues there."""
        ...

    def reserve(self, n: int, spare: int = 0) -> None:
        """Have memory for ``n`` positions in all.

        NoRoom, a LutraError, and nothing has changed, unless there is memory for them and for
        ``spare`` steps of other sessions. What is not reserved is taken as steps need it.
        """
        ...

    def truncate(self, n: int) -> None:
        """Forget what lies behind the first ``n`` positions."""
        ...

    def fork(self, n: int | None = None) -> "Session":
        """New session with the first ``n`` positions of this one, with all if left out."""
        ...

    def close(self) -> None:
        """Release the memory; a session that is dropped does it by itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """The next tokens of a session.

    Logits are wanted of ``tokens[logits_from:]``, of the whole vocabulary unless the ``best`` so
    many are enough, which a device may find sooner. ``layers`` limits the step to a range of
    layers, which all have to be filled equally far: unless it begins with the first one,
    ``residual`` ``[n, hidden_size]`` int32 is the residual stream to go on with (``tokens`` then
    only counts), and unless it ends with the last one, the result has the residual stream instead
    of logits.
    """

    session: Session
    tokens: Sequence[int]
    logits_from: int = 0
    layers: range | None = None
    residual: NDArray[np.int32] | None = None
    best: int = 0


@dataclass(frozen=True, kw_only=True)
class HeadWork:
    """Work of finding the best tokens in two stages, for so many ``tokens``
    (:mod:`lutra_golden.model.two_stage`): of the ``rows`` of their heads ``rescored`` were read
    whole; for ``fallbacks`` of them all rows were, as too many could still win."""

    tokens: int = 0
    rows: int = 0
    rescored: int = 0
    fallbacks: int = 0

    def __add__(self, other: "HeadWork") -> "HeadWork":
        return HeadWork(
            tokens=self.tokens + other.tokens,
            rows=self.rows + other.rows,
            rescored=self.rescored + other.rescored,
            fallbacks=self.fallbacks + other.fallbacks,
        )


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Logits of the tokens that asked for them.

    ``logits`` ``[n, vocab_size]`` are int64, each worth ``scale`` ``[n]``; ``argmax`` is ``[n]``,
    the first of equals. Of a step that asked for the best alone they may be ``[n, best]``, those of
    the tokens ``best``, from the largest on, of equals the first token first; ``head`` is then what
    that took. ``saturated``: a value left its range somewhere in a pass of the step.
    ``cycles`` is None where the device has no clock. ``residual`` ``[tokens, hidden_size]`` int32
    is there if the step ended before the last layer. ``predicted_s`` are the seconds that whoever
    planned the pass expected of it, None if nobody did.
    """

    logits: NDArray[np.int64]
    scale: NDArray[np.float64]
    argmax: NDArray[np.int64]
    saturated: bool = False
    cycles: int | None = None
    residual: NDArray[np.int32] | None = None
    predicted_s: float | None = None
    best: NDArray[np.int64] | None = None
    head: HeadWork = HeadWork()


@dataclass(frozen=True, kw_only=True)
class GreedyResult:
    """Greedy tokens of a session, one or more, in their order.

    All but the last were processed, too: the next step, or :meth:`Device.greedy`, begins with that
    one. ``saturated``, ``cycles``, ``predicted_s`` and ``head`` (see :class:`StepResult`) are of
    all their passes together. ``error`` is the fault that the token behind them ended in: keys and
    values are right up to here.
    """

    tokens: Sequence[int]
    saturated: bool = False
    cycles: int | None = None
    predicted_s: float | None = None
    error: DeviceError | None = None
    head: HeadWork = HeadWork()


class Device(Protocol):
    """Something that holds a model and runs steps of sessions."""

    name: str

    @property
    def pass_tokens(self) -> int:
        """Most tokens that share one pass over the weights."""
        ...

    @property
    def greedy_tokens(self) -> int:
        """Most tokens that :meth:`greedy` makes without the host; 1 if the host takes each."""
        ...

    @property
    def model(self) -> PackedModel:
        """The model that is loaded; LutraError if none is."""
        ...

    def load(self, model: PackedModel) -> None:
        """Take a model, building what it needs; sessions of another one are gone."""
        ...

    def session(self) -> Session:
        """New, empty session; NoRoom, a LutraError, with the bytes needed and free if there is no
        room."""
        ...

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run steps of different sessions, as many tokens in a pass as there is room for.

        Safe to call from several threads. After an exception every session is as it was; NoRoom,
        a LutraError, says that there is no memory for what the steps add.
        """
        ...

    def greedy(
        self, session: Session, token: int, n: int, ends: Collection[int] = ()
    ) -> GreedyResult:
        """Make ``n`` greedy tokens that follow ``token``, the next one of ``session``.

        Fewer come where one of ``ends`` was made, which is the last then, where the context is
        full, or where a pass failed behind the first: see :class:`GreedyResult`. They, keys and
        values are those of single steps. Safe to call from several threads. After an exception
        the session is as it was.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run; empty where there are none."""
        ...

    def facts(self) -> Mapping[str, str | int]:
        """Facts about the hardware that runs the model, for reports; empty if nothing was built.

        Of an accelerator: ``config``, ``engine``, ``target_clock_hz``, and the ``fingerprint`` and
        ``program_fingerprint`` of what was built and compiled.
        """
        ...

    def close(self) -> None:
        """Release what the device holds."""
        ...


@runtime_checkable
class Findable(Protocol):
    """A device of something that may not be here, such as a board."""

    def find(self) -> None:
        """See that it is here, before a model is made ready for it; LutraError says what is
        missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens of one session in a pass, at ``position`` of it; otherwise like :class:`Step`."""

    session: BaseSession
    tokens: Sequence[int]
    position: int
    logits_from: int
    layers: range
    residual: NDArray[np.int32] | None
    best: int


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """Results of the chunks of a pass, in their order.

    ``logits``, ``scale`` and ``argmax`` have a row for every token that asked for logits, chunk
    after chunk, ``residual`` one for every token; what the layers do not give is left out. Where
    all chunks want the best alone, logits are ``[n, k]``, those of the tokens ``best`` ``[n, k]``
    with ``k`` the most of any chunk, and ``rescored`` ``[n]`` rows of the head were read whole.
    """

    logits: NDArray[np.integer] | None = None
    scale: NDArray[np.float64] | None = None
    argmax: NDArray[np.integer] | None = None
    residual: NDArray[np.integer] | None = None
    saturated: bool = False
    cycles: int | None = None
    best: NDArray[np.integer] | None = None
    rescored: NDArray[np.integer] | None = None


S_co = TypeVar("S_co", bound=BaseSession, covariant=True)


@dataclass
class _Gathered:
    """Results of one step, collected over its passes."""

    logits: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    scale: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])
    argmax: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    residual: list[NDArray[np.int32]] = field(default_factory=list[NDArray[np.int32]])
    best: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    saturated: bool = False
    cycles: int | None = None
    head: HeadWork = HeadWork()

    def result(self, vocab_size: int) -> StepResult:
        if not self.logits:
            self.logits.append(np.empty((0, vocab_size), np.int64))
            self.scale.append(np.empty(0))
            self.argmax.append(np.empty(0, np.int64))
        return StepResult(
            logits=_joined(self.logits),
            scale=_joined(self.scale),
            argmax=_joined(self.argmax),
            saturated=self.saturated,
            cycles=self.cycles,
            residual=_joined(self.residual) if self.residual else None,
            best=_joined(self.best) if self.best else None,
            head=self.head,
        )


T = TypeVar("T", bound=np.generic)


def _joined(parts: Sequence[NDArray[T]]) -> NDArray[T]:
    """Rows of all passes; most steps are one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class BaseDevice(Closing, ABC, Generic[S_co]):
    """Common part of all devices: checks, passes, sessions and their memory, locking.

    A device says how it loads a model (``_load``, ``_unload``), makes a session (``_session``,
    ``_session_bytes``) and runs one pass (``_pass``); one that makes several greedy tokens by
    itself says how (``_greedy``, :attr:`greedy_tokens`). ``memory_limit`` are the bytes that
    sessions may take together; left out, what this machine has free when the model is loaded.
    """

    name = "device"
    capabilities = COMMON_PARTS
    """Parts of packed models that it runs, of those that not every device does."""
    page = 1
    """Positions that a session has memory for at a time."""
    pass_tokens = 512
    """Most tokens that share one pass over the weights."""
    most_best = 0
    """Most best tokens that it finds without all logits; see :meth:`_finds_best`."""

    def __init__(self, *, memory_limit: int | None = None) -> None:
        self.process = ProcessLock()
        self.epoch = 0
        """Number of models loaded so far; sessions of another epoch are gone."""
        self.memory_limit = memory_limit
        self._model: PackedModel | None = None
        self._free = 0
        self._sessions: weakref.WeakSet[BaseSession] = weakref.WeakSet()

    # -- of the device

    @abstractmethod
    def _load(self, model: PackedModel) -> None:
        """Take a model; nothing is loaded when this is called."""

    @abstractmethod
    def _unload(self) -> None:
        """Release the model; called once after every :meth:`_load`, even one that failed."""

    @abstractmethod
    def _session(self, model: PackedModel) -> S_co:
        """New, empty session."""

    @abstractmethod
    def _session_bytes(self, model: PackedModel) -> int:
        """Bytes that a session takes when it is full."""

    def _set_memory(self, n_bytes: int) -> None:
        """Let sessions have so many bytes together."""
        self._free = n_bytes

    def _room(self, model: PackedModel) -> tuple[int, int]:
        """Bytes that another session needs, and that are free for it."""
        needed = self._session_bytes(model)
        return needed, self._free - needed * len(self._sessions)

    def _make_room(self, chunks: Sequence[Chunk]) -> None:
        """Have memory for the positions that chunks of a run add; NoRoom if there is none."""

    def _memory(self) -> int:
        """Bytes that are free for sessions, once the model is loaded."""
        return available_memory()

    @abstractmethod
    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        """Run the chunks, all of the same layers, in one pass."""

    def _greedy(
        self, session: BaseSession, token: int, n: int, ends: Collection[int]
    ) -> GreedyResult:
        """Make 1 to ``n`` greedy tokens that follow ``token``, and count them as processed.

        An end token is the last of them. The session has room for all ``n``.
        """
        [result] = self.run([Step(session=session, tokens=[token], best=1)])
        tokens = result.argmax.tolist()
        return GreedyResult(
            tokens=tokens, saturated=result.saturated, cycles=result.cycles, head=result.head
        )

    def _finds_best(self, model: PackedModel) -> bool:
        """True if it finds the best tokens of this model without all logits: :meth:`_pass` gives
        them to chunks that want no others."""
        return self.most_best > 0 and TwoStageHead.divides(model)

    # -- the protocol

    @contextmanager
    def held(self) -> Generator[None]:
        """Take turns with other threads; LutraError in a forked process."""
        if self._model is not None and self.process.is_foreign():
            raise LutraError(
                f"device {self.name} was loaded before this process was forked: load the model "
                "again here"
            )
        with self.process.adopt():
            yield

    @property
    def model(self) -> PackedModel:
        """The model that is loaded; LutraError if none is."""
        if self._model is None:
            raise LutraError("no model is loaded: call load(model) first")
        return self._model

    def load(self, model: PackedModel) -> None:
        """Take a model; sessions of the one before are gone."""
        with self.process.adopt():
            self.close()
            try:
                self._load(model)
                limit = self.memory_limit
                self._set_memory(self._memory() if limit is None else limit)
            except BaseException:
                self._unload()
                raise
            self._model = model

    def session(self) -> S_co:
        """New, empty session; NoRoom with the bytes needed and free if there is no room."""
        with self.held():
            model = self.model
            needed, free = self._room(model)
            if needed > free:
                raise NoRoom(
                    f"no memory for another session on device {self.name}: {needed:,} bytes "
                    f"needed, {max(free, 0):,} free: close one of {len(self._sessions)}, or load "
                    f"the model with a smaller context"
                )
            session = self._session(model)
            self._sessions.add(session)
            return session

    def forget(self, session: BaseSession) -> None:
        """Count a session no longer."""
        self._sessions.discard(session)

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run steps of different sessions; see :class:`Device`."""
        return self._run(steps, self._pass, self.pass_tokens, None)

    def _run(
        self,
        steps: Sequence[Step],
        run_pass: Callable[[Sequence[Chunk]], PassResult],
        pass_tokens: int,
        rows: range | None,
    ) -> list[StepResult]:
        """Run steps in passes of up to ``pass_tokens``, with logits of some ``rows`` of the head,
        of all if left out."""
        with self.held():
            model = self.model
            _check_steps(steps)
            todo = [self._checked(model, step) for step in steps]
            if rows is not None or not self._finds_best(model) or not _want_best(todo):
                todo = [replace(chunk, best=0) for chunk in todo]
            if len({id(chunk.session) for chunk in todo}) < len(todo):
                raise LutraError("a session has several steps in one run: give it one")
            self._make_room(todo)
            gathered = [_Gathered() for _ in todo]
            for layers in dict.fromkeys(chunk.layers for chunk in todo):
                which = [i for i, chunk in enumerate(todo) if chunk.layers == layers]
                for part in _passes([(i, todo[i]) for i in which], pass_tokens):
                    result = run_pass([chunk for _, chunk in part])
                    _gather([gathered[i] for i, _ in part], [c for _, c in part], result, model)
            width = model.vocab_size if rows is None else len(rows)
            results = [each.result(width) for each in gathered]
            _advance(todo)
            return results

    @property
    def greedy_tokens(self) -> int:
        """Most tokens that :meth:`greedy` makes without the host; 1 if the host takes each."""
        return 1

    def greedy(
        self, session: Session, token: int, n: int, ends: Collection[int] = ()
    ) -> GreedyResult:
        """Make ``n`` greedy tokens that follow ``token``; see :class:`Device`."""
        with self.held():
            model = self.model
            check_whole("n", n)
            if n < 1:
                raise LutraError(f"n must be 1 or more tokens, not {n}")
            first = self._checked(model, Step(session=session, tokens=[token]))
            [last], own, before = first.tokens, first.session, first.session.lengths
            n, stops = min(n, model.context - first.position), frozenset(ends)
            made, saturated = list[int](), False
            cycles: int | None = None
            error: DeviceError | None = None
            head = HeadWork()
            try:
                while error is None and len(made) < n and not (made and last in stops):
                    part = self._greedy(own, last, n - len(made), stops)
                    made += part.tokens
                    last, saturated, error = made[-1], saturated or part.saturated, part.error
                    head += part.head
                    if part.cycles is not None:
                        cycles = (cycles or 0) + part.cycles
            except DeviceError as failed:
                if not made:
                    raise
                error = failed
            except BaseException:
                own.lengths = before
                raise
            return GreedyResult(
                tokens=made, saturated=saturated, cycles=cycles, error=error, head=head
            )

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run; empty where there are none."""
        return {}

    def facts(self) -> Mapping[str, str | int]:
        """Facts about the hardware that runs the model, for reports; empty if nothing was built."""
        return {}

    def close(self) -> None:
        """Release the model and all sessions."""
        with self.process.adopt():
            self.epoch += 1
            self._sessions.clear()
            if self._model is not None:
                self._model = None
                self._unload()

    # -- pieces

    def _checked(self, model: PackedModel, step: Step) -> Chunk:
        """Refuse a step that does not fit the model or the session."""
        check_tokens(step.tokens)
        session, n = step.session, len(step.tokens)
        if not isinstance(session, BaseSession) or session not in self._sessions:
            if isinstance(session, BaseSession):
                session.check()
            raise LutraError(f"the session is not one of device {self.name}: open one there")
        session.check()
        n_layers = len(model.layers)
        layers = range(n_layers) if step.layers is None else step.layers
        check_layers(layers, n_layers)
        if not n:
            raise LutraError("a step has no tokens: give at least one")
        tokens: Sequence[int] = range(n)
        if layers.start == 0:
            for token in step.tokens:
                _check_token(token, model.vocab_size)
            tokens = [int(token) for token in step.tokens]
        if (step.residual is None) != (layers.start == 0):
            raise LutraError(
                f"a step from layer {layers.start} on "
                + ("begins with tokens: leave residual out" if layers.start == 0
                   else "needs the residual stream: give residual")
            )  # fmt: skip
        if step.residual is not None:
            _check_residual(step.residual, n, model.hidden_size)
        position = session.position(layers)
        if position + n > model.context:
            raise LutraError(
                f"positions {position}..{position + n - 1} exceed the context of {model.context}: "
                "shorten the prompt or generate fewer tokens"
            )
        check_whole("logits_from", step.logits_from)
        if not 0 <= step.logits_from <= n:
            raise LutraError(f"logits_from must be in 0..{n}, not {step.logits_from}")
        check_whole("best", step.best)
        if step.best < 0:
            raise LutraError(f"best must be 0 (all logits) or more, not {step.best}")
        return Chunk(
            session=session,
            tokens=tokens,
            position=position,
            logits_from=step.logits_from if layers.stop == n_layers else n,
            layers=layers,
            residual=step.residual,
            best=step.best if step.best <= self.most_best else 0,
        )


def _want_best(chunks: Sequence[Chunk]) -> bool:
    """True if all chunks that want logits want those of the best tokens alone."""
    return all(chunk.best for chunk in chunks if chunk.logits_from < len(chunk.tokens))


def _passes(todo: Sequence[tuple[int, Chunk]], pass_tokens: int) -> list[list[tuple[int, Chunk]]]:
    """The chunks cut into passes of up to ``pass_tokens`` tokens."""
    passes: list[list[tuple[int, Chunk]]] = []
    room = 0
    for i, chunk in todo:
        first, n = 0, len(chunk.tokens)
        while first < n:
            if not room:
                passes.append([])
                room = pass_tokens
            size = min(room, n - first)
            passes[-1].append((i, _part(chunk, first, size)))
            first, room = first + size, room - size
    return passes


def _advance(chunks: Sequence[Chunk]) -> None:
    """Count the tokens of all chunks, or of none should an interrupt come in between."""
    before = [(chunk.session, chunk.session.lengths) for chunk in chunks]
    try:
        for chunk in chunks:
            chunk.session.advance(chunk.layers, len(chunk.tokens))
    except BaseException:
        for session, lengths in before:
            session.lengths = lengths
        raise


def _part(chunk: Chunk, first: int, size: int) -> Chunk:
    """``size`` tokens of a chunk."""
    if size == len(chunk.tokens):
        return chunk
    residual = chunk.residual
    return replace(
        chunk,
        tokens=chunk.tokens[first : first + size],
        position=chunk.position + first,
        logits_from=min(max(chunk.logits_from - first, 0), size),
        residual=None if residual is None else residual[first : first + size],
    )


def _gather(
    into: Sequence[_Gathered], chunks: Sequence[Chunk], result: PassResult, model: PackedModel
) -> None:
    """Give every step its rows of a pass."""
    row = token = 0
    for each, chunk in zip(into, chunks, strict=True):
        n = len(chunk.tokens)
        wanted = slice(row, row + n - chunk.logits_from)
        if wanted.start < wanted.stop and result.logits is not None:
            assert result.scale is not None and result.argmax is not None
            columns = slice(None) if result.best is None else slice(chunk.best)
            each.logits.append(result.logits[wanted, columns].astype(np.int64))
            each.scale.append(result.scale[wanted])
            each.argmax.append(result.argmax[wanted].astype(np.int64))
            if result.best is not None:
                each.best.append(result.best[wanted, columns].astype(np.int64))
            if result.rescored is not None:
                each.head += _head_work(result.rescored[wanted], model.vocab_size)
        if result.residual is not None:
            each.residual.append(result.residual[token : token + n].astype(np.int32))
        each.saturated |= result.saturated
        if result.cycles is not None:
            each.cycles = (each.cycles or 0) + result.cycles
        row, token = wanted.stop, token + n


def _head_work(rescored: NDArray[np.integer], vocab_size: int) -> HeadWork:
    n = len(rescored)
    return HeadWork(
        tokens=n,
        rows=n * vocab_size,
        rescored=int(rescored.sum()),
        fallbacks=int(np.count_nonzero(rescored == vocab_size)),
    )


def _check_steps(steps: object) -> None:
    found = type(steps).__name__
    if isinstance(steps, Sequence):
        others = (type(each).__name__ for each in cast(Sequence[object], steps)
                  if not isinstance(each, Step))  # fmt: skip
        found = next(others, None)
    if found is not None:
        raise LutraError(f"steps must be a list of Step, not {found}: give [Step(...), ...]")


def check_tokens(tokens: object) -> None:
    """Refuse what is no list of token ids, or array of one axis."""
    found = type(tokens).__name__
    if isinstance(tokens, np.ndarray):
        shape = cast(NDArray[np.generic], tokens).shape
        if len(shape) == 1:
            return
        found = f"an array of shape {list(shape)}"
    elif isinstance(tokens, Sequence):
        return
    raise LutraError(
        f"tokens must be a list of token ids, not {found}: make them with the model's tokenizer"
    )


def _check_residual(residual: object, n: int, hidden_size: int) -> None:
    shape, found = (n, hidden_size), type(residual).__name__
    if isinstance(residual, np.ndarray):
        array = cast(NDArray[np.generic], residual)
        if array.shape == shape and array.dtype == np.int32:
            return
        found = f"{array.dtype} {list(array.shape)}"
    raise LutraError(f"residual must be int32 {list(shape)}, not {found}")


def _check_token(token: object, vocab_size: int) -> None:
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise LutraError(
            f"a token id must be an integer, not {token!r}: make tokens with the model's tokenizer"
        )
    if not 0 <= token < vocab_size:
        raise LutraError(f"token id {token} is outside the vocabulary of {vocab_size}")


def available_memory() -> int:
    """Bytes of memory that this machine can give now; half of it where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 1 << 32
