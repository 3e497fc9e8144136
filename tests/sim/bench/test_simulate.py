"""The helpers that benches stand on, on a component small enough to be beyond doubt."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from amaranth import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_sim.bench.simulate import (
    BenchFailure,
    _decode,
    _encode,
    run_cocotb,
    simulate,
    stream_get,
    stream_put,
)
from lutra_sim.bench.stream import pack, unpack

BENCH = "tb_increment"


class Fault(enum.Enum):
    """Faults of a faulty component."""

    NONE = "none"
    SUM = "sum"
    VALID_FALLS = "valid falls"
    PAYLOAD_CHANGES = "payload changes"
    WAITS_FOR_READY = "waits for ready"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncrementParams:
    """``o = a + b[0] + b[1] + increment``."""

    width: int = 4
    increment: int = 3
    fault: Fault = Fault.NONE
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None

    @property
    def i_layout(self) -> data.StructLayout:
        lane = signed(self.width)
        return data.StructLayout({"a": lane, "b": data.ArrayLayout(lane, 2)})

    @property
    def o_shape(self) -> Any:
        return signed(self.width + 4)


class Increment(wiring.Component):
    """Latency is 1 cycle; throughput is 1 per cycle."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, params: IncrementParams) -> None:
        self.params = params
        super().__init__(
            {
                "i": In(stream.Signature(params.i_layout)),
                "o": Out(stream.Signature(params.o_shape)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p, i, o = self.i.p, self.i, self.o
        fault = self.params.fault
        full, total, cycle = Signal(), Signal(self.params.o_shape), Signal(3)

        m.d.sync += cycle.eq(cycle + 1)
        m.d.comb += i.ready.eq(~full | (o.valid & o.ready))
        with m.If(i.ready):
            wrong = int(fault is Fault.SUM)
            m.d.sync += full.eq(i.valid)
            m.d.sync += total.eq(p.a + p.b[0] + p.b[1] + self.params.increment + wrong)

        flickers = (cycle != 0) if fault is Fault.VALID_FALLS else 1
        waits = o.ready if fault is Fault.WAITS_FOR_READY else 1
        m.d.comb += o.valid.eq(full & flickers & waits)
        m.d.comb += o.payload.eq(total ^ (cycle if fault is Fault.PAYLOAD_CHANGES else 0))
        return m


@pytest.mark.parametrize("stall_i", [0, 2])
@pytest.mark.parametrize("stall_o", [0, 3])
def test_simulate(stall_i: int, stall_o: int) -> None:
    dut = Increment(IncrementParams())
    seen: list[int] = []

    async def feed(ctx: Any) -> None:
        for a in range(-8, 8):
            await stream_put(ctx, dut.i, {"a": a, "b": [1, 2]}, stall=stall_i)

    async def check(ctx: Any) -> None:
        seen.extend([await stream_get(ctx, dut.o, stall=stall_o) for _ in range(16)])

    simulate(dut, feed, check)
    assert seen == [a + 6 for a in range(-8, 8)]


def test_simulate_reports_a_hang() -> None:
    dut = Increment(IncrementParams())

    async def check(ctx: Any) -> None:
        await stream_get(ctx, dut.o)

    with pytest.raises(AssertionError, match=r"^Increment is still running after 50 cycles$"):
        simulate(dut, check, max_cycles=50)


def test_pack() -> None:
    layout = data.StructLayout({"a": signed(4), "b": data.ArrayLayout(3, 2)})
    value: dict[int | str, Any] = {"a": -3, "b": [5, 1]}
    assert pack(layout, value) == 0b001_101_1101
    assert unpack(layout, 0b001_101_1101) == value
    assert pack(layout, value) == layout.const(value).as_value().value
    with pytest.raises(AssertionError, match=r"^8 does not fit signed\(4\)$"):
        pack(signed(4), 8)
    with pytest.raises(AssertionError, match=r"^fields are \['a', 'b'\], not \['a'\]$"):
        pack(layout, {"a": 0})


def test_parameters_survive_json() -> None:
    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: IncrementParams
        pair: tuple[int, str]
        many: list[IncrementParams]
        base: IncrementParams

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Derived(IncrementParams):
        more: int = 1

    inner = IncrementParams(fault=Fault.SUM, limit=4)
    outer = Outer(inner, (1, "x"), [IncrementParams()], Derived(more=3))
    assert _decode(Outer, _encode(outer)) == outer


@pytest.mark.cocotb
@pytest.mark.parametrize("increment", [3, -1])
def test_cocotb(increment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    params = IncrementParams(increment=increment)
    run_cocotb(Increment(params), BENCH, tmp_path, parameters=params)


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault.SUM, "assert sums =="),
        (Fault.VALID_FALLS, "stream o: valid fell in cycle"),
        (Fault.PAYLOAD_CHANGES, "stream o: payload changed from"),
        (Fault.WAITS_FOR_READY, "stream o: 0 of 12 payloads after 500 cycles"),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Fault) else "",
)
def test_cocotb_finds(
    fault: Fault, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    params = IncrementParams(fault=fault)
    with pytest.raises(BenchFailure, match=r"^tb_increment failed: .*adds") as failure:
        run_cocotb(Increment(params), BENCH, tmp_path, parameters=params)
    assert message in str(failure.value)


@pytest.mark.cocotb
def test_coverage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("LUTRA_COVERAGE_DIR", str(tmp_path / "coverage"))
    params = IncrementParams()
    run_cocotb(Increment(params), BENCH, tmp_path, parameters=params, coverage=True)
    (points,) = (tmp_path / "coverage").glob("increment-*.dat")
    assert "increment.v" in points.read_text(errors="replace")


@pytest.mark.cocotb
def test_a_missing_bench_fails(tmp_path: Path) -> None:
    with pytest.raises(BenchFailure, match=r"^tb_missing ran 0 tests and gave up"):
        run_cocotb(Increment(IncrementParams()), "tb_missing", tmp_path)
