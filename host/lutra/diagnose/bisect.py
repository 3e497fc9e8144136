"""The first token, layer, instruction and word that a device gets wrong, and their unit."""

import shlex
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lutra.compile.program import Program
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device
from lutra.diagnose.layers import first_layer
from lutra.diagnose.passes import Difference, GoldenPasses, first_difference
from lutra.diagnose.prefixes import first_instruction
from lutra.diagnose.trace import locate, write_wave
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.decode import decode_cycles

__all__ = ["Bisected", "bisect"]

Progress = Callable[[str, float], None]
_LATENCIES = 50_000  # cycles of a pass beside its arithmetic


def _silent(_stage: str, _share: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Bisected:
    """Where a device differs first from golden; what is not known is None.

    ``passes`` were compared. ``pass_index`` and ``position`` are those of the first that differs,
    None if none does. ``error`` is the device's own. ``instruction`` counts from 0 in the program.
    ``token`` of the pass and ``elements`` are the place in the tile. ``cycle``, ``signal`` and
    ``wave`` are there on the simulated RTL.
    """

    device: str
    passes: int
    pass_index: int | None = None
    position: int | None = None
    difference: str | None = None
    error: str | None = None
    layer: str | None = None
    instruction: int | None = None
    opcode: str | None = None
    unit: str | None = None
    token: int | None = None
    elements: tuple[int, int] | None = None
    cycle: int | None = None
    signal: str | None = None
    detail: str | None = None
    wave: str | None = None
    wave_cycles: tuple[int, int] | None = None

    @property
    def same(self) -> bool:
        """True if no pass differs."""
        return self.pass_index is None

    def lines(self) -> Iterator[str]:
        """The result in plain words."""
        compared = f"{self.passes} passes" if self.passes != 1 else "1 pass"
        if self.pass_index is None:
            yield f"device {self.device} gives the same as golden in {compared}"
            return
        yield f"device {self.device} differs from golden in pass {self.pass_index}"
        yield f"token        position {self.position}: {self.difference}"
        if self.layer is not None:
            yield f"layer        {self.layer}"
        if self.instruction is not None:
            yield f"instruction  {self.instruction} of the program, {self.opcode}"
        if self.token is not None or self.elements is not None:
            place = [] if self.token is None else [f"token {self.token} of the pass"]
            if self.elements is not None:
                place.append(f"elements {self.elements[0]} to {self.elements[1]}")
            yield f"tile         {', '.join(place)}"
        if self.cycle is not None:
            yield f"cycle        {self.cycle}"
        if self.signal is not None:
            yield f"signal       {self.signal}"
        if self.unit is not None:
            yield f"unit         {self.unit}"
        if self.detail is not None:
            yield f"cause        {self.detail}"
        if self.wave is not None and self.wave_cycles is not None:
            first, end = self.wave_cycles
            yield f"waveform     {self.wave}, cycles {first} to {end}: open it with gtkwave "
            f"{shlex.quote(self.wave)}"


def bisect(
    device: Device,
    model: PackedModel,
    prompt: Sequence[int],
    n_predict: int,
    *,
    wave: Path | None = None,
    progress: Progress | None = None,
) -> Bisected:
    """Compare ``device``, which has ``model``, with golden, and find the first difference.

    On a traceable simulation the cycle and the signal are found, too, and a window of all signals
    around them is written to ``wave``.
    """
    report = progress or _silent
    with (
        GoldenPasses(model, prompt, n_predict, device.pass_tokens) as passes,
        _ending(device, len(prompt) + n_predict),
    ):
        report("comparing tokens", 0.0)
        found = first_difference(device, passes)
        if found is None:
            return Bisected(device=device.name, passes=len(passes.known))
        if isinstance(device, AcceleratorDevice) and isinstance(device.transport, RtlTransport):
            return _on_rtl(device, passes, found, wave, report)
        return _elsewhere(device, passes, found, report)


@contextmanager
def _ending(device: Device, n_positions: int) -> Generator[None]:
    """Have every run of a simulation end, since a fault can make words move for ever."""
    if not isinstance(device, AcceleratorDevice) or not isinstance(device.transport, RtlTransport):
        yield
        return
    of_a_token = decode_cycles(device.model, device.config, n_positions)
    device.transport.max_cycles = _LATENCIES + 2 * device.pass_tokens * of_a_token
    try:
        yield
    finally:
        device.transport.max_cycles = None


def _on_rtl(
    device: AcceleratorDevice,
    passes: GoldenPasses,
    found: Difference,
    wave: Path | None,
    report: Progress,
) -> Bisected:
    report("comparing the streams between the units", 0.3)
    result, located = _begun(device, passes, found), locate(device, passes, found.index)
    if located is None:
        text = "the same pass came right when it was repeated on a new simulation"
        return replace(result, detail=text)
    finding = located.finding
    if wave is not None:
        report("writing the waveform", 0.8)
        write_wave(device, passes, found.index, located.window, wave)
        result = replace(result, wave=str(wave), wave_cycles=located.window)
    return replace(
        _at(result, device.program, finding.index),
        unit=finding.unit,
        token=finding.token,
        elements=finding.elements,
        cycle=finding.cycle,
        signal=finding.signal,
        detail=finding.text,
    )


def _elsewhere(
    device: Device, passes: GoldenPasses, found: Difference, report: Progress
) -> Bisected:
    report("comparing layers", 0.3)
    layer = first_layer(device, passes, found.index)
    result = _begun(device, passes, found)
    if layer is not None:
        result = replace(result, layer=str(layer))
    if not isinstance(device, AcceleratorDevice):
        return result
    report("comparing instructions", 0.6)
    shown = first_instruction(device, passes, found.index)
    if shown is None:
        return result
    return replace(
        _at(result, device.program, shown.index),
        unit=shown.unit,
        token=shown.token,
        elements=shown.elements,
        detail=shown.text,
    )


def _begun(device: Device, passes: GoldenPasses, found: Difference) -> Bisected:
    return Bisected(
        device=device.name,
        passes=len(passes.known),
        pass_index=found.index,
        position=found.position,
        difference=found.text,
        error=found.error,
    )


def _at(result: Bisected, program: Program, index: int | None) -> Bisected:
    """``result`` with an instruction, and the layer that it is of."""
    if index is None:
        return result
    layer, opcode = _operations(program)[index]
    return replace(result, layer=layer, instruction=index, opcode=opcode)


def _operations(program: Program) -> list[tuple[str, str]]:
    """Part of the model and opcode of every instruction of the program."""
    parts = program.parts
    named = [("embedding", parts.embed), ("embedding", parts.rope)]
    named += [(str(i), layer) for i, layer in enumerate(parts.layers)]
    named.append(("head", parts.head))
    return [(name, each.opcode.name) for name, part in named for each in part]
