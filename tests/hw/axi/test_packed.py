"""Words without gaps: what is refused, and the bench."""

from pathlib import Path

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("cocotb_tools")

from lutra_golden.axi.packed import PackedParams
from lutra_hw.axi.packed import ReadPacked
from lutra_sim.bench.simulate import run_cocotb


def test_rejects() -> None:
    with pytest.raises(TypeError) as error:
        ReadPacked((10, 8))  # pyright: ignore[reportArgumentType]
    assert str(error.value) == "params must be PackedParams, not (10, 8)"


@pytest.mark.cocotb
@pytest.mark.parametrize(("word", "beat"), [(10, 8), (12, 8), (15, 4), (7, 4)])
def test_bench(word: int, beat: int, tmp_path: Path) -> None:
    params = PackedParams(word_bytes=word, beat_bytes=beat)
    run_cocotb(ReadPacked(params), "lutra_sim.bench.axi.tb_packed", tmp_path, parameters=params)
