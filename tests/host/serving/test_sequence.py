"""Sequences: the tokens that were processed, and where values saturated."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from lutra.devices.base import Chunk, PassResult
from lutra.devices.golden import GoldenDevice
from lutra.serving.sequence import TokenSequence
from lutra_golden.model.packed import PackedModel


class Saturating(GoldenDevice):
    """Says that a value saturated in the pass that begins ``at`` a position."""

    at = -1

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        return replace(super()._pass(chunks), saturated=chunks[0].position == self.at)


@pytest.mark.parametrize(("at", "saturated_at"), [(-1, None), (0, 0), (2, 2), (4, 2), (7, 7)])
def test_greedy_tokens_are_noted(
    at: int, saturated_at: int | None, packed: Callable[[str], PackedModel]
) -> None:
    """All but the last, which is not processed; saturated from the beginning of the call on."""
    device = Saturating()
    device.load(packed("grouped"))
    device.at = at
    sequence = TokenSequence.open(device, None)
    sequence.run([3, 1], 2)
    made, seconds = sequence.greedy(4, 5, ())
    assert len(made.tokens) == 5 and seconds > 0
    assert sequence.tokens == [3, 1, 4, *made.tokens[:-1]]
    assert sequence.session.length == len(sequence.tokens)
    sequence.run([9])
    assert sequence.saturated_at == saturated_at
