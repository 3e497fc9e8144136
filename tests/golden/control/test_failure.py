"""The error registers: their parts, and the line that says what they hold."""

import pytest

from lutra_golden.control.failure import UNITS, Failure
from lutra_golden.control.registers import ERROR_FIELDS, ERRORS, ErrorCode
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import Purpose, striped_ports


def test_parts_lie_apart_and_hold_what_there_is() -> None:
    used = 0
    for first, width, _ in ERROR_FIELDS.values():
        bits = (1 << width) - 1 << first
        assert not bits & used and bits < 1 << 32
        used |= bits
    assert max(ErrorCode) < 1 << ERROR_FIELDS["code"][1]
    assert len(Purpose) <= 1 << ERROR_FIELDS["purpose"][1]
    assert list(UNITS) == list(Purpose)


def test_every_port_of_striped_weights_is_named() -> None:
    config = NANO.with_(ports=striped_ports(2, 512))
    failure = Failure(code=ErrorCode.BUS, purpose=3, response=2, instruction=1, address=0x80)
    assert "SLVERR to a read of m_axi_0 or m_axi_1 (weights) at 0x80, " in failure.describe(config)


def test_the_word_has_every_part() -> None:
    failure = Failure(code=ErrorCode.BUS, purpose=3, response=2, instruction=0x1234, address=5)
    assert failure.word == 0x1234_0237
    assert Failure.of(failure.word, 5) == failure
    assert Failure().word == 0


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (Failure(), "no error"),
        (Failure(code=ErrorCode.N_TOKENS), "N_TOKENS must be in 1..8"),
        (Failure(code=ErrorCode.WEIGHT_BASE), "WEIGHT_BASE must be a multiple of 128"),
        (
            Failure(code=ErrorCode.BUS, purpose=1, response=2, instruction=3, address=0x1240),
            "SLVERR to a read of m_axi_1 (load) at 0x1240, in load instruction 3",
        ),
        (
            Failure(code=ErrorCode.BUS, purpose=2, response=2, instruction=2, address=0x40),
            "SLVERR to a read of m_axi_1 (attention) at 0x40, in attention instruction 2",
        ),
        (
            Failure(code=ErrorCode.BUS, purpose=3, response=2, instruction=1, address=0x80),
            "SLVERR to a read of m_axi_0 (weights) at 0x80, in matmul instruction 1",
        ),
        (
            Failure(code=ErrorCode.BUS, purpose=4, response=3, instruction=9, address=0x80),
            "DECERR to a write of m_axi_1 (write) at 0x80, in vector instruction 9",
        ),
        (
            Failure(code=ErrorCode.BUS, purpose=0, response=3, instruction=9),
            "DECERR to a read of m_axi_1 (fetch) at 0x0, in instruction 9",
        ),
        (
            Failure(code=ErrorCode.OPCODE, instruction=7),
            "instruction 7 has an unknown opcode: load the model again",
        ),
        (Failure(code=ErrorCode.ABORT, instruction=7), "the run was aborted after 7 instructions"),
        (
            Failure(code=ErrorCode.BUS, purpose=5),
            "an error of code 7, which this Lutra does not know",
        ),
        (Failure(code=15), "an error of code 15, which this Lutra does not know"),
    ],
)
def test_is_said_in_a_line(failure: Failure, text: str) -> None:
    if failure.code == ErrorCode.BUS and failure.purpose < len(Purpose):
        text = f"the memory answered {text}: check that the address is mapped"
    assert failure.describe(NANO) == text


def test_every_code_is_described() -> None:
    assert ERRORS.keys() == set(ErrorCode) - {ErrorCode.NONE}
    texts = {Failure(code=code).describe(NANO) for code in ErrorCode}
    assert len(texts) == len(ErrorCode)
    assert not any("\n" in text or "does not know" in text for text in texts)
