"""One sequence on several devices: which of them has keys and values of which layers, how far."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from lutra.arguments import check_kind, check_whole
from lutra.devices.base import Session
from lutra.devices.sessions import check_layers
from lutra.serving.plans.layout import Plan
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv

if TYPE_CHECKING:
    from lutra.serving.plans.device import PlannedDevice

__all__ = ["Part", "PlannedSession"]

_numbers = count()


@dataclass
class Part:
    """A session of one device, and the positions of each layer that it holds.

    ``arriving`` are transfers under way to it; what they bring is counted when they are done.
    """

    session: Session
    lengths: list[int]
    arriving: "list[Future[None]]" = field(default_factory=list["Future[None]"])

    def cut(self, n: int) -> None:
        """Drop everything behind the first ``n`` positions."""
        if self.session.length > n:
            self.session.truncate(n)
        self.lengths = [min(n, length) for length in self.lengths]

    def restore(self, kv: SequenceKv) -> None:
        """Take over the layers of ``kv``."""
        self.session.restore(kv)
        for layer, own in kv.layers.items():
            self.lengths[layer] = own.length

    def fork(self, n: int) -> "Part":
        """A copy of the first ``n`` positions."""
        session = self.session.fork(min(n, self.session.length))
        return Part(session, [min(n, length) for length in self.lengths])


class PlannedSession:
    """A session of a :class:`~lutra.serving.plans.device.PlannedDevice`.

    ``tokens`` are those processed, None for those that keys and values were restored of, and
    ``parts`` what the devices have, by their number.
    """

    def __init__(self, device: "PlannedDevice", plan: Plan) -> None:
        self.device, self.plan, self.epoch = device, plan, device.epoch
        self.number = next(_numbers)
        """Order in which several sessions are locked."""
        self.lock = threading.RLock()
        self.tokens: list[int | None] = []
        self.parts: dict[int, Part] = {}
        self._closed = False

    # -- the protocol

    @property
    def length(self) -> int:
        """Positions that are filled."""
        return len(self.tokens)

    def export(self, layers: range | None = None) -> SequenceKv:
        """Copy of the keys and values of ``layers``, of all if left out, from where they are."""
        with self.lock:
            self.check()
            n_layers = self.plan.n_layers
            which = range(n_layers) if layers is None else layers
            check_layers(which, n_layers)
            return self.device.export(self, which)

    def restore(self, kv: SequenceKv) -> None:
        """Replace all keys and values; the next step continues there."""
        with self.lock:
            self.check()
            check_kind(kv, SequenceKv, f"keys and values must be a SequenceKv, not {type(kv)}")
            lengths = {layer.length for layer in kv.layers.values()}
            if len(lengths) != 1 or len(kv.layers) != self.plan.n_layers:
                raise LutraError(
                    f"device {self.device.name} takes keys and values of all layers, equally far: "
                    "export them without a range"
                )
            self.device.restore(self, kv)
            self.tokens = [None] * lengths.pop()

    def reserve(self, n: int, spare: int = 0) -> None:
        """Have memory for ``n`` positions in all on each of its devices."""
        with self.lock:
            self.check()
            self.device.reserve(self, n, spare)

    def truncate(self, n: int) -> None:
        """Forget what lies behind the first ``n`` positions."""
        with self.lock:
            self.check()
            check_whole("n", n)
            if not 0 <= n <= self.length:
                raise LutraError(f"a session of {self.length} positions cannot be cut to {n}")
            self.device.rewind([(self, n)])
            self.tokens = self.tokens[:n]

    def fork(self, n: int | None = None) -> "PlannedSession":
        """New session with the first ``n`` positions of this one, with all if left out."""
        with self.lock:
            self.check()
            n = self.length if n is None else n
            check_whole("n", n)
            if not 0 <= n <= self.length:
                raise LutraError(f"a session of {self.length} positions has no first {n}")
            return self.device.fork(self, n)

    def close(self) -> None:
        """Release the memory on all devices."""
        if self._closed or self.device.process.is_foreign():
            return
        with self.lock:
            self._closed = True
            self.device.forget(self)
            if self.epoch == self.device.epoch:
                for part in self.parts.values():
                    part.session.close()
            self.parts = {}

    # -- for the device

    def check(self) -> None:
        """Refuse a session that is closed, or whose model is no longer loaded."""
        if self._closed:
            raise LutraError("the session is closed: open another one")
        if self.epoch != self.device.epoch:
            raise LutraError(
                "the session's model is no longer loaded: open a session of the one that is"
            )

    def known(self, first: int, stop: int) -> list[int] | None:
        """Tokens of a range of positions; None if some were restored."""
        found = self.tokens[first:stop]
        known = [token for token in found if token is not None]
        return known if len(known) == len(found) else None
