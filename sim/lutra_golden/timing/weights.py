"""Weights on their way from memory to the matmul engine, which come before they are needed."""

from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.ports import Purpose
from lutra_golden.timing.memory import MemoryTiming

__all__ = ["ISSUE_CYCLES", "WeightStream"]

ISSUE_CYCLES = 6
"""From a command to the DMA engine to its first beat, beside the memory's latency: two cycles to
the address, one in the arbiter, three from the data to the unit."""


class WeightStream:
    """State of the reader of weights of ``config`` while units take turns.

    Words flow at the rate of their port and its memory, whatever the units do, until the ring of
    the engine and the FIFO of the DMA engine are full; then they wait until the engine takes some.
    """

    def __init__(self, config: AcceleratorConfig, memory: MemoryTiming) -> None:
        numbers = config.ports_of(Purpose.WEIGHTS)
        port = config.ports[numbers[0]]
        # of all ports side by side, the slowest of which all wait for
        per_word = config.weight_word_bytes / config.weight_stripe.whole_bytes
        per_beat = max(cycles / beats for beats, cycles in map(memory.rate, numbers))
        self.word_cycles = per_word * per_beat
        if memory.total_rate is not None:
            n_bytes, cycles = memory.total_rate
            self.word_cycles = max(self.word_cycles, config.weight_word_bytes * cycles / n_bytes)
        self.word_cycles /= memory.refreshed
        """Cycles from a word to the next."""
        self._room = config.matmul.weight_buffer_words + port.ahead_beats / per_word
        # room for a burst, then its way from memory
        burst = port.burst_beats / per_word
        self._resume = burst + memory.mean_read_latency + ISSUE_CYCLES
        self.ahead = 0.0
        """Words that have come and were not used yet."""

    @property
    def missing_cycles(self) -> float:
        """Cycles in which what there is room for would come."""
        return (self._room - self.ahead) * self.word_cycles

    def flow(self, cycles: float) -> None:
        """Let words come for so many cycles in which none are used."""
        self.ahead = min(self._room, self.ahead + cycles / self.word_cycles)

    def product(self, n_words: int, engine_cycles: int, tail_cycles: int) -> float:
        """Cycles of a product of ``n_words``, for which the engine alone takes ``engine_cycles``.

        It ends no earlier than ``tail_cycles`` after its last word has come.
        """
        late = self._resume if self.ahead >= self._room else 0.0
        coming = max(0.0, n_words - self.ahead) * self.word_cycles
        cycles = max(float(engine_cycles), coming and late + coming + tail_cycles)
        left = self.ahead + max(0.0, cycles - late) / self.word_cycles - n_words
        self.ahead = min(self._room, max(0.0, left))
        return cycles
