"""Checks of a run's registers: the limits, and which rule comes first."""

import pytest

from lutra_golden.control.check import check_run
from lutra_golden.control.registers import CONTEXT, ErrorCode
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
