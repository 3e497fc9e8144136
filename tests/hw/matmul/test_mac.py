"""MacDatapath against the golden model."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from tests.hw.matmul.dot import check_in_amaranth

from lutra_golden.matmul.lut import LutParams
from lutra_golden.matmul.mac import Adders, MacParams
from lutra_hw.matmul.mac import DotDatapath, MacDatapath
from lutra_sim.bench.matmul.dot import DotShape
from lutra_sim.bench.simulate import run_cocotb

SHAPES = {
    "w4a8": MacParams(),
    "w4a16": MacParams(step_depth=8, depth_tile=16, a_width=16),
    "w2a8": MacParams(step_depth=32, depth_tile=32, w_width=2, max_planes=4),
    "w2a16": MacParams(
        step_rows=16, step_depth=4, depth_tile=12, w_width=2, max_planes=4, a_width=16
    ),
    "w8a8": MacParams(step_depth=8, depth_tile=24, w_width=8, max_planes=1),
    "w8a16": MacParams(step_depth=8, depth_tile=16, w_width=8, max_planes=1, a_width=16),
    "odd": MacParams(step_depth=9, depth_tile=27, w_width=8, max_planes=1),
    "one": MacParams(step_depth=1, depth_tile=8),
}


def test_rejects_params_of_another_kind() -> None:
    with pytest.raises(TypeError) as error:
        MacDatapath(LutParams())  # type: ignore[arg-type]
    assert str(error.value) == f"params must be MacParams, not {LutParams()!r}"


@pytest.mark.parametrize(
    ("shape", "adders", "latency"),
    [
        ("w4a8", Adders.DSP, 18),
        ("w2a8", Adders.DSP, 19),
        ("w4a16", Adders.DSP, 7),
        ("w8a16", Adders.DSP, 10),
        ("one", Adders.DSP, 3),
        ("w4a8", Adders.CHAINS, 4),
        ("w8a8", Adders.CHAINS, 4),
        ("one", Adders.CHAINS, 2),
        ("w4a8", Adders.CELLS, 2),
    ],
)
def test_latency(shape: str, adders: Adders, latency: int) -> None:
    assert MacDatapath(dataclasses.replace(SHAPES[shape], adders=adders)).latency == latency


@pytest.mark.parametrize(
    ("shape", "rows", "cascade"),
    [
        ("w4a8", 2, 16),
        ("w2a8", 2, 16),
        ("w4a16", 2, 4),
        ("w2a16", 2, 4),
        ("w8a8", 2, 4),
        ("w8a16", 1, 8),
        ("odd", 2, 3),
    ],
)
def test_rows_share_a_dsp_where_two_products_fit(shape: str, rows: int, cascade: int) -> None:
    params = SHAPES[shape]
    assert (params.rows_per_dsp, params.cascade) == (rows, cascade)


@pytest.mark.parametrize("adders", list(Adders), ids=lambda a: a.name.lower())
def test_in_amaranth(adders: Adders) -> None:
    check_in_amaranth(MacDatapath(MacParams(step_depth=8, depth_tile=16, adders=adders)))


def test_rows_and_words_are_for_subclasses() -> None:
    datapath = DotDatapath(MacParams(adders=Adders.CELLS))
    with pytest.raises(NotImplementedError):
        datapath.shared([])
    with pytest.raises(NotImplementedError):
        datapath.terms([], [])


BENCHES = {
    Adders.DSP: ["w4a8", "w2a8", "w4a16", "w8a8", "w8a16", "odd", "one"],
    Adders.CHAINS: ["w4a8", "w2a16", "odd", "one"],
    Adders.CELLS: ["w4a8", "w2a16", "odd", "one"],
}
SLOW = [(Adders.CELLS, "odd")]


@pytest.mark.cocotb
@pytest.mark.parametrize(
    ("adders", "name"),
    [
        pytest.param(adders, name, marks=[pytest.mark.slow] * ((adders, name) in SLOW))
        for adders, names in BENCHES.items()
        for name in names
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Adders) else value,
)
def test_bench(tmp_path: Path, adders: Adders, name: str) -> None:
    shape = DotShape(mac=dataclasses.replace(SHAPES[name], adders=adders))
    run_cocotb(shape.datapath(), "lutra_sim.bench.matmul.tb_dot", tmp_path, parameters=shape)
