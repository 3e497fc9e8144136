"""Width converters: parameters they refuse, and their bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.axi.width import WidthParams
from lutra_hw.axi.width import ReadWidth, WriteWidth
from lutra_sim.bench.simulate import run_cocotb

# to a port of a fraction that is a power of two, and one that is none; to wider ones
WIDTHS = [(16, 4), (12, 4), (8, 16), (4, 32)]


@pytest.mark.parametrize("block", [ReadWidth, WriteWidth])
def test_rejects(block: type) -> None:
    with pytest.raises(TypeError) as error:
        block((8, 16))
    assert str(error.value) == "params must be WidthParams, not (8, 16)"


@pytest.mark.cocotb
@pytest.mark.parametrize(("word", "beat"), WIDTHS)
@pytest.mark.parametrize("block", [ReadWidth, WriteWidth])
def test_bench(block: type, word: int, beat: int, tmp_path: Path) -> None:
    params = WidthParams(word_bytes=word, beat_bytes=beat)
    run_cocotb(
        block(params),
        "lutra_sim.bench.axi.tb_width",
        tmp_path,
        parameters={"width": params, "writes": block is WriteWidth},
    )
