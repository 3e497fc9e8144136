"""DmaReader: parameters it refuses, and its bench."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_hw.axi.reader import DmaReader
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
        "fifo_depth": 128,
    },
    "weights": {
        "data_width": 1024,
        "addr_width": 40,
        "burst_beats": 8,
        "max_outstanding": 8,
        "fifo_depth": 64,
    },
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_width": 48}, "data_width must be a power of two in 32..1024, not 48"),
        ({"addr_width": 12}, "addr_width must be in 13..64, not 12"),
        ({"burst_beats": 0}, "burst_beats must be a power of two in 1..256, not 0"),
        ({"burst_beats": 3}, "burst_beats must be a power of two in 1..256, not 3"),
        (
            {"data_width": 1024, "burst_beats": 64},
            "burst_beats must be a power of two in 1..32, not 64",
        ),
        ({"max_outstanding": 0}, "max_outstanding must be positive, not 0"),
        ({"burst_beats": 16}, "fifo_depth must be at least 16, not 8"),
        ({"fifo_depth": 3}, "fifo_depth must be at least 4, not 3"),
    ],
)
def test_rejects(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        DmaReader(**{**SIZES["small"], **change})
    assert str(error.value) == message


@pytest.mark.cocotb
@pytest.mark.parametrize("size", SIZES)
def test_bench(size: str, tmp_path: Path) -> None:
    parameters = SIZES[size]
    run_cocotb(
        DmaReader(**parameters), "lutra_sim.bench.axi.tb_reader", tmp_path, parameters=parameters
    )
