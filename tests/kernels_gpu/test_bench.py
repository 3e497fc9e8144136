"""The bench's own work, on the interpreter and without times."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from lutra_golden.model.b128 import from_b128
from lutra_kernels import arrays, bench, missing, timing, tune
from lutra_kernels.launch import Tile
from lutra_kernels.matmul import operands
from lutra_kernels.matmul.random import decode
from lutra_kernels.shapes import Shape, Width, parse_width

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(not arrays.INTERPRETED, reason="works on memory of the host"),
]
SMALL = Shape(model="small", name="o", n=24, k=256)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch on the CPU in the interpreter, and a clock on which every call takes 2 us."""
    counts: list[int] = []

    def time_calls(calls: list[object]) -> timing.Time:
        counts.append(len(calls))
        for call in calls:
            call()
        return timing.Time(median=2.0, p10=1.0, p90=3.0)

    monkeypatch.setattr(arrays, "INTERPRETED", False)
    monkeypatch.setattr(arrays, "DEVICE", "cpu")
    monkeypatch.setattr(operands, "architecture", lambda: 90)
    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing, "ROTATED_BYTES", 4000)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return counts


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_decoding_agrees_with_the_host(bits: int) -> None:
    data = np.random.default_rng(bits).integers(0, 256, (3, 32 * bits)).astype(np.uint8)
    codes = decode(torch.from_numpy(data), bits).numpy()
    assert (codes == from_b128(data, bits, 256)).all()


@pytest.mark.parametrize("name", ["W1.58", "W4g128"])
def test_rows(name: str, on_cpu: list[int]) -> None:
    rows = list(bench.measure([SMALL], [parse_width(name)], [1, 5, 17], ceiling=2.0))
    assert [(row["m"], row["path"]) for row in rows] == [
        (1, "gemv"), (5, "gemm"), (17, "gemm"), (17, "expand"),
    ]  # fmt: skip
    n_bytes = 24 * 64 if name == "W1.58" else 24 * (128 + 4)
    first = rows[0]
    assert first["weight_bytes"] == n_bytes
    assert first["gb_per_s"] == pytest.approx(n_bytes / 2e3)
    assert first["read_share"] == pytest.approx(n_bytes / 4e3)
    assert first["over_bf16"] == 1.0 and first["over_int_mm"] is None
    assert rows[-1]["over_int_mm"] == 1.0 and first["us_hot"] == 2.0
    # rotated weights, 4000 bytes of them, then one copy
    assert on_cpu[1:3] == [3 if name == "W1.58" else 2, 1]
    assert "M=1" in bench.summary(first) and "1.00x bf16" in bench.summary(first)
    json.dumps(rows)


def test_a_wrong_product_ends_the_bench(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from lutra_kernels.matmul import random

    right = random.product
    monkeypatch.setattr(random, "product", lambda *operands: right(*operands) + 1)
    with pytest.raises(RuntimeError, match=r"^gemv of o, W1.58, M=1 is wrong$"):
        list(bench.measure([SMALL], [Width(bits=2, group=0)], [1], ceiling=1.0))


def test_tuning(on_cpu: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiles = [Tile(block_n=8, block_b=1, num_warps=1), Tile(block_n=16, block_b=2, num_warps=1)]
    monkeypatch.setattr(tune, "gemv_candidates", lambda n, k, planes: tiles)
    found = list(tune.tune([SMALL], [Width(bits=2, group=0)], [1]))
    assert found == [("gemv/w2/g0/24x256/1", tiles[0], 2.0)]
    tuned = tune.Tuned(tiles={found[0][0]: tiles[0]}, expand=["gemm/w2/g0/24x256/128"])
    tune.write_table(tuned, {"device": "x"}, tmp_path / "tables/sm_1.json")
    table = json.loads((tmp_path / "tables/sm_1.json").read_text())
    assert Tile(**table["tiles"]["gemv/w2/g0/24x256/1"]) == tiles[0]


def test_copies_exceed_the_cache() -> None:
    assert timing.n_copies(1) == timing.CALLS
    assert timing.n_copies(60_000_000) == 3
    assert timing.n_copies(1 << 30) == 1


@pytest.mark.skipif(missing() is None, reason="there is a device")
@pytest.mark.parametrize("program", [bench, tune])
def test_without_a_device_one_line_and_exit_status_2(
    program: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([]) == 2
    name = program.__name__.rpartition(".")[2]
    assert capsys.readouterr().err == f"{name}: {missing()}\n"


@pytest.mark.parametrize("name", ["W4", "4g128", "Wxg1"])
def test_formats_have_names(name: str) -> None:
    assert parse_width("W4g128") == Width(bits=4, group=128)
    assert parse_width("W1.58").name == "W1.58"
    with pytest.raises(ValueError, match=f"^format must be W1.58 or like W4g128, not '{name}'$"):
        parse_width(name)
