"""Mixed-precision PEs: dot products by shift and add."""

from amaranth import Mux

from lutra_golden.matmul.mixpe import MixpeParams
from lutra_hw.arith.fixed import sign_extend
from lutra_hw.matmul.mac import DotDatapath

__all__ = ["MixpeDatapath"]


class MixpeDatapath(DotDatapath):
    """Products by shift and add: no multiplier.

    Activations come in pairs, and the sum of a pair is computed once for all rows. In each plane
    a row selects nothing, one of them or their sum, by a bit of two digits: half the words to add,
    for one selection. An odd activation at the end is selected by itself.

    Latency, throughput and members: :class:`DotDatapath`.
    Model: :meth:`lutra_golden.matmul.mixpe.MixpeParams.product`. Source: MixPE, arXiv
    2411.16158, section 3.2 (shift and add); the shared sums are ours.
    """

    def __init__(self, params: MixpeParams) -> None:
        if not isinstance(params, MixpeParams):
            raise TypeError(f"params must be MixpeParams, not {params!r}")
        super().__init__(params)

    def shared(self, activations):
        sums = [a + b for a, b in zip(activations[0::2], activations[1::2], strict=False)]
        return activations + sums

    def terms(self, words, bits):
        n = self.params.step_depth
        width = self.params.a_width + 1
        terms = []
        for index in range(n // 2):
            a, b, both = words[2 * index], words[2 * index + 1], words[n + index]
            a_bit, b_bit = bits[2 * index], bits[2 * index + 1]
            # one of three, each with its gate: smaller than multiplexers in a row
            chosen = (
                Mux(a_bit & ~b_bit, sign_extend(a, width), 0)
                | Mux(~a_bit & b_bit, sign_extend(b, width), 0)
                | Mux(a_bit & b_bit, both.as_unsigned(), 0)
            )
            terms.append(chosen.as_signed())
        if n % 2:
            terms.append(Mux(bits[-1], words[n - 1], 0))
        return terms
