"""From row sums to results: planes and steps joined, scales applied, depth tiles added up."""

from amaranth import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra_golden.matmul.engine import LANES, ZERO_WIDTH, EngineParams
from lutra_golden.timing.matmul import DEQUANTIZER_LATENCY, MatmulTiming
from lutra_hw.arith.fixed import sign_extend
from lutra_hw.matmul.activations import shifts_layout, sums_layout
from lutra_hw.matmul.contract import acc_read_port, group_shift
from lutra_hw.matmul.table import signed_term
from lutra_hw.pipeline import delay

__all__ = [
    "CONTROL_FLAGS",
    "AccumulatorBanks",
    "Dequantizer",
    "RowRegisters",
    "row_width",
    "side_layout",
    "word_control",
]


_DSP_UNSIGNED = 17


def row_side(params: EngineParams) -> data.StructLayout:
    """Scale of one row, and its zero point or offset, which follow its digits in a weight word."""
    fields = {"scale": unsigned(params.scale_width)}
    if params.offset_width:
        return data.StructLayout(fields | {"offset": signed(params.offset_width)})
    return data.StructLayout(fields | {"zero": signed(ZERO_WIDTH)})


def side_layout(params: EngineParams) -> data.ArrayLayout:
    """The side fields of a weight word."""
    return data.ArrayLayout(row_side(params), params.step_rows if params.grouped else 0)


def _largest(params: EngineParams) -> int:
    """Largest magnitude of a row's sum over a depth tile."""
    digits = params.radix**params.max_planes - 1
    codes = digits if params.grouped else digits // 2
    return params.depth_tile * codes << (params.a_width - 1)


def row_width(params: EngineParams) -> int:
    """Bits of a row's sum over a depth tile, signed."""
    width = _largest(params).bit_length() + 1
    return width if params.grouped else min(width, params.acc_width)


def term_width(params: EngineParams) -> int:
    """Bits of a dequantised row before its scale, signed."""
    return (2 * _largest(params)).bit_length() + 1


def _split_shift(params: EngineParams) -> tuple[int, int]:
    """Bits of a group's shift that the scale is shifted by, and those that the row is.

    The scale takes the low ones, as far as it then fits the 17 bits that the narrower port of a DSP
    slice has for an unsigned number.
    """
    n_bits = params.a_shift_max.bit_length()
    low = max(n for n in range(n_bits + 1) if params.scale_width + (1 << n) - 1 <= _DSP_UNSIGNED)
    return low, n_bits - low


def word_control(params: EngineParams) -> data.StructLayout:
    """Control bits that travel with a weight word through the datapaths to the accumulators."""
    return data.StructLayout(
        {
            "valid": 1,
            "finish": 1,  # last of its command; without ``valid`` the command was empty
            "first_word": 1,  # of its block
            "first_step": 1,  # of its plane
            "last_word": 1,  # of its block
            "last_block": 1,  # of its pass
            "first_tile": 1,
            "last_tile": 1,
            "mask": params.step_tokens,  # tokens of the group that are the command's
            "block": range(params.acc_blocks),  # first of its blocks of eight rows
            "group": range(params.pass_tokens // params.step_tokens),
            "shift": params.shift_width,
        }
    )


CONTROL_FLAGS = ("valid", "finish")
"""Fields of a control that a reset clears."""


def row_control(params: EngineParams) -> data.StructLayout:
    """Control bits that travel with eight rows of a token to the accumulators."""
    return data.StructLayout(
        {
            "valid": 1,
            "finish": 1,
            "first_tile": 1,
            "last_tile": 1,
            "block": range(params.acc_blocks),
            "token": range(params.pass_tokens),
            "shift": params.shift_width,
        }
    )


class RowRegisters(wiring.Component):
    """Joins the steps and planes of a block, and hands its rows on, eight of a token at a time.

    A row's register becomes ``radix * h + sum`` in the first step of a plane and ``h + sum`` in the
    others. Where a block has more than eight rows, of all tokens, its sums move to holding
    registers with its last word, which are read while the next block is joined: blocks end
    ``drain_cycles`` apart or more. ``control_o``, ``side_o`` and ``a_sum_o`` follow the last word
    by ``lag`` cycles, ``h_o`` comes one cycle later.

    Parameters
    ----------
    params : :class:`EngineParams`
    i_width : width of a sum.

    Members
    -------
    control : ``In(word_control(params))``  of ``i`` and ``negate``.
    i : ``In(step_tokens * step_rows * unsigned(i_width))``  sums in offset binary.
    negate : ``In(step_tokens * step_rows)``  the sum is ``-i``.
    side : ``In(side_layout(params))``  of a block, with the first ``control_o`` and until its last.
    a_sum : ``In(sums_layout(params))``  likewise, of the pass.
    a_shift : ``In(shifts_layout(params))``  likewise, with groups of activations.
    take : ``Out(1)``  the pass's last rows are going: the next ones need the next ``a_sum``.
    control_o : ``Out(row_control(params))``
    side_o, a_sum_o, a_shift_o : ``Out``; side fields of the rows, activation sum of the token, and
        its shift with groups of activations.
    h_o : ``Out(8 * signed(row_width(params)))``
    """

    def __init__(self, params: EngineParams, i_width: int) -> None:
        self.params, self.i_width = params, i_width
        self.lag = MatmulTiming(params).row_lag
        n = params.step_rows
        members = {
            "control": In(word_control(params)),
            "i": In(data.ArrayLayout(data.ArrayLayout(unsigned(i_width), n), params.step_tokens)),
            "negate": In(data.ArrayLayout(n, params.step_tokens)),
            "side": In(side_layout(params)),
            "a_sum": In(sums_layout(params)),
            "take": Out(1),
            "control_o": Out(row_control(params)),
            "side_o": Out(data.ArrayLayout(row_side(params), LANES)),
            "a_sum_o": Out(sums_layout(params).elem_shape),
            "h_o": Out(data.ArrayLayout(signed(row_width(params)), LANES)),
        }
        if params.a_groups is not None:
            members["a_shift"] = In(shifts_layout(params))
            members["a_shift_o"] = Out(group_shift(params))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        p = self.params
        control = self.control

        ends = Signal()
        m.d.comb += ends.eq(control.valid & control.last_word)
        rows = []
        for token in range(p.step_tokens):
            for row in range(p.step_rows):
                # which begins with zero where it is cleared behind each block
                h = Signal(signed(row_width(p)), name=f"h_{token}_{row}", reset_less=p.radix != 3)
                total = Signal.like(h, name=f"total_{token}_{row}")
                m.d.comb += total.eq(self._joined(h, self.i[token][row], self.negate[token][row]))
                with m.If(control.valid):
                    m.d.sync += h.eq(total)
                if p.radix == 3:
                    # what three operands of an adder leave no room for in a LUT
                    with m.If(ends):
                        m.d.sync += h.eq(0)
                if self.lag or p.radix == 3:
                    held = Signal.like(h, name=f"held_{token}_{row}", reset_less=True)
                    with m.If(ends):
                        m.d.sync += held.eq(total)
                    rows.append(held)
                else:
                    rows.append(h)

        if self.lag:
            self._drain(m, ends, rows)
        else:
            m.d.comb += [
                self.h_o.eq(Cat(rows)),
                self.side_o.eq(self.side),
                self.a_sum_o.eq(self.a_sum[0]),
                *([] if p.a_groups is None else [self.a_shift_o.eq(self.a_shift[0])]),
                self.take.eq(ends & control.last_block),
                self.control_o.valid.eq(ends),
                self.control_o.finish.eq(control.finish),
                self.control_o.block.eq(control.block),
                self.control_o.token.eq(control.group),
            ]
            m.d.comb += _copy(self.control_o, control)
        return m

    def _joined(self, h, value, negate):
        """The row's register after a word: what it held, scaled, and the word's sum."""
        p, control = self.params, self.control
        term, carry = signed_term(value, negate)
        width = row_width(p)
        if p.steps * p.max_planes == 1:
            return term + carry
        if p.radix == 3:
            # three words become two, then there is one carry chain; before a first word h is zero
            extended = sign_extend(term, width)[:width]
            twice = Cat(Const(0, 1), h)[:width]
            carries = Cat(carry, (h & twice) | (h & extended) | (twice & extended))[:width]
            return carries + (h ^ twice ^ extended)
        former = h << exact_log2(p.radix)
        if p.steps > 1:
            former = Mux(control.first_step, former, h)
        former = Mux(control.first_word, 0, former)[:width]
        extended = sign_extend(term, width)[:width]
        # one carry chain
        return (Cat(Const(1, 1), former) + Cat(carry, extended))[1:]

    def _drain(self, m, ends, rows):
        p, control = self.params, self.control
        n_cycles, parts = MatmulTiming(p).drain_cycles, p.block_rows
        run, index = Signal(), Signal(range(n_cycles))
        block = Signal(word_control(p), reset_less=True)
        last, empty = Signal(), Signal()
        h = Signal(self.h_o.shape(), reset_less=True)
        token = index >> exact_log2(parts) if p.step_tokens > 1 else Const(0, 0)
        part = index[: exact_log2(parts)]
        m.d.comb += [
            last.eq(index == n_cycles - 1),
            self.take.eq(run & last & block.last_block),
            self.control_o.valid.eq(run & block.mask.bit_select(token, 1)),
            self.control_o.finish.eq((run & last & block.finish) | empty),
            self.control_o.block.eq(Cat(part, block.block[exact_log2(parts) :])),
            self.control_o.token.eq(Cat(token[: exact_log2(p.step_tokens)], block.group)),
        ]
        m.d.comb += _copy(self.control_o, block)
        groups = [Cat(rows[LANES * g : LANES * (g + 1)]) for g in range(n_cycles)]
        with m.Switch(index):
            for number, group in enumerate(groups):
                with m.Case(number):
                    m.d.sync += h.eq(group)
        m.d.comb += self.h_o.eq(h)
        if p.grouped:
            with m.Switch(part):
                for number in range(parts):
                    with m.Case(number):
                        fields = [self.side[LANES * number + lane] for lane in range(LANES)]
                        m.d.comb += self.side_o.eq(Cat(fields))
            m.d.comb += self.a_sum_o.eq(self.a_sum[token] if p.step_tokens > 1 else self.a_sum[0])
        if p.a_groups is not None:
            shift = self.a_shift[token] if p.step_tokens > 1 else self.a_shift[0]
            m.d.comb += self.a_shift_o.eq(shift)

        # comes when no rows are left
        m.d.sync += empty.eq(control.finish & ~control.valid)
        with m.If(run):
            m.d.sync += index.eq(index + 1)
        with m.If(ends):
            m.d.sync += [run.eq(1), block.eq(control)]
        with m.Elif(last):
            m.d.sync += run.eq(0)


def _copy(target, source):
    names = ("first_tile", "last_tile", "shift")
    return [getattr(target, name).eq(getattr(source, name)) for name in names]


class Dequantizer(wiring.Component):
    """Eight rows of a token in the units of their result: ``scale * (2 * h - zero * a_sum)``, or
    with offsets ``scale * 2 * h + offset * a_sum``; with groups of activations shifted left.

    Latency is 3 cycles from ``side`` and ``a_sum`` to ``o``, and 2 from ``h``, which comes a cycle
    later than they; throughput is eight rows per cycle. Sums that are taken once already, of bits
    that mean -1 and +1, are not doubled. An ``a_sum`` that offsets multiply is shifted already.

    Model: :meth:`lutra_golden.matmul.grouped.DigitParams.matmul`. Source: MixPE, arXiv
    2411.16158, section 3.1 (dequantisation after the group's product).

    Parameters
    ----------
    params : :class:`EngineParams`

    Members
    -------
    side : ``In(8 * row_side(params))``
    a_sum : ``In``; sum of the token's activations.
    a_shift : ``In``; with groups of activations, the token's shift.
    h : ``In(8 * signed(row_width(params)))``
    o : ``Out(8 * signed(o_width))``
    """

    latency = DEQUANTIZER_LATENCY

    def __init__(self, params: EngineParams) -> None:
        self.params = params
        a_sum = sums_layout(params).elem_shape
        width = term_width(params) + params.scale_width + params.a_shift_max
        if params.offset_width:
            width = max(width, params.offset_width + a_sum.width) + 1
        self.o_width = min(params.sum_width, width)
        members = {
            "side": In(data.ArrayLayout(row_side(params), LANES)),
            "a_sum": In(a_sum),
            "h": In(data.ArrayLayout(signed(row_width(params)), LANES)),
            "o": Out(data.ArrayLayout(signed(self.o_width), LANES)),
        }
        if params.a_groups is not None:
            members["a_shift"] = In(group_shift(params))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        p = self.params

        row_shift = None
        if p.a_groups is not None:
            low, high = _split_shift(p)
            row_shift = Signal(high, reset_less=True)
            m.d.sync += row_shift.eq(self.a_shift[low:])
        for lane in range(LANES):
            if p.offset_width:
                self._add_offset(m, lane, row_shift)
            else:
                self._take_zero_point(m, lane, row_shift)
        return m

    def _shifted_scale(self, lane):
        """The scale, shifted as far as it fits a DSP slice."""
        scale = self.side[lane].scale
        if self.params.a_groups is None:
            return scale
        low, _ = _split_shift(self.params)
        return scale << self.a_shift[:low] if low else scale

    def _shifted_row(self, value, row_shift):
        """``value``, shifted by what its scale is not."""
        low, high = _split_shift(self.params)
        if not high:
            return value
        width = len(value) + (((1 << high) - 1) << low)
        return (value << (row_shift << low))[:width].as_signed()

    def _add_offset(self, m, lane, row_shift):
        """Two products and their sum, as DSP slices make them."""
        shape = signed(self.o_width)
        scale = self._shifted_scale(lane)
        scale_held = Signal(len(scale), name=f"scale_{lane}", reset_less=True)
        offset, offset_delayed, product, total = (
            Signal(shape, name=f"{name}_{lane}", reset_less=True)
            for name in ("offset", "offset_delayed", "product", "total")
        )
        h = self._shifted_row(self.h[lane], row_shift) << (0 if self.params.symmetric else 1)
        m.d.sync += [
            offset.eq(self.side[lane].offset * self.a_sum),
            offset_delayed.eq(offset),
            scale_held.eq(scale),
            product.eq(scale_held * h),
            total.eq(product + offset_delayed),
        ]
        m.d.comb += self.o[lane].eq(total)

    def _take_zero_point(self, m, lane, row_shift):
        p = self.params
        scale = self._shifted_scale(lane)
        offset = Signal(signed(term_width(p)), name=f"offset_{lane}", reset_less=True)
        h = self.h[lane] << (0 if p.symmetric else 1)
        shifted = self._shifted_row((h - offset)[: term_width(p)].as_signed(), row_shift)
        term = Signal(signed(len(shifted)), name=f"term_{lane}", reset_less=True)
        scale_held, scale_delayed = (
            Signal(len(scale), name=f"{name}_{lane}", reset_less=True)
            for name in ("scale", "scale_delayed")
        )
        product = Signal(signed(self.o_width), name=f"product_{lane}", reset_less=True)
        m.d.sync += [
            offset.eq(self.side[lane].zero * self.a_sum),
            scale_held.eq(scale),
            term.eq(shifted),
            scale_delayed.eq(scale_held),
            product.eq(scale_delayed * term),
        ]
        m.d.comb += self.o[lane].eq(product)


class AccumulatorBanks(wiring.Component):
    """The accumulators: adds eight rows to what their block holds, and rounds the finished sums.

    The first depth tile replaces what is there. Even and odd blocks are banks. A block is read
    ``read_lag`` cycles after its ``control`` and written ``recovery - 1`` cycles after that, so
    that the same block comes again ``recovery`` cycles later at the earliest. Grouped engines shift
    with rounding: half of the result's last place is there from the first depth tile on, so that
    the last one cuts only. ``shift`` of a control is less than the whole one by ``shift_min``,
    which readers cut.

    Parameters
    ----------
    params : :class:`EngineParams`
    i_width : width of a row.
    i_lag : cycles by which ``i`` follows ``control``.

    Members
    -------
    control : ``In(row_control(params))``
    i : ``In(8 * signed(i_width))``
    acc : ``In(acc_read_port(params))``  latency 1, at any time.
    done : ``Out(1)``  the cycle after the write of rows with ``finish``: ``latency`` cycles after
        their ``control``.
    """

    def __init__(self, params: EngineParams, i_width: int, i_lag: int) -> None:
        self.params, self.i_width, self.i_lag = params, i_width, i_lag
        self.width = params.sum_width if params.grouped else params.acc_width
        self.recovery = MatmulTiming(params).recovery
        self.latency = i_lag + self.recovery - 1
        super().__init__(
            {
                "control": In(row_control(params)),
                "i": In(data.ArrayLayout(signed(i_width), LANES)),
                "acc": In(acc_read_port(params)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p = self.params

        controls = delay(m, self.control, self.latency - 1, flags=CONTROL_FLAGS)
        reading, adding, writing = controls[self.i_lag - 1], controls[self.i_lag], controls[-1]
        m.d.sync += self.done.eq(writing.finish)

        half, amount = 0, Signal(p.shift_width, reset_less=True)
        if p.grouped:
            half = Signal((1 << p.shift_width) + max(p.shift_min - 1, 0), reset_less=True)
            last_place = Const(1, 1) << reading.shift
            least = Const(0, p.shift_min - 1) if p.shift_min else None
            m.d.sync += half.eq(last_place >> 1 if least is None else Cat(least, last_place))
            m.d.sync += amount.eq(Mux(adding.last_tile, adding.shift, 0))
        for lane in range(LANES):
            total = Signal(signed(self.width), name=f"total_{lane}", reset_less=p.grouped)
            value = Signal(signed(self.width), name=f"value_{lane}")
            old = []
            for bank in range(2):
                depth = p.pass_tokens << len(self.acc.addr.pair)
                m.submodules[f"bank_{bank}_{lane}"] = memory = Memory(
                    shape=signed(self.width), depth=depth, init=[]
                )
                w_port, r_port, acc_port = (
                    memory.write_port(),
                    memory.read_port(),
                    memory.read_port(),
                )
                m.d.comb += [
                    w_port.en.eq(writing.valid & (writing.block[0] == bank)),
                    w_port.addr.eq(Cat(writing.block[1:], writing.token)),
                    w_port.data.eq(value),
                    r_port.en.eq(reading.valid),
                    r_port.addr.eq(Cat(reading.block[1:], reading.token)),
                    acc_port.en.eq(1),
                    acc_port.addr.eq(Cat(self.acc.addr.pair, self.acc.addr.token)),
                    self.acc.data[bank][lane].eq(acc_port.data[p.shift_min :]),
                ]
                old.append(r_port.data)
            former = Mux(adding.first_tile, half, Mux(adding.block[0], old[1], old[0]))
            former = former[: self.width].as_signed()
            if p.grouped:
                m.d.sync += total.eq(former + self.i[lane])
                # partial sums are never shifted; the bits of the least shift are not read
                top = p.shift_min + p.acc_width
                cut = (total >> amount)[p.shift_min : top]
                m.d.comb += value.eq(Cat(total[: p.shift_min], cut, total[top:]))
            else:
                m.d.comb += [total.eq(former + self.i[lane]), value.eq(total)]
        return m
