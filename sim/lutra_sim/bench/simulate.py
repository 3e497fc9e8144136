"""Run a component in Amaranth's simulator, or its Verilog under cocotb on Verilator."""

import dataclasses
import enum
import json
import os
import re
import types
import typing
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from amaranth.lib import wiring
from amaranth.sim import Simulator
from cocotb_tools.runner import get_runner

from lutra_hw.netlist import to_verilog
from lutra_sim.bench.build import build_simulator
from lutra_sim.rtl.collector import paused_collector
from lutra_sim.rtl.primitives.twins import with_twins

__all__ = ["BenchFailure", "bench_params", "run_cocotb", "simulate", "stream_get", "stream_put"]

_PARAMS_VARIABLE = "LUTRA_BENCH_PARAMS"
_KIND_VARIABLE = "LUTRA_BENCH_KIND"
_CLASS = "class"
_LOG_LINES = 80

T = TypeVar("T")


class BenchFailure(AssertionError):
    """A cocotb test failed; the message holds the end of the simulator's log."""


def simulate(
    dut: wiring.Component,
    *testbenches: Callable[[Any], Coroutine[Any, Any, None]],
    max_cycles: int = 100_000,
) -> None:
    """Run ``testbenches`` on ``dut`` until all have returned, under a ``sync`` clock if it has one.

    Raises AssertionError when they have not after ``max_cycles``.
    """

    running: list[Coroutine[Any, Any, None]] = []

    def add(testbench: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def run(ctx: Any) -> None:
            running.append(testbench(ctx))
            await running[-1]

        simulator.add_testbench(run)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6, if_exists=True)
    for testbench in testbenches:
        add(testbench)
    try:
        for _ in range(2 * max_cycles):  # one step per clock edge
            if not simulator.advance():
                return
    finally:
        # testbenches of a failed run cannot be closed without Amaranth raising inside them
        for coroutine in running:
            with suppress(RuntimeError):
                coroutine.close()
    raise AssertionError(f"{type(dut).__name__} is still running after {max_cycles} cycles")


async def stream_put(ctx: Any, port: Any, payload: Any, *, stall: int = 0) -> None:
    """Wait ``stall`` cycles, then offer ``payload`` until it is accepted."""
    if stall:
        await ctx.tick().repeat(stall)
    ctx.set(port.payload, payload)
    ctx.set(port.valid, 1)
    await ctx.tick().until(port.ready)
    ctx.set(port.valid, 0)


async def stream_get(ctx: Any, port: Any, *, stall: int = 0) -> Any:
    """Wait ``stall`` cycles, then accept one payload and return it."""
    if stall:
        await ctx.tick().repeat(stall)
    ctx.set(port.ready, 1)
    (payload,) = await ctx.tick().sample(port.payload).until(port.valid)
    ctx.set(port.ready, 0)
    return payload


def run_cocotb(
    dut: wiring.Component,
    bench_module: str,
    tmp_path: Path,
    *,
    parameters: object = None,
    seed: int = 1,
    coverage: bool | None = None,
    optimize: bool = False,
) -> None:
    """Run every cocotb test of ``bench_module`` on the Verilog of ``dut``.

    The simulator is built once per Verilog text and kept in the cache folder. Only ports and
    signals of the top level are visible to the bench. With ``WAVES=1`` in the environment the
    run leaves ``dump.vcd`` in ``tmp_path``.

    Parameters
    ----------
    parameters : frozen dataclass
        Handed to the bench, which reads it with :func:`bench_params`.
    coverage :
        Collect line coverage in ``$LUTRA_COVERAGE_DIR``, or ``tmp_path`` where that is not set;
        when None, ``LUTRA_COVERAGE=1`` in the environment decides.
    optimize :
        Spend 10 s or more on a faster simulator, for benches of more than half a minute.
    """
    if coverage is None:
        coverage = os.environ.get("LUTRA_COVERAGE") == "1"
    waves = os.environ.get("WAVES") == "1"
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(dut).__name__).lower()
    with paused_collector():
        text = with_twins(to_verilog(dut, name))
    build_dir = build_simulator(name, text, coverage=coverage, waves=waves, optimize=optimize)

    plusargs: list[str] = []
    if coverage:
        folder = Path(os.environ.get("LUTRA_COVERAGE_DIR") or tmp_path).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        plusargs = [f"+verilator+coverage+file+{folder / f'{name}-{uuid.uuid4().hex}.dat'}"]
    log, results = tmp_path / "simulation.log", tmp_path.absolute() / "results.xml"
    failed = False
    try:
        get_runner("verilator").test(
            test_module=bench_module,
            hdl_toplevel=name,
            hdl_toplevel_lang="verilog",
            build_dir=build_dir,
            test_dir=tmp_path,
            results_xml=str(results),
            seed=seed,
            extra_env={
                _PARAMS_VARIABLE: json.dumps(_encode(parameters)),
                _KIND_VARIABLE: type(parameters).__name__,
                # pytest's rewriting of every other module takes longer than most benches
                "COCOTB_REWRITE_ASSERTION_FILES": "tb_*.py",
            },
            plusargs=plusargs,
            waves=waves,
            log_file=log,
        )
    except (SystemExit, RuntimeError):
        failed = True
    _raise_failures(bench_module, results, log, failed=failed)


def bench_params(cls: type[T], *others: type[T]) -> T:
    """The ``parameters`` that :func:`run_cocotb` was given; for use in benches.

    They become a ``cls``, or of several classes the one that they were.
    """
    if others:
        kinds = {kind.__name__: kind for kind in (cls, *others)}
        cls = kinds[os.environ[_KIND_VARIABLE]]
    return _decode(cls, json.loads(os.environ[_PARAMS_VARIABLE]))


def _raise_failures(bench_module: str, results: Path, log: Path, *, failed: bool) -> None:
    cases = list(ET.parse(results).iter("testcase")) if results.exists() else []
    names = [
        case.get("name", "?")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if cases and not names and not failed:
        return
    what = f"failed: {', '.join(names)}" if names else f"ran {len(cases)} tests and gave up"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    raise BenchFailure("\n".join([f"{bench_module} {what}; see {log}", *lines[-_LOG_LINES:]]))


def _encode(value: object) -> object:
    """``value`` as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        content = {f.name: _encode(getattr(value, f.name)) for f in fields if f.init}
        return content | {_CLASS: type(value).__name__}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return value


def _family(kind: type) -> list[type]:
    """A class and all that are derived from it."""
    return [kind, *(each for child in kind.__subclasses__() for each in _family(child))]


def _decode(hint: Any, value: Any) -> Any:
    """Undo :func:`_encode` by the type that was annotated, or that it is a base class of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _decode(inner[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        kind = next(
            each for each in _family(hint) if each.__name__ == value.get(_CLASS, hint.__name__)
        )
        hints = typing.get_type_hints(kind)
        return kind(**{key: _decode(hints[key], value[key]) for key in value if key != _CLASS})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint[value]
    if origin is tuple:
        rest = len(arguments) == 2 and arguments[1] is Ellipsis
        hints = [arguments[0]] * len(value) if rest else arguments
        return tuple(_decode(h, item) for h, item in zip(hints, value, strict=True))
    if origin is list:
        return [_decode(arguments[0], item) for item in value]
    return value
