"""Whole layers of full size on the Verilated accelerator: ``python -m lutra_flows.layers``.

One layer and two of a shape with random weights are run with its whole head, every logit compared
with the golden device: tokens behind so many keys and values, several sequences at once, and the
first and the last pass of a prompt. Cycles of a layer are *simulated*. Those of the whole model are
*modelled* from them: what two layers take more than one, once for each further layer; passes of a
prompt between the first and the last lie on a line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lutra.commands.options import whole
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.packed.random import random_config, random_packed
from lutra.progress import StepProgress
from lutra_flows.pages import markdown_table
from lutra_golden.arith.scale import Scale, scale_from_float
from lutra_golden.core.config import ENGINES, AcceleratorConfig
from lutra_golden.core.configs import CONFIGS, Tile, measured, with_engine
from lutra_golden.core.ports import Purpose, two_ports
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel

__all__ = ["Figure", "Point", "figures", "main", "points", "simulate"]

_TOKENS = 256  # that every vocabulary has


@dataclass(frozen=True, kw_only=True)
class Point:
    """A pass: ``tokens`` of each of ``sequences`` behind ``position``, with a logit or without."""

    name: str
    position: int
    tokens: int = 1
    sequences: int = 1
    logits: bool = True


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the model: cycles of one layer (None of a prompt's passes together), of the whole
    model, tokens per second at the clock, and bytes read in a cycle of the layers, of all ports.
    """

    name: str
    layer_cycles: int
    model_cycles: int
    tokens_per_s: float
    bytes_per_cycle: float


def points(contexts: Sequence[int], parallel: int, prompt: int) -> list[Point]:
    """The passes that are run; ``parallel`` tokens are one pass."""
    first = contexts[0] - 1
    found = [Point(name=f"token @{n}", position=n - 1) for n in contexts]
    found.append(Point(name="token without head", position=first, logits=False))
    found.append(
        Point(name=f"{parallel} sequences @{contexts[0]}", position=first, sequences=parallel)
    )
    for name, position in (("first", 0), ("last", prompt - parallel)):
        found.append(Point(name=f"{name} pass", position=position, tokens=parallel, logits=False))
    return found


def simulate(
    model: PackedModel,
    config: AcceleratorConfig,
    todo: Sequence[Point],
    progress: StepProgress | None = None,
) -> dict[str, dict[str, int]]:
    """Counters of each pass on the RTL; LutraError if logits differ from the golden device's."""
    golden = GoldenDevice()
    golden.load(model)
    found = dict[str, dict[str, int]]()
    with AcceleratorDevice(RtlTransport(progress=progress), config) as device:
        device.load(model)
        for number, point in enumerate(todo):
            if progress is not None:
                progress(f"{len(model.layers)} layers, {point.name}", number / len(todo))
            here = _run(device, point)
            found[point.name] = dict(device.counters())
            for one, other in zip(here, _run(golden, point), strict=True):
                if not np.array_equal(one.logits, other.logits):
                    raise LutraError(f"{point.name}: logits differ from the golden device's")
    return found


def _run(device: Device, point: Point) -> Sequence[StepResult]:
    rng, steps = np.random.default_rng(1), list[Step]()
    for _ in range(point.sequences):
        session = device.session()
        if point.position:
            session.restore(_behind(device.model, point.position, rng))
        tokens = rng.integers(0, _TOKENS, point.tokens).tolist()
        steps.append(Step(session=session, tokens=tokens, logits_from=point.tokens - point.logits))
    found = device.run(steps)
    for step in steps:
        step.session.close()
    return found


def _behind(model: PackedModel, n: int, rng: np.random.Generator) -> SequenceKv:
    """Random keys and values of ``n`` positions."""
    shape, scales = (model.n_kv_heads, n, model.head_dim), (n, model.n_kv_heads)
    one = scale_from_float(1 / 64)
    scale = Scale(np.full(scales, one.m), np.full(scales, one.e))

    def numbers(bits: int) -> np.ndarray:
        most = (1 << bits - 1) - 1
        return rng.integers(-most, most + 1, shape, np.int8)

    layers = {
        i: LayerKv(numbers(model.key_bits), scale, numbers(model.value_bits), scale)
        for i in range(len(model.layers))
    }
    return SequenceKv(key_bits=model.key_bits, value_bits=model.value_bits, layers=layers)


def figures(
    config: AcceleratorConfig,
    one: dict[str, dict[str, int]],
    two: dict[str, dict[str, int]],
    todo: Sequence[Point],
    n_layers: int,
    prompt: int,
    clock_hz: float,
) -> list[Figure]:
    """Figures of the whole model from the counters of one layer and of two."""

    def layer(name: str, counter: str = "cycles") -> int:
        return two[name][counter] - one[name][counter]

    def model(name: str) -> int:
        return one[name]["cycles"] + (n_layers - 1) * layer(name)

    def read(name: str) -> float:
        """Bytes of all ports in a cycle of a layer."""
        n_bytes = sum(
            layer(name, counter) * config.ports[config.ports_of(purpose)[0]].n_bytes
            for counter, purpose in (
                ("weight_read_beats", Purpose.WEIGHTS),
                ("data_read_beats", Purpose.ATTENTION),
            )
        )
        return n_bytes / layer(name)

    found = list[Figure]()
    for point in todo:
        if not point.logits:
            continue
        cycles = model(point.name)
        found.append(
            Figure(
                name=point.name,
                layer_cycles=layer(point.name),
                model_cycles=cycles,
                tokens_per_s=point.sequences * clock_hz / cycles,
                bytes_per_cycle=read(point.name),
            )
        )
    n_passes = prompt // todo[-1].tokens
    first, last = "first pass", "last pass"
    head = one[todo[0].name]["cycles"] - one["token without head"]["cycles"]
    cycles = n_passes * (model(first) + model(last)) // 2 + head
    found.append(
        Figure(
            name=f"prompt of {prompt}",
            layer_cycles=n_passes * (layer(first) + layer(last)) // 2,
            model_cycles=cycles,
            tokens_per_s=prompt * clock_hz / cycles,
            bytes_per_cycle=(read(first) + read(last)) / 2,
        )
    )
    return found


def _built(
    model: PackedModel, base: AcceleratorConfig, engine: str, tile: Tile | None
) -> AcceleratorConfig:
    """``base`` with buffers that hold the model, ``engine`` and its tile; the ports stay."""
    config = measured(model, base, engine)
    if tile is not None:
        if ENGINES[engine].grouped:
            raise LutraError(f"--tile is for engines ternary and lookup, not {engine}")
        config = with_engine(measured(model, base, "ternary"), engine, tile=tile)
    return config.with_(ports=base.ports)


def _tile(text: str) -> Tile:
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
        raise argparse.ArgumentTypeError(f"must be tokens,rows,depth, not {text!r}")
    tokens, rows, depth = map(int, numbers)
    return tokens, rows, depth


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.layers", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("-m", "--model", default="random:bitnet-2b-4t", help="random:SHAPE")
    parser.add_argument("--config", choices=CONFIGS, default="nano", help="(default nano)")
    parser.add_argument("--engine", choices=ENGINES, default="ternary", help="(default ternary)")
    parser.add_argument("--tile", type=_tile, help="tokens,rows,depth of a step")
    parser.add_argument("--head", type=int, choices=(4, 8), default=8, help="bits of the head")
    parser.add_argument(
        "--context", type=whole(1), nargs="+", default=[16, 2048], help="(default 16 2048)"
    )
    parser.add_argument("-p", "--n-prompt", type=whole(1), default=128, help="(default 128)")
    parser.add_argument(
        "--ports", type=whole(1), nargs=2, help="bits of a port for weights and of one for the rest"
    )
    parser.add_argument(
        "--pass", dest="pass_tokens", type=whole(1), default=8, help="tokens of a pass (default 8)"
    )
    parser.add_argument("--clock", type=float, default=250e6, help="Hz (default 250e6)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and print the figures as Markdown or JSON."""
    args = _parser().parse_args(arguments)
    try:
        return _main(args)
    except (LutraError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(args: argparse.Namespace) -> int:
    needed = max(*args.context, args.n_prompt)
    context = 1 << needed.bit_length()
    limit = random_config(args.model, None).max_position_embeddings
    models = [
        _with_head(random_packed(args.model, context=min(context, limit), n_layers=n), args.head)
        for n in (1, 2)
    ]
    base = CONFIGS[args.config].with_(pass_tokens=args.pass_tokens)
    if args.ports is not None:
        base = base.with_(ports=two_ports(weights=args.ports[0], data=args.ports[1]))
    config = _built(models[0], base, args.engine, args.tile)
    parallel = config.pass_tokens
    if args.n_prompt % parallel or args.n_prompt < 2 * parallel:
        raise LutraError(
            f"--n-prompt must be a multiple of a pass of {parallel}, two or more, not "
            f"{args.n_prompt}"
        )
    todo = points(args.context, parallel, args.n_prompt)
    with StepProgress() as progress:
        one, two = (simulate(model, config, todo, progress) for model in models)
    n_layers = random_config(args.model, None).num_hidden_layers
    found = figures(config, one, two, todo, n_layers, args.n_prompt, args.clock)
    if args.json:
        print(json.dumps([asdict(figure) for figure in found]))
        return 0
    heads = ["what", "cycles of a layer", "cycles of the model", "tokens/s", "bytes per cycle"]
    rows = [
        (
            figure.name,
            f"{figure.layer_cycles:,}",
            f"{figure.model_cycles:,}",
            f"{figure.tokens_per_s:.1f}",
            f"{figure.bytes_per_cycle:.1f}",
        )
        for figure in found
    ]
    print(markdown_table(heads, rows, 1))
    return 0


def _with_head(model: PackedModel, bits: int) -> PackedModel:
    """The model with a head of integers of so many bits."""
    limit = 1 << bits - 1
    return replace(model, head=np.clip(model.head, -limit, limit - 1))


if __name__ == "__main__":
    sys.exit(main())
