"""``lutra estimate``: what speed a model would have on a board, by formulas of its cycles."""

import argparse
import json
from pathlib import Path
from typing import Any

from lutra.commands.options import add_format, add_group, add_head, add_json, add_kv, whole
from lutra.estimate.outline import open_outline
from lutra.estimate.speed import TARGETS, Estimate, Phase, estimate
from lutra_golden.core.config import ENGINES
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import BOARD_PROFILES

__all__ = ["add_estimate"]

_MOST_SEQUENCES = 1024
_GIB = 1 << 30


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra estimate``."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="folder, GGUF file, Hugging Face id, a shipped model, or random:SHAPE (default tales)",
    )
    add_format(
        parser,
        "the checkpoint's own if its weights are integers, otherwise W8A8, with random: W4A8",
    )
    add_group(parser)
    add_kv(parser)
    add_head(parser, "0")
    parser.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        help="matmul engine (default ternary for W1.58A8, otherwise lut)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--config", choices=TARGETS, default="kv260",
        help="board, or a configuration at the clock that it is built for (default kv260)",
    )  # fmt: skip
    where.add_argument("--boards", action="store_true", help="all boards, side by side")
    parser.add_argument(
        "-p", "--n-prompt", type=whole(1), default=128, metavar="N",
        help="tokens of a prompt (default 128)",
    )  # fmt: skip
    parser.add_argument(
        "-c", "--context", type=whole(0), metavar="N",
        help="positions behind which a token is decoded (default those of the prompt)",
    )  # fmt: skip
    parser.add_argument(
        "-b", "--batch", type=whole(1, _MOST_SEQUENCES), default=1, metavar="N",
        help="sequences that are decoded together, their prompts one after another (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="a roofline: what engine and memory allow, what operations reach (.svg or .png)",
    )  # fmt: skip
    add_json(parser)
    parser.set_defaults(command=_estimate)


def _estimate(args: argparse.Namespace) -> int:
    if args.plot:
        if args.boards:
            raise LutraError("--plot is of one board: give --config in place of --boards")
        from lutra.serving.plans.plot import check_plot

        check_plot(args.plot)
    model = open_outline(args.model, args.format, args.group, args.kv, args.head)
    if args.boards:
        return _boards(args, model)
    found = _of(args, model, args.config)
    if args.plot:
        from lutra.estimate.plot import write_roofline

        write_roofline(found, args.plot)
    if args.json:
        print(json.dumps(_figures(found)))
    else:
        _print(found)
    return 0


def _of(args: argparse.Namespace, model: PackedModel, target: str) -> Estimate:
    return estimate(
        model,
        target,
        prompt=args.n_prompt,
        context=args.context,
        sequences=args.batch,
        engine=args.engine,
    )


def _boards(args: argparse.Namespace, model: PackedModel) -> int:
    found = dict[str, Estimate | str]()
    for name in BOARD_PROFILES:
        try:
            found[name] = _of(args, model, name)
        except LutraError as error:
            found[name] = str(error)
    if args.json:
        boards = {
            name: {"refused": each} if isinstance(each, str) else _figures(each)
            for name, each in found.items()
        }
        print(json.dumps({"model": model.name, "format": model.format, "boards": boards}))
        return 0
    print(
        "| board | decode, tokens/s | bound by | prefill, tokens/s | bound by | first token, s "
        "| memory, GiB |\n|---|---:|---|---:|---|---:|---:|"
    )
    for name, each in found.items():
        if isinstance(each, str):
            print(f"| {name} | - | - | - | - | - | - |")
            continue
        memory = each.memory.weights + each.memory.kv
        print(
            f"| {name} | {each.decode.tokens_per_s:.3g} | {_limit(each.decode)} "
            f"| {each.prefill.tokens_per_s:.3g} | {_limit(each.prefill)} | {each.ttft_s:.3g} "
            f"| {memory / _GIB:.2f} |"
        )
    for name, each in found.items():
        if isinstance(each, str):
            print(f"{name}: {each}")
    _print_error(next((each for each in found.values() if isinstance(each, Estimate)), None))
    return 0


def _print(found: Estimate) -> None:
    print(
        f"{found.model} in {found.format} on {found.target}, configuration {found.config}: "
        f"{found.kind}"
    )
    print("| phase | operation | unit | bound by | cycles | bytes |\n|---|---|---|---|---:|---:|")
    for name, phase in (("prefill", found.prefill), ("decode", found.decode)):
        for part in phase.parts:
            bound = "memory" if part.waits else "unit"
            print(
                f"| {name} | {part.name} | {part.unit} | {bound} | {part.cycles:,} "
                f"| {part.n_bytes:,} |"
            )
        print(f"| {name} | all | | | {phase.cycles:,} | {phase.n_bytes:,} |")
    sequences = "" if found.sequences == 1 else f", {found.sequences} sequences"
    print(
        f"decode behind {found.context} positions{sequences}: {found.decode.tokens_per_s:.4g} "
        f"tokens/s, bound by {_limit(found.decode)}"
    )
    print(
        f"prefill of {found.prompt} tokens: {found.prefill.tokens_per_s:.4g} tokens/s, bound by "
        f"{_limit(found.prefill)}; first token after {found.ttft_s:.4g} s"
    )
    memory = found.memory
    of = "" if memory.available is None else f" of {memory.available / _GIB:.2f}"
    print(
        f"memory: {(memory.weights + memory.kv) / _GIB:.2f}{of} GiB, of it "
        f"{memory.kv / _GIB:.2f} for keys and values"
    )
    _print_error(found)


def _limit(phase: Phase) -> str:
    name, share = phase.limit
    return f"{name} ({share:.0%} of the cycles)"


def _print_error(found: Estimate | None) -> None:
    if found is not None:
        error = found.error
        print(
            f"error of the cycles against RTL: {error.mean:.1%} on average, up to "
            f"{error.worst:.1%} ({error.point}), in {error.n_points} points that were simulated; "
            "no board was measured"
        )


def _figures(found: Estimate) -> dict[str, Any]:
    def phase(each: Phase) -> dict[str, Any]:
        bound, share = each.limit
        return {
            "cycles": each.cycles,
            "bytes": each.n_bytes,
            "bound_by": bound,
            "bound_share": share,
            "operations": [
                {
                    "operation": part.name,
                    "unit": part.unit,
                    "cycles": part.cycles,
                    "bytes": part.n_bytes,
                    "macs": part.n_macs,
                    "waits_for_memory": part.waits,
                }
                for part in each.parts
            ],
        }

    error = found.error
    return {
        "model": found.model,
        "format": found.format,
        "config": found.target,
        "configuration": found.config,
        "kind": found.kind,
        "clock_hz": found.decode.clock_hz,
        "prompt": found.prompt,
        "context": found.context,
        "sequences": found.sequences,
        "decode_tokens_per_s": found.decode.tokens_per_s,
        "prefill_tokens_per_s": found.prefill.tokens_per_s,
        "ttft_s": found.ttft_s,
        "model_error": error.worst,
        "model_error_points": error.n_points,
        "model_error_mean": error.mean,
        "model_error_from": error.point,
        "weight_bytes": found.memory.weights,
        "kv_bytes": found.memory.kv,
        "memory_bytes": found.memory.available,
        "prefill": phase(found.prefill),
        "decode": phase(found.decode),
    }
