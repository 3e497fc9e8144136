"""One sequence on a device, in tiles: what tests run where several sessions do not matter."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lutra.compile.compiler import compile_model
from lutra.compile.program import Program, SegmentKind
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.transport import Transport
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.packed import PackedModel

__all__ = [
    "Compiled",
    "Tiles",
    "assert_a_story_moves",
    "compiled",
    "driver",
    "golden",
    "joined",
    "on_transport",
    "run_tiles",
    "with_code",
]


class Tiles:
    """A session of ``device``, which has a model, from its beginning."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.session = device.session()

    def run_tile(self, tokens: Sequence[int], position: int, first: int) -> StepResult:
        """Go on from ``position``, forgetting what came after it; logits from ``first`` on."""
        self.session.truncate(position)
        step = Step(session=self.session, tokens=tokens, logits_from=first)
        return self.device.run([step])[0]

    def close(self) -> None:
        self.device.close()


class Compiled(NamedTuple):
    """A model and its program."""

    model: PackedModel
    program: Program


def compiled(model: PackedModel, config: AcceleratorConfig) -> Compiled:
    return Compiled(model, compile_model(model, config))


def on_transport(found: Compiled, transport: Transport | None = None) -> Tiles:
    """The program on a transport, the interpreter if none is given."""
    device = AcceleratorDevice(transport or InterpretedTransport())
    device.load_program(found.model, found.program)
    return Tiles(device)


def driver(tiles: Tiles) -> AcceleratorDevice:
    """The driver of tiles that run on an accelerator."""
    assert isinstance(tiles.device, AcceleratorDevice)
    return tiles.device


def with_code(found: Compiled, code: bytes) -> Compiled:
    """The program with other instructions."""
    segments = [
        replace(segment, data=code) if segment.kind is SegmentKind.CODE else segment
        for segment in found.program.segments
    ]
    return Compiled(found.model, replace(found.program, segments=segments))


def golden(model: PackedModel) -> Tiles:
    """The model on the golden device."""
    device = GoldenDevice()
    device.load(model)
    return Tiles(device)


def joined(parts: Sequence[StepResult]) -> StepResult:
    """Results of successive steps as one."""
    return StepResult(
        logits=np.concatenate([part.logits for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        argmax=np.concatenate([part.argmax for part in parts]),
        saturated=any(part.saturated for part in parts),
    )


def assert_a_story_moves(here: Device, there: Device, text: Sequence[int]) -> None:
    """A sequence goes on ``there`` from any position that it was computed to ``here``.

    Keys and values move as bytes, into sessions that held something else before.
    """
    sessions = whole, first, rest = here.session(), here.session(), there.session()
    (expected,) = here.run([Step(session=whole, tokens=text)])
    held = whole.export().to_bytes()
    for n in range(1, len(text)):
        first.truncate(0)
        here.run([Step(session=first, tokens=text[:n], logits_from=n)])
        rest.restore(SequenceKv.from_bytes(first.export().to_bytes()))
        (result,) = there.run([Step(session=rest, tokens=text[n:])])
        np.testing.assert_array_equal(result.logits, expected.logits[n:])
        np.testing.assert_array_equal(result.scale, expected.scale[n:])
        np.testing.assert_array_equal(result.argmax, expected.argmax[n:])
        assert rest.export().to_bytes() == held
    for session in sessions:
        session.close()


def run_tiles(tiles: Tiles, tokens: Sequence[int], sizes: Sequence[int] = ()) -> StepResult:
    """All logits of ``tokens`` in steps of ``sizes``, then the rest in one."""
    position, parts = 0, list[StepResult]()
    for size in [*sizes, len(tokens)]:
        chunk = [int(token) for token in tokens[position : position + size]]
        if chunk:
            parts.append(tiles.run_tile(chunk, position, 0))
        position += len(chunk)
    return joined(parts)
