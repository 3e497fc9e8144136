"""The mirrored tables against plain arithmetic."""

from itertools import product

import numpy as np
import pytest

from lutra_golden.matmul.table import (
    ENTRIES,
    absolute_signs,
    build_table,
    decode_codes,
    encode_trits,
    relative_signs,
    sum_lookups,
)

TRITS = np.array(list(product((-1, 0, 1), repeat=3)))


def test_entries_and_their_negatives_are_all_combinations() -> None:
    signs = {tuple(entry) for entry in ENTRIES.tolist()}
    assert len(signs) == 14
    assert signs | {tuple(-s for s in entry) for entry in signs} == set(map(tuple, TRITS.tolist()))
    for entry in ENTRIES.tolist()[1:]:
        assert next(s for s in entry if s) == 1


def test_every_code() -> None:
    codes = encode_trits(TRITS)
    assert len(set(codes.tolist())) == 27
    assert codes.max() < 32
    assert encode_trits(np.zeros((1, 3), np.int64)).tolist() == [0]
    assert (decode_codes(codes) == TRITS).all()
    # the sign bit alone tells a combination from its negative
    assert (encode_trits(-TRITS)[codes > 0] == codes[codes > 0] ^ 16).all()


def test_codes_of_nothing_are_refused() -> None:
    message = r"^the index of a code of three trits must be in 0\.\.13, not 15$"
    tables = np.zeros((1, 2, 14), np.int64)
    for use in (decode_codes, lambda codes: sum_lookups(tables, codes)):
        for code in (15, 31):
            with pytest.raises(ValueError, match=message):
                use(np.array([[3, code]]))
    for trits in ([1, 2, 0], [-2, 0, 0]):
        with pytest.raises(ValueError, match=r"^trits must be -1, 0 or 1, not "):
            encode_trits(np.array([trits]))


def test_lookups_are_dot_products() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, (4, 5, 3))
    a[0], a[1] = -128, 127
    trits = rng.integers(-1, 2, (7, 5, 3))
    trits[0], trits[1] = 1, -1
    tables = build_table(a)
    assert tables.shape == (4, 5, 14)
    expected = np.einsum("mtg,ntg->mn", a, trits)
    assert (sum_lookups(tables, encode_trits(trits)) == expected).all()


def test_relative_signs_by_hand() -> None:
    # tables 1, 2, 4 refer to table 0, 3 to 2, 5 to 4, 6 to 4, 7 to 6
    codes = np.array([[16, 16, 0, 0, 16, 0, 16, 0], [1, 2, 3, 20, 5, 6, 7, 8]])
    expected = [[16, 0, 16, 0, 0, 16, 0, 16], [1, 2, 3, 20, 5, 6, 7, 8]]
    assert relative_signs(codes).tolist() == expected


@pytest.mark.parametrize("n_tables", [1, 2, 24, 48])
def test_signs_and_back(n_tables: int) -> None:
    codes = np.random.default_rng(n_tables).integers(0, 32, (9, n_tables))
    assert (absolute_signs(relative_signs(codes)) == codes).all()
    assert (relative_signs(absolute_signs(codes)) == codes).all()
