"""The driver's own time: tokens over a transport that answers at once.

python -m lutra.devices.accelerator.bench
"""

import argparse
import json
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.transport import Heap
from lutra.devices.base import Step
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra_golden.control.descriptor import HEADER, MAGIC, line_bytes
from lutra_golden.control.registers import IDENT, STATUS_DONE, VERSION
from lutra_golden.control.result import RESULT, Result, result_bytes
from lutra_golden.core.config import AcceleratorConfig

__all__ = ["NullTransport", "measure"]

_BATCHES = 200
_TOKENS = 25  # of a batch
_WORD = struct.Struct("<I")
_MAGIC = _WORD.pack(MAGIC)
_TAG = 4 * RESULT["tag"].first


class NullTransport:
    """An accelerator that is done as soon as it is started; counts the calls."""

    name = "null"
    emulated: str | None = None
    verify_load = False

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self._heap = Heap(0)
        self._fingerprint, self._base, self._room = 0, -1, 0
        self._results: dict[int, bytearray] = {}
        self._result = bytearray()

    def open(self, config: AcceleratorConfig, n_bytes: int) -> None:
        """Take the place of an accelerator of ``config``."""
        self._heap, self._fingerprint = Heap(n_bytes), config.fingerprint
        self._room = result_bytes(line_bytes(config), config.pass_tokens)
        self._results = {n: self._answer(n) for n in range(_TOKENS + 1)}

    def _answer(self, n_greedy: int) -> bytearray:
        """Result block of a token with logits, or of as many that were made."""
        ones = [1] * max(n_greedy, 1)
        answer = Result(
            fingerprint=self._fingerprint,
            status=STATUS_DONE,
            n_made=n_greedy,
            argmax=ones,
            scale=ones,
        )
        return bytearray(answer.encode())

    def allocate(self, n_bytes: int, bank: int = 0) -> int:
        """Address of memory."""
        self.calls["allocate"] += 1
        return self._heap.allocate(n_bytes)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._heap.free(address)

    def write(self, address: int, data: bytes) -> None:
        """Answer a descriptor, which lies behind room for its result."""
        self.calls["write"] += 1
        if data[self._room : self._room + len(_MAGIC)] != _MAGIC:
            return
        self._base = address
        (n_greedy,) = _WORD.unpack_from(data, self._room + 4 * HEADER["n_greedy"].first)
        self._result, tag = self._results[n_greedy], self._room + 4 * HEADER["tag"].first
        self._result[_TAG : _TAG + 4] = data[tag : tag + 4]

    def zero(self, address: int, n_bytes: int) -> None:
        """Do nothing."""
        self.calls["zero"] += 1

    def read(self, address: int, n_bytes: int) -> bytes:
        """The result block, or logits of zero."""
        self.calls["read"] += 1
        if address == self._base:
            return bytes(self._result).ljust(n_bytes, b"\0")
        return bytes(n_bytes)

    def write_register(self, name: str, value: int, index: int = 0) -> None:
        """Do nothing."""
        self.calls["write_register"] += 1

    def read_register(self, name: str, index: int = 0) -> int:
        """Identity."""
        self.calls["read_register"] += 1
        known = {"IDENT": IDENT, "VERSION": VERSION}
        return known.get(name, self._fingerprint >> 32 * index & 0xFFFFFFFF)

    def start(self) -> None:
        """Do nothing."""
        self.calls["start"] += 1

    def ring(self, address: int) -> None:
        """Do nothing."""
        self.calls["ring"] += 1

    def wait(self, timeout_s: float | None) -> int | None:
        """Return at once."""
        self.calls["wait"] += 1
        return None

    def reset(self) -> None:
        """Do nothing."""

    def counters(self) -> Mapping[str, int]:
        """None."""
        return {}

    def close(self) -> None:
        """Do nothing."""


def measure(model_name: str = "tales") -> dict[str, object]:
    """Calls to the transport and processor time of decoded tokens: single ones, and greedy ones.

    The times are those of the fastest of several batches.
    """
    model = pack_model(load_model(find_model(model_name)))
    transport = NullTransport()
    device = AcceleratorDevice(transport)
    device.load(model)
    session = device.session()

    def single() -> None:
        session.truncate(0)
        for token in range(_TOKENS):
            device.run([Step(session=session, tokens=[token])])

    def greedy() -> None:
        session.truncate(0)
        device.greedy(session, 1, _TOKENS)

    def calls(decode: Callable[[], None]) -> dict[str, int]:
        transport.calls.clear()
        decode()
        return dict(transport.calls)

    def one() -> None:
        device.run([Step(session=session, tokens=[1])])

    single()
    of_token = calls(one)
    return {
        "model": model.name,
        "calls": of_token,
        "n_calls": sum(of_token.values()),
        "driver_us": _fastest_us(single),
        "greedy_tokens": _TOKENS,
        "greedy_n_calls": sum(calls(greedy).values()),
        "greedy_driver_us": _fastest_us(greedy),
        "kind": "measured",
    }


def _fastest_us(decode: Callable[[], None]) -> float:
    """Processor time of a token."""
    seconds: list[float] = []
    for _ in range(_BATCHES):
        before = time.process_time()
        decode()
        seconds.append((time.process_time() - before) / _TOKENS)
    return round(1e6 * min(seconds), 1)


def main() -> None:
    """Print the figures as a line of JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("-m", "--model", default="tales", help="shipped model (default tales)")
    print(json.dumps(measure(parser.parse_args().model)))


if __name__ == "__main__":
    main()
