"""``lutra bisect``: the first word that a device gets wrong, and the unit that it is from."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from lutra.commands.options import (
    add_board,
    add_device,
    add_format,
    add_group,
    add_json,
    add_kv,
    add_threads,
    check_kv,
    place,
    rounding,
    whole,
)
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device, Findable
from lutra.devices.choose import DeviceOptions, choose_device
from lutra.diagnose.bisect import bisect
from lutra.llm import LLM
from lutra.progress import StepProgress
from lutra.serving.generation import check_room
from lutra_golden.core.config import ENGINES
from lutra_golden.core.configs import CONFIGS
from lutra_golden.errors import LutraError

__all__ = ["add_bisect"]

_PROMPT = "Once upon a time there was a king who had three daughters"
_WAVE = Path("lutra-bisect.vcd")
_TOKENS = 8


def add_bisect(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra bisect``."""
    parser.add_argument(
        "-m",
        "--model",
        default="tales",
        help="folder, GGUF file, Hugging Face id, or a shipped model (default tales)",
    )
    add_device(parser, "rtl", "rtl, the simulated hardware")
    add_board(parser)
    parser.add_argument(
        "--against",
        choices=("golden",),
        default="golden",
        help="device that is right (default golden, the specification)",
    )
    parser.add_argument(
        "-p", "--prompt", default=_PROMPT, metavar="TEXT", help="prompt to continue"
    )
    parser.add_argument(
        "-n",
        "--n-predict",
        type=whole(1),
        default=_TOKENS,
        metavar="N",
        help=f"number of tokens to generate, all greedily (default {_TOKENS})",
    )
    add_format(parser, "the checkpoint's own if its weights are integers, otherwise W8A8")
    add_group(parser)
    add_kv(parser)
    parser.add_argument("--config", choices=CONFIGS, help="configuration of an accelerator")
    parser.add_argument("--engine", choices=tuple(ENGINES), help="matmul engine of an accelerator")
    add_threads(parser)
    parser.add_argument(
        "--wave",
        type=Path,
        default=_WAVE,
        metavar="FILE",
        help=f"waveform around the first wrong word, on device rtl only (default {_WAVE})",
    )
    add_json(parser)
    parser.set_defaults(command=_bisect)


def _bisect(args: argparse.Namespace) -> int:
    check_kv(args.kv, args.device, falls_back=False)
    if args.device in ("auto", "golden"):
        raise LutraError(
            f"device {args.device} is not compared with golden: give one, such as -dev rtl"
        )
    _check_wave(args.wave)
    with StepProgress() as progress:
        llm = LLM(
            args.model,
            _device(args, progress),
            **rounding(args),
            progress=progress,
            check_text=lambda tokenizer, context: check_room(
                len(tokenizer.encode(args.prompt)), args.n_predict, context
            ),
            load=False,
        )
        prompt = llm.encode(args.prompt)
        llm.device.load(llm.packed)
        found = bisect(
            llm.device, llm.packed, prompt, args.n_predict, wave=args.wave, progress=progress
        )
    llm.close()
    if args.json:
        print(json.dumps(asdict(found)))
    else:
        for line in found.lines():
            print(line)
    return 0 if found.same else 1


def _device(args: argparse.Namespace, progress: StepProgress) -> Device:
    if args.device != "rtl":
        device = choose_device(
            args.device,
            **place(args),
            progress=progress,
        )[0]
        if isinstance(device, Findable):
            device.find()
        return device
    DeviceOptions(threads=args.threads, emulate=args.emulate, bitstream=args.bitstream).check("rtl")
    transport = RtlTransport(traceable=True, progress=progress)
    return AcceleratorDevice(
        transport, args.config or "nano", args.engine, timeout_s=None, progress=progress
    )


def _check_wave(wave: Path) -> None:
    if wave.suffix != ".vcd":
        raise LutraError(f"the waveform file must end in .vcd, not {wave.name!r}")
    if not wave.parent.is_dir():
        raise LutraError(
            f"the folder of the waveform {wave} does not exist: make it, or give another"
        )
