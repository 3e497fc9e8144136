"""Cycles of the lookup engine."""

from dataclasses import dataclass

from lutra_golden.matmul.engine import LANES
from lutra_golden.matmul.lookup import LookupParams, n_planes, walk

__all__ = ["LookupTiming"]


@dataclass(frozen=True)
class LookupTiming:
    """Latencies of the parts of a lookup engine with ``params``, and the cycles of its commands.

    A pass is a depth tile of a plane for one group of tokens: its activations are loaded while the
    pass before it works, then the tables are written, then its words are looked up, one per cycle.
    """

    params: LookupParams

    @property
    def skew(self) -> int:
        """Cycles by which the last two tables of a lane are looked up later than the first two."""
        return self.params.n_tables // 2 - 1

    @property
    def latency(self) -> int:
        """Cycles from the issue of a command's last weight word to ``done``."""
        return self.params.datapath_latency + 3

    @property
    def empty_latency(self) -> int:
        """Cycles from the issue of an empty command to ``done``."""
        return self.latency

    @property
    def spacing(self) -> int:
        """Least number of cycles from the start of a pass to the start of the next."""
        return self.params.prepare_cycles + 1 + self.skew

    @property
    def lead(self) -> int:
        """Cycles at most from the acceptance of a command to the issue of its first word."""
        loads = self.params.tile_depth(0x80) // LANES
        return loads + 2 + self.params.prepare_cycles

    def passes(self, depth_tiles: int, planes: int, tokens: range) -> int:
        """Passes of a command."""
        size = self.params.step_tokens
        groups = tokens[-1] // size - tokens[0] // size + 1
        return n_planes(planes) * depth_tiles * groups

    def pass_cycles(self, row_blocks: int, planes: int) -> int:
        """Cycles that a pass adds in an engine that is never idle."""
        return len(walk(planes)) + self.params.pass_words(row_blocks, planes) + self.skew

    def cycles(
        self, depth_tiles: int, row_blocks: int, planes: int, tokens: int, *, token_first: int = 0
    ) -> int:
        """Cycles of a command from its acceptance to ``done``, without waiting for weights."""
        loads = self.params.tile_depth(planes) // LANES
        passes = self.passes(depth_tiles, planes, range(token_first, token_first + tokens))
        last = self.pass_cycles(row_blocks, planes)
        return loads + 2 + passes * last - self.skew - 1 + self.latency
