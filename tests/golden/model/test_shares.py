"""Shares of every layer are together the layer, whoever has which rows and heads."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.host.models.small_models import write_variant

from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.fixed import Int
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import EXCHANGES, LayerShare, Party, divide, exchange_widths

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


class Table:
    """An exchange between threads."""

    def __init__(self, model: PackedModel, n: int, parties: int) -> None:
        self.arrays = {
            name: np.full((n, width), 1 << 40) for name, width in exchange_widths(model).items()
        }
        self.seen = list[str]()
        self.barrier = threading.Barrier(parties, timeout=60)

    def whole(self, what: str, part: Int, columns: Sequence[range]) -> Int:
        at = np.concatenate([np.arange(each.start, each.stop) for each in columns])
        self.arrays[what][:, at] = part
        self.seen.append(what)
        self.barrier.wait()
        found = self.arrays[what].copy()
        self.barrier.wait()
        return found


def small(folder: Path, variant: str, **changes: int) -> PackedModel:
    changes = {"hidden_size": 128, "num_hidden_layers": 2, "head_dim": 32, **changes}
    model = load_model(write_variant(folder, variant, changes=changes))
    return pack_model(model, Format.parse("W4A8"), 16)


def parts(model: PackedModel, shares: Sequence[LayerShare]) -> tuple[list[Int], Table]:
    """Logits of each share's rows."""
    table, found = Table(model, len(TOKENS), len(shares)), dict[int, Int]()

    def run(i: int) -> None:
        decoder = Decoder(model)
        caches, x = decoder.caches(), decoder.embed(TOKENS)
        for layer in range(len(caches)):
            rows = Rows(caches, slice(0, len(TOKENS)), 0)
            x = decoder.layer(layer, x, [rows], Party(shares[i], table))
        found[i], _ = decoder.head(x, shares[i].vocabulary)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(shares))], table


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("rows", "heads"), [((1, 1), None), ((3, 1), (1, 3)), ((1, 0, 2), None), ((0, 1), (1, 0))]
)
def test_shares_are_together_the_layer(
    variant: str, rows: Sequence[float], heads: Sequence[float] | None, tmp_path: Path
) -> None:
    model = small(tmp_path, variant)
    decoder = Decoder(model)
    caches, x = decoder.caches(), decoder.embed(TOKENS)
    for i in range(len(caches)):
        x = decoder.layer(i, x, [Rows(caches, slice(0, len(TOKENS)), 0)])
    expected, _ = decoder.head(x)
    found, table = parts(model, divide(model, rows, heads))
    np.testing.assert_array_equal(np.concatenate(found, axis=1), expected)
    n = len(rows) * len(caches)
    assert [table.seen.count(name) for name in EXCHANGES] == [n, n, 2 * n, n]


def test_rows_are_cut_where_kernels_begin(tmp_path: Path) -> None:
    model = small(tmp_path, "llama", intermediate_size=1024)
    one, two = divide(model, (1, 2))
    assert (one.inner, two.inner) == (range(320), range(320, 1024))
    assert (one.hidden, two.hidden) == (range(32), range(32, 128))
    assert (one.vocabulary.start, two.vocabulary.stop) == (0, model.vocab_size)
    assert one.rows("k_proj") == one.rows("v_proj") == one.keys
    assert one.rows("down_proj") == one.rows("o_proj") == one.hidden
    assert one.rows("up_proj") == one.inner and one.rows("q_proj") == one.queries
    one, two = divide(model, (1, 2), (1, 0))
    assert (len(one.heads), len(two.heads)) == (model.n_heads, 0)


@pytest.mark.parametrize("weights", [(), (0, 0), (1, -1)])
def test_shares_that_are_none(weights: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(LutraError, match="shares must be 0 or more, and not all 0"):
        divide(small(tmp_path, "llama"), weights)


def test_padded_heads_are_not_divided(tmp_path: Path) -> None:
    model = small(tmp_path, "llama", head_dim=24)
    with pytest.raises(LutraError, match="rows of a model whose heads have 24 elements"):
        divide(model, (1, 1))
