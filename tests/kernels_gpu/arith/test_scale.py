import numpy as np
import pytest

pytest.importorskip("triton")

import triton.language as tl

from lutra_golden.arith import fixed, scale
from lutra_golden.arith.scale import Scale
from lutra_kernels.arith import scale as device
from lutra_kernels.arith.fixed import bit_length
from lutra_kernels.arith.tables import tables
from lutra_kernels.arrays import download, empty, upload
from lutra_kernels.jit import jit

pytestmark = pytest.mark.interpreted

BLOCK = 1 << 12
MANTISSAS = np.arange(1 << 15, 1 << 16)


@jit
def unary_kernel(x_ptr, e_ptr, tables_ptr, m_ptr, out_e_ptr, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, e = tl.load(x_ptr + i), tl.load(e_ptr + i)
    if OP == "from_int":
        m, e = device.scale_from_int(x, e)
    elif OP == "recip":
        m, e = device.scale_recip(x.to(tl.int32), e)
    elif OP == "rsqrt":
        m, e = device.scale_rsqrt(x.to(tl.int32), e, tables_ptr)
    elif OP == "pack":
        m, e = device.scale_unpack(device.scale_pack(x.to(tl.int32), e))
    else:
        m, e = bit_length(x), e
    tl.store(m_ptr + i, m)
    tl.store(out_e_ptr + i, e)


@jit
def binary_kernel(m_ptr, e_ptr, out_m_ptr, out_e_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a_m, a_e = tl.load(m_ptr + i), tl.load(e_ptr + i)
    b_m, b_e = tl.load(m_ptr + n + i), tl.load(e_ptr + n + i)
    if OP == "mul":
        m, e = device.scale_mul(a_m, a_e, b_m, b_e)
    else:
        m, e = device.scale_add(a_m, a_e, b_m, b_e)
    tl.store(out_m_ptr + i, m)
    tl.store(out_e_ptr + i, e)


def unary(op: str, x: np.ndarray, e: np.ndarray) -> Scale:
    padded = [np.resize(v, -(-x.size // BLOCK) * BLOCK) for v in (x, e)]
    n = padded[0].size
    out = [empty([n], np.int32) for _ in range(2)]
    unary_kernel[(n // BLOCK,)](
        upload(padded[0].astype(np.int64)),
        upload(padded[1].astype(np.int32)),
        upload(tables()),
        *out,
        OP=op,
        BLOCK=BLOCK,
    )
    return Scale(*(download(array)[: x.size].astype(np.int64) for array in out))


def equal(found: Scale, expected: Scale) -> bool:
    return np.array_equal(found.m, expected.m) and np.array_equal(found.e, expected.e)


def scales(rng: np.random.Generator, n: int) -> Scale:
    m, e = rng.integers(1 << 15, 1 << 16, n), rng.integers(-250, 250, n)
    m[:4] = 1 << 15, (1 << 16) - 1, (1 << 15) + 1, (1 << 16) - 2
    zero = rng.random(n) < 0.05
    return Scale(np.where(zero, 0, m), np.where(zero, 0, e))


def integers() -> np.ndarray:
    rng = np.random.default_rng(2)
    edges = (1 << np.arange(63))[:, None] + np.array([-1, 0, 1])
    half = np.array([0x1FFFE, 0x1FFFF, 0x3FFFC, 0x3FFFE, (1 << 63) - 1, 0])
    wild = rng.integers(0, (1 << 63) - 1, 8000) >> rng.integers(0, 63, 8000)
    return np.concatenate([edges.reshape(-1), half, wild])


def test_bit_length() -> None:
    x = integers()
    assert np.array_equal(unary("bits", x, np.zeros_like(x)).m, fixed.bit_length(x))


def test_from_int() -> None:
    x = integers()
    e = np.random.default_rng(3).integers(-200, 200, x.size)
    assert equal(unary("from_int", x, e), scale.scale_from_int(x, e))


@pytest.mark.parametrize("e", [-3, 0, 7])
@pytest.mark.parametrize("op", ["recip", "rsqrt"])
def test_inverse_of_every_mantissa(op: str, e: int) -> None:
    m = np.concatenate([MANTISSAS, [0]])
    exponents = np.where(m == 0, 0, e)
    golden = scale.scale_recip if op == "recip" else scale.scale_rsqrt
    assert equal(unary(op, m, exponents), golden(Scale(m, exponents)))


@pytest.mark.parametrize("op", ["mul", "add"])
def test_two_scales(op: str) -> None:
    rng = np.random.default_rng(4)
    n = 4 * BLOCK
    a, b = scales(rng, n), scales(rng, n)
    # the product of the second and the third is rounded up to a power of two
    corners = [1 << 15, (1 << 15) + 1, (1 << 16) - 2, (1 << 16) - 1]
    a.m[:16], b.m[:16] = np.repeat(corners, 4), np.tile(corners, 4)
    # half of them close to each other, where cutting and carries happen
    near = np.where((b.m != 0) & (rng.random(n) < 0.5), a.e + rng.integers(-34, 35, n), b.e)
    b = Scale(b.m, np.where(b.m == 0, 0, near))
    out = [empty([n], np.int32) for _ in range(2)]
    m, e = (np.concatenate(pair).astype(np.int32) for pair in ((a.m, b.m), (a.e, b.e)))
    binary_kernel[(n // BLOCK,)](upload(m), upload(e), *out, n, OP=op, BLOCK=BLOCK)
    golden = scale.scale_mul if op == "mul" else scale.scale_add
    assert equal(Scale(*(download(array) for array in out)), golden(a, b))


def test_words() -> None:
    a = scales(np.random.default_rng(5), 1000)
    assert equal(unary("pack", a.m, a.e), a)
    word = device.word(Scale(a.m[3], a.e[3]))
    assert np.array_equal(word & 0xFFFFFFFF, scale.pack_scale(a)[3])
