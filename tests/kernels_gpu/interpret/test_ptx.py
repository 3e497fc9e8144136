import numpy as np
import pytest

from lutra_kernels.interpret.ptx import OPS, PtxError, execute

CORNERS = [0, 1, 0x7F, 0x80, 0xFF, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, 0x01234567, 0x80FF7F01]
MASK = 0xFFFFFFFF


def _signed(x: int, width: int = 32) -> int:
    return x - (1 << width) if x >> (width - 1) else x


def _byte(x: int, i: int, signed: bool) -> int:
    value = x >> (8 * i) & 255
    return _signed(value, 8) if signed else value


def _dp4a(a_signed: bool, b_signed: bool):
    return lambda a, b, c: c + sum(_byte(a, i, a_signed) * _byte(b, i, b_signed) for i in range(4))


def _prmt(a: int, b: int, s: int) -> int:
    source, result = a | b << 32, 0
    for i in range(4):
        selector = s >> (4 * i) & 15
        byte = source >> (8 * (selector & 7)) & 255
        result |= ((255 if byte & 128 else 0) if selector & 8 else byte) << (8 * i)
    return result


def _lop3(a: int, b: int, c: int, table: int) -> int:
    bits = [(a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1 for i in range(32)]
    return sum((table >> index & 1) << i for i, index in enumerate(bits))


# what the PTX manual says, on Python's integers
EXPECTED = {
    "mov.b32": lambda a: a,
    "mov.u32": lambda a: a,
    "not.b32": lambda a: ~a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "lop3.b32": _lop3,
    "shl.b32": lambda a, b: a << min(b, 32),
    "shr.b32": lambda a, b: a >> min(b, 32),
    "shr.u32": lambda a, b: a >> min(b, 32),
    "shr.s32": lambda a, b: _signed(a) >> min(b, 32),
    "add.s32": lambda a, b: a + b,
    "add.u32": lambda a, b: a + b,
    "sub.s32": lambda a, b: a - b,
    "sub.u32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.lo.u32": lambda a, b: a * b,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "min.s32": lambda a, b: min(_signed(a), _signed(b)),
    "max.s32": lambda a, b: max(_signed(a), _signed(b)),
    "prmt.b32": _prmt,
    "dp4a.s32.s32": _dp4a(True, True),
    "dp4a.s32.u32": _dp4a(True, False),
    "dp4a.u32.s32": _dp4a(False, True),
    "dp4a.u32.u32": _dp4a(False, False),
}


def test_every_instruction_is_tested() -> None:
    assert EXPECTED.keys() == OPS.keys()


@pytest.mark.parametrize("name", OPS)
def test_instruction(name: str) -> None:
    rng = np.random.default_rng(1)
    expected = EXPECTED[name]
    count = expected.__code__.co_argcount if name != "prmt.b32" else 3
    columns = [np.array(CORNERS * 10 + list(rng.integers(0, 1 << 32, 100)), np.uint32)]
    for _ in range(count - 1):
        columns.append(rng.permutation(columns[0]))
    if name.startswith("sh"):
        columns[1] = rng.permutation(np.resize([0, 1, 7, 31, 32, 33, MASK], len(columns[0])))
        columns[1] = columns[1].astype(np.uint32)
    registers = {f"${i + 1}": column for i, column in enumerate(columns)}
    sources = ", ".join(registers)
    state = execute(f"{name} $0, {sources};", registers, len(columns[0]))
    assert state["$0"].dtype == np.uint32
    assert state["$0"].tolist() == [
        expected(*values) & MASK for values in zip(*(c.tolist() for c in columns), strict=True)
    ]


def test_registers_immediates_and_comments() -> None:
    x = np.array([0xFF, 0x12345678], np.uint32)
    asm = """
    {
        .reg .b32 t; // a comment; with a semicolon
        shr.u32 t, $1, 4; /* another */ and.b32 $0, t, 0x0f;
    }"""
    assert execute(asm, {"$1": x}, 2)["$0"].tolist() == [15, 7]


@pytest.mark.parametrize(
    ("asm", "message"),
    [
        ("popc.b32 $0, $1;", "no such instruction here: popc.b32 $0, $1"),
        ("and.b32 $0, $1, t;", "register t is read before it is written"),
    ],
)
def test_what_is_refused(asm: str, message: str) -> None:
    with pytest.raises(PtxError) as error:
        execute(asm, {"$1": np.zeros(1, np.uint32)}, 1)
    assert str(error.value) == message
