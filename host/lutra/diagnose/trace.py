"""A pass on the simulated RTL, whose internal streams are compared with the interpreter's."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import DeviceError, Session
from lutra.diagnose.passes import GoldenPasses, Pass, same_kv
from lutra_golden.control.recorder import Recorder
from lutra_golden.core.ports import Purpose
from lutra_golden.model.packed import PackedModel
from lutra_sim.diagnosis.monitor import Monitor
from lutra_sim.diagnosis.vcd import cycles_of
from lutra_sim.diagnosis.view import CONTROL, WRITES, Finding, Reference
from lutra_sim.rtl.build import ports_of

__all__ = ["Located", "Watched", "locate", "watch", "write_wave"]

_BEFORE, _AFTER = 200, 50  # cycles of the wave window
_UNWRITTEN = "the host reads "  # begins what the simulator says of memory that was never written
_NOTHING_MOVED = "nothing moved for too long"  # is in what the watchdog's error says


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A pass whose streams were compared: ``finding`` is the first that is wrong.

    ``differs`` says how the pass ended: ``error``, wrong ``memory``, wrong ``result``, None if it
    came right. ``end`` is the cycle behind its last.
    """

    differs: str | None
    finding: Finding | None
    end: int


@dataclass(frozen=True, kw_only=True)
class Located:
    """A finding, and the cycles of the simulation that show it."""

    finding: Finding
    window: tuple[int, int]


def watch(device: AcceleratorDevice, passes: GoldenPasses, index: int) -> Watched:
    """Run the first passes up to number ``index`` on a new simulation, and compare this one.

    ``device`` is on a traceable simulation.
    """
    with tempfile.TemporaryDirectory(prefix="lutra-bisect-") as folder:
        path = Path(folder) / "streams.vcd"
        reference = _reference(device, passes, index)
        monitor = Monitor(reference, ports_of(device.config))
        session = _replay(device, passes.known[:index])
        simulator = _transport(device).simulator
        simulator.trace(path, scopes=monitor.scopes)
        differs, error = _run(device, session, passes, index)
        end = simulator.cycles
        simulator.end_trace()
        finding = _first(monitor, path, simulator.clock_ps)
    if finding is None and differs is not None:
        finding = _behind(monitor, differs, error, end, device.watchdog_cycles)
    if finding is not None:
        finding = _in_memory(device, reference, finding)
    return Watched(differs=differs, finding=finding, end=end)


def locate(device: AcceleratorDevice, passes: GoldenPasses, index: int) -> Located | None:
    """The first wrong word inside the accelerator in pass number ``index``; None if it comes right.

    See :func:`watch`.
    """
    watched = watch(device, passes, index)
    finding = watched.finding
    if watched.differs is None or finding is None:
        return None
    window = max(finding.cycle - _BEFORE, 0), min(finding.cycle + _AFTER, watched.end)
    return Located(finding=finding, window=window)


def write_wave(
    device: AcceleratorDevice,
    passes: GoldenPasses,
    index: int,
    window: tuple[int, int],
    path: Path,
) -> None:
    """Write all signals of a window of pass number ``index``."""
    session = _replay(device, passes.known[:index])
    simulator = _transport(device).simulator
    simulator.trace(path, window)
    _run(device, session, passes, index)
    simulator.end_trace()


def _transport(device: AcceleratorDevice) -> RtlTransport:
    assert isinstance(device.transport, RtlTransport)
    return device.transport


def _replay(device: AcceleratorDevice, passes: Sequence[Pass]) -> Session:
    """A new simulation, on which these passes have run."""
    device.load_program(device.model, device.program)
    session = device.session()
    for each in passes:
        device.run([each.step(session)])
    return session


def _run(
    device: AcceleratorDevice, session: Session, passes: GoldenPasses, index: int
) -> tuple[str | None, str]:
    """Run a pass; how it differs, in a word: ``error``, ``memory``, ``result`` or not at all.

    The text is that of an error.
    """
    each = passes.known[index]
    try:
        [result] = device.run([each.step(session)])
        kv = session.export()
    except DeviceError as error:
        # what was to be written never was
        return "memory" if str(error).startswith(_UNWRITTEN) else "error", str(error)
    expected, reference = each.expected, passes.kv(each.position + len(each.tokens))
    if (result.logits != expected.logits).any() or not all(
        same_kv(layer, reference.layers[i]) for i, layer in kv.layers.items()
    ):
        return "memory", ""
    same = (result.argmax == expected.argmax).all() and (result.scale == expected.scale).all()
    return None if same and result.saturated == expected.saturated else "result", ""


def _reference(device: AcceleratorDevice, passes: GoldenPasses, index: int) -> Reference:
    """The pass on the interpreter, from golden's keys and values, at the same addresses."""
    each, transport = passes.known[index], InterpretedTransport()
    other = AcceleratorDevice(transport)
    other.load_program(_model(device), device.program)
    session = other.session()
    session.restore(passes.kv(each.position))
    interpreter = transport.interpreter
    recorder = Recorder(interpreter)
    other.run([each.step(session)])
    recorder.close()
    return Reference(
        config=device.config,
        executed=recorder.executed,
        memory=interpreter.memory,
        registers=dict(interpreter.registers),
        tokens=interpreter.tokens.tolist(),
        chunks=list(interpreter.chunks),
        argmax=interpreter.argmax.tolist(),
    )


def _model(device: AcceleratorDevice) -> PackedModel:
    return device.model


def _first(monitor: Monitor, path: Path, clock_ps: int) -> Finding | None:
    for number, values in cycles_of(path, monitor.wires, clock_ps):
        found = monitor.cycle(number, values)
        if found is not None:
            return found
    return None


def _behind(monitor: Monitor, differs: str, error: str, end: int, limit: int) -> Finding:
    """Finding where every stream inside was right; ``limit`` is the watchdog's, in cycles."""
    if differs == "error":
        if _NOTHING_MOVED in error and end < limit:
            text = f"the watchdog ends the run in cycle {end}, before its limit of {limit} cycles"
            return Finding(
                cycle=end, unit=CONTROL, signal="accelerator.core.watchdog.expired", text=text
            )
        return monitor.refused(error, end) or monitor.stuck()
    if differs == "memory":
        text = "all words that were to be written were right, and memory is not"
        return Finding(cycle=end, unit=WRITES, signal="accelerator.core.vector.wr_data", text=text)
    text = "logits, keys and values are right, and the result of the run is not"
    return Finding(
        cycle=end,
        unit=CONTROL,
        signal="accelerator.core.runs.wr_data",
        text=text,
    )


def _in_memory(device: AcceleratorDevice, reference: Reference, finding: Finding) -> Finding:
    """The finding; if a word that was read wrong is wrong in memory, the fault is in its write."""
    if finding.read is None or f"reads of {Purpose.ATTENTION}" not in finding.unit:
        return finding
    address, n_bytes = finding.read
    expected, known = reference.memory.known(address, n_bytes)
    try:
        found = device.transport.read(address, n_bytes)
    except DeviceError:
        return finding
    if all(a == b for a, b, k in zip(found, expected.tolist(), known.tolist(), strict=True) if k):
        return finding
    text = f"{finding.text}: so it is in memory, where right words were to be written"
    return replace(finding, unit=WRITES, text=text)
