"""Parameters of the vector unit: its buffers, and what it can do."""

from dataclasses import dataclass

from lutra_golden.matmul.engine import LANES
from lutra_golden.params import check_bools, check_positive, check_power_of_two
from lutra_golden.vector.norm import GATE_WIDTH_MAX

__all__ = ["VectorParams"]


@dataclass(frozen=True, kw_only=True)
class VectorParams:
    """Sizes of the vector unit.

    Parameters
    ----------
    hidden_max : elements of a token's residual stream.
    param_words : words of eight int16 of the parameter buffer, a power of two.
    gate_width : bits of a gate or up accumulator of squared ReLU, signed.
    qkv_bias, qk_norm : the hardware for ROPEQ's ``FLAG_BIAS`` and ``FLAG_QK_NORM``.
    """

    hidden_max: int = 256
    param_words: int = 512
    gate_width: int = 20
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "hidden_max", "param_words", "gate_width")
        check_bools(self, "qkv_bias", "qk_norm")
        check_power_of_two(self, "param_words")
        if self.hidden_max % LANES:
            raise ValueError(
                f"hidden_max must be a multiple of {LANES} lanes, not {self.hidden_max}"
            )
        if not 2 <= self.gate_width <= GATE_WIDTH_MAX:
            raise ValueError(f"gate_width must be in 2..{GATE_WIDTH_MAX}, not {self.gate_width}")
