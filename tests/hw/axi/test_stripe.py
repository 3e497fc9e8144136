"""Stripe: parameters it refuses, and its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.axi.stripe import StripeParams
from lutra_hw.axi.stripe import Stripe
from lutra_sim.bench.simulate import run_cocotb


def test_rejects() -> None:
    with pytest.raises(TypeError) as kind:
        Stripe((2, 4))  # pyright: ignore[reportArgumentType]
    assert str(kind.value) == "params must be StripeParams, not (2, 4)"
    with pytest.raises(ValueError) as error:
        Stripe(StripeParams(n_lanes=1, beat_bytes=4))
    assert str(error.value) == "n_lanes must be at least 2, not 1: connect both sides"


@pytest.mark.cocotb
@pytest.mark.parametrize(("lanes", "beat"), [(2, 8), (4, 4)])
def test_bench(lanes: int, beat: int, tmp_path: Path) -> None:
    params = StripeParams(n_lanes=lanes, beat_bytes=beat)
    run_cocotb(Stripe(params), "lutra_sim.bench.axi.tb_stripe", tmp_path, parameters=params)
