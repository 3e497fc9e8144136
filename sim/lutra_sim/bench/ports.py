"""cocotb models of on-chip memories behind read and write ports, and a monitor of pulses.

They work in the middle of a clock cycle, like the streams of :mod:`lutra_sim.bench.stream`.
"""

from typing import Any

import cocotb
import numpy as np
from amaranth import Shape
from cocotb.triggers import ReadOnly, RisingEdge
from numpy.typing import NDArray

from lutra_hw.ports import ReadPortSignature, WritePortSignature
from lutra_sim.bench.stream import pack, unpack

__all__ = ["PortMemory", "PulseMonitor", "read_word", "read_words"]


async def read_word(dut: Any, name: str, address: int) -> int:
    """Word at ``address`` of a memory in ``dut``, through its read port ``name``."""
    getattr(dut, f"{name}__addr").value = address
    await RisingEdge(dut.clk)
    await ReadOnly()
    word = int(getattr(dut, f"{name}__data").value)
    await RisingEdge(dut.clk)
    return word


async def read_words(dut: Any, name: str, n_words: int) -> list[int]:
    """All words of a memory in ``dut``, through its read port ``name``."""
    if n_words == 1:  # it has no address
        return [int(getattr(dut, f"{name}__data").value)]
    return [await read_word(dut, name, address) for address in range(n_words)]


class PortMemory:
    """A memory that components read and write through their ports.

    Parameters
    ----------
    signature :
        Of any of its ports: the fields of the address, the first one outermost, and the payload.
    values :
        Content, ``[*address fields, *payload]``; what it leaves out reads as noise.
    """

    def __init__(
        self, signature: ReadPortSignature | WritePortSignature, values: Any = None
    ) -> None:
        self._payload = signature.payload_layout
        self._fields = {key: (f.offset, f.shape) for key, f in signature.addr_layout}
        self._noise = 0x5A6B7C8D9E0F % (1 << Shape.cast(self._payload).width)
        self.words: dict[int, int] = {}
        if values is not None:
            self.load(values)

    def _address(self, index: tuple[int, ...]) -> int:
        fields = zip(index, self._fields.values(), strict=True)
        return sum(i << offset for i, (offset, _) in fields)

    def load(self, values: Any) -> None:
        """Replace the content by ``values``."""
        self.words.clear()
        shape = np.shape(values)[: len(self._fields)]
        for index in np.ndindex(shape):
            word = values
            for i in index:
                word = word[i]
            self.words[self._address(index)] = pack(self._payload, word)

    def array(self, *shape: int) -> NDArray[np.int64]:
        """The content of the first ``shape`` addresses, all written before."""
        words = [
            unpack(self._payload, self.words[self._address(index)]) for index in np.ndindex(shape)
        ]
        flat = np.array([list(w.values()) if isinstance(w, dict) else w for w in words], np.int64)
        return flat.reshape(*shape, *flat.shape[1:])

    def serve(self, dut: Any, name: str) -> None:
        """Answer the read port ``name`` of ``dut``, a cycle after the address."""
        addr, data = getattr(dut, f"{name}__addr"), getattr(dut, f"{name}__data")

        async def run() -> None:
            word = self._noise
            while True:
                await RisingEdge(dut.clk)
                data.value = word
                await ReadOnly()
                raw = addr.value
                word = self.words.get(int(raw), self._noise) if raw.is_resolvable else self._noise

        cocotb.start_soon(run())

    def record(self, dut: Any, name: str) -> "PulseMonitor":
        """Take what the write port ``name`` of ``dut`` writes; the monitor counts the writes."""
        addr, data = getattr(dut, f"{name}__addr"), getattr(dut, f"{name}__data")

        def write() -> None:
            self.words[int(addr.value)] = int(data.value)

        return PulseMonitor(dut, f"{name}__en", write)


class PulseMonitor:
    """Records the cycles in which the output ``name`` is high, numbered from the monitor's start.

    Monitors and stream monitors made at the same time share one count.
    """

    def __init__(self, dut: Any, name: str, react: Any = None) -> None:
        self._dut, self._signal, self._react = dut, getattr(dut, name), react
        self.cycles: list[int] = []
        self.cycle = 0
        cocotb.start_soon(self._run())

    async def wait_for(self, n_pulses: int, *, max_cycles: int = 100_000) -> None:
        """Wait until the output was high in ``n_pulses`` cycles."""
        last = self.cycle + max_cycles
        while len(self.cycles) < n_pulses:
            await RisingEdge(self._dut.clk)
            assert self.cycle < last, (
                f"{self._signal._name}: {len(self.cycles)} of {n_pulses} pulses "
                f"after {max_cycles} cycles"
            )

    async def _run(self) -> None:
        while True:
            await RisingEdge(self._dut.clk)
            await ReadOnly()
            self.cycle += 1
            if self._dut.rst.value == 0 and self._signal.value == 1:
                self.cycles.append(self.cycle)
                if self._react is not None:
                    self._react()
