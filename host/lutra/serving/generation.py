"""A generation: the keys and values of a prompt, then its completions, token by token."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from lutra.devices.base import HeadWork, StepResult
from lutra.serving.loaded import LoadedModel
from lutra.serving.pace import Pace
from lutra.serving.results import Completion, FinishReason, Logprob, Logprobs, Piece, RunStats
from lutra.serving.sequence import Mismatch, TokenSequence
from lutra.serving.speculation.draw import draw
from lutra.text.sampling import Sampler, SamplingParams, log_probabilities
from lutra.text.stop import StopFilter
from lutra.text.tokenizer import StreamDecoder, Tokenizer
from lutra_golden.errors import LutraError
from lutra_golden.model.two_stage import likeliest

__all__ = [
    "Generation",
    "Prefilled",
    "Writer",
    "check_room",
    "complete",
    "prefill",
    "restart",
    "run",
    "split",
]

N = TypeVar("N", int, float)


@dataclass
class Generation:
    """A prompt with the way to continue it, and what has come of it.

    ``stats`` are those of the completion in hand, ``completions`` those that have ended.
    """

    prompt: list[int]
    max_tokens: int
    sampling: SamplingParams
    stats: RunStats
    completions: list[Completion] = field(default_factory=list[Completion])


@dataclass(frozen=True)
class Prefilled:
    """A prompt on a device: ``sequence`` begins with it, ``result`` has its last logits."""

    loaded: LoadedModel
    sequence: TokenSequence
    result: StepResult


def check_room(n_prompt: int, max_tokens: int | None, context: int) -> int:
    """Most tokens that ``context`` positions leave behind a prompt of ``n_prompt`` tokens.

    Raises LutraError if these are none, or fewer than ``max_tokens``.
    """
    if not n_prompt:
        raise LutraError(
            "the prompt is empty, and this model has no token that begins a text: give some"
        )
    room = context - n_prompt
    if room < 1:
        raise LutraError(
            f"the prompt has {n_prompt} tokens, the context {context}: shorten the "
            f"prompt to at most {context - 1} tokens"
        )
    if max_tokens is not None and not 1 <= max_tokens <= room:
        raise LutraError(
            f"{max_tokens} tokens cannot be generated: the prompt takes {n_prompt} of "
            f"{context} positions: ask for 1 to {room}"
        )
    return room


def split(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """Parts of ``tokens`` that have ``size`` at most."""
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def run(
    loaded: LoadedModel,
    sequence: TokenSequence,
    tokens: Sequence[int],
    logits_from: int,
    stats: RunStats,
    best: int = 0,
) -> tuple[StepResult, float]:
    """Go on with ``tokens``, see :meth:`TokenSequence.run`, and note in ``stats`` what it says."""
    loaded.check()
    try:
        result, seconds = loaded.with_room(lambda: sequence.run(tokens, logits_from, best))
    except Mismatch:
        stats.bit_exact = False
        raise
    stats.saturated |= result.saturated
    stats.predicted_s = _add(stats.predicted_s, result.predicted_s)
    stats.head += result.head
    if loaded.golden is not None:
        stats.bit_exact = True
    return result, seconds


def prefill(loaded: LoadedModel, prompt: list[int], best: int, stats: RunStats) -> Prefilled:
    """Compute what is not known of a prompt; of its last token the logits come back, all of them
    unless the ``best`` so many are enough."""
    sequence, stats.reused_tokens = loaded.begin(prompt)
    stats.saturated = sequence.saturated
    stats.computed_tokens, stats.prefill_s, stats.prefill_cycles = 0, 0.0, None
    stats.predicted_s, stats.head = None, HeadWork()
    try:
        result, left = None, len(prompt) - stats.reused_tokens
        for part in split(prompt[stats.reused_tokens :], loaded.device.pass_tokens):
            left -= len(part)
            wanted = len(part) if left else len(part) - 1
            result, seconds = run(loaded, sequence, part, wanted, stats, best)
            stats.computed_tokens += len(part)
            stats.prefill_s += seconds
            stats.prefill_cycles = _add(stats.prefill_cycles, result.cycles)
        assert result is not None, "a token is left"
        return Prefilled(loaded, sequence, result)
    except BaseException:
        sequence.close()
        raise


def restart(begun: Prefilled, prompt: list[int]) -> RunStats:
    """Go back to the end of the prompt, for another completion; its statistics."""
    begun.loaded.check()
    begun.sequence.truncate(len(prompt))
    return RunStats(
        prompt_tokens=len(prompt),
        reused_tokens=len(prompt),
        bit_exact=None if begun.loaded.golden is None else True,
        saturated=begun.sequence.saturated,
    )


class Writer:
    """Makes pieces of the tokens of one completion, the one number ``index`` of its prompt.

    It ends at one of the tokens ``ends``, at a stop string or at the most tokens; then
    :attr:`completion` is there. ``stats`` count the tokens.
    """

    def __init__(
        self,
        generation: Generation,
        index: int,
        stats: RunStats,
        tokenizer: Tokenizer,
        ends: Collection[int],
    ) -> None:
        sampling = generation.sampling
        own, form = replace(sampling, seed=sampling.seed + index), sampling.form
        self.sampler = Sampler(own, generation.prompt, tokenizer.constraint(form, ends))
        self.stats = stats
        self.completion: Completion | None = None
        self._generation, self._index, self._tokenizer = generation, index, tokenizer
        self._ends = ends
        self._decoder = StreamDecoder(tokenizer, generation.prompt)
        self._stop, self._texts = StopFilter(sampling.stops), list[str]()
        self._logprobs: list[Logprobs] | None = None if sampling.logprobs is None else []

    def push(self, token: int, result: StepResult | None) -> Piece:
        """The piece of the next token; ``result`` is what it was drawn from, None if the device
        drew it."""
        stats, ends, n = self.stats, self._ends, self._generation.sampling.logprobs
        stats.tokens.append(token)
        stats.generated_tokens += 1
        whole = token in ends or self.sampler.is_complete_with(stats.generated_tokens)
        last = whole or stats.generated_tokens == self._generation.max_tokens
        text = "" if token in ends else self._decoder.push(token)
        text = self._stop.push(text + self._decoder.flush() if last else text)
        if last:
            text += self._stop.flush()
        reason: FinishReason | None = None
        if self._stop.found or whole:
            reason = "stop"
        elif last:
            reason = "length"
        own: Logprobs | None = None
        if self._logprobs is not None and n is not None and result is not None:
            own = _logprobs(result, token, n, self._tokenizer)
            self._logprobs.append(own)
        self._texts.append(text)
        if reason is not None:
            self.completion = Completion(
                "".join(self._texts), list(stats.tokens), stats, reason, self._logprobs
            )
        return Piece(token, text, self._index, own, reason)


def complete(
    begun: Prefilled, generation: Generation, tokenizer: Tokenizer, ends: Collection[int]
) -> Generator[Piece]:
    """Pieces of one more completion, up to one of the tokens ``ends``, a stop string or the most
    tokens."""
    stats = generation.stats
    writer = Writer(generation, len(generation.completions), stats, tokenizer, ends)
    for token, result in _tokens(begun, generation, writer.sampler, ends):
        piece = writer.push(token, result)
        if writer.completion is not None:
            generation.completions.append(writer.completion)
        yield piece
        if writer.completion is not None:
            return


def _tokens(
    begun: Prefilled, generation: Generation, sampler: Sampler, ends: Collection[int]
) -> Generator[tuple[int, StepResult | None]]:
    """Tokens without end, from the prompt's last logits on, each with the result that it was drawn
    from, None if the device drew it; ``stats`` count those in use."""
    loaded, sequence, stats = begun.loaded, begun.sequence, generation.stats
    speculation, pace = loaded.speculation, Pace(loaded.device.greedy_tokens)
    room, by_device = loaded.device.pass_tokens - 1, not sampler.needs_logits
    guesses = speculation.begin(generation.prompt, sampler, ends)
    try:
        [(token, result)] = draw(begun.result, sampler)
        guesses.go_on([token])
        yield token, result
        while True:
            loaded.check()
            left = generation.max_tokens - stats.generated_tokens
            [drafts] = speculation.plan([(guesses, left - 1)], room)
            made: Sequence[tuple[int, StepResult | None]]
            if by_device and not drafts and loaded.golden is None:
                n_wanted = min(pace.n_tokens, left)
                greedy, seconds = loaded.with_room(partial(sequence.greedy, token, n_wanted, ends))
                made, error, cycles = (
                    [(each, None) for each in greedy.tokens],
                    greedy.error,
                    greedy.cycles,
                )
                pace.took(len(made), seconds)
                stats.saturated |= greedy.saturated
                stats.predicted_s = _add(stats.predicted_s, greedy.predicted_s)
                stats.head += greedy.head
                speculation.took(1, 1, 1, seconds / len(made))
            else:
                start = len(sequence.tokens)
                step = [token, *drafts]
                result, seconds = run(loaded, sequence, step, 0, stats, sampler.n_best)
                made, error, cycles = draw(result, sampler, drafts), None, result.cycles
                sequence.truncate(start + len(made))
                stats.drafted_tokens += len(drafts)
                stats.accepted_tokens += len(made) - 1
                speculation.took(1, 1 + len(drafts), len(made), seconds)
            _count(stats, len(made), seconds, cycles)
            guesses.go_on([each for each, _ in made])
            for token, drawn_from in made:
                loaded.check()
                yield token, drawn_from
            if error is not None:
                raise error
    finally:
        guesses.close()


def _logprobs(result: StepResult, token: int, n: int, tokenizer: Tokenizer) -> Logprobs:
    """Those of ``token``, drawn from the last row of ``result``, and of the ``n`` likeliest."""
    logits = result.logits[-1]
    values = log_probabilities(logits, float(result.scale[-1]))

    def of(each: int) -> Logprob:
        return Logprob(each, tokenizer.token_text(each), float(values[each]))

    return Logprobs(of(token), [of(each) for each in likeliest(logits, n).tolist()])


def _count(stats: RunStats, n: int, seconds: float, cycles: int | None) -> None:
    """Count ``n`` decoded tokens."""
    stats.decode_s += seconds
    stats.decode_steps += n
    stats.decode_cycles = _add(stats.decode_cycles, cycles)


def _add(total: N | None, more: N | None) -> N | None:
    return total if more is None else more if total is None else total + more
