"""Points of the cycle formulas, simulated on the RTL: ``python -m lutra_flows.estimates``.

Every point of :data:`lutra.estimate.points.POINTS` is a pass on the Verilated accelerator, whose
logits are compared with the golden device; behind its position lie random keys and values. What it
took is recorded beside what the formulas say, for ``lutra estimate`` to print.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.estimate.points import POINTS, RECORDED, Point, Record, records
from lutra.models import RANDOM
from lutra.open_model import open_packed_model
from lutra.packed.random import random_packed
from lutra_golden.arith.scale import Scale, scale_from_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel

__all__ = ["main", "packed", "run", "simulate"]

_TOKENS = 256  # that every vocabulary has


def packed(point: Point) -> PackedModel:
    """The model of a point, whole."""
    if not point.model.startswith(RANDOM):
        return open_packed_model(point.model, point.format, point.group)
    return random_packed(
        point.model,
        None if point.format is None else Format.parse(point.format),
        context=point.context,
        n_layers=point.n_layers,
        vocab_size=point.vocab_size,
    )


def simulate(point: Point, model: PackedModel) -> Record:
    """Run the pass of a point; LutraError if logits or the configuration are not as expected."""
    config = point.configuration()
    golden = GoldenDevice()
    golden.load(model)
    expected = run(golden, point)
    with AcceleratorDevice(RtlTransport(timing=point.memory(config)), config) as device:
        device.load(model)
        found = run(device, point)
        counters = dict(device.counters())
    for here, there in zip(found, expected, strict=True):
        if not np.array_equal(here.logits, there.logits):
            raise LutraError(f"{point.name}: logits differ from golden")
    simulated = counters.pop("cycles")
    return Record(simulated=simulated, estimated=point.estimated(), counters=counters)


def run(device: Device, point: Point) -> Sequence[StepResult]:
    """The pass of a point on a device, behind random keys and values."""
    rng, steps = np.random.default_rng(1), list[Step]()
    for _ in range(point.sequences):
        session = device.session()
        if point.position:
            session.restore(_behind(device.model, point.position, rng))
        tokens = rng.integers(0, _TOKENS, point.tokens).tolist()
        first = point.tokens - (1 if point.sequences > 1 else point.logits)
        steps.append(Step(session=session, tokens=tokens, logits_from=first))
    found = device.run(steps)
    for step in steps:
        step.session.close()
    return found


def _behind(model: PackedModel, n: int, rng: np.random.Generator) -> SequenceKv:
    """Keys and values of ``n`` positions, of some size that attention may have."""
    shape, scales = (model.n_kv_heads, n, model.head_dim), (n, model.n_kv_heads)
    one = scale_from_float(1 / 64)

    def numbers(bits: int) -> np.ndarray:
        most = (1 << bits - 1) - 1
        return rng.integers(-most, most + 1, shape, np.int8)

    scale = Scale(np.full(scales, one.m), np.full(scales, one.e))
    return SequenceKv(
        key_bits=model.key_bits,
        value_bits=model.value_bits,
        layers={
            i: LayerKv(numbers(model.key_bits), scale, numbers(model.value_bits), scale)
            for i in range(len(model.layers))
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate points, print them as Markdown, and record them."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.estimates", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("words", nargs="*", help="only points whose name has one of these words")
    parser.add_argument(
        "--formulas", action="store_true", help="simulate nothing: only estimates are made anew"
    )
    options = parser.parse_args(arguments)
    known = dict(records()) if RECORDED.exists() else {}
    kept = {point.name: known[point.name] for point in POINTS if point.name in known}
    print("| point | simulated | estimated | error |\n|---|---:|---:|---:|")
    models: dict[tuple[object, ...], PackedModel] = {}
    for point in POINTS:
        if options.words and not any(word in point.name for word in options.words):
            continue
        if options.formulas:
            if point.name not in kept:
                continue
            record = replace(kept[point.name], estimated=point.estimated())
        else:
            key = point.model, point.format, point.n_layers, point.context
            if key not in models:
                models.clear()
                models[key] = packed(point)
            record = simulate(point, models[key])
        kept[point.name] = record
        print(
            f"| {point.name} | {record.simulated:,} | {record.estimated:,} | {record.error:+.2%} |",
            flush=True,
        )
        ordered = {each.name: asdict(kept[each.name]) for each in POINTS if each.name in kept}
        RECORDED.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
