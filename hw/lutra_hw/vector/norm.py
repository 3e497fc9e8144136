"""RMSNorm and quantisation, of the residual stream, attention outputs or gated products."""

import itertools
from functools import reduce
from operator import add, or_

from amaranth import Cat, Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.arith.quantize import q_max_of
from lutra_golden.arith.scale import SCALE, scale_from_int, scale_recip
from lutra_golden.arith.silu import SILU
from lutra_golden.control.isa import NormSource
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.timing.norm import (
    RECIP_TO_FACTOR,
    STAGE_Q,
    STAGE_SUM,
    STAGE_V,
    STAGE_Y,
    SWIGLU_SCALE_CYCLES,
    SWIGLU_STAGES,
)
from lutra_golden.vector.norm import SOURCE_WIDTH, SWIGLU_SHIFTS
from lutra_hw.arith.fixed import (
    bit_length,
    clip_shift,
    leaves,
    magnitude,
    round_half,
    saturate,
    shift_guarded,
)
from lutra_hw.arith.quantize import Quantizer
from lutra_hw.arith.scale import ScaleMul, ScaleOp, ScaleUnit
from lutra_hw.arith.silu import Silu
from lutra_hw.buffers import (
    AttentionReadPort,
    ParamReadPort,
    ResidualReadPort,
    ScaleReadPort,
    ScaleWritePort,
)
from lutra_hw.matmul.contract import acc_read_port, act_write_port
from lutra_hw.pipeline import delay
from lutra_hw.ports import SCALE_LAYOUT, scale_constant
from lutra_hw.vector.group_shifts import GroupShifts

__all__ = ["NORM_COMMAND", "NormQuant"]

NORM_COMMAND = data.StructLayout(
    {
        "source": unsigned(2),
        "plain": unsigned(1),
        "n_words": unsigned(16),
        "param_word": unsigned(16),
        "gamma_frac": unsigned(8),
        "inv_n": SCALE_LAYOUT,
        "eps": SCALE_LAYOUT,
        "scale_a": SCALE_LAYOUT,
        "scale_b": SCALE_LAYOUT,
        "token_first": unsigned(8),
        "token_count": unsigned(8),
    }
)
"""``n_words`` words of eight elements, from one to a token's activation words, of ``token_count``
tokens, which may be none.

``source`` is a :class:`NormSource`; ``plain`` leaves RMSNorm out; ``param_word`` is the first word
of gamma; ``scale_a`` the scale of the source or of the gate's weights, ``scale_b`` that of the up
projection's weights (GATE, SWIGLU).
"""

# what a word is read for: the largest magnitude, the sums, or the result
_TAG = data.StructLayout(
    {"scan": 1, "measure": 1, "quantize": 1, "first": 1, "last": 1, "odd": 1}  # odd token
)
_VS_WIDTH = 16
_Y_WIDTH = _VS_WIDTH + 16  # times gamma


def _pairwise(operation, values):
    """One level of a tree over an even number of values: ``operation`` on neighbours."""
    return [operation(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]


def _maximum(a, b):
    return Mux(a > b, a, b)


def _registered(m, name, values):
    """A register behind each of ``values``."""
    values = list(values)
    registers = [Signal.like(value, name=f"{name}_{k}") for k, value in enumerate(values)]
    m.d.sync += [register.eq(value) for register, value in zip(registers, values, strict=True)]
    return registers


def _shifted(scale, n):
    """Fields of ``scale * 2**n``, where zero stays zero."""
    return {"m": scale.m, "e": scale.e + Mux(scale.m == 0, 0, n)}


class _ScaleSequence(wiring.Component):
    """The scalar arithmetic of one token, on one :class:`ScaleUnit`, in the golden model's order.

    ``start`` begins it once the token's block shift ``sh`` and, for GATE and SWIGLU, the scales of
    its ``gate`` and ``up`` accumulators are there; it waits for ``sums_valid`` before it uses
    ``y_max`` and ``ss``, and tells by ``y_taken`` and ``ss_taken`` that it has. ``factor`` follows
    ``recip_accepted`` after ``RECIP_TO_FACTOR`` cycles; ``scale_en`` comes with the result and
    ends it.
    """

    def __init__(
        self, y_shape: Shape, ss_shape: Shape, sh_shape: Shape, q_max: int, a_shift_max: int
    ):
        self.q_max, self.a_shift_max = q_max, a_shift_max
        super().__init__(
            {
                "command": In(NORM_COMMAND),
                "start": In(1),
                "sh": In(sh_shape),
                "gate": In(SCALE_LAYOUT),
                "up": In(SCALE_LAYOUT),
                "sums_valid": In(1),
                "y_max": In(y_shape),
                "ss": In(ss_shape),
                "idle": Out(1),
                "y_taken": Out(1),
                "ss_taken": Out(1),
                "recip_accepted": Out(1),
                "factor": Out(SCALE_LAYOUT),
                "scale_en": Out(1),
                "scale": Out(SCALE_LAYOUT),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = ScaleUnit()
        command, operation = self.command, unit.i.payload
        squared, total, step, unit_scale = (
            Signal(SCALE_LAYOUT, name=name) for name in ("squared", "total", "step", "unit_scale")
        )
        result, source_scale, reciprocal_root = (
            Signal(SCALE_LAYOUT, name=name)
            for name in ("result", "source_scale", "reciprocal_root")
        )
        swiglu = command.source == NormSource.SWIGLU
        m.d.comb += [
            result.eq(unit.o.payload),
            source_scale.eq(Mux(swiglu, self.up, command.scale_a)),
            # times one is exact
            reciprocal_root.eq(Mux(command.plain, scale_constant(scale_from_int(1)), total)),
        ]

        y_max, recip, ss, last = 3, 4, 7, 13
        largest = scale_from_int(self.q_max)
        # activations are integers of so many bits more
        lowered = -command.gamma_frac
        if self.a_shift_max:
            lowered = lowered - self.a_shift_max
        # operation, operands, destination
        steps = [
            (ScaleOp.MUL, self.gate, self.gate, total, 0),
            (ScaleOp.MUL, total, self.up, unit_scale, self.sh),
            (ScaleOp.MUL, unit_scale, unit_scale, squared, 0),
            (ScaleOp.FROM_INT, None, None, step, 0),
            (ScaleOp.RECIP, step, None, total, 0),
            (ScaleOp.MUL, total, scale_constant(largest), self.factor, 0),
            (ScaleOp.MUL, step, scale_constant(scale_recip(largest)), step, lowered),
            (ScaleOp.FROM_INT, None, None, total, 0),
            (ScaleOp.MUL, total, command.inv_n, total, 0),
            (ScaleOp.MUL, total, squared, total, 0),
            (ScaleOp.ADD, total, command.eps, total, 0),
            (ScaleOp.RSQRT, total, None, total, 0),
            (ScaleOp.MUL, reciprocal_root, unit_scale, total, 0),
            (ScaleOp.MUL, total, step, None, 0),
        ]
        counter = Signal(range(len(steps)))
        m.d.comb += operation.x.eq(Mux(counter == y_max, self.y_max, self.ss))
        with m.Switch(counter):
            for index, (op, a, b, _, _) in enumerate(steps):
                with m.Case(index):
                    m.d.comb += operation.op.eq(op)
                    m.d.comb += [
                        field.eq(operand)
                        for field, operand in ((operation.a, a), (operation.b, b))
                        if operand is not None
                    ]

        m.d.comb += self.scale.eq(result)
        with m.FSM() as fsm:
            accepted = Signal()
            m.d.comb += [
                self.idle.eq(fsm.ongoing("Idle")),
                unit.i.valid.eq(fsm.ongoing("Issue") & ((counter != y_max) | self.sums_valid)),
                unit.o.ready.eq(fsm.ongoing("Result")),
                accepted.eq(unit.i.valid & unit.i.ready),
                self.y_taken.eq(accepted & (counter == y_max)),
                self.ss_taken.eq(accepted & (counter == ss)),
                self.recip_accepted.eq(accepted & (counter == recip)),
                self.scale_en.eq(unit.o.valid & unit.o.ready & (counter == last)),
            ]
            with m.State("Idle"):
                # for GATE, the first two steps make the scale of the products
                fields = _shifted(source_scale, self.sh - Mux(swiglu, SILU.x_frac, 0))
                m.d.sync += [
                    unit_scale.m.eq(fields["m"]),
                    unit_scale.e.eq(fields["e"]),
                    counter.eq(Mux(command.source == NormSource.GATE, 0, 2)),
                ]
                with m.If(self.start):
                    m.next = "Issue"
            with m.State("Issue"):
                with m.If(accepted):
                    m.next = "Result"
            with m.State("Result"):
                with m.If(unit.o.valid):
                    with m.Switch(counter):
                        for index, (_, _, _, target, shift) in enumerate(steps):
                            if target is not None:
                                with m.Case(index):
                                    fields = _shifted(result, shift)
                                    m.d.sync += [
                                        target.m.eq(fields["m"]),
                                        target.e.eq(fields["e"]),
                                    ]
                    m.d.sync += counter.eq(counter + 1)
                    m.next = "Issue"
                    with m.If(counter == last):
                        m.next = "Idle"
        return m


class _Flags:
    """Handshakes between the passes over a token's words and its scalar sequence."""

    def __init__(self, token_shape: Shape):
        self.sh_valid, self.y_valid, self.ss_free, self.factor_valid = (
            Signal(name=name, init=name == "ss_free")
            for name in ("sh_valid", "y_valid", "ss_free", "factor_valid")
        )
        self.measured_token = Signal(token_shape, name="measured_token")


class NormQuant(wiring.Component):
    """RMSNorm times gamma, or gamma alone, quantised to int8 or int16 with a scale per token, and
    with groups of activations a shift per group.

    Sources are the residual stream, the attention unit's outputs, and ``relu(gate)**2 * up`` or
    ``silu(gate) * up`` of pairs of accumulator blocks. Each token's words are read three times, one
    word of eight elements per cycle: to find the block shift, to sum the squares and find the
    largest product with gamma, and to quantise. The next token's first pass runs while the
    quantisation factor is computed, and its second while the output scale is.

    A command takes :func:`norm_cycles` from acceptance to ``done``, ``3 * n_words * token_count +
    29`` where ``n_words`` is 35 or more, and 22 more for SWIGLU, on whose way the gate takes 10
    cycles to become SiLU; there is no backpressure. ``done`` pulses when all activations and scales
    are written, or in the cycle after acceptance for zero tokens. The next command is accepted in
    the cycle after ``done``.

    Model: :func:`lutra_golden.vector.norm.norm_quantize`, ``relu2_gate``, ``gate_scale``,
    ``swiglu``, ``swiglu_scale``.

    Parameters
    ----------
    config : :class:`AcceleratorConfig`

    Members
    -------
    cmd : ``In(stream.Signature(NORM_COMMAND))``
    residual, attention : ``Out(ResidualReadPort(config))``, ``Out(AttentionReadPort(config))``
    acc : ``Out(acc_read_port(config.matmul))``  pair ``p`` holds gate and up of word ``p``, which
        fit ``gate_width`` bits if the source is GATE.
    param : ``Out(ParamReadPort(config))``  gamma.
    scale_r : ``Out(ScaleReadPort(config))``  scale of the gate's activations;
        read with the first word of a token.
    act : ``Out(act_write_port(config.matmul))``
    scale_w : ``Out(ScaleWritePort(config))``  scale of the written activations.
    saturated : ``Out(1)``  pulses when an argument of SiLU is above its range.
    done, busy : ``Out(1)``
    """

    def __init__(self, config: AcceleratorConfig):
        if not isinstance(config, AcceleratorConfig):
            raise TypeError(f"config must be AcceleratorConfig, not {config!r}")
        self.config = config
        super().__init__(
            {
                "cmd": In(stream.Signature(NORM_COMMAND)),
                "residual": Out(ResidualReadPort(config)),
                "attention": Out(AttentionReadPort(config)),
                "acc": Out(acc_read_port(config.matmul)),
                "param": Out(ParamReadPort(config)),
                "scale_r": Out(ScaleReadPort(config)),
                "act": Out(act_write_port(config.matmul)),
                "scale_w": Out(ScaleWritePort(config)),
                "saturated": Out(1),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    @property
    def v_width(self) -> int:
        """Width of an element of any source."""
        return self.config.norm.v_width

    def elaborate(self, platform):
        m = Module()
        lanes = range(LANES)

        command = Signal(NORM_COMMAND)
        gate, swiglu = Signal(), Signal()
        read_token = Signal(self.scale_w.addr.token.shape())
        word = Signal(self.act.addr.word.shape())
        tags = [Signal(_TAG, name=f"tag_{stage}") for stage in range(STAGE_Q + 1)]
        m.d.comb += [
            gate.eq(command.source == NormSource.GATE),
            swiglu.eq(command.source == NormSource.SWIGLU),
        ]
        gate_scale, up_scale = self._token_scales(m, command, tags[:2], read_token)
        late_tags, silu, late_up = self._swiglu(m, tags[1], swiglu, gate_scale)
        m.d.sync += [
            tags[1].eq(tags[0]),
            tags[2].eq(Mux(swiglu, late_tags[-1], tags[1])),
            *(tag.eq(before) for before, tag in itertools.pairwise(tags[2:])),
        ]

        self._address(m, read_token, word)
        v = [
            self._element(m, lane, command, gate, swiglu, silu[lane], late_up[lane])
            for lane in lanes
        ]
        sh = self._scan(m, tags, v)
        y, squares = self._multiply(m, command, tags[STAGE_V], v, sh)
        y_max, ss, maxima = self._sum(m, tags[STAGE_SUM], y, squares)

        flags = _Flags(read_token.shape())
        sequence = self._sequence(m, command, tags, flags, sh, y_max, ss, gate_scale, up_scale)
        shift = None
        if self.config.matmul.a_groups is not None:
            shift = self._group_shifts(m, command, tags, y_max, maxima)
        act_token = self._quantize(m, tags[STAGE_Q], sequence, y, shift)
        until_factor = Signal(RECIP_TO_FACTOR - STAGE_Y - 1)
        m.d.sync += until_factor.eq(Cat(sequence.recip_accepted, until_factor[:-1]))
        # SWIGLU's words take longer than the factor, which nothing holds up from here on
        with m.If(Mux(swiglu, sequence.y_taken, until_factor[-1])):
            m.d.sync += flags.factor_valid.eq(1)

        pending = Cat(tag.quantize for tag in [*tags[1:], *late_tags]).any()
        drained = sequence.idle & ~pending
        self._passes(m, command, tags, flags, read_token, word, act_token, drained)
        return m

    def _address(self, m, read_token, word):
        """Stage 0: the address of a word, in the buffers of all sources."""
        m.d.comb += [
            self.residual.addr.token.eq(read_token),
            self.residual.addr.word.eq(word),
            self.attention.addr.token.eq(read_token),
            self.attention.addr.word.eq(word),
            self.acc.addr.token.eq(read_token),
            self.acc.addr.pair.eq(word),
        ]

    def _element(self, m, lane, command, gate, swiglu, silu, late_up):
        """Stages 1 and 2: an element of any source; those without a gate are multiplied by one."""
        gate_width = self.config.vector.gate_width
        from_attention = command.source == NormSource.ATTENTION
        relu = Signal(gate_width - 1, name=f"relu_{lane}")
        factor = Signal(signed(max(SOURCE_WIDTH, 2 * gate_width - 1)), name=f"factor_{lane}")
        up = Signal(signed(self.config.matmul.acc_width), name=f"up_{lane}")
        product = Signal(signed(self.v_width), name=f"v_{lane}")
        accumulator = self.acc.data[0][lane]
        source = Mux(from_attention, self.attention.data[lane], self.residual.data[lane])
        m.d.comb += relu.eq(Mux(accumulator[gate_width - 1], 0, accumulator[: gate_width - 1]))
        m.d.sync += [
            factor.eq(Mux(gate, relu * relu, Mux(swiglu, silu, source))),
            up.eq(Mux(gate, self.acc.data[1][lane], Mux(swiglu, late_up, 1))),
            product.eq(factor * up),
        ]
        return product

    def _scan(self, m, tags, v):
        """Stage 3: a first pass keeps the bits of every magnitude, whose length gives the shift."""
        sh_width = (self.v_width - _VS_WIDTH + 1).bit_length()
        scan, sh = tags[STAGE_V], Signal(unsigned(sh_width))
        bits, bits_before = Signal(self.v_width), Signal(self.v_width)
        length = Signal(range(self.v_width + 1))
        m.d.comb += bits_before.eq(Mux(scan.first, 0, bits))
        with m.If(scan.scan):
            m.d.sync += bits.eq(reduce(or_, (magnitude(x) for x in v), bits_before))
        m.d.sync += length.eq(bit_length(m, bits))
        with m.If(tags[STAGE_V - 1].measure & tags[STAGE_V - 1].first):
            m.d.sync += sh.eq(Mux(length >= _VS_WIDTH - 1, length - (_VS_WIDTH - 1), 0))
        return sh

    def _multiply(self, m, command, tag, v, sh):
        """Stages 4 to 6: shifted, rounded, times gamma and squared."""
        lanes = range(len(v))
        y = [Signal(signed(_Y_WIDTH), name=f"y_{lane}") for lane in lanes]
        squares = [Signal(2 * _VS_WIDTH - 1, name=f"square_{lane}") for lane in lanes]
        param_word = Signal.like(self.param.addr.word)
        m.d.sync += param_word.eq(Mux(tag.first, command.param_word, param_word + 1))
        m.d.comb += self.param.addr.word.eq(param_word)
        for lane in lanes:
            guarded = Signal(signed(_VS_WIDTH + 1), name=f"guarded_{lane}")
            rounded = Signal(signed(_VS_WIDTH + 1), name=f"rounded_{lane}")
            vs = Signal(signed(_VS_WIDTH), name=f"vs_{lane}")
            m.d.comb += rounded.eq(round_half(guarded))
            m.d.sync += [
                guarded.eq(shift_guarded(v[lane], sh)),
                vs.eq(saturate(rounded, _VS_WIDTH)),
                y[lane].eq(vs * self.param.data[lane]),
                squares[lane].eq((vs * vs).as_unsigned()),
            ]
        return y, squares

    def _sum(self, m, tag, y, squares):
        """Stages 7 and 8: the largest magnitude and the sum of squares of a second pass."""
        n_max = len(y) << len(self.act.addr.word)
        y_max = Signal(_Y_WIDTH - 1)
        ss = Signal(unsigned(n_max.bit_length() + 2 * (_VS_WIDTH - 1)))
        magnitudes = _registered(m, "magnitude", map(magnitude, y))
        sums = _registered(m, "sum", _pairwise(add, _pairwise(add, squares)))
        maxima = _registered(m, "maximum", _pairwise(_maximum, _pairwise(_maximum, magnitudes)))
        totals = _registered(m, "total", _pairwise(add, sums))
        with m.If(tag.measure):
            m.d.sync += [
                y_max.eq(reduce(_maximum, maxima, Mux(tag.first, 0, y_max))),
                ss.eq(reduce(add, totals, Mux(tag.first, 0, ss))),
            ]
        return y_max, ss, maxima

    def _group_shifts(self, m, command, tags, y_max, maxima):
        """The shift of the group of the elements in stage ``STAGE_Y``."""
        params, groups = self.config.matmul, self.config.attention_groups
        assert groups is not None, "there are groups where there are shifts"
        m.submodules.shifts = shifts = GroupShifts(
            params, groups.size // LANES, len(maxima), len(y_max)
        )
        measured, quantized = tags[STAGE_SUM], tags[STAGE_Y - shifts.latency]
        m.d.comb += [
            shifts.short.eq(command.source == NormSource.ATTENTION),
            shifts.measure.eq(measured.measure),
            shifts.first.eq(measured.first),
            shifts.last.eq(measured.last),
            shifts.y_max.eq(y_max),
            shifts.quantize.eq(quantized.quantize),
            shifts.quantize_first.eq(quantized.first),
            shifts.quantize_last.eq(quantized.last),
            *(shifts.peaks[k].eq(value) for k, value in enumerate(maxima)),
        ]
        return shifts.shift

    def _sequence(self, m, command, tags, flags, sh, y_max, ss, gate_scale, up_scale):
        """The scalars: a sequence starts with a token's second pass and may outlast its third."""
        m.submodules.sequence = sequence = _ScaleSequence(
            y_max.shape(),
            ss.shape(),
            sh.shape(),
            q_max_of(self.config.matmul.a_width),
            self.config.matmul.a_shift_max,
        )
        measured_token, summed = flags.measured_token, tags[STAGE_SUM]
        scaled_token = Signal(measured_token.shape())
        m.d.comb += [
            sequence.command.eq(command),
            sequence.start.eq(flags.sh_valid),
            sequence.sh.eq(sh),
            sequence.gate.eq(gate_scale(measured_token[0])),
            sequence.up.eq(up_scale(measured_token[0])),
            sequence.sums_valid.eq(flags.y_valid),
            sequence.y_max.eq(y_max),
            sequence.ss.eq(ss),
            self.scale_w.en.eq(sequence.scale_en),
            self.scale_w.addr.token.eq(scaled_token),
            self.scale_w.data.eq(sequence.scale),
        ]
        with m.If(sequence.idle):
            m.d.sync += scaled_token.eq(measured_token)
            with m.If(flags.sh_valid):
                m.d.sync += flags.sh_valid.eq(0)
        with m.If(tags[STAGE_V].measure & tags[STAGE_V].first):
            m.d.sync += flags.sh_valid.eq(1)
        with m.If(sequence.y_taken):
            m.d.sync += flags.y_valid.eq(0)
        with m.If(summed.measure & summed.last):
            m.d.sync += flags.y_valid.eq(1)
        with m.If(sequence.ss_taken):
            m.d.sync += flags.ss_free.eq(1)
        return sequence

    def _quantize(self, m, written, sequence, y, shift):
        """Quantise the words of a third pass, the first of which meets the factor, with the
        ``shift`` of their group if there are groups.

        Returns the token that is written.
        """
        m.submodules.quantizer = quantizer = Quantizer(len(y), _Y_WIDTH, self.config.matmul.a_width)
        act_token = Signal(self.scale_w.addr.token.shape())
        act_word = Signal(self.act.addr.word.shape())
        if shift is None:
            factor = [quantizer.factor.eq(sequence.factor)]
            data = [self.act.data.eq(quantizer.q)]
        else:
            # a factor of zero, of elements that are all zero, has any exponent
            exponent = sequence.factor.e + (self.config.matmul.a_shift_max - shift)
            late = delay(m, shift, quantizer.latency, name="shift")[-1]
            factor = [
                quantizer.factor.m.eq(sequence.factor.m),
                quantizer.factor.e.eq(exponent),
            ]
            data = [self.act.data.q.eq(quantizer.q), self.act.data.shift.eq(late)]
        m.d.comb += [
            *(quantizer.y[lane].eq(element) for lane, element in enumerate(y)),
            *factor,
            self.act.en.eq(written.quantize),
            self.act.addr.token.eq(act_token),
            self.act.addr.word.eq(act_word),
            *data,
        ]
        with m.If(written.quantize):
            m.d.sync += [
                act_word.eq(Mux(written.last, 0, act_word + 1)),
                act_token.eq(act_token + written.last),
            ]
        return act_token

    def _passes(self, m, command, tags, flags, read_token, word, act_token, drained):
        """The passes: scan 0, then measure t, scan t + 1, quantize t for every token."""
        tokens_left = Signal(range(self.config.pass_tokens + 1))  # after the token of this pass
        first_token, scanned = Signal(), Signal()
        issue, allowed, last_word = Signal(), Signal(), Signal()
        tag = tags[0]
        m.d.comb += [
            last_word.eq(word == command.n_words - 1),
            tag.first.eq(issue & (word == 0)),
            tag.last.eq(issue & last_word),
            tag.odd.eq(read_token[0]),
        ]
        with m.If(issue):
            m.d.sync += word.eq(Mux(last_word, 0, word + 1))
        with m.If(tags[STAGE_V - 1].scan & tags[STAGE_V - 1].last):
            m.d.sync += scanned.eq(1)

        with m.FSM() as fsm:
            m.d.comb += [
                self.cmd.ready.eq(fsm.ongoing("Idle")),
                self.busy.eq(~fsm.ongoing("Idle")),
                tag.scan.eq(fsm.ongoing("Scan")),
                tag.measure.eq(fsm.ongoing("Measure") & allowed),
                tag.quantize.eq(fsm.ongoing("Quantize") & allowed),
                issue.eq(tag.scan | tag.measure | tag.quantize),
            ]
            with m.State("Idle"):
                m.d.sync += [
                    command.eq(self.cmd.payload),
                    read_token.eq(self.cmd.payload.token_first),
                    act_token.eq(self.cmd.payload.token_first),
                    tokens_left.eq(self.cmd.payload.token_count - 1),
                    first_token.eq(1),
                ]
                with m.If(self.cmd.valid):
                    m.next = "Scan"
                    with m.If(self.cmd.payload.token_count == 0):
                        m.next = "Drain"
            with m.State("Scan"):
                with m.If(word == 0):
                    m.d.sync += scanned.eq(0)
                with m.If(last_word):
                    m.next = "Measure"
                    with m.If(~first_token):
                        m.d.sync += read_token.eq(read_token - 1)
                        m.next = "Quantize"
            with m.State("Measure"):
                # the length of the magnitudes is there, and the sums of the token before are used
                m.d.comb += allowed.eq((word != 0) | (scanned & flags.ss_free))
                with m.If(tag.first):
                    m.d.sync += [flags.measured_token.eq(read_token), flags.ss_free.eq(0)]
                with m.If(tag.last):
                    m.d.sync += first_token.eq(0)
                    m.next = "Quantize"
                    with m.If(tokens_left != 0):
                        m.d.sync += read_token.eq(read_token + 1)
                        m.next = "Scan"
            with m.State("Quantize"):
                m.d.comb += allowed.eq((word != 0) | flags.factor_valid)
                with m.If(tag.first):
                    m.d.sync += flags.factor_valid.eq(0)
                with m.If(tag.last):
                    m.next = "Drain"
                    with m.If(tokens_left != 0):
                        m.d.sync += [
                            read_token.eq(read_token + 1),
                            tokens_left.eq(tokens_left - 1),
                        ]
                        m.next = "Measure"
            with m.State("Drain"):
                m.d.comb += self.done.eq(drained)
                with m.If(self.done):
                    m.next = "Idle"

    def _token_scales(self, m, command, tags, read_token):
        """Scales of the gate and up accumulators of the token that is scanned and the one before.

        The activation scale is read with the first word of a scan, and multiplied by the weight
        scales one after the other: the gate's can be used from ``SWIGLU_SCALE_CYCLES`` cycles after
        the word on, the other one a cycle later. Returns a function for either, of a token's last
        bit.
        """
        m.submodules.token_mul = mul = ScaleMul()
        first, second, odd = Signal(), Signal(), Signal(name="scan_odd")
        held = Signal(SCALE_LAYOUT)
        begins = tags[1].scan & tags[1].first
        m.d.comb += [
            self.scale_r.addr.token.eq(read_token),
            mul.valid.eq(begins),
            mul.a.eq(Mux(begins, self.scale_r.data, held)),
            mul.b.eq(Mux(begins, command.scale_a, command.scale_b)),
            first.eq(mul.o_valid),
            odd.eq(tags[1].odd),
        ]
        m.d.sync += [held.eq(self.scale_r.data), second.eq(first)]
        *_, odd_first, odd_second = delay(m, odd, mul.latency + 1)

        def bank(name, write, odd):
            even_scale, odd_scale = (
                Signal(SCALE_LAYOUT, name=f"{name}_scale_{parity}") for parity in ("even", "odd")
            )
            with m.If(write & ~odd):
                m.d.sync += even_scale.eq(mul.o)
            with m.If(write & odd):
                m.d.sync += odd_scale.eq(mul.o)
            return lambda odd: Mux(odd, odd_scale, even_scale)

        return bank("gate", first, odd_first), bank("up", second, odd_second)

    def _swiglu(self, m, tag, swiglu, gate_scale):
        """SiLU of the gate in stage 1, and ``up`` as late: ``(tags on the way, silu, up)``."""
        config = self.config
        lanes, low = range(LANES), SWIGLU_SHIFTS[0]
        late_tag = Signal(_TAG)
        gate, up = (Signal(self.acc.data[0].shape(), name=name) for name in ("gate", "up"))
        m.d.comb += [gate.eq(self.acc.data[0]), up.eq(self.acc.data[1])]
        with m.If(swiglu):
            m.d.comb += late_tag.eq(tag)
        _, *late_tags = delay(m, late_tag, SWIGLU_STAGES)
        gate, up = delay(m, gate, SWIGLU_SCALE_CYCLES)[-1], delay(m, up, SWIGLU_STAGES)[-1]
        m.submodules.silu = silu = Silu(LANES)

        # the shift from its lowest value on
        scale = Signal(SCALE_LAYOUT)
        m.d.comb += scale.eq(gate_scale(late_tags[SWIGLU_SCALE_CYCLES - 1].odd))
        right, shift = Signal(signed(SCALE.e_width + 1)), Signal(range(SWIGLU_SHIFTS[1] - low + 1))
        highest = SWIGLU_SHIFTS[1] - low
        m.d.comb += right.eq(-(scale.e + SILU.x_frac + low))
        m.d.sync += shift.eq(clip_shift(right, highest))
        above = Signal(LANES)
        rounded_tag = late_tags[SWIGLU_SCALE_CYCLES + 2]
        m.d.comb += self.saturated.eq(rounded_tag.scan & above.any())
        for lane in lanes:
            product = Signal(signed(config.matmul.acc_width + SCALE.m_width), name=f"scaled_{lane}")
            wide = Signal(signed(len(product) - low), name=f"wide_{lane}")
            shifted = Signal(signed(len(wide) + 1), name=f"x_guarded_{lane}")
            x = Signal(signed(SILU.x_width), name=f"x_{lane}")
            rounded = round_half(shifted)
            m.d.comb += [wide.eq(product << -low), silu.i[lane].eq(x)]
            m.d.sync += [
                product.eq(gate[lane] * scale.m),
                shifted.eq(shift_guarded(wide, shift)),
                x.eq(saturate(rounded, SILU.x_width)),
                above[lane].eq(leaves(rounded, SILU.x_width) & ~rounded[-1]),
            ]
        return late_tags, silu.o, up
