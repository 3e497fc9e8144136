"""MixpeDatapath against the golden model."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.hw.matmul.dot import check_in_amaranth

from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import Adders
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_hw.matmul.mixpe import MixpeDatapath
from lutra_sim.bench.matmul.dot import DotShape
from lutra_sim.bench.simulate import run_cocotb

SHAPES = {
    "w4a8": MixpeParams(),
    "w4a16": MixpeParams(step_rows=16, step_depth=4, depth_tile=12, a_width=16),
    "w8a8": MixpeParams(step_depth=8, depth_tile=24, w_width=8, max_planes=1),
    "w8a16": MixpeParams(step_depth=8, depth_tile=16, w_width=8, max_planes=1, a_width=16),
    "odd": MixpeParams(step_depth=9, depth_tile=27),
    "one": MixpeParams(step_depth=1, depth_tile=8),
}
ADDERS = [Adders.CHAINS, Adders.CELLS]


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        MixpeDatapath(LutParams())  # type: ignore[arg-type]
    assert str(error.value) == f"params must be MixpeParams, not {LutParams()!r}"


@pytest.mark.parametrize(
    ("shape", "adders", "latency"),
    [
        ("w4a8", Adders.CHAINS, 4),
        ("w8a8", Adders.CHAINS, 4),
        ("odd", Adders.CHAINS, 4),
        ("one", Adders.CHAINS, 2),
        ("w4a8", Adders.CELLS, 2),
    ],
)
def test_latency(shape: str, adders: Adders, latency: int) -> None:
    assert MixpeDatapath(dataclasses.replace(SHAPES[shape], adders=adders)).latency == latency


@pytest.mark.parametrize("step_depth", [8, 5])
@pytest.mark.parametrize("adders", ADDERS, ids=lambda a: a.name.lower())
def test_in_amaranth(adders: Adders, step_depth: int) -> None:
    params = MixpeParams(step_depth=step_depth, depth_tile=2 * step_depth, adders=adders)
    check_in_amaranth(MixpeDatapath(params))


@pytest.mark.cocotb
@pytest.mark.parametrize("adders", ADDERS, ids=lambda a: a.name.lower())
@pytest.mark.parametrize("name", ["w4a16", "w8a8", "w8a16", "odd", "one"])
def test_bench(tmp_path: Path, adders: Adders, name: str) -> None:
    shape = DotShape(mixpe=dataclasses.replace(SHAPES[name], adders=adders))
    run_cocotb(shape.datapath(), "lutra_sim.bench.matmul.tb_dot", tmp_path, parameters=shape)
