"""Embedding and head in codes: what lies on a grid is kept, the rest is rounded to nearest."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import GROUP, encoded, random_decoder, random_tokens

from lutra.checkpoints.weights import Dense
from lutra.models.layers import log_probabilities
from lutra.quantize import imported
from lutra.quantize.imported import from_grouped
from lutra.quantize.pack import pack_model
from lutra.quantize.reference import reference
from lutra.quantize.vocabulary import code_rows, pack_vocabulary
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.checks import sum_bits
from lutra_golden.model.decoder import Decoder
from lutra_golden.model.limits import ACC_MAX
from lutra_golden.model.packed import PackedLinear

Float = NDArray[np.float32]
W8A8 = Format(w_bits=8, a_bits=8)


def heavy(n: int = 40, k: int = 192, spread: float = 0.3) -> Float:
    """Rows of heavy tails whose sizes differ."""
    rng = np.random.default_rng(n)
    rows = np.exp(rng.normal(0, spread, (n, 1)))
    return (rng.standard_t(5, (n, k)) * rows * 0.02).astype(np.float32)


def values(linear: PackedLinear) -> NDArray[np.float64]:
    """The matrix that codes stand for."""
    doubled = linear.stored.unpack().doubled().astype(np.float64)
    return doubled * (float(scale_to_float(linear.scale)) * 2.0**-linear.shift)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.13), (8, 0.009)])
@pytest.mark.parametrize("group", [32, 64])
def test_codes_are_the_nearest(bits: int, most: float, group: int) -> None:
    w = heavy()
    found = code_rows(Dense(w), bits, group, "the embedding")
    levels = (1 << bits) - 1
    weights = found.stored.unpack()
    assert (weights.bits, weights.group, weights.scale_bits) == (bits, group, 8)
    assert (weights.zero == levels).all()
    exact = weights.doubled() * (found.unit / 2)
    error = np.abs(exact - w)
    step = (weights.scale * found.unit).repeat(group, axis=1)
    inside = np.abs(w) <= step * levels / 2
    assert (error <= 0.5001 * step)[inside].all()
    # what is clipped is at the end of its group's codes
    assert np.isin(weights.codes[~inside], (0, levels)).all()
    assert np.linalg.norm(exact - w) / np.linalg.norm(w) < most


def test_clipping_costs_less_than_none() -> None:
    w = heavy()
    found = code_rows(Dense(w), 4, 64, "the embedding")
    step = (np.abs(w).reshape(40, -1, 64).max(axis=2) / 7.5).repeat(64, axis=1)
    plain = (np.clip(np.rint(w / step + 7.5), 0, 15) - 7.5) * step
    exact = found.stored.unpack().doubled() * (found.unit / 2)
    assert ((exact - w) ** 2).sum() < 0.95 * ((plain - w) ** 2).sum()


def test_rows_far_below_the_largest_have_wide_scales() -> None:
    w = heavy()
    w[7] *= 100
    w[9] = 0
    found = code_rows(Dense(w), 8, 64, "the embedding").stored.unpack()
    assert found.scale_bits == 16
    assert not found.scale[9].any() and (np.delete(found.scale, 9, 0) > 0).all()
    assert not found.doubled()[9].any()


@pytest.mark.parametrize("tied", [True, False])
def test_one_matrix_if_they_are_tied(tied: bool) -> None:
    embedding, head = Dense(heavy()), None if tied else Dense(heavy(40, 192, 0.5) * 2)
    found, worth = pack_vocabulary(embedding, head, 8, 64, 127)
    assert found.tied is tied
    assert found.embedding.shift == 0
    assert found.n_bytes == (1 if tied else 2) * (40 * 256 + 40 * 3)
    np.testing.assert_allclose(values(found.embedding), embedding.dequantized(), atol=2e-3)
    wanted = embedding if head is None else head
    np.testing.assert_allclose(values(found.head), wanted.dequantized(), atol=4e-3)
    assert worth == float(scale_to_float(found.head.scale))
    # the shift is the least that no sum passes, whatever the codes are
    bound = found.head.stored.peak_bound * 127
    assert bound >> found.head.shift <= ACC_MAX < bound >> (found.head.shift - 1)


@pytest.mark.parametrize(("n_levels", "bits", "group"), [(2, 1, 64), (3, 2, 64), (16, 4, 64)])
def test_grids_are_kept(n_levels: int, bits: int, group: int) -> None:
    """Rows of models of one bit, of ternary ones, and of sixteen levels: exactly as they are."""
    rng = np.random.default_rng(n_levels)
    step = rng.integers(100, 1000, (40, 3)).astype(np.float32) * np.float32(2.0**-14)
    codes = rng.integers(0, n_levels, (40, 3, 64)).astype(np.float32)
    codes[..., :2] = (0, n_levels - 1)
    w = (codes - np.float32((n_levels - 1) / 2)) * step[..., None] * 2
    found, _ = pack_vocabulary(Dense(w.reshape(40, -1)), None, 4, 32, 127)
    stored = found.embedding.stored
    assert (stored.bits, stored.group) == (bits, group)
    np.testing.assert_allclose(values(found.embedding), w.reshape(40, -1), rtol=2**-15)


def test_ternary_rows_of_one_scale_have_none() -> None:
    trits = np.random.default_rng(1).integers(-1, 2, (40, 192)).astype(np.float32)
    found, _ = pack_vocabulary(Dense(trits * np.float32(0.25)), None, 8, 64, 127)
    assert (found.head.stored.bits, found.head.stored.group) == (2, None)
    np.testing.assert_allclose(values(found.embedding), trits * 0.25, rtol=2**-15)


@pytest.mark.parametrize("bits", [1, 2, 4, 5, 6, 8])
def test_codes_of_a_file_are_kept(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their own bits, five included, with the scales of the file; some rows at a time."""
    monkeypatch.setattr(imported, "_WEIGHTS", 1 << 10)
    embedding, head = encoded(bits, n=450), encoded(8, n=450, seed=5)
    found, _ = pack_vocabulary(embedding, head, 8, 64, 127)
    stored = found.embedding.stored
    assert (stored.bits, stored.group, stored.n_rows) == (bits, GROUP, 450)
    assert (found.head.stored.bits, found.head.stored.group) == (8, GROUP)
    for linear, matrix in ((found.embedding, embedding), (found.head, head)):
        whole = from_grouped(matrix.codes(slice(None))).weights
        codes = linear.stored.unpack()
        for name in ("codes", "scale", "zero"):
            np.testing.assert_array_equal(getattr(codes, name), getattr(whole, name))
        np.testing.assert_allclose(values(linear), matrix.values, rtol=2**-15)


@pytest.mark.parametrize(("offsets", "bits", "most"), [(True, 4, 2**-10), (False, 8, 1 / 68)])
def test_offsets_of_a_file(offsets: bool, bits: int, most: float) -> None:
    matrix = encoded(4, affine=True)
    found, _ = pack_vocabulary(matrix, None, 8, 64, 127, offsets=offsets)
    stored = found.embedding.stored
    assert (stored.bits, stored.offset is not None) == (bits, offsets)
    step = matrix.codes(slice(None)).scale.repeat(GROUP, axis=1)
    assert (np.abs(values(found.embedding) - matrix.values) <= 1.01 * most * step).all()


def test_codes_of_more_bits_than_asked_for_are_rounded() -> None:
    for matrix in (encoded(5), encoded(4, affine=True)):
        found, _ = pack_vocabulary(matrix, None, 4, GROUP, 127)
        stored = found.embedding.stored
        assert (stored.bits, stored.offset) == (4, None)
        error = np.linalg.norm(values(found.embedding) - matrix.values)
        assert 0 < error < 0.15 * np.linalg.norm(matrix.values)


def test_codes_of_nothing_are_refused() -> None:
    matrix = encoded(5)
    none = replace(
        matrix, codes=lambda rows: replace(found := matrix.codes(rows), scale=0 * found.scale)
    )
    with pytest.raises(LutraError, match=r"^the head is all zeros: the checkpoint is empty"):
        pack_vocabulary(matrix, none, 8, 64, 127)


@pytest.mark.parametrize("affine", [False, True])
def test_a_model_with_the_codes_of_its_file(affine: bool) -> None:
    source = replace(random_decoder(), embed_tokens=encoded(4, affine=affine), lm_head=encoded(5))
    model = pack_model(source, None, GROUP, offsets=True, head_bits=8)
    coded = model.vocabulary
    assert coded is not None
    assert (coded.embedding.stored.bits, coded.head.stored.bits) == (4, 5)
    floats, decoder = reference(model), Decoder(model)
    x = decoder.embed(random_tokens(source, 1, 20)[0].tolist())
    logits, scale = decoder.head(x)
    found = logits * (scale_to_float(scale) * model.head_scale)[:, None]
    expected = floats.logits((x * 2.0**-model.residual_frac).astype(np.float64))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-3


def test_a_grid_of_more_levels_is_rounded() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (40, 192)) - 127.5
    found, _ = pack_vocabulary(Dense((codes * 2.0**-10).astype(np.float32)), None, 4, 64, 127)
    assert found.embedding.stored.bits == 4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_and_its_reference(bits: int, tied: bool) -> None:
    """The integer path of codes follows the same codes in floating point."""
    source = random_decoder(qk_norm=True)
    if not tied:
        head = Dense(np.roll(source.embed_tokens.dequantized(), 5, axis=0))
        source = replace(source, lm_head=head)
    model = pack_model(source, W8A8, GROUP, head_bits=bits)
    coded = model.vocabulary
    assert coded is not None and coded.tied is tied
    assert model.embedding.size == model.head.size == model.head_rows.size == 0
    assert sum_bits(model, coded.head.peak, coded.head.shift) <= 28
    tokens = random_tokens(source, 1, 20)[0]
    floats = reference(model)
    np.testing.assert_allclose(
        Decoder(model).embed(tokens.tolist()) * 2.0**-model.residual_frac,
        floats.embed_tokens.dequantized()[tokens],
        atol=0.5001 * 2.0**-model.residual_frac,
    )
    decoder = Decoder(model)
    x = decoder.embed(tokens.tolist())
    logits, scale = decoder.head(x)
    found = logits * (scale_to_float(scale) * model.head_scale)[:, None]
    expected = floats.logits((x * 2.0**-model.residual_frac).astype(np.float64))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-3
    p, q = log_probabilities(expected), log_probabilities(found)
    assert (np.exp(p) * (p - q)).sum(axis=1).max() < 1e-4


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.zeros((4, 64), np.float32), "the embedding is all zeros: the checkpoint is empty, co"),
        (np.full((4, 64), np.nan, np.float32), "the embedding holds infinities or NaNs: copy the"),
        (
            np.ones((4, 40), np.float32) * np.arange(1, 41, dtype=np.float32),
            "groups of 16 do not divide rows of 40 of the embedding: leave --head out",
        ),
        (
            # four levels, which have a grid in groups of 40
            np.arange(160, dtype=np.float32).reshape(4, 40) % 4,
            "groups of 16 do not divide rows of 40 of the embedding: leave --head out",
        ),
        (
            (np.arange(256).reshape(4, 64) * 1e-38).astype(np.float32),
            "the scale of the embedding is .*, out of range: rescale the checkpoint",
        ),
    ],
)
def test_refusals(w: Float, message: str) -> None:
    with pytest.raises(LutraError, match=f"^{message}"):
        pack_vocabulary(Dense(w), None, 8, 32, 127)
