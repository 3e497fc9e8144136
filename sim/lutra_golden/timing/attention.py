"""Cycles of the attention unit."""

from dataclasses import dataclass

from lutra_golden.attention.attention import first_seen
from lutra_golden.attention.pairs import fetches
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.arith import EXP2_LATENCY, SCALE_LATENCY

__all__ = ["TREE_RADIX", "AttentionTiming"]

TREE_RADIX = 4
"""Operands of an adder in the tree that adds the products of a dot product."""


@dataclass(frozen=True)
class AttentionTiming:
    """Pipeline stages of the attention unit of ``config``, and the cycles of its commands.

    Stages are counted in cycles from the issue of a pair. Pass K waits where pass V weighs.
    """

    config: AcceleratorConfig

    @property
    def weigh(self) -> int:
        """Stage at which the power of two of a score is there."""
        return 2 + EXP2_LATENCY

    @property
    def multiply(self) -> int:
        """Stage at which a beat meets a query or a weight."""
        return self.weigh + 3

    @property
    def sum(self) -> int:
        """Stage at which the products are there."""
        return self.multiply + 1

    @property
    def dot(self) -> int:
        """Stage at which the products of a dot product have been added."""
        params = self.config.attention
        levels = -(-(params.part_dims - 1).bit_length() // (TREE_RADIX - 1).bit_length())
        # the parts of a head are added one after another
        return self.sum + levels + (params.pair_cycles > 1)

    @property
    def score(self) -> int:
        """Stage at which a score is written."""
        return self.dot + 3

    def cycles(self, position: int, token_count: int, first_beat: int = 2, window: int = 0) -> int:
        """Cycles from the acceptance of a command to ``done``.

        ``first_beat`` is the number of cycles from that acceptance to the first beat, after which
        memory delivers one beat per cycle.
        """
        if not token_count:
            return 1
        config = self.config
        n_scale_beats = next(fetches(config, 0, position, token_count, window)).beats
        pair_cycles = config.attention.pair_cycles * sum(
            p + 1 - first_seen(p, window) for p in range(position, position + token_count)
        )
        # `at` is the cycle in which the next pair is begun, `finished` the end of the last head
        at = first_beat + n_scale_beats + 1
        finished = 0
        for _ in range(config.n_kv_heads):
            at = max(at + pair_cycles + self.score, finished + 1) + pair_cycles
            finished = at + self.finish_cycles(token_count)
        return finished + 1

    def finish_cycles(self, token_count: int) -> int:
        """Cycles from the last pair of a head of keys and values to its results."""
        n_items = token_count * self.config.attention.q_per_kv
        words = self.config.head_dim // 8
        reciprocal = 2 + SCALE_LATENCY["FROM_INT"] + SCALE_LATENCY["RECIP"]
        return self.sum + reciprocal + max(reciprocal, words) * (n_items - 1) + words + 4
