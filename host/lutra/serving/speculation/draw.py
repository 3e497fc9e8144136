"""Tokens that a pass gives a request: one by one, each from its own logits."""

from collections.abc import Sequence

from lutra.devices.base import StepResult
from lutra.text.sampling import Sampler

__all__ = ["draw"]


def draw(
    result: StepResult, sampler: Sampler, drafts: Sequence[int] = ()
) -> list[tuple[int, StepResult]]:
    """Tokens that follow a token and ``drafts``, each with the result that it was drawn from.

    ``result`` has the logits of both, or those of the best tokens, one row for each. The first
    token is drawn from the first row; one more for each draft that was drawn, up to the first draft
    that was not. So the sampler sees what it sees when there are no drafts.
    """
    made: list[tuple[int, StepResult]] = []
    for i in range(len(drafts) + 1):
        row = result if not drafts else _row(result, i)
        if not sampler.needs_logits:
            token = int(row.argmax[-1])
        elif row.best is not None:
            token = sampler.draw_best(row.best[-1], row.logits[-1], float(row.scale[-1]))
        else:
            token = sampler(row.logits[-1], float(row.scale[-1]))
        made.append((token, row))
        if i < len(drafts) and token != drafts[i]:
            break
    return made


def _row(result: StepResult, i: int) -> StepResult:
    at = slice(i, i + 1)
    return StepResult(
        logits=result.logits[at],
        scale=result.scale[at],
        argmax=result.argmax[at],
        saturated=result.saturated,
        best=None if result.best is None else result.best[at],
    )
