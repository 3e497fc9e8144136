"""Requests whose tokens are drafted, right and wrong, beside those that are not: on any device."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from tests.host.serving.speculation.oracle import Oracle

from lutra.devices.base import Device, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.serving.batch import Batch, Request
from lutra.serving.loaded import LoadedModel
from lutra.serving.sequence import TokenSequence
from lutra.text.sampling import Sampler, SamplingParams
from lutra_golden.model.packed import PackedModel

__all__ = ["SAMPLINGS", "check_requests"]

SAMPLINGS = [
    SamplingParams(temperature=0),
    SamplingParams(temperature=2.0, seed=3),
    SamplingParams(temperature=1.5, seed=5, repetition_penalty=1.4, logit_bias={7: 9.0}),
]


@dataclass
class Plain:
    """A prompt and its answer, a token a pass, with the logits of each."""

    prompt: list[int]
    sampling: SamplingParams
    answer: list[int] = field(default_factory=list[int])
    logits: list[StepResult] = field(default_factory=list[StepResult])


def _plain(model: PackedModel, prompt: list[int], n: int, sampling: SamplingParams) -> Plain:
    device, sampler, found = GoldenDevice(), Sampler(sampling, prompt), Plain(prompt, sampling)
    device.load(model)
    sequence, tokens = TokenSequence.open(device, None), prompt
    while len(found.answer) < n:
        result, _ = sequence.run(tokens, len(tokens) - 1)
        found.logits.append(result)
        found.answer.append(sampler(result.logits[-1], float(result.scale[-1])))
        tokens = found.answer[-1:]
    return found


def check_requests(
    device: Device,
    n_answer: int,
    n_drafts: int,
    wrong_every: int,
    samplings: Sequence[SamplingParams] = SAMPLINGS,
) -> None:
    """Requests at once on ``device``, whose model is loaded, one for each of ``samplings``.

    Tokens and logits are golden's without drafts, and what a device keeps are those tokens.
    """
    model, rng = device.model, np.random.default_rng(n_drafts)
    plain = [
        _plain(model, rng.integers(0, model.vocab_size, 3 + i).tolist(), n_answer, sampling)
        for i, sampling in enumerate(samplings)
    ]
    answers = {len(each.prompt): each.answer for each in plain}
    oracle = Oracle(answers, n_drafts, wrong_every, model.vocab_size)
    loaded = LoadedModel(model, device, None, 1 << 30, oracle)
    batch, errors = Batch(loaded), list[BaseException | None]()
    made: list[list[tuple[int, StepResult]]] = [[] for _ in plain]

    def accept(into: list[tuple[int, StepResult]], token: int, result: StepResult) -> bool:
        into.append((token, result))
        return len(into) == n_answer

    requests = [
        Request(
            prompt=each.prompt,
            sampler=Sampler(each.sampling, each.prompt),
            accept=partial(accept, into),
            ended=errors.append,
            max_tokens=n_answer,
        )
        for each, into in zip(plain, made, strict=True)
    ]
    for request in requests:
        batch.add(request)
    while batch.step():
        pass
    assert errors == [None] * len(plain)
    for each, into, request in zip(plain, made, requests, strict=True):
        assert [token for token, _ in into] == each.answer
        for (_, result), expected in zip(into, each.logits, strict=True):
            np.testing.assert_array_equal(result.logits[-1:], expected.logits[-1:])
            np.testing.assert_array_equal(result.scale[-1:], expected.scale[-1:])
        assert request.stats.decode_steps == n_answer - 1
    drafted, accepted = (
        sum(getattr(each.stats, f"{what}_tokens") for each in requests)
        for what in ("drafted", "accepted")
    )
    assert 0 < accepted < drafted
    kept = [loaded.known.pop([*each.prompt, *each.answer, 0]) for each in plain]
    for each, found in zip(plain, kept, strict=True):
        assert found is not None
        assert found[0].tokens == [*each.prompt, *each.answer[:-1]]
        assert found[0].session.length == len(found[0].tokens)
        found[0].close()
    assert all(told.closed for told in oracle.begun)
    passes = [n for n in oracle.passes if n[0] == len(plain)]
    assert sum(n for _, n, _ in passes) > sum(n for _, _, n in passes) >= len(passes)
