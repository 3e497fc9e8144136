import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lutra_kernels import launch
from lutra_kernels.launch import Tile, choose, expands, gemm_rule, gemv_rule, key
from lutra_kernels.shapes import SHAPES

CHOICE = {"arch": 90, "bits": 2, "group": 0, "n": 3840, "k": 2560, "a_bytes": 1, "planes": (2,)}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    launch.load_table.cache_clear()
    launch._expanding.cache_clear()
    yield tmp_path / "sm_90.json"
    launch.load_table.cache_clear()
    launch._expanding.cache_clear()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_n": 24}, "block_n must be a power of two, not 24"),
        ({"split": 0}, "split must be positive, not 0"),
    ],
)
def test_bad_tiles(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Tile(**{"block_n": 16, "block_b": 2, "num_warps": 1, **values})


@pytest.mark.parametrize("plane", [1, 2, 4])
def test_the_rule_for_few_tokens_suits_every_shape(plane: int) -> None:
    for shape in SHAPES:
        tile = gemv_rule(shape.n, shape.k // 128, plane)
        lanes = tile.block_b * plane
        assert lanes in (8, 16, 32)
        assert tile.block_n >= 4 and tile.num_warps <= max(1, tile.block_n // 4)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("m", [5, 16, 17, 64, 128, 4096])
def test_the_rule_for_many_tokens_keeps_to_what_compiles_without_spills(
    m: int, grouped: bool
) -> None:
    for shape in SHAPES:
        tile = gemm_rule(shape.n, shape.k // 128, m, grouped)
        assert tile.block_m >= min(m, 64 if grouped else 128)
        assert tile.block_m * tile.block_n <= (64 * 64 if grouped else 128 * 128)
        assert (shape.k // 128) % tile.block_b == 0
        assert tile.split * tile.block_b <= shape.k // 128


def test_a_measured_tile_is_taken(table: Path) -> None:
    tile = Tile(block_n=2, block_b=4, num_warps=1)
    content = {
        "tiles": {key("gemv", 2, 0, 3840, 2560, 2): vars(tile)},
        "expand": [key("gemm", 2, 0, 3840, 2560, 100)],
    }
    table.write_text(json.dumps(content))
    assert choose("gemv", **CHOICE, m=2) == tile
    assert choose("gemv", **CHOICE, m=1) == gemv_rule(3840, 20, 2)
    assert choose("gemv", **{**CHOICE, "a_bytes": 2}, m=2) == gemv_rule(3840, 20, 2)
    where = {"arch": 90, "bits": 2, "group": 0, "n": 3840, "k": 2560}
    assert expands(**where, m=128) and not expands(**where, m=4096)


def test_without_a_table_the_rules(table: Path) -> None:
    assert choose("gemm", **CHOICE, m=16) == gemm_rule(3840, 20, 16, grouped=False)
    where = {"arch": 90, "bits": 2, "group": 0, "n": 3840, "k": 2560}
    assert expands(**where, m=512) and not expands(**where, m=511)


def test_tokens_are_rounded_up() -> None:
    assert key("gemm", 4, 128, 8, 256, 17) == "gemm/w4/g128/8x256/32"
    assert key("gemm", 4, 128, 8, 256, 9999) == "gemm/w4/g128/8x256/4096"


def test_shipped_tables_can_be_read() -> None:
    for path in launch.TABLES.glob("sm_*.json"):
        assert launch.load_table(int(path.stem.removeprefix("sm_")))
