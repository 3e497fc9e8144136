"""Profiles of devices and links: seconds of a pass and of a transfer, and the kind of the figure.

A pass takes a time that grows with its tokens, in steps and bends that only a table shows, and
linearly with the positions that its tokens attend to. So a profile has seconds by tokens at several
positions, and what lies between is interpolated.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, log, sqrt
from typing import Any, Literal, cast

import numpy as np

from lutra_golden.errors import LutraError

__all__ = ["Crowd", "Deviation", "DeviceProfile", "Kind", "LinkProfile", "Table", "weakest"]

Kind = Literal["measured", "simulated", "modelled"]
"""Kinds of figures: seconds of this machine, cycles of a simulator by a clock, or a formula."""
_KINDS: tuple[Kind, ...] = ("measured", "simulated", "modelled")
Crowd = tuple[tuple[int, float], ...]
"""Tokens of a pass, ascending, and how many times as long it takes while others are at work."""
_DRIFT = 0.03
"""Share by which passes may differ from a profile before it is corrected."""


def weakest(kinds: Iterable[Kind]) -> Kind:
    """The kind of a figure that is made of others: the one that is farthest from a measurement."""
    return max(kinds, key=_KINDS.index)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A pass of ``tokens`` took ``seconds`` where so many were ``predicted``; ``divided`` if the
    device computed a part of the rows."""

    tokens: int
    seconds: float
    predicted: float
    divided: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """``seconds[i][j]`` of a pass of ``tokens[i]`` tokens at ``positions[j]``, both ascending.

    Between the entries, and behind the last position, it is linear in each; behind the last number
    of tokens it is linear from the one before on.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for axis in (self.tokens, self.positions):
            if not axis or list(axis) != sorted(set(axis)):
                raise ValueError(f"axes of a table must ascend, not {axis}")
        if [len(row) for row in self.seconds] != [len(self.positions)] * len(self.tokens):
            raise ValueError("a table needs a time for each number of tokens at each position")
        if not all(0 <= each < inf for row in self.seconds for each in row):
            raise ValueError("times of a table must be 0 or more seconds")

    def at(self, tokens: float, position: float) -> float:
        """Seconds of a pass of ``tokens`` tokens, of which the first is at ``position``."""
        # no entry has less than one token, and no pass takes no time
        i, share = _place(self.tokens, max(tokens, self.tokens[0]))
        j, along = _place(self.positions, position)
        rows = [_between(row, j, along) for row in self.seconds[i : i + 2]]
        return max(_between(rows, 0, share), 0.0)

    def scaled(self, factor: float) -> "Table":
        """All times ``factor`` as long."""
        seconds = tuple(tuple(each * factor for each in row) for row in self.seconds)
        return replace(self, seconds=seconds)

    def corrected(self, deviations: Sequence[Deviation]) -> "Table":
        """Each row as far as passes that have about as many tokens were off.

        Where they were by more than 3 % in all, half of the way: a machine that others slow down
        for a moment does not stay so.
        """
        taken, predicted = [0.0] * len(self.tokens), [0.0] * len(self.tokens)
        for each in deviations:
            i = min(range(len(self.tokens)), key=lambda i: abs(log(self.tokens[i] / each.tokens)))
            taken[i] += each.seconds
            predicted[i] += each.predicted
        rows = list(self.seconds)
        for i, row in enumerate(rows):
            ratio = taken[i] / predicted[i] if predicted[i] else 1.0
            if ratio > 0 and abs(ratio - 1) > _DRIFT:
                rows[i] = tuple(each * sqrt(ratio) for each in row)
        return replace(self, seconds=tuple(rows))


def _place(axis: Sequence[int], at: float) -> tuple[int, float]:
    """Entry of an ascending axis before a place, and the share of the way to the next one; beyond
    its ends the last two entries go on."""
    if len(axis) == 1:
        return 0, 0.0
    i = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
    return i, (at - axis[i]) / (axis[i + 1] - axis[i])


def _between(values: Sequence[float], i: int, share: float) -> float:
    """Value that far from entry ``i`` to the next one, if there is one."""
    if i + 1 == len(values):
        return values[i]
    return values[i] + share * (values[i + 1] - values[i])


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """Times of one model shape on one device.

    ``chunk`` is of tokens of one session, with logits of the last, ``batch`` of one token each of
    several sessions, with logits of all, and ``layer`` of ``chunk`` without the last layer and the
    head, per layer. ``half`` is of ``chunk`` with half of the rows of every matrix and half of the
    heads, None where rows cannot be divided; ``call_s`` is what each further call costs that layers
    are divided into.
    ``fingerprint`` stands for the device, the library and the shape of the model. ``runs`` counts
    the runs that have corrected the profile.
    """

    device: str
    kind: Kind
    fingerprint: str
    n_layers: int
    pass_tokens: int
    chunk: Table
    batch: Table
    layer: Table
    half: Table | None = None
    call_s: float = 0.0
    runs: int = 0

    # -- what passes take

    def prefill_s(self, tokens: int, position: int = 0, layers: int | None = None) -> float:
        """Seconds of ``tokens`` tokens of a prompt from ``position`` on, in passes as long as there
        may be; of so many of the ``layers``, all of them with the head if left out."""
        done, total = 0, 0.0
        while done < tokens:
            n = min(self.pass_tokens, tokens - done)
            total += self.part_s(n, position + done, layers)
            done += n
        return total

    def part_s(self, tokens: int, position: float, layers: int | None = None) -> float:
        """Seconds of one such pass."""
        if layers is None:
            return self.chunk.at(tokens, position)
        return layers * self.layer.at(tokens, position)

    def decode_s(self, sessions: int, position: float) -> float:
        """Seconds of a pass with a token each of ``sessions`` sessions at ``position``."""
        return self.batch.at(sessions, position)

    def tail_s(self, sessions: int, position: float, layers: int) -> float:
        """Seconds of a decoding pass through the last ``layers`` layers and the head."""
        left_out = (self.n_layers - layers) * self.layer.at(sessions, position)
        return max(self.decode_s(sessions, position) - left_out, 0.0)

    def of_rows(
        self, tokens: int, position: float, rows: float, heads: float | None = None
    ) -> float:
        """Share of a pass's time that ``rows`` of the matrices and ``heads`` of attention take, a
        share of all each (``rows``, too, if left out): what every device computes by itself does
        not get less.

        What grows with the position is attention, that of a pass's tokens to each other included.
        """
        heads = rows if heads is None else heads
        if min(rows, heads) >= 1 or self.half is None:
            return 1.0
        tokens = min(tokens, self.pass_tokens)
        whole, half = (table.at(tokens, position) for table in (self.chunk, self.half))
        # where its tokens attend to nothing
        before = -tokens / 2
        base, half_base = (table.at(tokens, before) for table in (self.chunk, self.half))
        of_rows = max(base - half_base, 0.0)
        of_heads = max(whole - half - (base - half_base), 0.0)
        saved = 2 * ((1 - rows) * of_rows + (1 - heads) * of_heads)
        return max(1 - saved / max(whole, 1e-12), 0.0)

    # -- corrections, and the file

    def scaled(self, factor: float) -> "DeviceProfile":
        """The profile of a device that takes ``factor`` times as long."""
        return replace(
            self,
            chunk=self.chunk.scaled(factor),
            batch=self.batch.scaled(factor),
            layer=self.layer.scaled(factor),
            half=None if self.half is None else self.half.scaled(factor),
            call_s=self.call_s * factor,
        )

    def corrected(self, deviations: Sequence[Deviation]) -> "DeviceProfile":
        """The profile after passes that took longer or shorter than predicted; itself if none was
        off by more than 3 %."""
        whole = [each for each in deviations if not each.divided]
        divided = [each for each in deviations if each.divided]
        found = replace(
            self,
            chunk=self.chunk.corrected(whole),
            batch=self.batch.corrected(whole),
            layer=self.layer.corrected(whole),
            # half of the rows takes as much longer as the whole, unless it was seen by itself
            half=self.half and self.half.corrected(divided or whole),
        )
        return self if found == self else replace(found, runs=self.runs + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values; see :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> "DeviceProfile":
        """Inverse of :meth:`to_json`; LutraError if ``content`` is anything else."""
        try:
            given = dict(cast(Mapping[str, Any], content))
            for name in ("chunk", "batch", "layer", "half"):
                if name == "half" and given[name] is None:
                    continue
                table: Mapping[str, Any] = given[name]
                given[name] = Table(
                    tokens=tuple(map(int, table["tokens"])),
                    positions=tuple(map(int, table["positions"])),
                    seconds=tuple(tuple(map(float, row)) for row in table["seconds"]),
                )
            if given["kind"] not in _KINDS:
                raise ValueError
            return cls(**given)
        except (ValueError, KeyError, TypeError, OverflowError):
            raise LutraError("this is no profile of a device: measure it again") from None


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A way between two devices: ``latency_s`` of a transfer, and what it carries in a second.

    ``meeting_s`` is what it takes them to wait for each other within a layer, None where they
    cannot; ``crowd`` what the first one loses while the other makes tokens, as of one memory.
    """

    latency_s: float
    bytes_per_s: float
    kind: Kind
    meeting_s: float | None = None
    crowd: Crowd = ()

    def seconds(self, n_bytes: float) -> float:
        """Seconds of a transfer of ``n_bytes``."""
        return self.latency_s + n_bytes / self.bytes_per_s

    def crowded(self, tokens: int) -> float:
        """How many times as long a pass of so many tokens takes while the other is at work."""
        if not self.crowd:
            return 1.0
        sizes, factors = zip(*self.crowd, strict=True)
        return float(np.interp(tokens, sizes, factors))
