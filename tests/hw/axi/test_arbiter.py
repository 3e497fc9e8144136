"""ReadArbiter: parameters it refuses, and its bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_hw.axi.arbiter import ReadArbiter
from lutra_sim.bench.simulate import run_cocotb


def test_rejects() -> None:
    with pytest.raises(ValueError) as error:
        ReadArbiter(0, 64)
    assert str(error.value) == "n must be positive, not 0"


@pytest.mark.cocotb
@pytest.mark.parametrize(("n", "data_width"), [(1, 32), (3, 512), (4, 64)])
def test_bench(n: int, data_width: int, tmp_path: Path) -> None:
    run_cocotb(
        ReadArbiter(n, data_width),
        "lutra_sim.bench.axi.tb_arbiter",
        tmp_path,
        parameters={"n": n, "data_width": data_width},
    )
