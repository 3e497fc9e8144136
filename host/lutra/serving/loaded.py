"""A model on its device: opens sequences there, and continues from known prefixes."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from lutra.devices.base import Device
from lutra.devices.pages import NoRoom
from lutra.process_lock import ProcessLock
from lutra.serving.prefixes import KnownPrefixes
from lutra.serving.sequence import TokenSequence
from lutra.serving.speculation.plain import Speculation
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

__all__ = ["FORKED", "LoadedModel"]

T = TypeVar("T")
FORKED = "the model was loaded before this process was forked: call load() again here"
"""Why nothing goes on in a forked process."""


class LoadedModel:
    """``model`` as ``device`` has it, and ``golden`` where results are to be checked.

    Up to ``prefix_bytes`` of keys and values of ended sequences are kept; should a device have no
    room for another session, or for more of one, they give way, the oldest first. ``speculation``
    chooses the drafts that passes check; left out, there are none.
    """

    def __init__(
        self,
        model: PackedModel,
        device: Device,
        golden: Device | None,
        prefix_bytes: int,
        speculation: Speculation | None = None,
    ) -> None:
        self.device, self.golden, self._model = device, golden, model
        self.speculation = speculation or Speculation()
        bits = model.key_bits + model.value_bits
        token_bytes = len(model.layers) * model.n_kv_heads * (model.head_dim * bits // 8 + 8)
        self.known = KnownPrefixes(
            prefix_bytes,
            token_bytes * (1 if golden is None else 2),
            page=getattr(device, "page", 1),
        )
        self._process, self._closed = ProcessLock(), False

    def check(self) -> None:
        """Raise if the model is no longer loaded, gave way to another one, or was loaded by another
        process."""
        if self._closed:
            raise LutraError(
                "the model was closed or loaded again since this began: start another stream"
            )
        if self._process.is_foreign():
            raise LutraError(FORKED)
        if self.device.model is not self._model:
            raise LutraError(
                f"device {self.device.name} has loaded the model {self.device.model.name} since: "
                "call load() to take it back, or give each LLM a device of its own"
            )

    def open(self) -> TokenSequence:
        """A new, empty sequence."""
        self.check()
        sequence = self.with_room(
            lambda: TokenSequence.open(self.device, self.golden), failing=LutraError
        )
        try:
            self.check()  # another thread may have loaded another model before it was opened
        except BaseException:
            sequence.close()
            raise
        return sequence

    def begin(self, prompt: Sequence[int]) -> tuple[TokenSequence, int]:
        """A sequence that holds what is known of the beginning of ``prompt``, and how much it is.

        Of a sequence that would lose more than it gives, a copy is taken if there is room for one.
        """
        self.check()
        found = self.known.pop(prompt)
        if found is None:
            return self.open(), 0
        sequence, n = found
        if 2 * n < len(sequence.tokens):
            try:
                copy = self.fork(sequence, n)
            except LutraError:
                pass  # nothing else gives way: the sequence itself does
            else:
                self.known.put(sequence)
                return copy, n
        sequence.truncate(n)
        return sequence, n

    def fork(self, sequence: TokenSequence, n: int) -> TokenSequence:
        """Another sequence that holds the first ``n`` tokens of a running one."""
        return self.with_room(lambda: sequence.fork(n), failing=LutraError)

    def end(self, sequence: TokenSequence) -> None:
        """Keep a sequence for prompts that begin like it."""
        self.known.put(sequence)

    def close(self) -> None:
        """Close all kept sequences; running ones cannot continue."""
        self._closed = True
        self.known.close()

    def with_room(self, make: Callable[[], T], failing: type[LutraError] = NoRoom) -> T:
        """The result of ``make``, which is tried again without the oldest of what is kept for as
        long as there is something and it fails of memory."""
        while True:
            try:
                return make()
            except failing:
                if not self.known.drop_oldest():
                    raise
