"""Finds the first word of a run of the RTL that is not what the interpreter says.

Everything that one unit hands to another is watched at the unit's ports: instructions, words that
are read and written, buffers. A unit whose inputs have all been right so far, and whose output is
not, is where the fault is; nothing inside it needs to be known.
"""

import re
from collections.abc import Mapping

from lutra_golden.control.isa import Unit
from lutra_golden.control.recorder import Executed
from lutra_golden.control.registers import CONTEXT
from lutra_golden.core.ports import Purpose
from lutra_sim.diagnosis.control import ControlCheck
from lutra_sim.diagnosis.reads import ReadCheck
from lutra_sim.diagnosis.view import (
    CONTROL,
    UNIT_NAMES,
    WRITES,
    Finding,
    Found,
    Reference,
    RunView,
    said,
)
from lutra_sim.diagnosis.words import BUFFERS, WordCheck
from lutra_sim.rtl.build import WirePort

__all__ = ["WATCHED", "Monitor"]


class Monitor:
    """Compares a trace with ``reference``; :attr:`wires` are what the trace must have.

    ``ports`` are those of :func:`lutra_sim.rtl.build.ports_of`.
    """

    def __init__(self, reference: Reference, ports: Mapping[str, WirePort]) -> None:
        self._view = view = RunView(reference, ports, WATCHED)
        self._control, self._reads = ControlCheck(view), ReadCheck(view)
        self._words = WordCheck(view)
        self._started = self._finished = self._over = self._fetching = False
        self._raw = True

    @property
    def wires(self) -> list[str]:
        """Paths of the wires that are watched."""
        return self._view.wires

    @property
    def scopes(self) -> list[str]:
        """Instances that the wires are in."""
        return sorted({wire.rpartition(".")[0] for wire in self.wires})

    def cycle(self, number: int, values: list[str]) -> Finding | None:
        """Finding of the next clock cycle, if anything is wrong in it."""
        view = self._view
        if self._over:
            return None
        before, view.values = view.values, values
        if (self._started or self._fetching) and view.bit("registers.clear"):
            # the run has failed: from here on the units are as after a reset
            self._over, view.values = True, before
            return None
        view.cycle = number
        try:
            self._step()
        except Found as found:
            return found.finding
        view.values = list(values)
        return None

    def _step(self) -> None:
        view = self._view
        if view.bit("sequencer.start"):
            self._raw = self._fetching = view.bit("sequencer.raw")
            if not self._raw:
                self._started = True
                self._control.context()
        if view.bit("sequencer.finished"):
            self._fetching = False
            if not self._raw:
                self._finished = True
                self._complete()
        self._control.step(finished=self._finished)
        self._reads.step(fetches=not self._raw)
        self._words.step()

    def _complete(self) -> None:
        view = self._view
        for unit, queue in view.queues.items():
            done = view.done[unit]
            if done < len(queue):
                text = f"the run ends when {done} of {len(queue)} instructions of the "
                text += f"{UNIT_NAMES[unit]} are done"
                view.fail("sequencer", "sequencer.finished", text)

    def refused(self, error: str, end: int) -> Finding | None:
        """Finding of a run that the simulated memory ended in cycle ``end``, for a broken rule.

        ``error`` is what it says: of a channel of a port, or of bytes that were never written.
        """
        register = re.match(r"register (?:read|write) at ", error)
        if register:
            return Finding(cycle=end, unit=CONTROL, signal="accelerator.s_axi", text=error)
        found = re.match(
            r"(?:the payload of )?m_axi_(\d+)(?:__([a-z]+)| reads \d+ bytes at (\w+))", error
        )
        if found is None:
            return None
        race = self._race(error, end)
        if race is not None:
            return race
        number, channel, address = found.groups()
        signal = f"accelerator.m_axi_{number}"
        if channel is not None and channel.startswith(("aw", "w", "b")):
            return Finding(cycle=end, unit=WRITES, signal=signal, text=error)
        if address is not None and self._reads.asks(Purpose.ATTENTION, int(address, 16)):
            # of its own addresses it is only known that they are keys' or values'
            executed = self._view.current(Unit.ATTENTION)
            return Finding(
                cycle=end,
                unit=UNIT_NAMES[Unit.ATTENTION],
                signal=self._view.path("attention.rd_cmd__payload"),
                text=error,
                index=None if executed is None else executed.index,
            )
        port = self._view.reference.config.ports[int(number)]
        purposes = " or ".join(port.reads)
        unit = f"reads of {purposes} (reader, width converter, arbiter)"
        return Finding(cycle=end, unit=unit, signal=signal, text=error)

    def _race(self, error: str, end: int) -> Finding | None:
        """Finding of a run in which bytes were read that were written and are not answered."""
        found = re.match(
            r"m_axi_(\d+)__araddr (\w+): (\d+) bytes overlap with (m_axi_\d+__aw)addr (\w+)", error
        )
        if found is None:
            return None
        first, n_bytes = int(found[2], 16), int(found[3])
        reads = self._view.reference.config.ports[int(found[1])].reads
        asking = [each for each in reads if self._reads.asks(each, first, n_bytes)]
        if not asking:
            return None
        unit = {Purpose.ATTENTION: Unit.ATTENTION, Purpose.LOAD: Unit.LOAD}.get(asking[0])
        executed = None if unit is None else self._view.current(unit)
        index = None if executed is None else executed.index
        if unit is not None and self._words.writes(range(first, first + n_bytes)):
            # the instruction that writes goes on, and its words are read
            signal = self._view.path(f"{unit.name.lower()}.rd_cmd__payload")
            who = self._view.name(unit, executed)
        else:
            # what waits for a write waits until the writer says that it is idle
            signal, who = f"accelerator.{found[4]}valid", WRITES
        return Finding(cycle=end, unit=who, signal=signal, text=error, index=index)

    def stuck(self) -> Finding:
        """Finding of a run that has ended without a wrong word, by an error or a hang."""
        try:
            self._waits()
        except Found as found:
            return found.finding
        raise AssertionError("something is always waited for")

    def _waits(self) -> None:
        if not self._started:
            self._waits_to_begin()
        if self._finished:
            self._waits_to_end()
        busy = [
            executed
            for unit in Unit
            if (executed := self._view.current(unit)) and self._view.begun(executed)
        ]
        for executed in sorted(busy, key=lambda each: each.index):
            self._waits_of(executed)
        waiting = [e for unit in Unit if (e := self._view.current(unit))]
        ready = [
            e
            for e in waiting
            if all(self._view.done[u] >= w for u, w in zip(Unit, e.instruction.waits, strict=True))
        ]
        first = min(ready or waiting, key=lambda each: each.index, default=None)
        self._waits_to_fetch(first)
        if first is None:
            text = "all instructions are done, and the program does not end"
            self._view.fail("sequencer", "sequencer.finished", text)
        text = f"{said(first)} is not begun, and nothing that it waits for is missing"
        stream = f"sequencer.{first.unit.name.lower()}_cmd"
        if self._view.bit(f"{stream}__valid"):
            text = f"it does not take {said(first)}"
            self._view.fail(self._view.name(first.unit, first), f"{stream}__ready", text, first)
        self._view.fail("sequencer", f"{stream}__valid", text, first)

    def _waits_to_begin(self) -> None:
        """Say what a run waits for whose program is not begun."""
        if self._fetching:
            self._waits_to_fetch(None)
            if self._view.bit("sequencer.word__valid") and not self._view.bit(
                "sequencer.word__ready"
            ):
                text = "a word of the descriptor is not taken"
                self._view.fail(CONTROL, "sequencer.word__ready", text)
            text = "all words of the descriptor came, and its fetch does not end"
            self._view.fail("sequencer", "sequencer.finished", text)
        self._view.fail(CONTROL, "sequencer.start", "the program is not begun")

    def _waits_to_end(self) -> None:
        """Say what a run waits for whose program is over."""
        for name in ("vector.wr_cmd", "vector.wr_data"):
            if self._view.bit(f"{name}__valid") and not self._view.bit(f"{name}__ready"):
                self._view.fail(WRITES, f"{name}__ready", "a word of the result is not taken")
        if self._words.has_result and not self._view.bit("vector.wr_idle"):
            text = "the result was handed over, and is never written"
            self._view.fail(WRITES, "vector.wr_idle", text)
        text = "the program is over, and its run is not"
        self._view.fail(CONTROL, "sequencer.finished", text)

    def _waits_to_fetch(self, first: Executed | None) -> None:
        """Say that the sequencer waits for words, of which ``first`` may be an instruction."""
        fetch, name = self._reads.reads["sequencer.rd_cmd"], "sequencer.rd_cmd"
        if self._view.bit(f"{fetch.data}__valid"):
            return
        if self._view.bit(f"{name}__valid") and not self._view.bit(f"{name}__ready"):
            text = "a command of the sequencer is not taken"
            self._view.fail(fetch.where, f"{name}__ready", text, first)
        if fetch.asked > fetch.came:
            text = f"{fetch.came} of {fetch.asked} words came that were asked for"
            self._view.fail(fetch.where, f"{fetch.data}__valid", text, first)

    def _waits_of(self, executed: Executed) -> None:
        """Say what the unit of an instruction that was begun waits for."""
        unit = executed.unit
        command = {
            Unit.LOAD: "load.rd_cmd",
            Unit.MATMUL: "sequencer.weight_cmd",
            Unit.ATTENTION: "attention.rd_cmd",
        }.get(unit)
        who = self._view.name(unit, executed)
        if command is not None:
            reads = self._reads.reads[command]
            if self._view.bit(f"{command}__valid") and not self._view.bit(f"{command}__ready"):
                text = f"a command of {said(executed)} is not taken"
                if not self._view.bit(f"{reads.data}__valid"):
                    self._view.fail(reads.where, f"{command}__ready", text, executed)
            if reads.asked > reads.came and not self._view.bit(f"{reads.data}__valid"):
                text = f"{said(executed)} waits for words: {reads.came} of {reads.asked} came"
                self._view.fail(reads.where, f"{reads.data}__valid", text, executed)
        if unit is Unit.VECTOR:
            for name in ("vector.wr_cmd", "vector.wr_data"):
                if self._view.bit(f"{name}__valid") and not self._view.bit(f"{name}__ready"):
                    text = f"a word of {said(executed)} is not taken"
                    self._view.fail(WRITES, f"{name}__ready", text, executed)
            if self._words.handed_over(executed) and not self._view.bit("vector.wr_idle"):
                text = f"all that {said(executed)} writes was handed over, and is never written"
                self._view.fail(WRITES, "vector.wr_idle", text, executed)
        text = f"{said(executed)} has all that it needs, and does not end"
        self._view.fail(who, f"{unit.name.lower()}.done", text, executed)


def _names() -> list[str]:
    names = [f"{c}.{p}__{part}" for c, p, _ in BUFFERS for part in ("en", "addr", "data")]
    for unit in Unit:
        name = unit.name.lower()
        names += [f"{name}.done", f"{name}.busy", *_stream(f"sequencer.{name}_cmd")]
    for name in (
        *("matmul.cmd", "attention.cmd", "vector.wr_cmd", "vector.wr_data"),
        *("sequencer.rd_cmd", "sequencer.rd_data", "load.rd_cmd", "load.rd_data"),
        *("vector.result_cmd", "vector.result_data"),
        *("attention.rd_cmd", "attention.rd_data", "sequencer.weight_cmd", "matmul.weights"),
    ):
        names += _stream(name)
    names += ["sequencer.start", "sequencer.raw", "sequencer.finished", "vector.wr_idle"]
    names += ["sequencer.word__valid", "sequencer.word__ready"]
    names += ["matmul.acc__addr", "matmul.acc__data", "load.tokens__addr", "load.tokens__data"]
    names += ["vector.argmax__addr", "vector.argmax__data"]
    names += ["vector.saturated", "attention.saturated", "registers.clear"]
    for name in ("load", "vector", "attention"):
        names += [f"{name}.chunks__addr", f"{name}.chunks__data"]
    return names + [f"registers.context__{name.lower()}" for name in CONTEXT]


def _stream(name: str) -> list[str]:
    return [f"{name}__{part}" for part in ("valid", "ready", "payload")]


WATCHED = tuple(_names())
"""Ports inside the core that are watched."""
