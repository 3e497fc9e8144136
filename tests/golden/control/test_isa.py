"""The instruction set: layout, round trip, and what is refused."""

from collections.abc import Iterable

import numpy as np
import pytest

from lutra_golden.control.isa import (
    ADDRESS_UNIT,
    FIELDS,
    HEADER,
    INSTRUCTION_BYTES,
    Instruction,
    Opcode,
    Unit,
    decode,
    encode,
)


def _waits(values: Iterable[int]) -> tuple[int, int, int, int]:
    load, matmul, vector, attention = map(int, values)
    return load, matmul, vector, attention


def _random(opcode: Opcode, rng: np.random.Generator) -> Instruction:
    return Instruction(
        opcode,
        int(rng.integers(0, 256)),
        _waits(rng.integers(0, 1 << 16, 4)),
        {
            name: spec.unit * int(rng.integers(0, 1 << spec.width, dtype=np.uint64))
            for name, spec in FIELDS[opcode].items()
        },
    )


def _extreme(opcode: Opcode) -> Instruction:
    args = {name: spec.unit * ((1 << spec.width) - 1) for name, spec in FIELDS[opcode].items()}
    return Instruction(opcode, 255, _waits([65535] * 4), args)


@pytest.mark.parametrize("opcode", Opcode)
def test_fields_lie_in_the_instruction_and_apart(opcode: Opcode) -> None:
    used: set[int] = set()
    for spec in (*HEADER.values(), *FIELDS[opcode].values()):
        bits = set(range(spec.start, spec.start + spec.width))
        assert not bits & used
        used |= bits
    assert max(used) < 8 * INSTRUCTION_BYTES


@pytest.mark.parametrize("opcode", Opcode)
def test_every_field_is_described(opcode: Opcode) -> None:
    assert all(spec.doc for spec in FIELDS[opcode].values())


def test_every_opcode_but_end_has_a_unit() -> None:
    assert [opcode for opcode in Opcode if opcode.unit is None] == [Opcode.END]
    assert {opcode.unit for opcode in Opcode} == {None, *Unit}


@pytest.mark.parametrize("opcode", Opcode)
def test_round_trip(opcode: Opcode) -> None:
    rng = np.random.default_rng(1)
    for instruction in (_extreme(opcode), *(_random(opcode, rng) for _ in range(50))):
        data = encode(instruction)
        assert len(data) == INSTRUCTION_BYTES
        assert decode(data) == instruction


def test_bytes_of_a_matmul() -> None:
    args = {
        "address": 0x01020304 * ADDRESS_UNIT,
        "depth_tiles": 5,
        "row_blocks": 6,
        "planes": 7,
        "acc_base": 8,
        "n_words": 210,
        "shift": 9,
    }
    data = encode(Instruction(Opcode.LMMA, 1, (0x1111, 0x2222, 0x3333, 0x4444), args))
    assert data.hex(" ") == (
        "04 01 11 11 22 22 33 33 44 44 04 03 02 01 05 00 06 00 07 08 00 d2 00 00 00 09 "
        + " ".join(["00"] * 6)
    )


@pytest.mark.parametrize("opcode", [opcode for opcode in Opcode if FIELDS[opcode]])
def test_a_field_that_does_not_fit_is_named(opcode: Opcode) -> None:
    for name, spec in FIELDS[opcode].items():
        for value in (1 << spec.width, -1):
            args = dict.fromkeys(FIELDS[opcode], 0) | {name: value * spec.unit}
            message = rf"^{opcode.name}\.{name} must fit {spec.width} bits, not {value}$"
            with pytest.raises(ValueError, match=message):
                encode(Instruction(opcode, args=args))


def test_an_address_between_units_is_named() -> None:
    with pytest.raises(ValueError, match=r"^LDROPE\.address must be a multiple of 64, not 96$"):
        encode(Instruction(Opcode.LDROPE, args={"address": 96}))


def test_a_wait_that_does_not_fit_is_named() -> None:
    for unit in Unit:
        waits = _waits(65536 if other is unit else 0 for other in Unit)
        message = rf"^END\.wait_{unit.name.lower()} must fit 16 bits, not 65536$"
        with pytest.raises(ValueError, match=message):
            encode(Instruction(Opcode.END, waits=waits))
    with pytest.raises(ValueError, match=r"^END\.flags must fit 8 bits, not 256$"):
        encode(Instruction(Opcode.END, flags=256))


@pytest.mark.parametrize("args", [{}, {"address": 0, "extra": 1}, {"adress": 0}])
def test_wrong_arguments_are_refused(args: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^LDROPE takes \['address'\], not \["):
        encode(Instruction(Opcode.LDROPE, args=args))


@pytest.mark.parametrize("n_bytes", [0, 31, 33])
def test_wrong_length_is_refused(n_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"^an instruction has 32 bytes, not {n_bytes}$"):
        decode(bytes(n_bytes))


def test_unknown_opcode_is_refused() -> None:
    for code in (max(Opcode) + 1, 255):
        with pytest.raises(ValueError, match=rf"^opcode must be one of \[0, .*\], not {code}$"):
            decode(bytes([code]) + bytes(31))
