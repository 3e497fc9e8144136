"""Random mixtures of sequences: steps of any lengths at any positions, in shared passes."""

from collections.abc import Sequence

import numpy as np

from lutra.devices.base import Device, Step, StepResult

__all__ = ["check_mixtures"]


def check_mixtures(
    device: Device, golden: Device, texts: Sequence[Sequence[int]], seed: int = 3
) -> None:
    """Both have the model; every text goes through ``device`` in steps among the others', with
    logits of any of their tokens, and gives what it gives alone."""
    rng, expected = np.random.default_rng(seed), list[StepResult]()
    for text in texts:
        session = golden.session()
        expected += golden.run([Step(session=session, tokens=text)])
        session.close()
    sessions, done = [device.session() for _ in texts], [0] * len(texts)
    while any(n < len(text) for n, text in zip(done, texts, strict=True)):
        wanted = [i for i, n in enumerate(done) if n < len(texts[i]) and rng.random() < 0.7]
        # prompts and single tokens
        sizes = {
            i: 1 if rng.random() < 0.4 else int(rng.integers(1, len(texts[i]) - done[i] + 1))
            for i in wanted
        }
        first = {i: int(rng.integers(0, n + 1)) for i, n in sizes.items()}
        steps = [
            Step(
                session=sessions[i],
                tokens=texts[i][done[i] : done[i] + sizes[i]],
                logits_from=first[i],
            )
            for i in wanted
        ]
        for i, result in zip(wanted, device.run(steps), strict=True):
            rows = slice(done[i] + first[i], done[i] + sizes[i])
            np.testing.assert_array_equal(result.logits, expected[i].logits[rows])
            np.testing.assert_array_equal(result.scale, expected[i].scale[rows])
            np.testing.assert_array_equal(result.argmax, expected[i].argmax[rows])
            done[i] += sizes[i]
            assert sessions[i].length == done[i]
    for session in sessions:
        session.close()
