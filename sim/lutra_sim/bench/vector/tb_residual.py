"""cocotb bench of :class:`lutra_hw.vector.residual.ResidualAdd`."""

from typing import Any

import cocotb
import numpy as np

from lutra_golden.arith.fixed import Saturation
from lutra_golden.arith.scale import Scale
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.residual import residual_cycles
from lutra_golden.vector.residual import RESIDUAL_WIDTH, residual_add, residual_sum
from lutra_hw.vector.residual import RESIDUAL_COMMAND, ResidualAdd
from lutra_sim.bench.ports import PortMemory, PulseMonitor
from lutra_sim.bench.simulate import bench_params
from lutra_sim.bench.stream import StreamMonitor, StreamSource, pack, reset

__all__ = ["adds"]

PARAMS = bench_params(AcceleratorConfig)


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def adds(dut: Any) -> None:
    """The residual stream after commands of every size and over the whole range of shifts."""
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    signatures = ResidualAdd(PARAMS).signature.members
    acc, scale, residual = (
        PortMemory(signatures[name].signature) for name in ("acc", "scale_r", "residual")
    )
    source, accepted = StreamSource(dut, "cmd"), StreamMonitor(dut, "cmd")
    done, saturated = PulseMonitor(dut, "done"), PulseMonitor(dut, "saturated")
    for memory, name in ((acc, "acc"), (scale, "scale_r"), (residual, "residual")):
        memory.serve(dut, name)
    residual.record(dut, "residual_w")
    await reset(dut)

    tokens, words = PARAMS.pass_tokens, PARAMS.vector.hidden_max // 8
    acc_limit, limit = 1 << (PARAMS.matmul.acc_width - 1), 1 << (RESIDUAL_WIDTH - 1)
    # rows of the command; the last three numbers are the exponent of the factor and the fraction
    cases = [(tokens, words, 20, exponent, 8) for exponent in (-9, -8, -24, -40, -70, -71, -90)]
    cases += [(tokens, words, 32, -8, 8), (tokens, words, 32, -16, 8), (0, words, 20, -20, 8)]
    cases += [(1, 1, 20, -20, 0), (1, 2, 20, -30, 255), (tokens - 1, 1, 30, -33, 16)]
    cases += [(tokens, n, 31, -24, 8) for n in range(1, words, max(1, words // 7))]
    for case, (n_tokens, n_words, x_bits, exponent, frac) in enumerate(cases):
        a = rng.integers(-acc_limit, acc_limit, (tokens, words * 8)) >> rng.integers(
            0, PARAMS.matmul.acc_width, (tokens, 1)
        )
        x = rng.integers(-limit, limit, (tokens, words * 8)) >> (RESIDUAL_WIDTH - x_bits)
        a[0, :4], x[0, :4] = (-acc_limit, acc_limit - 1, -acc_limit, 0), (-limit, limit - 1, 0, 5)
        s_e, w_e = rng.integers(-30, 0, tokens), int(rng.integers(-40, 0))
        s = Scale(rng.integers(1 << 15, 1 << 16, tokens), exponent - frac + 8 - 15 - s_e - w_e)
        w = Scale(np.array(rng.integers(1 << 15, 1 << 16)), np.array(w_e))
        s.e[:] += s_e
        if case % 3 == 2:
            s.m[-1] = s.e[-1] = 0
        expected = x.copy()
        n = 8 * n_words
        expected[:n_tokens, :n] = residual_add(
            x[:n_tokens, :n], a[:n_tokens, :n], Scale(s.m[:n_tokens], s.e[:n_tokens]), w, frac
        )

        acc.load(_pairs(a))
        residual.load(x.reshape(tokens, words, 8))
        scale.load([{"m": s_m, "e": s_e} for s_m, s_e in zip(s.m, s.e, strict=True)])
        saturated.cycles.clear()
        command = {
            "scale_w": {"m": w.m, "e": w.e},
            "n_words": n_words,
            "frac": frac,
            "token_count": n_tokens,
        }
        source.send(pack(RESIDUAL_COMMAND, command))
        await done.wait_for(case + 1)

        assert (residual.array(tokens, words).reshape(tokens, -1) == expected).all(), case
        flagged = 0
        for token, word in np.ndindex(n_tokens, n_words):
            flag, row, lanes = Saturation(), slice(token, token + 1), slice(8 * word, 8 * word + 8)
            residual_sum(x[row, lanes], a[row, lanes], Scale(s.m[row], s.e[row]), w, frac, flag)
            flagged += flag.seen
        assert len(saturated.cycles) == flagged
        cycles = done.cycles[-1] - accepted.cycles[-1]
        assert cycles == residual_cycles(n_words, n_tokens)
    assert len(done.cycles) == len(cases)


def _pairs(a: np.ndarray) -> np.ndarray:
    """Accumulators ``[M, N]`` as pairs of blocks ``[M, N / 16, 2, 8]``, an odd block filled up."""
    padded = np.zeros((len(a), -(-a.shape[1] // 16) * 16), np.int64)
    padded[:, : a.shape[1]] = a
    return padded.reshape(len(a), -1, 2, 8)
