"""Random mixtures of sequences, range of layers by range of layers, on one device or on several."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lutra.devices.base import Device, Step, StepResult

__all__ = ["check_split"]


def check_split(
    devices: Sequence[Device],
    golden: Device,
    texts: Sequence[Sequence[int]],
    cuts: Sequence[int],
    seed: int = 5,
) -> None:
    """All have the model. Every text goes through ``devices``, the layers between two ``cuts`` on
    each, in steps among the others', with logits of any of their tokens. Streams, logits and what
    the sessions hold afterwards are golden's."""
    rng, ranges = np.random.default_rng(seed), [range(*pair) for pair in pairwise(cuts)]
    expected = [golden.session() for _ in texts]
    sessions = {id(device): [device.session() for _ in texts] for device in devices}
    done = [0] * len(texts)
    while any(n < len(text) for n, text in zip(done, texts, strict=True)):
        wanted = [i for i, n in enumerate(done) if n < len(texts[i]) and rng.random() < 0.8]
        # prompts and single tokens
        sizes = [
            1 if rng.random() < 0.4 else int(rng.integers(1, len(texts[i]) - done[i] + 1))
            for i in wanted
        ]
        parts = [texts[i][done[i] : done[i] + n] for i, n in zip(wanted, sizes, strict=True)]
        first = [int(rng.integers(0, n + 1)) for n in sizes]
        found, whole = list[StepResult](), list[StepResult]()
        for device, layers in zip(devices, ranges, strict=True):
            for each, own, into in (
                (golden, expected, whole),
                (device, sessions[id(device)], found),
            ):
                below = [result.residual for result in into] or [None] * len(wanted)
                into[:] = each.run(
                    [
                        Step(
                            session=own[i],
                            tokens=part,
                            logits_from=at,
                            layers=layers,
                            residual=stream,
                        )
                        for i, part, at, stream in zip(wanted, parts, first, below, strict=True)
                    ]
                )
            for a, b in zip(found, whole, strict=True):
                for name in ("residual", "logits", "scale", "argmax"):
                    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for i, n in zip(wanted, sizes, strict=True):
            done[i] += n
    for device, layers in zip(devices, ranges, strict=True):
        for own, held in zip(sessions[id(device)], expected, strict=True):
            assert own.export(layers).to_bytes() == held.export(layers).to_bytes()
    for session in [*expected, *(each for own in sessions.values() for each in own)]:
        session.close()
