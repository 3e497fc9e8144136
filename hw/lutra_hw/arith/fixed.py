"""Rounding, saturation and bit lengths as combinational expressions.

Model: :mod:`lutra_golden.arith.fixed`.
"""

from amaranth import Cat, Const, Module, Mux, Signal, Value, unsigned

__all__ = [
    "bit_length",
    "clip_shift",
    "leaves",
    "magnitude",
    "round_half",
    "round_shift",
    "saturate",
    "shift_guarded",
    "sign_extend",
]


def _like(value: Value, bits: Value) -> Value:
    """``bits`` with the signedness of ``value``."""
    return bits.as_signed() if value.shape().signed else bits


def shift_guarded(x, n) -> Value:
    """Return ``floor(x * 2**(1 - n))``: ``x`` shifted right by ``n`` with one guard bit kept.

    First half of :func:`round_shift`, for a barrel shifter in a pipeline stage of its own. ``n`` is
    a constant or an unsigned expression; the result has one bit more than ``x``.
    """
    x = Value.cast(x)
    return _like(x, Cat(Const(0, 1), x)) >> n


def round_half(guarded) -> Value:
    """Drop the least significant bit of ``guarded`` and round half up: ``(guarded + 1) >> 1``.

    Second half of :func:`round_shift`; the result is as wide as ``guarded``, since rounding may
    carry.
    """
    return (Value.cast(guarded) + 1) >> 1


def round_shift(x, n) -> Value:
    """Return ``x * 2**-n`` rounded half up, for ``n >= 0``, in one bit more than ``x``."""
    return round_half(shift_guarded(x, n))


def clip_shift(shift, highest: int) -> Value:
    """Return ``clip(shift, 0, highest)``, the amount of a right shift, of a signed ``shift``."""
    return Mux(shift < 0, 0, Mux(shift > highest, highest, shift))


def sign_extend(x, width: int) -> Value:
    """Return ``x`` with its sign bit repeated up to ``width`` bits."""
    return Cat(x, x[-1].replicate(width - len(x)))


def leaves(x, width: int) -> Value:
    """Return whether signed ``x`` leaves ``signed(width)``: whether :func:`saturate` changes it."""
    x = Value.cast(x)
    if len(x) <= width:
        return Const(0, 1)
    above = x[width - 1 :]
    return above.any() & ~above.all()


def saturate(x, width: int) -> Value:
    """Clamp signed ``x`` to ``signed(width)``."""
    x = Value.cast(x)
    if len(x) <= width:
        return x
    low, negative, fits = x[: width - 1], x[-1], ~leaves(x, width)
    return Cat(Mux(fits, low, (~negative).replicate(width - 1)), negative).as_signed()


def magnitude(x) -> Value:
    """Return ``|x|`` of a signed ``x``, unsigned and as wide: it holds ``2**(width - 1)``."""
    x = Value.cast(x)
    return Mux(x[-1], -x, x)[: len(x)]


def bit_length(m: Module, x, name: str = "bit_length") -> Signal:
    """Return a combinational signal: the number of bits of unsigned ``x``, zero for zero.

    A tree of halves, ``log2(width)`` levels; its signals are added to ``m``.
    """
    x = Value.cast(x)
    levels = max(len(x) - 1, 0).bit_length()
    rest = Signal(unsigned(1 << levels), name=f"{name}_rest_{levels}")
    m.d.comb += rest.eq(x)
    taken = []
    for level in reversed(range(levels)):
        half = 1 << level
        high = Signal(name=f"{name}_high_{level}")
        following = Signal(unsigned(half), name=f"{name}_rest_{level}")
        m.d.comb += [
            high.eq(rest[half:].any()),
            following.eq(Mux(high, rest[half:], rest[:half])),
        ]
        taken.insert(0, high)
        rest = following
    # the position of the highest one, plus one unless there is none
    length = Signal(range(len(x) + 1), name=name)
    m.d.comb += length.eq(Cat(*taken) + rest)
    return length
