"""Centres of keys, taken from any products of a rotation."""

from amaranth import Module, Signal, Value, signed

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.matmul.engine import LANES
from lutra_golden.vector.heads import FIXED_FRAC, FIXED_WIDTH
from lutra_golden.vector.rope import ROPE_FRAC
from lutra_hw.vector.heads import slot_layout
from lutra_hw.vector.rope import RopeQuant, rope_command
from lutra_sim.formal.property import Property, past

__all__ = ["CentreOfKeys"]

_PARAM_WIDTH = 16
_LANES = 0, LANES - 1  # that are looked at, of eight that are made alike


class CentreOfKeys(Property):
    """A rotated key loses its centre, with its sign and to the last bit; others lose nothing.

    The command is any, and stays. Pairs of any heads come in any order, as far apart as the command
    demands, and their products with cosine and sine are any that elements of 28 bits can have: no
    sum leaves its width. One word of centres, any, is followed; it is one that golden allows.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(RopeQuant(config))

    @property
    def depth(self) -> int:
        # the blocks of a pair, two cycles apart, their centres and the rotation; and one pair more
        return 2 + 8 + 4 + 4 + 2

    def rules(self, m: Module) -> None:
        config, param = self.dut.config, self.dut.param
        n_pairs = config.head_dim // (2 * LANES)
        n_heads = config.n_heads + 2 * config.n_kv_heads
        command = self.constant(m, rope_command(config), "command")
        inside = self.probe("command", rope_command(config), cut=True)
        shift = Signal(range(FIXED_FRAC + 1))
        m.d.comb += shift.eq(FIXED_FRAC - command.bias_frac)
        n_words = 2 * n_pairs * (n_heads + config.n_kv_heads)
        centred = command.bias & command.centre
        self.assume(
            m,
            inside.as_value() == command.as_value(),
            command.bias_frac <= FIXED_FRAC,
            command.param_word <= config.vector.param_words - n_words,
        )

        slot = self.probe("slot", slot_layout(config), cut=True)
        last = [past(m, slot.valid, "valid_1")]
        for cycle in (2, 3):
            last.append(past(m, last[-1], f"valid_{cycle}"))
        self.assume(
            m,
            slot.head < n_heads,
            # a bias alone takes two cycles a pair, a centre beside it four
            ~(slot.valid & last[0] & command.bias),
            ~(slot.valid & (last[1] | last[2]) & centred),
        )

        # the followed word, and the parameter buffer that has it
        key = self.constant(m, range(config.n_kv_heads), "key")
        pair = self.constant(m, range(n_pairs), "pair")
        high = self.constant(m, 1, "high")
        centre = {n: self.constant(m, signed(_PARAM_WIDTH), f"centre_{n}") for n in _LANES}
        address = command.param_word + (n_heads * n_pairs + key * n_pairs + pair) * 2 + high
        is_read = past(m, param.addr.word == address, "is_read")
        for lane, value in centre.items():
            reach, in_q16 = 1 << (FIXED_WIDTH - 1), value << shift
            self.assume(m, ~is_read | (param.data[lane] == value), in_q16 < reach, in_q16 > -reach)

        for half in ("low", "high"):
            # for the induction: commands without centres leave what is held alone
            held = self.probe(f"away_{half}", LANES * (_PARAM_WIDTH + FIXED_FRAC))
            self.claim(m, f"no centre is held, {half}", centred | (held == 0))
        passing = self.probe("slot_0_4", slot_layout(config))
        first_key = config.n_heads
        is_key = (passing.head >= first_key) & (passing.head < first_key + config.n_kv_heads)
        is_mine = is_key & (passing.head - first_key == key) & (passing.pair == pair)
        bound = 1 << (FIXED_WIDTH - 1 + _PARAM_WIDTH - 1)
        element = max(config.matmul.acc_width, FIXED_WIDTH)
        for lane, value in centre.items():
            products = {
                name: self.probe(f"{name}_{lane}", signed(element + 16), cut=True)
                for name in ("low_cos", "low_sin", "high_cos", "high_sin")
            }
            self.assume(m, *(-bound <= p for p in products.values()))
            self.assume(m, *(p <= bound for p in products.values()))
            rotated = {
                "low": products["low_cos"] - products["high_sin"],
                "high": products["high_cos"] + products["low_sin"],
            }
            away = (value << shift) << ROPE_FRAC
            for half, (name, total) in enumerate(rotated.items()):
                found = self.probe(f"y_{name}_{lane}", signed(element + 17))
                self._claims(
                    m, f"{name} {lane}", found, past(m, total, f"{name}_{lane}"), away,
                    passing.valid & is_mine & centred & (high == half),
                    passing.valid & ~(is_key & centred),
                )  # fmt: skip

    def _claims(
        self, m: Module, name: str, found: Value, rotated: Value, away: Value,
        is_mine: Value, is_plain: Value,
    ) -> None:  # fmt: skip
        self.claim(m, f"the centre is taken from {name}", ~is_mine | (found == rotated - away))
        self.claim(m, f"nothing else is, from {name}", ~is_plain | (found == rotated))
