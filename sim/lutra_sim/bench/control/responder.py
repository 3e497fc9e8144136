"""Answers DMA commands from and into a golden memory, in place of DMA engines."""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.control.memory import Memory
from lutra_hw.ports import dma_command, dma_write_data
from lutra_sim.bench.stream import unpack

__all__ = ["COMMAND", "ReadResponder", "WriteResponder"]

COMMAND = dma_command().members["payload"].shape


class ReadResponder:
    """Takes commands from the stream ``cmd`` and sends their beats into the stream ``data``.

    The first beat of a command comes ``latency`` cycles after it, later ones as fast as they are
    taken; both streams stall with a chance of ``p_stall`` in each cycle. While the signal ``clear``
    is high, everything is dropped.

    Members
    -------
    commands : ``(address, beats)`` of every command
    n_beats : beats that were taken
    """

    def __init__(
        self,
        dut: Any,
        cmd: str,
        data: str,
        memory: Memory,
        *,
        clear: str | None = None,
        latency: int = 2,
        p_stall: float = 0.0,
        rng: Random | None = None,
    ) -> None:
        self._clear = None if clear is None else getattr(dut, clear)
        self.commands: list[tuple[int, int]] = []
        self.n_beats = 0
        self._dut, self._memory, self._latency = dut, memory, latency
        self._p_stall, self._rng = p_stall, rng or Random(0)
        self._cmd = [getattr(dut, f"{cmd}__{name}") for name in ("payload", "valid", "ready")]
        self._data = [getattr(dut, f"{data}__{name}") for name in ("payload", "valid", "ready")]
        self._n_bytes = len(self._data[0]) // 8
        self._cmd[2].value = 0
        self._data[1].value = 0
        cocotb.start_soon(self._run())

    def _stalls(self) -> bool:
        return self._p_stall > 0 and self._rng.random() < self._p_stall

    async def _run(self) -> None:
        pending = deque[tuple[int, int]]()  # cycle and address of each beat
        cycle, offering = 0, False
        while True:
            await RisingEdge(self._dut.clk)
            cycle += 1
            self._cmd[2].value = int(not self._stalls())
            if not offering and pending and pending[0][0] <= cycle and not self._stalls():
                offering = True
                content = self._memory.read(pending[0][1], self._n_bytes).tobytes()
                self._data[0].value = int.from_bytes(content, "little")
            self._data[1].value = int(offering)
            await ReadOnly()
            if self._dut.rst.value == 1:
                continue
            if self._clear is not None and self._clear.value == 1:
                pending.clear()
                offering = False
                continue
            if self._cmd[1].value == 1 and self._cmd[2].value == 1:
                command = unpack(COMMAND, int(self._cmd[0].value))
                address, beats = command["addr"], command["beats"]
                assert address % self._n_bytes == 0, f"{address:#x} is not aligned to a beat"
                self.commands.append((address, beats))
                due = cycle + self._latency
                pending.extend((due, address + i * self._n_bytes) for i in range(beats))
            if offering and self._data[2].value == 1:
                pending.popleft()
                self.n_beats += 1
                offering = False


class WriteResponder:
    """Writes the beats of the stream ``data`` where the commands of the stream ``cmd`` say.

    A beat is in memory and answered up to ``latency`` cycles after it came; ``idle`` is high when
    all are. Both streams stall with a chance of ``p_stall`` in each cycle. While the signal
    ``clear`` is high, everything is dropped. ``on_answer`` is called with the address of each beat
    in the cycle in which it was answered.
    """

    def __init__(
        self,
        dut: Any,
        cmd: str,
        data: str,
        idle: str,
        memory: Memory,
        *,
        latency: int = 2,
        p_stall: float = 0.0,
        rng: Random | None = None,
        on_answer: Callable[[int], None] | None = None,
    ) -> None:
        self.n_beats = 0
        self._on_answer = on_answer
        self._dut, self._memory, self._latency = dut, memory, latency
        self._p_stall, self._rng = p_stall, rng or Random(0)
        self._cmd = [getattr(dut, f"{cmd}__{name}") for name in ("payload", "valid", "ready")]
        self._data = [getattr(dut, f"{data}__{name}") for name in ("payload", "valid", "ready")]
        self._idle = getattr(dut, idle)
        self._layout = dma_write_data(len(self._data[0]) // 9 * 8).members["payload"].shape
        self._cmd[2].value = self._data[2].value = 0
        self._idle.value = 1
        cocotb.start_soon(self._run())

    def _ready(self) -> int:
        return int(not self._p_stall or self._rng.random() >= self._p_stall)

    async def _run(self) -> None:
        addresses, beats = deque[int](), deque[dict[str, int]]()
        due = deque[int]()
        cycle = 0
        while True:
            await RisingEdge(self._dut.clk)
            cycle += 1
            while addresses and beats and due[0] <= cycle:
                due.popleft()
                address = addresses.popleft()
                self._write(address, beats.popleft())
                if self._on_answer is not None:
                    self._on_answer(address)
            self._idle.value = int(not addresses and not beats)
            self._cmd[2].value, self._data[2].value = self._ready(), self._ready()
            await ReadOnly()
            if self._dut.rst.value == 1 or self._dut.clear.value == 1:
                # what a burst has not claimed is dropped
                for queue in (addresses, beats, due):
                    queue.clear()
                continue
            if self._cmd[1].value == 1 and self._cmd[2].value == 1:
                command = unpack(COMMAND, int(self._cmd[0].value))
                n_bytes = len(self._data[0]) // 9
                addresses.extend(command["addr"] + i * n_bytes for i in range(command["beats"]))
            if self._data[1].value == 1 and self._data[2].value == 1:
                beats.append(unpack(self._layout, int(self._data[0].value)))
                due.append(cycle + 1 + self._rng.randrange(self._latency))
                self.n_beats += 1

    def _write(self, address: int, beat: dict[str, int]) -> None:
        n_bytes = len(self._data[0]) // 9
        assert address % n_bytes == 0, f"{address:#x} is not aligned to a beat"
        content = beat["data"].to_bytes(n_bytes, "little")
        for i in range(n_bytes):
            if beat["strb"] >> i & 1:
                self._memory.write(address + i, content[i : i + 1])
