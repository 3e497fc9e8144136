"""Ways of keys and values from one device to another."""

import time
from dataclasses import dataclass
from typing import Protocol

from lutra_golden.model.cache import SequenceKv

__all__ = ["Carrier", "Direct", "Shaped"]


class Carrier(Protocol):
    """Brings keys and values from one device to another, in the thread that asks."""

    def carry(self, kv: SequenceKv) -> SequenceKv:
        """All of ``kv``, as it is."""
        ...


class Direct:
    """Both devices are in this process: nothing is copied but what they copy themselves."""

    def carry(self, kv: SequenceKv) -> SequenceKv:
        """``kv`` itself."""
        return kv


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """A link of ``bytes_per_s`` whose transfers take ``latency_s`` more, in place of a real one.

    Keys and values pass as the bytes of their canonical form.
    """

    latency_s: float
    bytes_per_s: float

    def carry(self, kv: SequenceKv) -> SequenceKv:
        """``kv`` as its bytes bring it, after the time that they take on the link."""
        start = time.perf_counter()
        data = kv.to_bytes()
        arrived = SequenceKv.from_bytes(data)
        left = self.latency_s + len(data) / self.bytes_per_s - (time.perf_counter() - start)
        if left > 0:
            time.sleep(left)
        return arrived
