"""Cycles of the matmul engine."""

from dataclasses import dataclass

from lutra_golden.matmul.engine import LANES, EngineParams
from lutra_golden.matmul.lookup import LookupParams
from lutra_golden.timing.lookup import LookupTiming

__all__ = ["DEQUANTIZER_LATENCY", "MatmulTiming", "engine_timing"]

DEQUANTIZER_LATENCY = 3
"""From the scales and zero points of eight rows to their dequantised sums."""


@dataclass(frozen=True)
class MatmulTiming:
    """Latencies of the parts of an engine with ``params``, and the cycles of its commands.

    A word is issued to the datapath, whose sums of a block's last word go to the row registers,
    are drained eight rows of a token per cycle, dequantised if the engine is grouped, and added to
    the accumulators.
    """

    params: EngineParams

    @property
    def drain_cycles(self) -> int:
        """Cycles in which the rows of a block go to the accumulators, eight of a token in each."""
        return self.params.step_tokens * self.params.block_rows

    @property
    def row_lag(self) -> int:
        """Cycles from a block's last sums to the first rows that leave their registers."""
        return 0 if self.drain_cycles == 1 else 1

    @property
    def drain_lag(self) -> int:
        """Cycles from a word at the datapaths to its rows leaving their registers."""
        return self.params.datapath_latency + self.row_lag

    @property
    def recovery(self) -> int:
        """Least number of cycles between two additions to one accumulator."""
        return 3 if self.params.grouped else 2

    @property
    def accumulate_lag(self) -> int:
        """Cycles from the control of rows to the rows themselves at the accumulators."""
        return DEQUANTIZER_LATENCY if self.params.grouped else 1

    @property
    def accumulate_latency(self) -> int:
        """Cycles from the control of rows to their sums being readable."""
        return self.accumulate_lag + self.recovery - 1

    @property
    def empty_latency(self) -> int:
        """Cycles from the issue of an empty command to ``done``."""
        return 2 + self.drain_lag + self.accumulate_latency

    @property
    def latency(self) -> int:
        """Cycles from the issue of a command's last weight word to ``done``."""
        return self.empty_latency + self.drain_cycles - 1

    @property
    def spacing(self) -> int:
        """Least number of cycles from the start of a pass to the start of the next."""
        sums = self.params.depth_tile // LANES if self.params.grouped else 0
        return max(2, self.params.prepare_cycles, sums)

    @property
    def lead(self) -> int:
        """Cycles from the start of a pass to the issue of its first word."""
        lead = max(1, self.params.prepare_cycles - 2)
        if self.params.grouped:
            # the activation sum is needed with the rows of the first block
            sums = self.params.depth_tile // LANES + 2
            lead = max(lead, sums - (self.params.steps - 1) - 2 - self.drain_lag)
        return lead

    def passes(self, depth_tiles: int, planes: int, tokens: range) -> int:
        """Passes of a command: depth tiles of groups of ``step_tokens`` tokens."""
        size = self.params.step_tokens
        return depth_tiles * (tokens[-1] // size - tokens[0] // size + 1)

    def pass_cycles(self, row_blocks: int, planes: int) -> int:
        """Cycles that a pass adds in an engine that is never idle, if it is no shorter than an
        accumulator takes."""
        words = max(planes * self.params.steps, self.drain_cycles)
        return max(row_blocks // self.params.block_rows * words, self.spacing)

    def cycles(
        self, depth_tiles: int, row_blocks: int, planes: int, tokens: int, *, token_first: int = 0
    ) -> int:
        """Cycles of a command from its acceptance to ``done``, without waiting for weights."""
        p = self.params
        groups = (token_first % p.step_tokens + tokens - 1) // p.step_tokens + 1
        blocks, words, drain = row_blocks // p.block_rows, planes * p.steps, self.drain_cycles
        others = (blocks - 1) * max(words, drain)
        gap = max(0, self.recovery - blocks * words)
        following = max(self.spacing, max(words + gap, drain) + others)
        return self.lead + words + others + (depth_tiles * groups - 1) * following + self.latency


def engine_timing(params: EngineParams) -> MatmulTiming | LookupTiming:
    """The cycles of an engine with ``params``."""
    return LookupTiming(params) if isinstance(params, LookupParams) else MatmulTiming(params)
