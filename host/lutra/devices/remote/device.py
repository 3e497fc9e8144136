"""A device that another process lends, on this machine or elsewhere."""

import tempfile
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutra.arguments import check_kind, check_whole
from lutra.closing import Closing
from lutra.devices.base import (
    DeviceError,
    GreedyResult,
    Session,
    Step,
    StepResult,
    check_tokens,
)
from lutra.devices.remote.link import DeviceLinks, LentAddress
from lutra.devices.remote.shape import LinkShape
from lutra.devices.remote.wire import narrow
from lutra.devices.sessions import check_layers
from lutra.packed.kept import write_model
from lutra.process_lock import ProcessLock
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.capabilities import Capabilities
from lutra_golden.model.packed import PackedModel

__all__ = ["RemoteDevice", "RemoteSession"]

_PART_BYTES = 8 << 20
_ANSWER_S = 600.0  # of what computes nothing, but may be large
_WORK_S = 3600.0  # of passes, and of building hardware for a model


@dataclass(frozen=True)
class _Form:
    """A model in files: its fingerprint, its ``config.json``, and the bytes of its tensors."""

    fingerprint: str
    config: str
    size: int


_forms: "dict[int, tuple[weakref.ref[PackedModel], _Form]]" = {}
"""Forms of models that were sent, by their address in memory."""


class RemoteSession(Session):
    """A sequence on a device that is lent; keys and values are there."""

    def __init__(
        self, device: "RemoteDevice", links: DeviceLinks, number: int, length: int
    ) -> None:
        self.device, self.links, self.number = device, links, number
        self._length = length
        # what is dropped is told of with the next message
        self._drop = weakref.finalize(self, links.dropped.append, number)

    @property
    def length(self) -> int:
        """Positions that are filled, of the layer that has most."""
        return self._length

    def export(self, layers: range | None = None) -> SequenceKv:
        """Copy of the keys and values of ``layers``, of all if left out."""
        n_layers = len(self.device.model.layers)
        which = range(n_layers) if layers is None else layers
        check_layers(which, n_layers)
        _, [data] = self._ask(
            f"an export of {_layers(which)}", {"op": "export", "layers": [which.start, which.stop]}
        )
        return SequenceKv.from_bytes(data.tobytes())

    def restore(self, kv: SequenceKv) -> None:
        """Replace keys and values of the layers that ``kv`` has; the next step continues there."""
        check_kind(kv, SequenceKv, f"keys and values must be a SequenceKv, not {type(kv)}")
        data = np.frombuffer(kv.to_bytes(), np.uint8)
        what = f"keys and values of {kv.length} positions"
        self._ask(what, {"op": "restore"}, [data])

    def reserve(self, n: int, spare: int = 0) -> None:
        """Have memory for ``n`` positions in all; see :class:`~lutra.devices.base.Session`."""
        check_whole("n", n)
        check_whole("spare", spare)
        what = f"memory for {n} positions"
        self._ask(what, {"op": "reserve", "n": int(n), "spare": int(spare)})

    def truncate(self, n: int) -> None:
        """Forget what lies behind the first ``n`` positions."""
        check_whole("n", n)
        self._ask(f"a cut to {n} positions", {"op": "truncate", "n": n})

    def fork(self, n: int | None = None) -> "RemoteSession":
        """New session with the first ``n`` positions of this one, with all if left out."""
        if n is not None:
            check_whole("n", n)
        found, _ = self._ask("a copy of a session", {"op": "fork", "n": n}, advance=False)
        return RemoteSession(self.device, self.links, found["session"], found["length"])

    def close(self) -> None:
        """Release the memory, with the next message; a session that is dropped does it by
        itself."""
        self._drop()

    def check(self) -> None:
        """Refuse a session that is closed, or whose model is no longer loaded."""
        if not self._drop.alive:
            raise LutraError("the session is closed: open another one")
        if self.links is not self.device.links:
            raise LutraError(
                "the session's model is no longer loaded: open a session of the one that is"
            )

    def advance(self, length: int) -> None:
        """Take over the length that the device has."""
        self._length = length

    def _ask(
        self,
        what: str,
        fields: Mapping[str, object],
        arrays: Sequence[Any] = (),
        *,
        advance: bool = True,
    ) -> tuple[dict[str, Any], list[Any]]:
        self.check()
        asked = {**fields, "session": self.number}
        found, values = self.device.ask(what, asked, arrays, seconds=_ANSWER_S)
        if advance and "length" in found:
            self.advance(found["length"])
        return found, values


class RemoteDevice(Closing):
    """The device that is lent at ``address``, by ``key`` if it is not open: its bytes, or None for
    the file that ``LUTRA_DEVICE_KEY`` names.

    The model, tokens, residual streams, keys and values travel over links of Lutra's own, which
    ``shape`` may slow down and lose. When a link is lost all is lost that this host had there:
    every call raises DeviceError, which says what was waiting, until a model is loaded again.
    """

    def __init__(
        self,
        address: LentAddress | str,
        key: bytes | None = None,
        *,
        shape: LinkShape | None = None,
    ) -> None:
        self.address = LentAddress.parse(address) if isinstance(address, str) else address
        self.name = str(self.address)
        self.process = ProcessLock()
        self._key, self._shape = key, shape
        self._model: PackedModel | None = None
        self._sizes: Mapping[str, int] = {"pass": 1, "greedy": 1, "page": 1}
        self._facts: Mapping[str, str | int] = {}
        self.links = self._linked()
        """The links to the lender; others with every model."""

    def _linked(self) -> DeviceLinks:
        if self._shape is None:
            return DeviceLinks(self.address, self._key)
        return DeviceLinks(self.address, self._key, self._shape.stream)

    def move(self, address: LentAddress) -> None:
        """Find the lender elsewhere from the next model on, as it was started again there."""
        self.address, self.name = address, str(address)

    def ask(
        self,
        what: str,
        fields: Mapping[str, object],
        arrays: Sequence[Any] = (),
        *,
        seconds: float = _ANSWER_S,
    ) -> tuple[dict[str, Any], list[Any]]:
        """The answer to a message; see :meth:`DeviceLinks.ask`."""
        if self.process.is_foreign():
            raise LutraError(
                f"device {self.name} was used before this process was forked: load the model again "
                "here"
            )
        return self.links.ask(what, fields, arrays, seconds=seconds)

    def find(self) -> None:
        """See that a device is lent there, before a model is made ready for it."""
        self.ask("the first message", {"op": "about"})

    @property
    def capabilities(self) -> Capabilities:
        """Parts of packed models that it runs."""
        found, _ = self.ask("the first message", {"op": "about"})
        return Capabilities(**{name: bool(value) for name, value in found["capabilities"].items()})

    @property
    def pass_tokens(self) -> int:
        """Most tokens that share one pass over the weights."""
        return self._sizes["pass"]

    @property
    def page(self) -> int:
        """Positions that a session has memory for at a time."""
        return self._sizes["page"]

    @property
    def greedy_tokens(self) -> int:
        """Most tokens that :meth:`greedy` makes without the host; 1 if the host takes each."""
        return self._sizes["greedy"]

    @property
    def model(self) -> PackedModel:
        """The model that is loaded; LutraError if none is, DeviceError if the link is lost."""
        if self._model is None:
            raise LutraError("no model is loaded: call load(model) first")
        if self.links.lost is not None:
            raise DeviceError(f"the link to {self.name} is lost: {self.links.lost}")
        return self._model

    def load(self, model: PackedModel) -> None:
        """Take a model, which is sent unless it is there; sessions of another one are gone."""
        with self.process.adopt():
            self.close()
            self.links = self._linked()
            self._send(model)
            found, _ = self.ask(_what(model), {"op": "load"}, seconds=_WORK_S)
            self._sizes = {name: int(found[name]) for name in self._sizes}
            self._facts = {**found["facts"], "address": self.name}
            self._model = model

    def _send(self, model: PackedModel) -> None:
        """Have the model there; it is written to files only if it is not, or for the first time."""
        known = _forms.get(id(model))
        if known is not None and known[0]() is model and self._has(model, known[1]):
            return
        with tempfile.TemporaryDirectory(prefix="lutra-lent-") as folder:
            fingerprint = write_model(Path(folder), model)
            config = Path(folder, "config.json").read_text(encoding="utf-8")
            tensors = Path(folder, "model.safetensors")
            form = _Form(fingerprint, config, tensors.stat().st_size)
            key = id(model)
            _forms[key] = weakref.ref(model, lambda _: _forms.pop(key, None)), form
            if self._has(model, form):
                return
            with tensors.open("rb") as file:
                while part := file.read(_PART_BYTES):
                    self.ask(_what(model), {"op": "part"}, [np.frombuffer(part, np.uint8)])

    def _has(self, model: PackedModel, form: "_Form") -> bool:
        """Announce a model; True if it is there already."""
        found, _ = self.ask(_what(model), {"op": "model", **vars(form)})
        return bool(found["has"])

    def session(self) -> RemoteSession:
        """New, empty session; NoRoom with the bytes needed and free if there is no room."""
        found, _ = self.ask("a new session", {"op": "session"})
        return RemoteSession(self, self.links, found["session"], found["length"])

    def run(self, steps: Sequence[Step]) -> list[StepResult]:
        """Run steps of different sessions; see :class:`Device`."""
        sessions, words, arrays = list[RemoteSession](), list[dict[str, object]](), list[Any]()
        for step in steps:
            check_tokens(step.tokens)
            session = self._own(step.session)
            sessions.append(session)
            residual = None
            arrays.append(narrow(_ids(step.tokens)))
            tokens = len(arrays) - 1
            if step.residual is not None:
                arrays.append(step.residual)
                residual = len(arrays) - 1
            layers = step.layers
            words.append(
                {
                    "session": session.number,
                    "tokens": tokens,
                    "logits_from": step.logits_from,
                    "layers": None if layers is None else [layers.start, layers.stop],
                    "residual": residual,
                }
            )
        if not words:
            return []
        what = f"a step of {sum(len(step.tokens) for step in steps)} tokens"
        if steps[0].layers is not None:
            what += f" through {_layers(steps[0].layers)}"
        found, values = self.ask(what, {"op": "run", "steps": words}, arrays, seconds=_WORK_S)
        rest, results = iter(values), list[StepResult]()
        for session, word in zip(sessions, found["results"], strict=True):
            session.advance(word["length"])
            results.append(
                StepResult(
                    logits=next(rest).astype(np.int64),
                    scale=next(rest),
                    argmax=next(rest).astype(np.int64),
                    saturated=word["saturated"],
                    cycles=word["cycles"],
                    residual=next(rest) if word["residual"] else None,
                )
            )
        return results

    def greedy(
        self, session: Session, token: int, n: int, ends: Collection[int] = ()
    ) -> GreedyResult:
        """Make ``n`` greedy tokens that follow ``token``; see :class:`Device`."""
        check_whole("n", n)
        check_whole("token", token)
        own = self._own(session)
        fields = {
            "op": "greedy",
            "session": own.number,
            "token": int(token),
            "n": int(n),
            "ends": [int(each) for each in ends],
        }
        found, _ = self.ask(f"{n} greedy tokens", fields, seconds=_WORK_S)
        own.advance(found["length"])
        failed = found["failed"]
        return GreedyResult(
            tokens=found["tokens"],
            saturated=found["saturated"],
            cycles=found["cycles"],
            error=None if failed is None else DeviceError(f"{self.name}: {failed}"),
        )

    def counters(self) -> Mapping[str, int]:
        """Performance counters of the last run; empty where there are none."""
        found, _ = self.ask("counters", {"op": "counters"})
        return found["counters"]

    def facts(self) -> Mapping[str, str | int]:
        """Facts about the hardware that runs the model, and where it is."""
        return self._facts

    def close(self) -> None:
        """End the links; the model stays there for the next host."""
        self._model = None
        self.links.close()

    def _own(self, session: Session) -> RemoteSession:
        if not isinstance(session, RemoteSession) or session.device is not self:
            raise LutraError(f"the session is not one of device {self.name}: open one there")
        session.check()
        return session


def _ids(tokens: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.int64]]":
    try:
        return np.asarray(tokens, np.int64)
    except (ValueError, TypeError, OverflowError):
        raise LutraError(
            "token ids must be integers: make tokens with the model's tokenizer"
        ) from None


def _what(model: PackedModel) -> str:
    return f"the model {model.name}"


def _layers(layers: range) -> str:
    return f"layers {layers.start}-{layers.stop - 1}"
