"""Lends a device of this process to Lutras elsewhere: their models, sessions and steps."""

import logging
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.closing import Closing
from lutra.devices.accelerator.agent import Frames, LinkError, Stream, refusal, serve_tcp
from lutra.devices.base import Device, DeviceError, Session, Step, StepResult
from lutra.devices.pages import NoRoom
from lutra.devices.remote.link import LENDER
from lutra.devices.remote.wire import (
    BODY_MAX,
    FAULT,
    NO_ROOM,
    REFUSAL,
    Message,
    narrow,
    pack,
    unpack,
)
from lutra.packed.file import open_packed
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.capabilities import COMMON_PARTS

__all__ = ["LINKS", "Lender", "LendingServer"]

Log = Callable[[str], object]
_LOG = logging.getLogger(__name__)
LINKS = 64
"""Links at a time; a host has one for each call that is under way."""
_FIRST_MAX = 256  # bytes of the first message: it may come from anybody
_HANDSHAKE_S, _MESSAGE_S = 5.0, 600.0  # a message may be large, and its link slow
_CONFIG_MAX, _MODEL_MAX = 1 << 26, 1 << 40
_CONFIG, _TENSORS = "config.json", "model.safetensors"


@dataclass
class _Host:
    """A host: its links, and its sessions by number."""

    peer: str
    links: int = 0
    sessions: dict[int, Session] = field(default_factory=dict[int, Session])


@dataclass
class _Coming:
    """A model on its way: its files, and how many bytes of tensors are still to come."""

    fingerprint: str
    folder: "tempfile.TemporaryDirectory[str]"
    left: int


class Lender(Closing):
    """Lends ``device`` to hosts that have ``key``, several at a time as long as they run one model.

    A model comes over the link unless it is loaded already; it stays when its host goes. Sessions
    end with the last link of their host.
    """

    def __init__(self, device: Device, key: bytes | None, log: Log) -> None:
        self.device, self._key, self._log = device, key, log
        self._hosts: dict[str, _Host] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._numbers = count()
        self._streams: set[Stream] = set()
        self._loaded: tuple[str, tempfile.TemporaryDirectory[str]] | None = None
        self._coming: dict[str, _Coming] = {}
        self._operations: Mapping[str, Callable[[_Host, Message], bytes]] = {
            "about": self._about,
            "session": self._session,
            "run": self._run,
            "greedy": self._greedy,
            "export": self._export,
            "restore": self._restore,
            "reserve": self._reserve,
            "truncate": self._truncate,
            "fork": self._fork,
            "counters": self._counters,
        }

    def close(self) -> None:
        """End all links; release the device, and the model's files."""
        with self._lock:
            streams = list(self._streams)
        for each in streams:
            each.shut()
        self.device.close()
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[1].cleanup()

    def serve(self, stream: Stream, peer: str) -> None:
        """Serve a link to its end."""
        with self._lock:
            self._streams.add(stream)
        try:
            frames = LENDER.serve(stream, self._key)
            name = self._greeted(stream, frames)
            try:
                host = self._joined(name, peer)
                stream.send(frames.pack(pack(self._words())), _MESSAGE_S)
                self._obey(stream, frames, name, host)
            finally:
                self._gone(name)
        except LinkError as error:
            self._log(f"{peer}: {error}")
            with suppress(LinkError):
                stream.send(refusal(str(error)), 1.0)
        finally:
            with self._lock:
                self._streams.discard(stream)
            stream.shut()

    # -- hosts

    def _greeted(self, stream: Stream, frames: Frames) -> str:
        """The host's name for itself, by which its links belong together."""
        fields, _ = unpack(frames.receive(stream, time.monotonic() + _HANDSHAKE_S, _FIRST_MAX))
        name = fields.get("client")
        if fields.get("op") != "hello" or not isinstance(name, str):
            raise LinkError("the first message is no hello")
        return name

    def _joined(self, name: str, peer: str) -> _Host:
        with self._lock:
            if name not in self._hosts:
                self._log(f"{peer}: comes")
            host = self._hosts.setdefault(name, _Host(peer))
            host.links += 1
            return host

    def _gone(self, name: str) -> None:
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                return
            host.links -= 1
            if host.links:
                return
            del self._hosts[name]
            coming = self._coming.pop(name, None)
        if coming is not None:
            coming.folder.cleanup()
        self._end_sessions(host)
        self._log(f"{host.peer}: gone")

    def _end_sessions(self, host: _Host) -> None:
        sessions, host.sessions = host.sessions, {}
        for session in sessions.values():
            with suppress(LutraError):
                session.close()

    def _words(self) -> dict[str, object]:
        capabilities = getattr(self.device, "capabilities", COMMON_PARTS)
        return {"name": self.device.name, "capabilities": asdict(capabilities)}

    def _obey(self, stream: Stream, frames: Frames, name: str, host: _Host) -> None:
        """Carry out messages until the host goes."""
        while True:
            try:
                while not stream.waiting:
                    stream.fill(60.0)
            except LinkError:
                return  # between two messages: it has gone
            body = frames.receive(stream, time.monotonic() + _MESSAGE_S, BODY_MAX)
            message = unpack(body)
            try:
                answer = self._answer(name, host, message)
            except LinkError:
                raise
            except DeviceError as error:
                answer = pack({"error": str(error), "kind": FAULT})
            except NoRoom as error:
                answer = pack({"error": str(error), "kind": NO_ROOM})
            except LutraError as error:
                answer = pack({"error": str(error), "kind": REFUSAL})
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                _LOG.warning("a message of %s failed", host.peer, exc_info=error)
                raise LinkError(f"a message cannot be carried out ({error!r})") from None
            stream.send(frames.pack(answer), _MESSAGE_S)

    def _answer(self, name: str, host: _Host, message: Message) -> bytes:
        fields, arrays = message
        for number in fields["drop"]:
            session = host.sessions.pop(number, None)
            if session is not None:
                session.close()
        op = fields["op"]
        if op == "model":
            return self._model(name, host, fields)
        if op == "part":
            return self._part(name, arrays[0])
        if op == "load":
            return self._load(name, host)
        if op not in self._operations:
            raise LinkError(f"a message has the unknown operation {op!r}")
        return self._operations[op](host, message)

    # -- the model

    def _model(self, name: str, host: _Host, fields: Mapping[str, Any]) -> bytes:
        """Announces a model, whose tensors follow in parts unless it is loaded already."""
        fingerprint, config, size = (
            str(fields["fingerprint"]),
            str(fields["config"]),
            fields["size"],
        )
        with self._lock:
            before = self._coming.pop(name, None)
        if before is not None:
            before.folder.cleanup()
        if not 0 < int(size) <= _MODEL_MAX or len(config) > _CONFIG_MAX:
            raise LutraError(f"a model of {size} bytes is none")
        self._end_sessions(host)
        with self._lock:
            has = self._loaded is not None and self._loaded[0] == fingerprint
        if has:
            return pack({"has": True})
        folder = tempfile.TemporaryDirectory(prefix="lutra-lent-")
        Path(folder.name, _CONFIG).write_text(config, encoding="utf-8")
        Path(folder.name, _TENSORS).touch()
        with self._lock:
            self._coming[name] = _Coming(fingerprint, folder, int(size))
        return pack({"has": False})

    def _part(self, name: str, data: NDArray[Any]) -> bytes:
        coming = self._coming[name]
        coming.left -= data.nbytes
        if coming.left < 0:
            raise LinkError("a model has bytes too many")
        with Path(coming.folder.name, _TENSORS).open("ab") as file:
            file.write(data.data)
        return pack({})

    def _load(self, name: str, host: _Host) -> bytes:
        """Load the model that has come, unless it is there already."""
        with self._lock:
            coming = self._coming.pop(name, None)
        with self._loading:
            if coming is not None and (
                self._loaded is None or self._loaded[0] != coming.fingerprint
            ):
                try:
                    self._take(host, coming)
                except BaseException:
                    coming.folder.cleanup()
                    raise
            elif coming is not None:
                coming.folder.cleanup()
            if self._loaded is None:
                raise LutraError("no model has come: send one first")
        return pack({**self._sizes(), "facts": dict(self.device.facts())})

    def _take(self, host: _Host, coming: _Coming) -> None:
        with self._lock:
            others = [each.peer for each in self._hosts.values() if each is not host]
        if others and self._loaded is not None:
            raise LutraError(
                f"the device is lent to {others[0]}, with another model: end that first, or use "
                "the same model"
            )
        model = open_packed(Path(coming.folder.name)).model
        before, self._loaded = self._loaded, None
        self.device.load(model)
        self._loaded = coming.fingerprint, coming.folder
        if before is not None:
            before[1].cleanup()
        self._log(f"{host.peer}: loads {model.name}")

    def _sizes(self) -> dict[str, object]:
        return {
            "pass": self.device.pass_tokens,
            "greedy": self.device.greedy_tokens,
            "page": getattr(self.device, "page", 1),
        }

    # -- sessions and steps

    def _about(self, _host: _Host, _message: Message) -> bytes:
        return pack(self._words())

    def _counters(self, _host: _Host, _message: Message) -> bytes:
        return pack({"counters": dict(self.device.counters())})

    def _opened(self, host: _Host, session: Session) -> bytes:
        number = next(self._numbers)
        host.sessions[number] = session
        return pack({"session": number, "length": session.length})

    def _session(self, host: _Host, _message: Message) -> bytes:
        return self._opened(host, self.device.session())

    def _of(self, host: _Host, number: object) -> Session:
        session = host.sessions.get(number) if isinstance(number, int) else None
        if session is None:
            raise LutraError("the session is closed: open another one")
        return session

    def _run(self, host: _Host, message: Message) -> bytes:
        fields, arrays = message
        steps = list[Step]()
        for given in fields["steps"]:
            first, stop = given["layers"] or (0, 0)
            tokens: int = given["tokens"]
            residual: int | None = given["residual"]
            steps.append(
                Step(
                    session=self._of(host, given["session"]),
                    tokens=arrays[tokens].tolist(),
                    logits_from=given["logits_from"],
                    layers=range(first, stop) if given["layers"] else None,
                    residual=None if residual is None else arrays[residual],
                )
            )
        results = self.device.run(steps)
        words, values = list[dict[str, object]](), list[NDArray[Any]]()
        for step, result in zip(steps, results, strict=True):
            words.append(_words_of(step, result))
            values += [narrow(result.logits), result.scale, narrow(result.argmax)]
            if result.residual is not None:
                values.append(result.residual)
        return pack({"results": words}, values)

    def _greedy(self, host: _Host, message: Message) -> bytes:
        fields, _ = message
        session = self._of(host, fields["session"])
        made = self.device.greedy(session, fields["token"], fields["n"], fields["ends"])
        return pack(
            {
                "tokens": [int(each) for each in made.tokens],
                "saturated": bool(made.saturated),
                "cycles": made.cycles,
                "failed": None if made.error is None else str(made.error),
                "length": session.length,
            }
        )

    def _export(self, host: _Host, message: Message) -> bytes:
        first, stop = message[0]["layers"]
        kv = self._of(host, message[0]["session"]).export(range(first, stop))
        return pack({}, [np.frombuffer(kv.to_bytes(), np.uint8)])

    def _restore(self, host: _Host, message: Message) -> bytes:
        session = self._of(host, message[0]["session"])
        session.restore(SequenceKv.from_bytes(message[1][0].tobytes()))
        return pack({"length": session.length})

    def _reserve(self, host: _Host, message: Message) -> bytes:
        fields, _ = message
        self._of(host, fields["session"]).reserve(fields["n"], fields["spare"])
        return pack({})

    def _truncate(self, host: _Host, message: Message) -> bytes:
        session = self._of(host, message[0]["session"])
        session.truncate(message[0]["n"])
        return pack({"length": session.length})

    def _fork(self, host: _Host, message: Message) -> bytes:
        return self._opened(host, self._of(host, message[0]["session"]).fork(message[0]["n"]))


def _words_of(step: Step, result: StepResult) -> dict[str, object]:
    return {
        "saturated": bool(result.saturated),
        "cycles": result.cycles,
        "residual": result.residual is not None,
        "length": step.session.length,
    }


class LendingServer(Closing):
    """Lends ``device`` at a socket that listens, in threads of its own, until it is closed."""

    def __init__(
        self, device: Device, listening: socket.socket, key: bytes | None, log: Log
    ) -> None:
        self.lender, self._listening = Lender(device, key, self._note), listening
        self.port: int = listening.getsockname()[1]
        self._log: Log | None = log
        self._thread = threading.Thread(
            target=serve_tcp,
            args=(self.lender, listening, self._note, LINKS),
            name="lutra lender",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is closed."""
        while self._thread.is_alive():
            self._thread.join(1.0)  # signals are heard between two waits

    def close(self) -> None:
        """Take no more links, end those that are there, and release the device."""
        self._log = None
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.lender.close()

    def _note(self, text: str) -> None:
        if self._log is not None:  # that links end is no news at the end
            self._log(text)
