"""DmaWriter: parameters it refuses, and its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_hw.axi.writer import DmaWriter
from lutra_sim.bench.simulate import run_cocotb

SMALL = {"data_width": 64, "addr_width": 40, "burst_beats": 4, "max_outstanding": 2}
SIZES = {
    "small": {**SMALL, "fifo_depth": 8},
    "single": {**SMALL, "burst_beats": 1, "max_outstanding": 1, "fifo_depth": 5},
    "data": {
        "data_width": 512,
        "addr_width": 40,
        "burst_beats": 16,
        "max_outstanding": 8,
        "fifo_depth": 33,
    },
}


def test_rejects() -> None:
    with pytest.raises(ValueError) as error:
        DmaWriter(64, burst_beats=16, max_outstanding=1, fifo_depth=15)
    assert str(error.value) == "fifo_depth must be at least 16, not 15"


@pytest.mark.cocotb
@pytest.mark.parametrize("size", SIZES)
def test_bench(size: str, tmp_path: Path) -> None:
    parameters = SIZES[size]
    run_cocotb(
        DmaWriter(**parameters), "lutra_sim.bench.axi.tb_writer", tmp_path, parameters=parameters
    )
