"""Cycles per token of sequences that are decoded together: ``python -m lutra_flows.batch``.

A shipped model on the simulated accelerator, at several speeds of the memory behind all ports. The
logits of every step are compared with the golden device.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra_golden.errors import LutraError
from lutra_golden.timing.memory import NANO_MEMORY

__all__ = ["check", "cycles_per_token", "decode", "main"]

_PROMPT_TOKENS = 16


def decode(device: Device, n_sequences: int, n_tokens: int) -> list[list[StepResult]]:
    """Results of ``n_tokens`` steps, a token of each sequence in each.

    Sequences begin with random prompts and go on with the most likely token.
    """
    rng = np.random.default_rng(1)
    sessions = [device.session() for _ in range(n_sequences)]
    prompts = [rng.integers(0, 256, _PROMPT_TOKENS).tolist() for _ in sessions]
    steps = [
        Step(session=session, tokens=prompt, logits_from=_PROMPT_TOKENS - 1)
        for session, prompt in zip(sessions, prompts, strict=True)
    ]
    results, found = device.run(steps), list[list[StepResult]]()
    for _ in range(n_tokens):
        steps = [
            Step(session=session, tokens=[int(result.argmax[-1])])
            for session, result in zip(sessions, results, strict=True)
        ]
        results = device.run(steps)
        found.append(results)
    for session in sessions:
        session.close()
    return found


def check(found: list[list[StepResult]], expected: list[list[StepResult]]) -> None:
    """Compare the logits of every step; LutraError if any differ."""
    for number, (here, there) in enumerate(zip(found, expected, strict=True)):
        for sequence, (actual, whole) in enumerate(zip(here, there, strict=True)):
            if not np.array_equal(actual.logits, whole.logits):
                raise LutraError(f"step {number} of sequence {sequence} differs from golden")


def cycles_per_token(found: list[list[StepResult]]) -> float:
    """Cycles per token. Every sequence of a step reports those of its pass."""
    return float(np.mean([step[0].cycles or 0 for step in found])) / len(found[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m lutra_flows.batch", description=__doc__)
    parser.add_argument("-m", "--model", default="tales", help="model (default tales)")
    parser.add_argument("-b", "--batch", type=int, default=8, help="sequences (default 8)")
    parser.add_argument("-n", type=int, default=8, help="tokens of each sequence (default 8)")
    options = parser.parse_args(arguments)
    model = pack_model(load_model(find_model(options.model)))
    golden = GoldenDevice()
    golden.load(model)
    counts = (1, options.batch)
    expected = {count: decode(golden, count, options.n) for count in counts}
    print(
        f"| beats per cycle | 1 sequence | {options.batch} sequences | ratio |\n|---|---|---|---|"
    )
    for cycles in (1, 2, 4):
        timing = replace(NANO_MEMORY, rates=((1, cycles),))
        with AcceleratorDevice(RtlTransport(timing=timing)) as device:
            device.load(model)
            per_token = list[float]()
            for count in counts:
                found = decode(device, count, options.n)
                check(found, expected[count])
                per_token.append(cycles_per_token(found))
        one, many = per_token
        rate_name = f"1/{cycles}" if cycles > 1 else "1"
        print(f"| {rate_name} | {one:,.0f} | {many:,.0f} | {many / one:.2f}x |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
