"""Checks of a run's registers: the limits, which rule comes first, and what is said."""

import pytest

from lutra_golden.control.check import check_run, describe
from lutra_golden.control.registers import CONTEXT, ERRORS, ErrorCode
from lutra_golden.core.configs import NANO

SOUND = dict.fromkeys(CONTEXT, 0) | {"N_TOKENS": 1, "PROGRAM_BYTES": 64}


@pytest.mark.parametrize(
    ("register", "last", "beyond", "code"),
    [
        ("N_TOKENS", 8, 9, ErrorCode.N_TOKENS),
        ("N_TOKENS", 1, 0, ErrorCode.N_TOKENS),
        ("LOGITS_FROM", 1, 2, ErrorCode.LOGITS_FROM),
        ("POSITION", 255, 256, ErrorCode.POSITION),
        ("PROGRAM_BASE", 64, 32, ErrorCode.PROGRAM),
        ("PROGRAM_BYTES", 128, 96, ErrorCode.PROGRAM),
        ("PROGRAM_BYTES", 64, 0, ErrorCode.PROGRAM),
        ("PROGRAM_BYTES", ((1 << 24) - 1) * 64, (1 << 24) * 64, ErrorCode.PROGRAM),
        ("WEIGHT_BASE", 128, 64, ErrorCode.WEIGHT_BASE),
        ("KV_BASE", 64, 32, ErrorCode.KV_BASE),
        ("LOGITS_BASE", 64, 32, ErrorCode.LOGITS),
        ("LOGITS_STRIDE", 64, 4, ErrorCode.LOGITS),
    ],
)
def test_limits(register: str, last: int, beyond: int, code: ErrorCode) -> None:
    assert check_run(NANO, SOUND | {register: last}) is ErrorCode.NONE
    assert check_run(NANO, SOUND | {register: beyond}) is code


def test_the_lowest_code_is_given() -> None:
    broken = SOUND | {"N_TOKENS": 0, "POSITION": 999, "KV_BASE": 1}
    assert check_run(NANO, broken) is ErrorCode.N_TOKENS
    assert check_run(NANO, broken | {"N_TOKENS": 1}) is ErrorCode.POSITION


def test_every_code_is_described() -> None:
    assert ERRORS.keys() == set(ErrorCode) - {ErrorCode.NONE}
    texts = [describe(NANO, code) for code in ErrorCode]
    assert len(set(texts)) == len(texts)
    assert describe(NANO, ErrorCode.N_TOKENS) == "N_TOKENS must be in 1..8"
    assert describe(NANO, ErrorCode.WEIGHT_BASE) == "WEIGHT_BASE must be a multiple of 128"
    assert not any("\n" in text for text in texts)
