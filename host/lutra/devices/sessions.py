"""The common part of sessions: the keys and values of one sequence, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from lutra.arguments import check_kind, check_whole
from lutra.process_lock import ProcessLock
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel

__all__ = ["BaseSession", "SessionDevice", "check_layers"]

_S = TypeVar("_S", bound="BaseSession")


class SessionDevice(Protocol):
    """Part of :class:`~lutra.devices.base.BaseDevice` that its sessions use."""

    process: ProcessLock
    epoch: int

    @property
    def model(self) -> PackedModel: ...

    def held(self) -> AbstractContextManager[None]: ...

    def session(self) -> "BaseSession": ...

    def forget(self, session: "BaseSession") -> None: ...


class BaseSession(ABC):
    """Common part of all sessions: the number of positions that each layer holds.

    A device's own session adds where the keys and values are: ``_read``, ``_write`` and
    ``_release``; ``_copy`` where there is a shorter way than through the canonical form.
    """

    def __init__(self, device: SessionDevice, n_layers: int) -> None:
        self._device, self._epoch = device, device.epoch
        self.lengths = [0] * n_layers
        """Positions of each layer that are filled; replaced, never changed in place."""
        self._closed = False

    # -- of the device

    @abstractmethod
    def _read(self, layer: int, n: int) -> LayerKv:
        """Copy of the first ``n`` positions of a layer."""

    @abstractmethod
    def _write(self, layer: int, kv: LayerKv) -> None:
        """Put ``kv`` at the first positions of a layer."""

    def _copy(self, source: "BaseSession", lengths: Sequence[int]) -> None:
        """Take over the first positions of each layer of ``source``."""
        for layer, n in enumerate(lengths):
            if n:
                self._write(layer, source._read(layer, n))

    @abstractmethod
    def _release(self) -> None:
        """Release the memory."""

    # -- the protocol

    @property
    def length(self) -> int:
        """Positions that are filled, of the layer that has most."""
        return max(self.lengths, default=0)

    def export(self, layers: range | None = None) -> SequenceKv:
        """Copy of the keys and values of ``layers``, of all if left out."""
        with self._device.held():
            self.check()
            model = self._device.model
            which = range(len(self.lengths)) if layers is None else layers
            check_layers(which, len(self.lengths))
            return SequenceKv(
                key_bits=model.key_bits,
                value_bits=model.value_bits,
                layers={i: self._read(i, self.lengths[i]) for i in which},
            )

    def restore(self, kv: SequenceKv) -> None:
        """Replace keys and values of the layers that ``kv`` has; the next step continues there."""
        with self._device.held():
            self.check()
            check_kind(
                kv,
                SequenceKv,
                f"keys and values must be a SequenceKv, not {type(kv).__name__}: "
                "SequenceKv.from_bytes makes one of what to_bytes gave",
            )
            m = self._device.model
            if (kv.key_bits, kv.value_bits) != (m.key_bits, m.value_bits):
                raise LutraError(
                    f"keys and values have {kv.key_bits}/{kv.value_bits} bits, the model is packed "
                    f"for {m.key_bits}/{m.value_bits}: export them from a model with the same bits"
                )
            kv.check(m.n_kv_heads, m.head_dim, len(self.lengths), m.context)
            lengths = list(self.lengths)
            for i, layer in kv.layers.items():
                # should writing fail in the middle, nothing is left of any of them
                self.set_length(i, 0)
                lengths[i] = layer.length
            for i, layer in kv.layers.items():
                self._write(i, layer)
            self.lengths = lengths

    def reserve(self, n: int, spare: int = 0) -> None:
        """Have memory for ``n`` positions in all; see :class:`~lutra.devices.base.Session`.

        A device that has memory for a whole context in each session has it.
        """
        with self._device.held():
            self.check()

    def truncate(self, n: int) -> None:
        """Forget what lies behind the first ``n`` positions."""
        with self._device.held():
            self.check()
            check_whole("n", n)
            if not 0 <= n <= self.length:
                raise LutraError(f"a session of {self.length} positions cannot be cut to {n}")
            self.lengths = [min(n, length) for length in self.lengths]

    def fork(self: _S, n: int | None = None) -> _S:
        """New session with the first ``n`` positions of this one, with all if left out."""
        with self._device.held():
            self.check()
            n = self.length if n is None else n
            check_whole("n", n)
            if not 0 <= n <= self.length:
                raise LutraError(f"a session of {self.length} positions has no first {n}")
            other = self._device.session()
            assert isinstance(other, type(self))
            lengths = [min(n, length) for length in self.lengths]
            other._copy(self, lengths)
            other.lengths = lengths
            return other

    def close(self) -> None:
        """Release the memory; a session that is dropped does it by itself."""
        if self._closed or self._device.process.is_foreign():
            return
        with self._device.held():
            self._closed = True
            self._device.forget(self)
            if self._epoch == self._device.epoch:
                self._release()

    # -- for the device

    def check(self) -> None:
        """Refuse a session that is closed, or whose model is no longer loaded."""
        if self._closed:
            raise LutraError("the session is closed: open another one")
        if self._epoch != self._device.epoch:
            raise LutraError(
                "the session's model is no longer loaded: open a session of the one that is"
            )

    def position(self, layers: range) -> int:
        """Position of the next token of these layers; LutraError if they differ."""
        lengths = {self.lengths[i] for i in layers}
        if len(lengths) != 1:
            raise LutraError(
                f"layers {layers.start}..{layers.stop - 1} of the session are filled unequally far "
                f"({min(lengths)} to {max(lengths)} positions): run those that lag behind first"
            )
        return lengths.pop()

    def set_length(self, layer: int, n: int) -> None:
        """Set the positions of one layer."""
        self.lengths = [*self.lengths[:layer], n, *self.lengths[layer + 1 :]]

    def advance(self, layers: range, n: int) -> None:
        """Count ``n`` more positions of these layers."""
        lengths = list(self.lengths)
        for i in layers:
            lengths[i] += n
        self.lengths = lengths


def check_layers(layers: object, n_layers: int) -> None:
    """Refuse what is no range of a model's layers."""
    if (
        not isinstance(layers, range)
        or layers.step != 1
        or not 0 <= layers.start < layers.stop <= n_layers
    ):
        raise LutraError(f"layers must be a range within 0..{n_layers}, not {layers}")
