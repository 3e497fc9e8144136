"""Cycles that an accelerator waits for its host between tokens: ``python -m lutra_flows.gap``.

A shipped model on the simulated accelerator or on an emulated board, a token after the other. Where
the host draws them, a pass begins when it has seen the end of the one before, and has written and
rung the next descriptor. The likeliest tokens can be made by one descriptor: no host is asked.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lutra.devices.accelerator.bench import measure
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.pynq import PynqTransport
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.accelerator.transport import DoorbellTransport
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import Step, StepResult
from lutra.devices.emulated.board import EmulatedBoard
from lutra.devices.emulated.card import EmulatedCard
from lutra.devices.emulated.pynq_board import EmulatedPynq
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.descriptor import Descriptor, line_bytes
from lutra_golden.control.result import Result, result_bytes
from lutra_golden.errors import LutraError
from lutra_golden.timing.boards import find_profile
from lutra_sim.rtl.xrt import XrtKernel

__all__ = ["Clocked", "Greedy", "Sampled", "greedy", "main", "on", "sampled", "sampler_us"]

_BATCHES = 50
_FIRST = 1  # token of every sequence


@dataclass(frozen=True, kw_only=True)
class Clocked:
    """A way to an accelerator whose clock can be read, and removed afterwards."""

    transport: DoorbellTransport
    cycles: Callable[[], int]
    remove: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Clock cycles between the end of each run and the next doorbell's, and what the runs gave."""

    between: Sequence[int]
    results: Sequence[StepResult]


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Clock cycles of a token in a descriptor of several, and by how many one of its own is longer.

    The latter are its fetch and its result block.
    """

    per_token: float
    saved: int


def on(name: str) -> Clocked:
    """The simulated accelerator (``rtl``), or an emulated board."""
    if name == "rtl":
        rtl = RtlTransport()
        return Clocked(transport=rtl, cycles=lambda: rtl.simulator.cycles, remove=lambda: None)
    profile = find_profile(name)
    if profile.runtime == "xrt":
        card = EmulatedCard(profile)
        xrt = XrtTransport(xclbin=card.image, module=card.module, emulated=name)

        def cycles() -> int:
            assert isinstance(card.kernel, XrtKernel)
            return card.kernel.cycles

        return Clocked(transport=xrt, cycles=cycles, remove=card.close)
    board = EmulatedBoard(profile)
    emulated = EmulatedPynq(board)
    pynq = PynqTransport(device=emulated.device, bitstream=emulated.bitstream, emulated=name)
    return Clocked(
        transport=pynq, cycles=lambda: board.simulator.cycles, remove=emulated.close
    )  # fmt: skip


def sampled(device: AcceleratorDevice, clocked: Clocked, n_tokens: int) -> Sampled:
    """Draw ``n_tokens`` on the host, each from the logits of a run of its own."""
    ring, rung = clocked.transport.ring, list[int]()

    def noted(address: int) -> None:
        ring(address)
        rung.append(clocked.cycles())

    clocked.transport.ring = noted
    sampler, session = Sampler(SamplingParams()), device.session()
    token, passes, results = _FIRST, list[int](), list[StepResult]()
    try:
        for _ in range(n_tokens):
            [result] = device.run([Step(session=session, tokens=[token])])
            passes.append(device.counters()["cycles"])
            results.append(result)
            token = sampler(result.logits[-1], float(result.scale[-1]))
    finally:
        clocked.transport.ring = ring
        session.close()
    steps = zip(rung, rung[1:], passes, strict=False)
    return Sampled(between=[b - a - n for a, b, n in steps], results=results)


def greedy(device: AcceleratorDevice, clocked: Clocked, n_tokens: int) -> Greedy:
    """Let one descriptor make ``n_tokens``, and compare with as many of a token each.

    LutraError unless they make the same tokens.
    """
    transport, config, line = clocked.transport, device.config, line_bytes(device.config)
    session, token, passes, made = device.session(), _FIRST, list[int](), list[int]()
    for _ in range(n_tokens):
        [result] = device.run([Step(session=session, tokens=[token])])
        passes.append(device.counters()["cycles"])
        token = int(result.argmax[-1])
        made.append(token)
    room = result_bytes(line, n_tokens)
    base = device.memory.allocate(room + line + line)
    descriptor = Descriptor(
        fingerprint=config.fingerprint,
        result_base=base,
        program_base=device.addresses["PROGRAM_BASE"],
        program_bytes=len(device.program.code),
        weight_base=device.addresses["WEIGHT_BASE"],
        logits_base=device.addresses["LOGITS_BASE"],
        logits_stride=device.program.logits_stride,
        n_greedy=n_tokens,
        chunks=(ChunkEntry(0, 1, session.address),),
        tokens=(_FIRST,),
    )
    transport.write(base, bytes(room) + descriptor.encode(line))
    transport.ring(base + room)
    transport.wait(None)
    result = Result.decode(transport.read(base, room))
    session.close()
    device.memory.free(base)
    if result.argmax != made:
        raise LutraError(f"one descriptor made {result.argmax}, single ones made {made}")
    cycles = result.counters["cycles"]
    return Greedy(per_token=cycles / n_tokens, saved=(sum(passes) - cycles) // (n_tokens - 1))


def sampler_us(results: Sequence[StepResult]) -> float:
    """Processor time of drawing a token of each of ``results``, the fastest of many times."""
    sampler, times = Sampler(SamplingParams()), list[float]()
    for _ in range(_BATCHES):
        before = time.process_time()
        for result in results:
            sampler(result.logits[-1], float(result.scale[-1]))
        times.append(time.process_time() - before)
    return 1e6 * min(times) / len(results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table as Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.gap", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("devices", nargs="*", help="rtl, or boards (default rtl u55c)")
    parser.add_argument("-m", "--model", default="tales", help="model (default tales)")
    parser.add_argument("-n", type=int, default=32, help="tokens (default 32)")
    options = parser.parse_args(arguments)
    if options.n < 2:
        print(f"error: -n must be 2 or more, not {options.n}", file=sys.stderr)
        return 2
    model = pack_model(load_model(find_model(options.model)))
    print("| device | greedy: cycles of a token | sampled: cycles between tokens, mean and most |")
    print("|---|---|---|")
    drawn = list[StepResult]()
    for name in options.devices or ["rtl", "u55c"]:
        clocked = on(name)
        with AcceleratorDevice(clocked.transport) as device:
            device.load(model)
            free = sampled(device, clocked, options.n)
            bound = greedy(device, clocked, options.n)
        clocked.remove()
        drawn = list(free.results)
        gaps = [cycles + bound.saved for cycles in free.between]
        print(
            f"| {name} | {bound.per_token:,.0f} | {np.mean(gaps):,.0f} and {max(gaps):,} |",
            flush=True,
        )
    driver = measure(options.model)["driver_us"]
    print(f"\nhost per token: driver {driver} us, drawing {sampler_us(drawn):.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
