"""Measures a device: passes by their tokens and position, and transfers to another one."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import numpy as np

from lutra.devices.base import Device, Session, Step, StepResult
from lutra.devices.shares import Share, SharingDevice
from lutra.serving.plans.carriers import Carrier
from lutra.serving.plans.layout import RowShare, Stage
from lutra.serving.plans.profile import Crowd, DeviceProfile, Kind, LinkProfile, Table
from lutra.serving.plans.rows import RowRunner
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import EXCHANGES, divide

__all__ = [
    "BUDGET_S",
    "MOST_SESSIONS",
    "empty_kv",
    "kv_bytes_of",
    "measure_crowd",
    "measure_device",
    "measure_link",
    "measure_meeting",
]

Progress = Callable[[str, float], None]
BUDGET_S = 20.0
"""Seconds after which a device is measured no more: what is left follows from what there is."""
MOST_SESSIONS = 64
"""Sessions that are measured together, at most."""
_REPEATS = 3
_EACH_CHUNK, _EACH_BATCH = 4, 8  # tokens, sessions: up to these each number is measured
_MEETINGS = 7  # passes of two devices that are timed
_CROWD, _CROWDED = (1, 2, 4, 8, 32), 5  # tokens of passes beside another device; timed so often
_ALONE = 1.02  # as if the other device were not there
_POSITIONS = (0, 128, 512, 2048, 8192, 32768)


def empty_kv(model: PackedModel, n: int, layers: range) -> SequenceKv:
    """Keys and values of zeros at ``n`` positions, for times do not depend on them."""
    shape, scales = (model.n_kv_heads, n, model.head_dim), np.zeros((n, model.n_kv_heads), np.int64)
    zeros = np.zeros(shape, np.int8)
    layer = LayerKv(zeros, Scale(scales, scales), zeros, Scale(scales, scales))
    return SequenceKv(
        key_bits=model.key_bits, value_bits=model.value_bits, layers=dict.fromkeys(layers, layer)
    )


def measure_device(
    device: Device,
    label: str,
    fingerprint: str,
    *,
    clock_hz: float | None = None,
    budget_s: float = BUDGET_S,
    progress: Progress | None = None,
) -> DeviceProfile:
    """The profile of ``device``, which has loaded a model, within some ``budget_s`` seconds.

    Passes of 1, 2, 3, 4, 8, ... tokens up to the most that share one, at positions up to the
    context. With ``clock_hz`` its cycles by that clock count, not the seconds of the simulation.
    """
    kind: Kind = "measured" if clock_hz is None else "simulated"
    with closing(_Bench(device, clock_hz, budget_s, progress)) as bench:
        chunk, layer = bench.chunks()
        half = bench.halves(chunk)
        batch = bench.batches(chunk)
        return DeviceProfile(
            device=label,
            kind=kind,
            fingerprint=fingerprint,
            n_layers=len(device.model.layers),
            pass_tokens=device.pass_tokens,
            chunk=chunk,
            batch=batch,
            layer=layer,
            half=half,
            call_s=bench.call_s(layer),
        )


class _Bench:
    """Times of passes; ``device`` has loaded a model."""

    def __init__(
        self,
        device: Device,
        clock_hz: float | None,
        budget_s: float,
        progress: Progress | None,
    ) -> None:
        self._device, self._clock_hz, self._progress = device, clock_hz, progress
        self._budget_s = budget_s
        self._model = model = device.model
        self._tokens: list[int] = (
            np.random.default_rng(0).integers(0, model.vocab_size, device.pass_tokens).tolist()
        )
        self._stream = np.zeros((device.pass_tokens, model.hidden_size), np.int32)
        self._sessions = [device.session()]
        self._sizes = _sizes(min(device.pass_tokens, model.context), _EACH_CHUNK)
        last = 3 * model.context // 4
        self._positions = [*(p for p in _POSITIONS if p < last), last]

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def chunks(self) -> tuple[Table, Table]:
        """Of tokens of one session: all layers and the head; all but the last, per layer."""
        inner = range(max(len(self._model.layers) - 1, 1))

        def whole(n: int, position: int) -> float:
            return self._seconds(self._sessions[:1], n, position, None)

        def part(n: int, position: int) -> float:
            return self._seconds(self._sessions[:1], n, position, inner) / len(inner)

        whole(1, 0)  # what is read for the first time takes longer
        chunk = self._table("passes", self._sizes, whole, self._budget_s / 2)
        growth = _share_of_growth(chunk, 1 / len(self._model.layers))
        return chunk, self._table("layers", self._sizes, part, self._budget_s / 4, growth)

    def halves(self, chunk: Table) -> Table | None:
        """Of tokens of one session, half of the rows and heads; None if they cannot be divided."""
        device, model = self._device, self._model
        if not isinstance(device, SharingDevice) or self._clock_hz is not None:
            return None
        try:
            rows, _ = divide(model, (1, 1))
        except LutraError:
            return None
        with device.meeting(model, device.pass_tokens, 1) as meeting:
            run = partial(device.run_share, share=Share(rows, meeting))
            return self._table(
                "halves of layers",
                self._sizes,
                lambda n, p: self._seconds(self._sessions[:1], n, p, None, run),
                self._budget_s / 8,
                _share_of_growth(chunk, 1 / 2),
            )

    def batches(self, chunk: Table) -> Table:
        """Of one token each of several sessions, as many as there is room for."""
        sizes = _sizes(min(self._sizes[-1], MOST_SESSIONS), _EACH_BATCH)
        for _ in range(len(self._sessions), sizes[-1]):
            try:
                session = self._device.session()
                session.reserve(self._model.context)
            except LutraError:
                break  # this is what there is room for
            self._sessions.append(session)
        sizes = [n for n in sizes if n <= len(self._sessions)]
        return self._table(
            "sessions",
            sizes,
            lambda n, position: self._seconds(self._sessions[:n], 1, position, None),
            self._budget_s / 4,
            _share_of_growth(chunk, 1.0),
        )

    def call_s(self, layer: Table) -> float:
        """Seconds that a call costs beside its layers."""
        one = self._seconds(self._sessions[:1], 1, 0, range(1))
        return max(one - layer.at(1, 0), 0.0)

    def _table(
        self,
        what: str,
        sizes: Sequence[int],
        seconds: Callable[[int, int], float],
        budget_s: float,
        growth: Callable[[int, int], float] | None = None,
    ) -> Table:
        """All sizes at the first position, then at the last, then at those in between.

        Where the budget is used up, or a pass would not end within the context, the share of
        attention, which grows with tokens times positions, is fitted to what was measured. If the
        budget ended before there was any, ``growth`` says how much longer a pass takes there.
        """
        end, found = time.perf_counter() + budget_s, dict[tuple[int, int], float]()
        positions = self._positions
        order = [0, *positions[:0:-1]]
        context = self._model.context
        places = [(n, p) for p in order for n in sizes if p + n <= context]
        for i, place in enumerate(places):
            if self._progress:
                self._progress(f"measuring {self._device.name}: {what}", i / len(places))
            # a table has one column at least
            if place[1] and time.perf_counter() > end:
                break
            found[place] = seconds(*place)
        far = [(n * p, value - found[n, 0]) for (n, p), value in found.items() if p]
        work = sum(work * work for work, _ in far)
        slope = max(sum(work * more for work, more in far) / work, 0.0) if work else 0.0

        def grown(n: int, p: int) -> float:
            return slope * n * p if work or growth is None else growth(n, p)

        rows = tuple(
            tuple(found.get((n, p), found[n, 0] + grown(n, p)) for p in positions) for n in sizes
        )
        return Table(tokens=tuple(sizes), positions=tuple(positions), seconds=rows)

    def _seconds(
        self,
        sessions: Sequence[Session],
        n: int,
        position: int,
        layers: range | None,
        run: Callable[[Sequence[Step]], list[StepResult]] | None = None,
    ) -> float:
        """Median of some passes with ``n`` tokens of each of the sessions at ``position``; ``run``
        is the device's unless it is given."""
        run = run or self._device.run
        every = range(len(self._model.layers))
        for session in sessions:
            if session.length != position:
                session.restore(empty_kv(self._model, position, every))
        steps = [
            Step(session=session, tokens=self._tokens[:n], logits_from=n - 1, layers=layers)
            for session in sessions
        ]
        taken: list[float] = []
        while len(taken) < _REPEATS and (len(taken) < 1 or sum(taken) < self._budget_s / 100):
            start = time.perf_counter()
            results = run(steps)
            seconds = time.perf_counter() - start
            taken.append(self._of_clock(results) if self._clock_hz else seconds)
            for session in sessions:
                session.truncate(position)
        return float(np.median(taken))

    def _of_clock(self, results: Sequence[StepResult]) -> float:
        """Cycles of a pass, which all its steps have been given, by the clock."""
        cycles = results[0].cycles
        if cycles is None or self._clock_hz is None:
            raise LutraError(
                f"device {self._device.name} has no clock whose cycles could be counted: leave "
                "--cycles out"
            )
        return cycles / self._clock_hz


def _share_of_growth(table: Table, share: float) -> Callable[[int, int], float]:
    """How much longer passes take at a position than at the first one: that share of it."""
    return lambda n, position: share * (table.at(n, position) - table.at(n, 0))


def measure_link(
    source: Device, target: Device, carrier: Carrier, *, repeats: int = _REPEATS
) -> LinkProfile:
    """Latency and bandwidth of a transfer: export, ``carrier``, restore; both have the model.

    Of one layer with one position, and of all layers with as many as a pass has tokens.
    """
    model, times = source.model, list[float]()
    every, sizes = range(len(model.layers)), list[int]()
    most = min(model.context, 512)
    with closing(source.session()) as here, closing(target.session()) as there:
        for n, layers in ((1, range(1)), (most, every)):
            here.restore(empty_kv(model, n, every))
            best = float("inf")
            for _ in range(repeats + 1):
                start = time.perf_counter()
                there.restore(carrier.carry(here.export(layers)))
                best = min(best, time.perf_counter() - start)
            times.append(best)
            sizes.append(kv_bytes_of(model, n, len(layers)))
    per_byte = max((times[1] - times[0]) / (sizes[1] - sizes[0]), 1e-15)
    latency = max(times[0] - per_byte * sizes[0], 0.0)
    return LinkProfile(latency_s=latency, bytes_per_s=1 / per_byte, kind="measured")


def measure_meeting(devices: Sequence[Device], *, repeats: int = _MEETINGS) -> float | None:
    """Seconds that two devices lose each time that they wait for each other in a pass of one token
    whose rows are divided evenly: beyond what the slower one takes for its part by itself. None if
    they cannot divide rows."""
    model = devices[0].model
    parts = [each for each in devices if isinstance(each, SharingDevice)]
    if len(parts) < len(devices):
        return None
    try:
        shares = divide(model, (1, 1))
    except LutraError:
        return None
    stage = Stage(0, range(len(model.layers)), (RowShare(0, 1), RowShare(1, 1)))
    lost: list[float] = []
    with ExitStack() as held:
        rows = held.enter_context(RowRunner())
        sessions = [held.enter_context(closing(each.session())) for each in devices]
        steps = [[Step(session=session, tokens=[0])] for session in sessions]
        calls = [partial(part.run_share, own) for part, own in zip(parts, steps, strict=True)]
        meetings = [held.enter_context(part.meeting(model, 1, 1)) for part in parts]

        def taken(run: Callable[[], object]) -> float:
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            for session in sessions:
                session.truncate(0)
            return seconds

        for _ in range(repeats):  # in turns, for machines are not as quick all the time
            alone = max(
                taken(partial(call, Share(share, meeting)))
                for call, share, meeting in zip(calls, shares, meetings, strict=True)
            )
            lost.append(taken(lambda: rows.run(stage, devices, model, calls)) - alone)
    return max(float(np.median(lost)), 0.0) / (len(EXCHANGES) * len(model.layers))


def measure_crowd(device: Device, other: Device, *, repeats: int = _CROWDED) -> Crowd:
    """How many times as long passes of some tokens take while another device makes tokens: where
    both read weights from one memory, its bandwidth is less than what both could use."""
    model, found = device.model, list[tuple[int, float]]()
    tokens = [0] * min(_CROWD[-1], device.pass_tokens, model.context)
    sizes = [n for n in _CROWD if n <= len(tokens)]
    with closing(device.session()) as session, closing(other.session()) as theirs:

        def seconds(n: int) -> float:
            step = Step(session=session, tokens=tokens[:n], logits_from=n - 1)
            start = time.perf_counter()
            device.run([step])
            taken = time.perf_counter() - start
            session.truncate(0)
            return taken

        seconds(1)
        for n in sizes:
            alone = float(np.median([seconds(n) for _ in range(repeats)]))
            crowded = list[float]()
            with _at_work(other, theirs):
                for i in range(repeats):
                    # one that begins as the other does finds weights in a cache that both have
                    time.sleep(i / repeats * alone)
                    crowded.append(seconds(n))
            found.append((n, max(float(np.median(crowded)) / alone, 1.0)))
            if found[-1][1] < _ALONE:
                break  # longer passes read the weights no more often
    return tuple(found)


@contextmanager
def _at_work(device: Device, session: Session) -> Generator[None]:
    """Have a device make tokens, one after another, in a thread of its own."""
    ended, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not ended.is_set():
                device.run([Step(session=session, tokens=[0])])
                session.truncate(0)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if errors:
        raise errors[0]


def kv_bytes_of(model: PackedModel, positions: int, layers: int) -> int:
    """Bytes of keys and values in their canonical form."""
    bits = model.key_bits + model.value_bits
    return positions * layers * model.n_kv_heads * (model.head_dim * bits // 8 + 8)


def _sizes(most: int, each: int) -> list[int]:
    """Every number up to ``each``, then 8, 16, ... and ``most``: products of few columns are made
    in ways of their own, and do not take a time that lies between."""
    powers = {1 << i for i in range(most.bit_length())}
    return sorted({n for n in powers | set(range(1, each + 1)) if n <= most} | {most})
