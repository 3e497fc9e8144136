"""Greedy tokens on a device: those of golden, one by one, and a fault among them."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from lutra.devices.base import Device, Step

__all__ = ["check_fault", "check_greedy"]

_PROMPT = [3, 1, 4]


def check_greedy(device: Device, golden: Device, n: int = 6) -> None:
    """Both have the model: ``n`` tokens, the end token among them, and what comes next."""
    assert device.greedy_tokens >= n
    sessions = [each.session() for each in (device, golden)]
    made = list[list[int]]()
    for each, session in zip((device, golden), sessions, strict=True):
        each.run([Step(session=session, tokens=_PROMPT[:-1], logits_from=2)])
        first = each.greedy(session, _PROMPT[-1], n)
        session.truncate(len(_PROMPT) - 1)
        ended = each.greedy(session, _PROMPT[-1], n, [first.tokens[2]])
        [last] = each.run([Step(session=session, tokens=[ended.tokens[-1]])])
        made.append([*first.tokens, *ended.tokens, *last.argmax.tolist()])
        assert ended.tokens[-1] == first.tokens[2] and first.error is ended.error is None
        assert len(first.tokens) == n
    assert made[0] == made[1]
    a, b = (session.export().to_bytes() for session in sessions)
    assert a == b
    for session in sessions:
        session.close()


def check_fault(
    device: Device, golden: Device, fault: Callable[[], AbstractContextManager[None]]
) -> None:
    """The fault comes behind the first pass: tokens before it are kept, and the rest can be made.

    The error is one line.
    """
    session, reference = device.session(), golden.session()
    expected = list(golden.greedy(reference, _PROMPT[0], 6).tokens)
    with fault():
        found = device.greedy(session, _PROMPT[0], 6)
    tokens = list(found.tokens)
    assert found.error is not None and "\n" not in str(found.error)
    assert 0 < len(tokens) == session.length < 6
    again = device.greedy(session, tokens[-1], 6 - len(tokens))
    assert tokens + list(again.tokens) == expected and again.error is None
    assert session.export().to_bytes() == reference.export().to_bytes()
    a, b = (
        each.run([Step(session=one, tokens=[7])])[0]
        for each, one in ((device, session), (golden, reference))
    )
    np.testing.assert_array_equal(a.logits, b.logits)
    for one in (session, reference):
        one.close()
