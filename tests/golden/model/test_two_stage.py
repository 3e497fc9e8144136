"""The best tokens of a head in two stages are those of the whole head, whatever its numbers are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.random_model import SHAPES, load, write_model

from lutra.quantize.pack import pack_model
from lutra_golden.arith.fixed import Int
from lutra_golden.arith.scale import Scale, scale_from_float
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.model import two_stage as module
from lutra_golden.model.decoder import Decoder
from lutra_golden.model.limits import ACC_MAX, HEAD_MAX, least_shift
from lutra_golden.model.packed import CodedVocabulary, PackedLinear, PackedModel
from lutra_golden.model.stored import StoredWeights
from lutra_golden.model.two_stage import KnownWeights, TwoStageHead, likeliest, lower_bits

K = 64
Q_MAX = 127
OFFSET = 32767 << 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    """A model of some depth, whose head tests replace."""
    folder = write_model(tmp_path_factory.mktemp("base"), SHAPES["odd"])
    return pack_model(load(folder))


def weights(
    n: int,
    bits: int,
    *,
    group: int = 32,
    zeros: str = "middle",
    offsets: bool = False,
    seed: int = 1,
) -> GroupedWeights:
    """Random codes, of groups with random scales; the first two rows have the ends of ranges."""
    rng, top = np.random.default_rng(seed), (1 << bits) - 1
    codes = rng.integers(0, top + 1, (n, K)).astype(np.uint8)
    scale = rng.integers(0, 300, (n, K // group))
    zero = {
        "middle": np.full(scale.shape, top + 1 if bits > 1 else 1),
        "half": np.full(scale.shape, top),
        "any": rng.integers(0, 2 * top + 1, scale.shape),
        "low": np.zeros_like(scale),
    }[zeros]
    offset = rng.integers(-5000, 5000, scale.shape) if offsets else None
    codes[0], codes[1:2], scale[:2] = top, 0, 65535
    if offset is not None:
        offset[:2] = [[OFFSET], [-OFFSET]][: min(n, 2)]
    return GroupedWeights(
        codes=codes, scale=scale, zero=zero, bits=bits, group=group, offset=offset
    )


def with_codes(base: PackedModel, rows: GroupedWeights, shift: int | None = None) -> PackedModel:
    """The model with a head of these rows."""
    stored = StoredWeights(
        codes=StoredWeights.of(replace(rows, offset=None), grouped=True).codes,
        depth=K,
        bits=rows.bits,
        group=rows.group,
        scale=rows.scale.astype(np.uint16),
        zero=rows.zero.astype(np.uint16),
        offset=None if rows.offset is None else (rows.offset >> 16).astype(np.int16),
        offset_shift=0 if rows.offset is None else 16,
    )
    if shift is None:
        shift = least_shift(stored.peak_bound, Q_MAX, ACC_MAX, least=1)
    linear = PackedLinear(stored, scale_from_float(1.0), shift)
    coded = CodedVocabulary(linear, linear)
    return replace(base, vocab_size=len(rows.codes), vocabulary=coded)


def with_trits(base: PackedModel, head: NDArray[np.int8], rows: NDArray[np.int16]) -> PackedModel:
    """The model with a head of five trits a weight."""
    return replace(
        base, vocab_size=len(head), head=head, head_rows=rows, head_shift=1, vocabulary=None
    )


def whole_logits(model: PackedModel, a: Int) -> Int:
    """Logits ``[M, N]`` as the decoder makes them, of activations ``[M, K]``."""

    class Given(Decoder):
        def __init__(self) -> None:
            self.model, self._keeps, self._kept = model, False, {}

        def _units(self, x: Int) -> Scale:
            return Scale(np.ones(len(x), np.int64), np.zeros(len(x), np.int64))

        def _norm(self, v: Int, scale: Scale, norm: object) -> tuple[Int, Scale]:
            return v, scale

        _norm_out = None  # pyright: ignore[reportAssignmentType]

    return Given().head(a)[0]


def known_of(model: PackedModel) -> KnownWeights:
    """What the first stage knows of a model's head."""
    if model.vocabulary is None:
        return KnownWeights.of_trits(model.head)
    stored = model.vocabulary.head.stored
    return KnownWeights.of_codes(stored.unpack(), lower_bits(stored.bits))


def activations(known: KnownWeights, whole: Int) -> Int:
    """Random activations, zeros, the largest, and some along what the first stage does not know of
    a row, either way: the worst there are."""
    rng, m = np.random.default_rng(5), 6
    rest = whole - known.middle
    along = rest[rng.integers(0, len(rest), m)]
    along = along * Q_MAX // np.maximum(np.abs(along).max(axis=1, keepdims=True), 1)
    some = rng.integers(-Q_MAX, Q_MAX + 1, (m, K))
    return np.concatenate([some, along, -along, np.full((1, K), Q_MAX), np.zeros((1, K), int)])


def check(model: PackedModel, numbers: tuple[int, ...] = (1, 2, 5, 40, 64)) -> None:
    """All best tokens are the whole head's, and no sum is further off than the bound."""
    whole = (
        2 * model.head.astype(np.int64)
        if model.vocabulary is None
        else model.vocabulary.head.weights.doubled()
    )
    known = known_of(model)
    a = activations(known, whole)
    rest = whole - known.middle
    assert (np.abs(rest) <= known.reach.repeat(K // known.reach.shape[1], axis=1)).all()
    middle, reach = known.sums(a)
    assert (np.abs(a @ whole.T - middle) <= reach).all()
    exact = whole_logits(model, a)
    for most in (None, model.vocab_size, 0):
        head = TwoStageHead(model, most)
        for n in numbers:
            for found, row in zip(head.best(a, n), exact, strict=True):
                expected = likeliest(row, n)
                assert found.tokens.tolist() == expected.tolist()
                assert found.logits.tolist() == row[expected].tolist()
                assert min(n, len(row)) <= found.rescored <= len(row)
                assert not found.fallback or found.rescored == len(row)
                assert most != 0 or found.fallback
                assert most != model.vocab_size or not found.fallback


CASES = [
    (4, "half", False, 64),
    (4, "any", False, 16),
    (6, "middle", False, 16),
    (6, "low", True, 16),
    (4, "low", True, 32),
    (8, "middle", False, 32),
    (8, "half", False, 32),
    (8, "any", False, 64),
    (8, "any", True, 16),
]


@pytest.mark.parametrize(("bits", "zeros", "offsets", "group"), CASES)
def test_codes(base: PackedModel, bits: int, zeros: str, offsets: bool, group: int) -> None:
    rows = weights(203, bits, zeros=zeros, offsets=offsets, group=group)
    check(with_codes(base, rows))


@pytest.mark.parametrize("n", [1, 2, 3, 63, 65])
def test_tiny_vocabularies(base: PackedModel, n: int) -> None:
    check(with_codes(base, weights(n, 8)))
    rng = np.random.default_rng(n)
    head = rng.integers(-HEAD_MAX, HEAD_MAX + 1, (n, K)).astype(np.int8)
    check(with_trits(base, head, rng.integers(1, 32768, n).astype(np.int16)))


def test_five_trits(base: PackedModel) -> None:
    rng = np.random.default_rng(7)
    head = rng.integers(-HEAD_MAX, HEAD_MAX + 1, (311, K)).astype(np.int8)
    head[0], head[1] = HEAD_MAX, -HEAD_MAX
    rows = rng.integers(1, 32768, 311).astype(np.int16)
    rows[:4] = 32767
    check(with_trits(base, head, rows))
    check(with_trits(base, head, np.ones(311, np.int16)))  # most logits are equal


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_a_few_rows_at_a_time(
    base: PackedModel, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the first stage of them stays in memory or not."""
    monkeypatch.setattr(module, "_ROWS", 50)
    monkeypatch.setattr(module, "_KEPT", kept)
    check(with_codes(base, weights(203, 6, zeros="any")))


def test_equal_rows_and_equal_logits(base: PackedModel) -> None:
    """Of equals the first tokens are taken, even if all are equal."""
    rows = weights(1, 8, seed=3)
    same = rows.rows(np.zeros(97, np.int64))
    model = with_codes(base, same)
    check(model)
    found = TwoStageHead(model).best(np.arange(K)[None], 3)[0]
    assert found.tokens.tolist() == [0, 1, 2] and found.fallback
    twice = weights(60, 8, seed=4)
    check(with_codes(base, twice.rows(np.arange(120) // 2)))
    # a shift that leaves few different logits
    check(with_codes(base, weights(150, 8, seed=6), shift=24))


def test_few_rows_are_read_whole_where_one_is_far_above(base: PackedModel) -> None:
    """Then the first pass is enough for all but one."""
    rows = weights(500, 8, seed=8)
    rows.scale[:] = 10
    rows.scale[123] = 400
    model = with_codes(base, rows)
    head = TwoStageHead(model)
    a = np.sign(rows.doubled()[123:124]) * 100
    [found] = head.best(a, 1)
    assert found.tokens.tolist() == [123]
    assert found.rescored == 1 and not found.fallback


def test_as_many_rows_as_are_allowed(base: PackedModel) -> None:
    """One more is a fallback."""
    model = with_codes(base, weights(90, 8, seed=9))
    a = np.random.default_rng(1).integers(-Q_MAX, Q_MAX, (1, K))
    [found] = TwoStageHead(model, 90).best(a, 4)
    assert 4 <= found.rescored < 90
    n = found.rescored
    [same] = TwoStageHead(model, n).best(a, 4)
    assert (same.rescored, same.fallback) == (n, False)
    [more] = TwoStageHead(model, n - 1).best(a, 4)
    assert (more.rescored, more.fallback) == (90, True)


def test_a_quarter_of_the_rows_is_read_one_by_one(base: PackedModel) -> None:
    model = with_codes(base, weights(1, 8).rows(np.zeros(90, np.int64)))
    a = np.ones((1, K), np.int64)
    # all rows are equal, so that all are read in any case
    assert TwoStageHead(model, 90).best(a, 1)[0].fallback is False
    assert TwoStageHead(model).best(a, 1)[0].fallback is True
    few = with_codes(base, weights(90, 8, seed=9))
    b = np.random.default_rng(1).integers(-Q_MAX, Q_MAX, (1, K))
    [found] = TwoStageHead(few, 90).best(b, 4)
    [same] = TwoStageHead(few).best(b, 4)
    assert same.fallback == (found.rescored > 22)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_few_bits_are_not_divided(base: PackedModel, bits: int) -> None:
    model = with_codes(base, weights(5, bits))
    assert not TwoStageHead.divides(model)
    with pytest.raises(ValueError, match=r"^a head whose weights have fewer than four bits has no"):
        TwoStageHead(model)


def test_which_bits_are_read_first() -> None:
    assert [lower_bits(bits) for bits in range(1, 9)] == [0, 0, 0, 1, 1, 2, 3, 4]


def test_what_upper_bits_say() -> None:
    """Nothing more, nothing less: there are weights at both ends of a range."""
    codes = np.arange(256, dtype=np.uint8)[None]
    one = np.ones((1, 1), np.int64)
    every = GroupedWeights(codes=codes, scale=3 * one, zero=7 * one, bits=8, group=256)
    known = KnownWeights.of_codes(every, 4)
    assert known.reach.tolist() == [[15 * 3]]
    assert known.middle[0].tolist() == [3 * (2 * (i // 16 * 16) + 15 - 7) for i in range(256)]
    rest = every.doubled() - known.middle
    assert (rest.min(), rest.max()) == (-45, 45)
    offset = replace(every, offset=1000 * one)
    assert (KnownWeights.of_codes(offset, 4).middle == known.middle + 1000).all()
    trits = np.arange(-HEAD_MAX, HEAD_MAX + 1, dtype=np.int8)[None]
    known = KnownWeights.of_trits(trits)
    assert known.reach.tolist() == [[8]]
    assert known.middle[0].tolist() == [2 * (i // 9 * 9 - HEAD_MAX + 4) for i in range(243)]


def test_sums_and_how_far_they_are_off() -> None:
    """By trying all weights that there are."""
    rng = np.random.default_rng(2)
    known = KnownWeights(rng.integers(-9, 9, (3, 4)), np.array([[2, 0], [1, 3], [2, 1]]))
    a = np.array([[3, -2, 0, 5], [-1, -1, -1, -1]])
    middle, reach = known.sums(a)
    for i, row in enumerate(known.middle):
        most = known.reach[i].repeat(2)
        tried = [row - most + np.array(more) for more in np.ndindex(*(2 * most + 1).tolist())]
        sums = np.array(tried) @ a.T
        assert (middle + reach)[:, i].tolist() == sums.max(axis=0).tolist()
        assert (middle - reach)[:, i].tolist() == sums.min(axis=0).tolist()


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 9])
def test_the_likeliest(n: int) -> None:
    logits = np.array([5, -3, 9, 5, 4, 9])
    assert likeliest(logits, n).tolist() == [2, 5, 0, 3, 4, 1][:n]
    assert likeliest(np.zeros(6, np.int64), n).tolist() == list(range(min(n, 6)))


def test_of_a_whole_model(base: PackedModel, tmp_path: Path) -> None:
    """The decoder's best tokens are those of its logits."""
    decoder = Decoder(base)
    x = decoder.embed([3, 4, 5])
    logits, scale = decoder.head(x)
    found, worth = decoder.best(x, 7)
    assert [each.tokens.tolist() for each in found] == [likeliest(y, 7).tolist() for y in logits]
    np.testing.assert_array_equal(worth.m, scale.m)
    np.testing.assert_array_equal(worth.e, scale.e)
