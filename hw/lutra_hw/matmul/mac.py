"""Dot products of activations and digits, and the mac engine's: plain multipliers."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.utils import ceil_log2

from lutra_golden.matmul.mac import Adders, MacParams
from lutra_golden.matmul.mixpe import MixpeParams
from lutra_hw.arith.fixed import sign_extend
from lutra_hw.matmul.contract import DatapathSignature
from lutra_hw.pipeline import delay

__all__ = ["DotDatapath", "MacDatapath"]


class DotDatapath(wiring.Component):
    """Sums of ``step_depth`` activations times digits, for ``step_rows`` rows; subclasses say of
    what.

    A digit's bits are planes: in each of them a row selects terms (:meth:`terms`) from words that
    are the same for all rows (:meth:`shared`), and one tree adds the terms of all planes.

    * :attr:`Adders.CHAINS`: adders of two operands; the shared words and the digits are in
      registers, and so are the sums of every second level.
    * :attr:`Adders.CELLS`: carry-save adders, whose two results are in registers, then one adder
      with a carry. No term has a sign extension: sign bits are inverted, which adds a constant.

    Latency is ``latency`` cycles from ``en`` to ``o``, throughput one step per cycle. Without
    ``en`` a step goes nowhere and ``o`` stays; only the last registers need an enable for that.

    Parameters
    ----------
    params : :class:`MacParams` or :class:`MixpeParams`

    Members
    -------
    See :class:`lutra_hw.matmul.contract.DatapathSignature`. Digit k of row n is at bit ``w_width *
    (n * step_depth + k)`` of ``digits``; ``negate`` is zero. The newer set of activations is ``i``
    itself, the older one is kept.
    """

    def __init__(self, params: MacParams | MixpeParams) -> None:
        self.params = params
        self.o_width = params.a_width + params.w_width + ceil_log2(params.step_depth)
        self.latency, self.prepare_cycles = params.datapath_latency, params.prepare_cycles
        super().__init__(DatapathSignature(params, self.o_width))

    def shared(self, activations):
        """Words that the rows' terms are selected from, of ``step_depth`` activations."""
        raise NotImplementedError

    def terms(self, words, bits):
        """The ``params.n_terms`` signed terms of a row in a plane, from its ``step_depth`` bits."""
        raise NotImplementedError

    def elaborate(self, platform):
        m = Module()

        # en, and what it was in the cycles before
        enables = Signal(self.latency)
        m.d.comb += enables[0].eq(self.en)
        m.d.sync += enables[1:].eq(enables)
        self.sum_rows(m, self._activations_of_step(m), enables[-1])
        return m

    def _activations_of_step(self, m):
        """``step_depth`` signals: the newer set is what ``i`` shows."""
        p = self.params
        width = p.step_depth * p.a_width
        newer, older = self.i.as_value(), Signal(p.depth_tile * p.a_width, reset_less=True)
        newer_set = Signal()
        activations = Signal(data.ArrayLayout(signed(p.a_width), p.step_depth))
        with m.If(self.start):
            m.d.sync += [older.eq(newer), newer_set.eq(self.start_set)]
        with m.Switch(Cat(self.step, self.set ^ newer_set)):
            for index, tile in enumerate((newer, older)):
                for step in range(p.steps):
                    with m.Case(index << len(self.step) | step):
                        m.d.comb += activations.eq(tile.word_select(step, width))
        return [activations[k] for k in range(p.step_depth)]

    def sum_rows(self, m, activations, last_enable):
        """Drive ``o`` with the sums of the step's activations and ``digits``."""
        p = self.params
        words, digits = self.shared(activations), self.digits
        if p.adders == Adders.CHAINS:
            words = [_register(m, word, f"word_{index}") for index, word in enumerate(words)]
            digits = _register(m, digits, "digits_held")
        add = self._add_in_chains if p.adders == Adders.CHAINS else self._add_in_cells
        for row in range(p.step_rows):
            first = row * p.step_depth * p.w_width
            planes = []
            for bit in range(p.w_width):
                bits = [digits[first + k * p.w_width + bit] for k in range(p.step_depth)]
                planes.append([])
                for index, value in enumerate(self.terms(words, bits)):
                    term = Signal(value.shape(), name=f"term_{row}_{bit}_{index}")
                    m.d.comb += term.eq(value)
                    planes[-1].append(term)
            total = _register(m, add(m, planes, f"sum_{row}"), f"o_{row}", last_enable)
            m.d.comb += self.o[row].eq(total)

    def _add_in_chains(self, m, planes, name):
        """Sum of all planes, in offset binary, behind a register for every second level but the
        last."""
        level, weight = 0, 1
        while len(planes) > 1 or len(planes[0]) > 1:
            if level and level % 2 == 0:
                planes = [
                    [_register(m, v, f"{name}_{level}_{i}_{j}") for j, v in enumerate(plane)]
                    for i, plane in enumerate(planes)
                ]
            level += 1
            if len(planes[0]) > 1:
                planes = [_add_in_pairs(m, plane, f"{name}_{level}") for plane in planes]
            else:
                weighted = [v for plane in planes for v in plane]
                weighted = [v << (weight if i % 2 else 0) for i, v in enumerate(weighted)]
                planes = [[v] for v in _add_in_pairs(m, weighted, f"{name}_{level}")]
                weight *= 2
        total = planes[0][0][: self.o_width]
        return Cat(total[:-1], ~total[-1])

    def _add_in_cells(self, m, planes, name):
        """Sum of all planes, in offset binary: words in registers, and their sum."""
        offset = 1 << (self.o_width - 1)
        pair = []
        for bit, plane in enumerate(planes):
            words = []
            for term in plane:
                # a sign bit s weighs -2**n, which is 2**n * ~s - 2**n
                words.append(Cat(term[:-1], ~term[-1]))
                offset -= 1 << (len(term) - 1 + bit)
            width = sum((1 << len(word)) - 1 for word in words).bit_length()
            words = _carry_save(m, words, width, f"{name}_{bit}")
            pair.extend(Cat(Const(0, bit), word) for word in words)
        pair.append(Const(offset % (1 << self.o_width), self.o_width))
        pair = _carry_save(m, pair, self.o_width, name)
        save, carry = (_register(m, word, f"{name}_held_{i}") for i, word in enumerate(pair))
        return (save + carry)[: self.o_width]


def _register(m, value, name, enable=1):
    held = Signal(value.shape(), name=name, reset_less=True)
    with m.If(enable):
        m.d.sync += held.eq(value)
    return held


def _add_in_pairs(m, values, name):
    """Signed sums of neighbours; an odd one is left as it is."""
    sums = []
    for index, (a, b) in enumerate(zip(values[0::2], values[1::2], strict=False)):
        total = Signal((a + b).shape(), name=f"{name}_{index}")
        a, b = (sign_extend(value, len(total)) for value in (a, b))
        # one carry chain: synthesis would make sums of several operands of plain ones, by
        # carry-save adders that take more LUTs
        m.d.comb += total.eq((Cat(Const(1, 1), a) + Cat(Const(0, 1), b))[1:])
        sums.append(total)
    return sums + values[len(values) & ~1 :]


def _carry_save(m, words, width, name):
    """Two words with the sum of unsigned ``words``, modulo ``2**width``."""
    words = [word[:width] for word in words]
    count = 0
    while len(words) > 2:
        left = words[len(words) - len(words) % 3 :]
        reduced = []
        for a, b, c in zip(words[0::3], words[1::3], words[2::3], strict=False):
            n_save, n_carry = sorted((len(a), len(b), len(c)))[:0:-1]
            save = Signal(n_save, name=f"{name}_save_{count}")
            carry = Signal(n_carry, name=f"{name}_carry_{count}")
            count += 1
            m.d.comb += [save.eq(a ^ b ^ c), carry.eq((a & b) | (c & (a ^ b)))]
            reduced += [save, Cat(Const(0, 1), carry)[:width]]
        words = reduced + left
    return words


class MacDatapath(DotDatapath):
    """Products by multipliers: a bit of a digit gates the activation.

    With :attr:`Adders.DSP` two rows share a multiplier, one digit far above the other at its wide
    port: the two products of one activation are added down a cascade as one number. It starts
    with an offset in both halves, so that neither is ever negative and nothing is borrowed. A
    cascade is as long as the lower half has room for; sums of several are added behind.

    Latency, throughput and members: :class:`DotDatapath`.
    Model: :meth:`lutra_golden.matmul.mac.MacParams.product`.
    """

    def __init__(self, params: MacParams) -> None:
        if not isinstance(params, MacParams):
            raise TypeError(f"params must be MacParams, not {params!r}")
        super().__init__(params)

    def shared(self, activations):
        return activations

    def terms(self, words, bits):
        return [Mux(bit, word, 0) for word, bit in zip(words, bits, strict=True)]

    def sum_rows(self, m, activations, last_enable):
        if self.params.adders == Adders.DSP:
            self._sum_in_dsps(m, activations, last_enable)
        else:
            super().sum_rows(m, activations, last_enable)

    def _sum_in_dsps(self, m, activations, last_enable):
        p, cascade, per_dsp = self.params, self.params.cascade, self.params.rows_per_dsp
        width = p.a_width + p.w_width + ceil_log2(cascade)
        n_groups = p.step_depth // cascade
        offset = sum(1 << (width * (row + 1) - 1) for row in range(per_dsp))

        # slice k of a cascade is k cycles late
        delayed = [
            delay(m, activations[k], k % cascade + 1, name=f"a_{k}", reset_less=True)[-1]
            for k in range(p.step_depth)
        ]
        for first in range(0, p.step_rows, per_dsp):
            rows = range(first, first + per_dsp)
            parts = [[] for _ in rows]
            for group in range(n_groups):
                total = Const(offset, signed(per_dsp * width))
                for index in range(cascade):
                    k = group * cascade + index
                    digits = [
                        self.digits.word_select(r * p.step_depth + k, p.w_width) for r in rows
                    ]
                    name = f"w_{first}_{k}"
                    held = delay(m, Cat(digits), index + 1, name=name, reset_less=True)[-1]
                    spread = Cat(held[: p.w_width], Const(0, width - p.w_width), held[p.w_width :])
                    if per_dsp == 1:
                        spread = held
                    product = _register(m, delayed[k] * spread, f"product_{first}_{k}")
                    final = n_groups == 1 and index == cascade - 1
                    total = _register(
                        m,
                        (total + product)[: per_dsp * width].as_signed(),
                        f"total_{first}_{k}",
                        last_enable if final else 1,
                    )
                for index, part in enumerate(parts):
                    field = total.as_unsigned().word_select(index, width)
                    part.append(Cat(field[:-1], ~field[-1]).as_signed())
            for row, part in zip(rows, parts, strict=True):
                self._join(m, row, part, last_enable)

    def _join(self, m, row, sums, last_enable):
        """Drive ``o`` of a row with the sum of its cascades, a level of adders per cycle."""
        level = 0
        while len(sums) > 1:
            level += 1
            totals = _add_in_pairs(m, sums, f"join_{row}_{level}")
            enable = last_enable if len(totals) == 1 else 1
            sums = [
                _register(m, total, f"joined_{row}_{level}_{index}", enable)
                for index, total in enumerate(totals)
            ]
        total = sums[0][: self.o_width]
        m.d.comb += self.o[row].eq(Cat(total[:-1], ~total[-1]))
