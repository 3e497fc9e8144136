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
from lutra.devices.accelerator.device import AcceleratorDevice, AcceleratorSession
from lutra.devices.accelerator.programs import Placed
from lutra.devices.accelerator.pynq import PynqTransport
from lutra.devices.accelerator.rtl import RtlTransport
from lutra.devices.accelerator.runs import RegisterRuns, Tile
from lutra.devices.accelerator.transport import DoorbellTransport, RegisterTransport
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.base import Step, StepResult
from lutra.devices.emulated.board import EmulatedBoard
from lutra.devices.emulated.card import EmulatedCard
from lutra.devices.emulated.pynq_board import EmulatedPynq
from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.errors import LutraError
from lutra_golden.timing.boards import find_profile
from lutra_sim.rtl.xrt import XrtKernel

__all__ = ["Clocked", "Greedy", "Sampled", "greedy", "main", "on", "sampled", "sampler_us"]

_BATCHES = 50
_FIRST = 1  # token of every sequence
_TOKENS_MAX = 32  # that one descriptor makes of any configuration


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
    """Clock cycles of the greedy tokens that one descriptor makes.

    ``per_token`` are all of them; ``between`` those from the end of a pass to the beginning of the
    next, None where the registers, which start a pass alone, are out of reach. A token with a
    descriptor of its own takes ``saved`` more: a fetch and a result block.
    """

    per_token: float
    between: int | None
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


def greedy(device: AcceleratorDevice, n_tokens: int) -> Greedy:
    """Let the driver make ``n_tokens`` by one descriptor, and compare with as many of a token each.

    LutraError unless they make the same tokens.
    """
    session, token, alone = device.session(), _FIRST, _passes_alone(device)
    made, passes, descriptors = list[int](), list[int](), list[int]()
    for position in range(n_tokens):
        if alone is not None:
            passes.append(alone(session, token, position))
        token = device.greedy(session, token, 1).tokens[0]
        made.append(token)
        descriptors.append(device.counters()["cycles"])
    session.truncate(0)
    found = list(device.greedy(session, _FIRST, n_tokens).tokens)
    cycles = device.counters()["cycles"]
    session.close()
    if found != made:
        raise LutraError(f"one descriptor made {found}, single ones made {made}")
    # the first token's descriptor has the fetch and the report that the others share
    beside = cycles - descriptors[0] - sum(passes[1:])
    return Greedy(
        per_token=cycles / n_tokens,
        between=beside // (n_tokens - 1) if passes else None,
        saved=(sum(descriptors) - cycles) // (n_tokens - 1),
    )


def _passes_alone(
    device: AcceleratorDevice,
) -> Callable[[AcceleratorSession, int, int], int] | None:
    """Cycles of the pass of a token at a position; None where no register starts it."""
    transport, addresses = device.transport, dict(device.addresses)
    if not isinstance(transport, RegisterTransport):
        return None
    program = Placed(addresses.pop("PROGRAM_BASE"), len(device.program.code))
    addresses["LOGITS_STRIDE"] = device.program.logits_stride
    runs = RegisterRuns(transport, addresses, 0)

    def cycles(session: AcceleratorSession, token: int, position: int) -> int:
        # descriptors write the same registers
        runs.forget()
        chunk = ChunkEntry(position, 1, session.address)
        runs.run(program, Tile(tokens=[token], chunks=[chunk], logits_from=0), None)
        return runs.counters()["cycles"]

    return cycles


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
    parser.add_argument("-n", type=int, default=32, help="tokens, 2 to 32 (default 32)")
    options = parser.parse_args(arguments)
    if not 2 <= options.n <= _TOKENS_MAX:
        print(f"error: -n must be in 2..{_TOKENS_MAX}, not {options.n}", file=sys.stderr)
        return 2
    model = pack_model(load_model(find_model(options.model)))
    print("| device | greedy: cycles of a token | of these between passes | ", end="")
    print("sampled: cycles between tokens, mean and most |")
    print("|---|---|---|---|")
    drawn = list[StepResult]()
    for name in options.devices or ["rtl", "u55c"]:
        clocked = on(name)
        with AcceleratorDevice(clocked.transport) as device:
            device.load(model)
            free = sampled(device, clocked, options.n)
            bound = greedy(device, options.n)
        clocked.remove()
        drawn = list(free.results)
        gaps = [cycles + bound.saved for cycles in free.between]
        between = "not measured" if bound.between is None else bound.between
        print(
            f"| {name} | {bound.per_token:,.0f} | {between} | "
            f"{np.mean(gaps):,.0f} and {max(gaps):,} |",
            flush=True,
        )
    driver = measure(options.model)["driver_us"]
    print(f"\nhost per token: driver {driver} us, drawing {sampler_us(drawn):.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
