"""Checks of a run's registers: the limits, and which rule comes first."""

import pytest

from lutra_golden.control.check import check_run
from lutra_golden.control.chunks import ChunkEntry
from lutra_golden.control.registers import CONTEXT, ErrorCode
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports

SOUND = dict.fromkeys(CONTEXT, 0) | {"N_TOKENS": 1, "PROGRAM_BYTES": 64}


@pytest.mark.parametrize(
    ("register", "last", "beyond", "code"),
    [
        ("N_TOKENS", 8, 9, ErrorCode.N_TOKENS),
        ("N_TOKENS", 1, 0, ErrorCode.N_TOKENS),
        ("LOGITS_FROM", 1, 2, ErrorCode.LOGITS_FROM),
        ("PROGRAM_BASE", 64, 32, ErrorCode.PROGRAM),
        ("PROGRAM_BYTES", 128, 96, ErrorCode.PROGRAM),
        ("PROGRAM_BYTES", 64, 0, ErrorCode.PROGRAM),
        ("PROGRAM_BYTES", ((1 << 24) - 1) * 64, (1 << 24) * 64, ErrorCode.PROGRAM),
        ("WEIGHT_BASE", 128, 64, ErrorCode.WEIGHT_BASE),
        ("LOGITS_BASE", 64, 32, ErrorCode.LOGITS),
        ("LOGITS_STRIDE", 64, 4, ErrorCode.LOGITS),
    ],
)
def test_limits(register: str, last: int, beyond: int, code: ErrorCode) -> None:
    table = [ChunkEntry()] * NANO.pass_tokens
    assert check_run(NANO, SOUND | {register: last}, table) is ErrorCode.NONE
    assert check_run(NANO, SOUND | {register: beyond}, table) is code


@pytest.mark.parametrize(("weights", "data", "aligned"), [(1024, 512, 128), (128, 512, 64)])
def test_weights_and_tables_begin_at_one_base(weights: int, data: int, aligned: int) -> None:
    config = NANO.with_(ports=two_ports(weights=weights, data=data))
    table = [ChunkEntry()] * config.pass_tokens
    assert check_run(config, SOUND | {"WEIGHT_BASE": aligned}, table) is ErrorCode.NONE
    beyond = check_run(config, SOUND | {"WEIGHT_BASE": aligned // 2}, table)
    assert beyond is ErrorCode.WEIGHT_BASE


def test_every_chunk_is_checked_and_no_other_entry() -> None:
    registers = SOUND | {"N_TOKENS": 3}
    for table, code in (
        ([ChunkEntry(253)], ErrorCode.NONE),
        ([ChunkEntry(254)], ErrorCode.CHUNK),
        ([ChunkEntry(255, 1), ChunkEntry(254), ChunkEntry(999)], ErrorCode.NONE),
        ([ChunkEntry(255, 1), ChunkEntry(255, 7), ChunkEntry(0)], ErrorCode.CHUNK),
        ([ChunkEntry(256, 1), ChunkEntry(0)], ErrorCode.CHUNK),
    ):
        assert check_run(NANO, registers, table) is code


def test_the_lowest_code_is_given() -> None:
    broken, table = SOUND | {"N_TOKENS": 0, "WEIGHT_BASE": 1}, [ChunkEntry(999)]
    assert check_run(NANO, broken, table) is ErrorCode.N_TOKENS
    assert check_run(NANO, broken | {"N_TOKENS": 1}, table) is ErrorCode.CHUNK
