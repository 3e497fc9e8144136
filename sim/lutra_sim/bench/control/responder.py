"""Answers DMA commands from a golden memory, in place of a DMA engine."""

from collections import deque
from random import Random
from typing import Any

import cocotb
from cocotb.triggers import ReadOnly, RisingEdge

from lutra_golden.control.memory import Memory
from lutra_hw.ports import dma_command
from lutra_sim.bench.stream import unpack

__all__ = ["COMMAND", "ReadResponder"]

COMMAND = dma_command().members["payload"].shape


class ReadResponder:
    """Takes commands from the stream ``cmd`` and sends their beats into the stream ``data``.

    The first beat of a command comes ``latency`` cycles after it, later ones as fast as they are
    taken; both streams stall with a chance of ``p_stall`` in each cycle.

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
        latency: int = 2,
        p_stall: float = 0.0,
        rng: Random | None = None,
    ) -> None:
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
