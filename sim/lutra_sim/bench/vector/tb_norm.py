"""cocotb bench of :class:`lutra_hw.vector.norm.NormQuant`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from lutra_golden.arith.fixed import Int, Saturation
from lutra_golden.arith.quantize import ActivationGroups, q_max_of
from lutra_golden.arith.scale import Scale, scale_from_float
from lutra_golden.control.isa import NormSource
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.norm import norm_cycles
from lutra_golden.vector.norm import gate_scale, norm_quantize, relu2_gate, swiglu, swiglu_scale
from lutra_hw.vector.norm import NORM_COMMAND, NormQuant
from lutra_sim.bench.ports import PortMemory, PulseMonitor
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSource, pack, reset, unpack

__all__ = ["Case", "cases", "golden", "groups_of", "normalises", "saturates"]

LANES = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command and the values it reads, ``[M, n_words * 8]``; ``up`` for GATE and SWIGLU only."""

    source: NormSource
    plain: bool
    v: Int
    up: Int
    gamma: Int
    gamma_frac: int
    param_word: int
    inv_n: Scale
    eps: Scale
    scale_a: Scale
    scale_b: Scale
    scales: Scale
    token_first: int
    token_count: int

    @property
    def n_words(self) -> int:
        """Words per token."""
        return self.v.shape[1] // LANES

    @property
    def command(self) -> int:
        """The packed command."""
        fields = {
            name: int(getattr(self, name))
            for name in (
                "source",
                "plain",
                "n_words",
                "param_word",
                "gamma_frac",
                "token_first",
                "token_count",
            )
        }
        scales = {name: getattr(self, name) for name in ("inv_n", "eps", "scale_a", "scale_b")}
        return pack(
            NORM_COMMAND,
            fields | {name: {"m": s.m, "e": s.e} for name, s in scales.items()},
        )


def groups_of(case: Case, config: AcceleratorConfig) -> ActivationGroups | None:
    """Groups of the command's activations."""
    of_attention = case.source == NormSource.ATTENTION
    return config.attention_groups if of_attention else config.matmul.a_groups


def golden(case: Case, config: AcceleratorConfig) -> tuple[Int, Scale]:
    """Activations, as integers, and scales of all tokens, whether the command asks for them or
    not."""
    v, scales = case.v, Scale(*np.broadcast_arrays(*case.scale_a, case.scales.m)[:2])
    if case.source == NormSource.GATE:
        v = relu2_gate(case.v, case.up)
        scales = gate_scale(case.scales, case.scale_a, case.scale_b)
    elif case.source == NormSource.SWIGLU:
        v = swiglu(case.v, case.up, case.scales, case.scale_a)
        scales = swiglu_scale(case.scales, case.scale_b)
    return norm_quantize(
        v,
        scales,
        case.gamma,
        case.gamma_frac,
        case.inv_n,
        case.eps,
        normalise=not case.plain,
        q_max=q_max_of(config.matmul.a_width),
        groups=groups_of(case, config),
    )


def saturates(case: Case) -> bool:
    """True if an argument of SiLU of the command's tokens is above its range."""
    flag, rows = Saturation(), slice(case.token_first, case.token_first + case.token_count)
    if case.source == NormSource.SWIGLU:
        scales = Scale(case.scales.m[rows], case.scales.e[rows])
        swiglu(case.v[rows], case.up[rows], scales, case.scale_a, flag)
    return flag.seen


def cases(config: AcceleratorConfig, rng: np.random.Generator) -> Iterator[Case]:
    """Corners of every source first, then random values of random magnitude and size."""
    limits = {
        NormSource.RESIDUAL: config.vector.hidden_max // LANES,
        NormSource.ATTENTION: config.n_heads * config.head_dim // LANES,
        NormSource.GATE: min(config.matmul.acc_blocks // 2, 40),
        NormSource.SWIGLU: min(config.matmul.acc_blocks // 2, 40),
    }
    widths = {NormSource.GATE: config.vector.gate_width, NormSource.SWIGLU: config.matmul.acc_width}
    tokens = config.pass_tokens

    def scale(low: int, high: int) -> Scale:
        return Scale(np.array(rng.integers(1 << 15, 1 << 16)), np.array(rng.integers(low, high)))

    def case(source: NormSource, v: Int, up: Int, first: int, count: int, **changes: Any) -> Case:
        n_words = v.shape[1] // LANES
        values: dict[str, Any] = {
            "plain": bool(rng.integers(0, 2)),
            "gamma": rng.integers(-(1 << 15), 1 << 15, v.shape[1]) >> rng.integers(0, 15),
            "gamma_frac": int(rng.integers(0, 16)),
            "param_word": int(rng.integers(0, config.vector.param_words - n_words + 1)),
            "inv_n": scale_from_float(1 / v.shape[1]),
            "eps": scale_from_float(1e-5),
            "scale_a": scale(-40, -10),
            "scale_b": scale(-40, -10),
            "scales": Scale(rng.integers(1 << 15, 1 << 16, tokens), rng.integers(-40, -10, tokens)),
        } | changes
        return Case(source=source, v=v, up=up, token_first=first, token_count=count, **values)

    for source, limit in limits.items():
        bits = widths.get(source, 32)
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        shape = (tokens, limit * LANES)
        extremes = rng.choice([low, high, low + 1, 0, 1, -1], shape)
        yield case(source, extremes, rng.choice([low, high], shape), 0, tokens)
        gamma = np.full(shape[1], -(1 << 15))
        yield case(source, np.full(shape, high), np.full(shape, low), 0, tokens, gamma=gamma)
        yield case(source, np.full(shape, low), np.full(shape, high), 0, 1, gamma=gamma)
        yield case(source, np.zeros(shape, np.int64), extremes, 0, tokens)
        # powers of two and their neighbours decide on the shift, most of all where they round up
        powers = 1 << rng.integers(0, bits - 1, (tokens, 1))
        edges = rng.choice([-1, 1], shape) * powers + rng.integers(-1, 2, shape)
        yield case(source, np.clip(edges, low, high), powers + np.zeros(shape, np.int64), 0, tokens)
        zero = Scale(np.array(0), np.array(0))
        zeros = {"scale_a": zero, "eps": zero, "gamma": np.zeros(shape[1], np.int64)}
        yield case(source, extremes, extremes, 0, tokens, **zeros)
        yield case(source, extremes, extremes, tokens // 2, 0)
        for n_words in (1, 2, 3, 5, limit - 1, *rng.integers(1, limit + 1, 6)):
            first = int(rng.integers(0, tokens))
            count = int(rng.integers(1, tokens - first + 1))
            shape = (tokens, int(n_words) * LANES)
            v, up = (
                rng.integers(low, high + 1, shape) >> rng.integers(0, bits, (tokens, 1))
                for _ in range(2)
            )
            yield case(source, v, up, first, count)

    if config.matmul.a_groups is not None:
        for source, limit in limits.items():
            for n_words in (limit, limit - 1, 1):
                # words of every size, and groups of zeros
                shape, bits = (tokens, n_words * LANES), widths.get(source, 32)
                v, up = (rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape) for _ in range(2))
                v >>= rng.integers(0, bits, (tokens, n_words)).repeat(LANES, axis=1)
                v[0, rng.integers(0, shape[1]) :] = 0
                yield case(source, v, up, 0, tokens)
        # a group's largest is the token's by a power of two, or one more
        size, limit = config.matmul.a_groups.size, limits[NormSource.RESIDUAL]
        for largest in (1, 127, 16383, 32640):
            v = rng.integers(-1, 2, (tokens, limit * LANES))
            v[:, 0] = largest
            for k in range(size, v.shape[1], size):
                v[:, k] = -((largest >> rng.integers(0, 10, tokens)) + rng.integers(0, 2, tokens))
            ones = np.ones(v.shape[1], np.int64)
            yield case(NormSource.RESIDUAL, np.clip(v, -largest, largest), v, 0, tokens, gamma=ones)

    # arguments of SiLU from far beyond its table to nothing, a scale for each token
    bits, shape = config.matmul.acc_width, (tokens, 8 * LANES)
    for e in (-60, -45, -40, -36, -32, -28, -24, -16, 0, 40):
        gate, up = (rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape) for _ in range(2))
        gate >>= rng.integers(0, bits, shape)
        scales = Scale(rng.integers(1 << 15, 1 << 16, tokens), rng.integers(e - 4, e + 4, tokens))
        scales.m[-1] = scales.e[-1] = 0
        one = Scale(np.array(1 << 15), np.array(-15))
        yield case(NormSource.SWIGLU, gate, up, 0, tokens, scales=scales, scale_a=one)
    # one argument that is just within its range, above it, or far below
    for value in (1023, 1024, -5000):
        gate, lane = np.zeros(shape, np.int64), int(rng.integers(shape[1]))
        gate[-1, lane] = value
        ones = Scale(np.full(tokens, 1 << 15), np.full(tokens, -15))
        yield case(NormSource.SWIGLU, gate, up, 0, tokens, scales=ones, scale_a=one)


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def normalises(dut: Any) -> None:
    """Activations, scales and cycles of every case; nothing else is written."""
    config = bench_params(AcceleratorConfig)
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    signature = NormQuant(config).signature.members
    names = ("residual", "attention", "acc", "param", "scale_r")
    memories = {name: PortMemory(signature[name].signature) for name in names}
    act = PortMemory(signature["act"].signature)
    port = signature["act"].signature
    source, accepted = StreamSource(dut, "cmd"), StreamMonitor(dut, "cmd")
    done, saturated = PulseMonitor(dut, "done"), PulseMonitor(dut, "saturated")
    for name, memory in memories.items():
        memory.serve(dut, name)
    writes = act.record(dut, "act")
    memories["scale_r"].record(dut, "scale_w")
    await reset(dut)
    await ClockCycles(dut.clk, 3)

    all_cases = list(cases(config, rng))
    for number, case in enumerate(all_cases):
        q, scales = golden(case, config)
        words = (config.pass_tokens, case.n_words, LANES)
        for name in names:
            memories[name].words.clear()
        if case.source in (NormSource.GATE, NormSource.SWIGLU):
            pairs = np.stack([case.v.reshape(words), case.up.reshape(words)], axis=2)
            memories["acc"].load(pairs)
        else:
            memories[case.source.name.lower()].load(case.v.reshape(words))
        filler = np.zeros((case.param_word, LANES), np.int64)
        memories["param"].load(np.concatenate([filler, case.gamma.reshape(-1, LANES)]))
        memories["scale_r"].load([{"m": m, "e": e} for m, e in zip(*case.scales, strict=True)])
        act.words.clear()
        writes.cycles.clear()
        saturated.cycles.clear()
        source.send(case.command)
        await done.wait_for(number + 1)

        what = (number, case.source.name, case.n_words, case.token_first, case.token_count)
        chosen = range(case.token_first, case.token_first + case.token_count)
        found = {addr: unpack(port.payload_layout, word) for addr, word in act.words.items()}
        written = {
            (token, word): found.pop(pack(port.addr_layout, {"token": token, "word": word}))
            for token in chosen
            for word in range(case.n_words)
        }
        assert not found, what
        groups = groups_of(case, config)
        for (token, word), value in written.items():
            expected = q[token, LANES * word : LANES * (word + 1)].tolist()
            if groups is None:
                assert value == expected, what
                continue
            assert [x << value["shift"] for x in value["q"]] == expected, what
            begins = word - word % (groups.size // LANES)
            assert value["shift"] == written[token, begins]["shift"], what
        assert len(writes.cycles) == len(chosen) * case.n_words, what
        assert bool(saturated.cycles) == saturates(case), what
        expected_scales = np.stack(case.scales, axis=1)
        expected_scales[chosen] = np.stack(scales, axis=1)[chosen]
        assert (memories["scale_r"].array(config.pass_tokens) == expected_scales).all(), what
        cycles = done.cycles[-1] - accepted.cycles[-1]
        assert cycles == norm_cycles(case.n_words, case.token_count, case.source), what
    assert len(done.cycles) == len(all_cases)
