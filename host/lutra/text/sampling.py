"""Drawing tokens from logits: biases, penalties, temperature, top-k, top-p, min-p, a seed."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lutra.arguments import check_kind, check_number, check_whole
from lutra.text.constraint import Constraint
from lutra_golden.errors import LutraError
from lutra_golden.model.two_stage import likeliest

__all__ = ["FORMS", "MAX_BIAS", "Sampler", "SamplingParams", "log_probabilities"]

FORMS = ("json_schema", "regex", "grammar")
"""Parameters that give a text its form, of which one is given at most."""
MAX_BIAS = 100.0
"""Largest bias of a token, in nats."""
_FARTHEST = 2.0**60
"""Largest logit of either sign that a bias or a penalty makes."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of a generation: how tokens are drawn, where the text ends, and what is returned.

    A token is drawn from a row of integer logits in these steps, in this order:

    1. ``logit_bias`` gives tokens, by their ids, a number from -100 to 100 that is added to their
       logits, in nats (default: none).
    2. ``repetition_penalty``, above 0, divides positive logits of tokens that the prompt or the
       generated text has, and multiplies the others (default 1: off). Both steps round to the
       nearest whole logit, the even one of two; one is worth about 0.000001 nats in the shipped
       models.
    3. ``temperature`` divides the logits, in nats, before the softmax (default 0.7). 0 is greedy:
       the token of the largest logit, the first of equals, is taken and the next steps are left
       out.
    4. ``top_k`` is the number of likeliest tokens that are kept (default 40); 0 keeps all.
    5. ``top_p`` is the probability that the likeliest tokens which are kept add up to, of those
       that ``top_k`` left (default 0.95); 1 keeps all.
    6. ``min_p`` is the least probability of a token that is kept, as a share of the likeliest
       token's (default 0: off).
    7. The ``seed``, a whole number from 0 on (default 0), decides between those that are left.

    Equal parameters, prompts and logits give equal tokens, so on every device.

    ``stop`` is a string, or several, at which the text ends: see
    :class:`~lutra.text.stop.StopFilter`. ``logprobs`` is how many of the likeliest tokens are
    reported with each generated one; 0 reports that one alone (default None: nothing). Their
    natural logarithms of probabilities are those of the model, before the first step. ``n`` is how
    many completions a prompt gets (default 1), of the seeds ``seed``, ``seed + 1`` and so on. With
    ``ignore_eos`` tokens that end a text do not end it (default False): it goes on to the most
    tokens.

    The text has a form if one of these is given (default None): ``json_schema``, a mapping or JSON;
    ``regex``, a regular expression; ``grammar``, one of Lark, or GBNF as llama.cpp has it. Tokens
    that do not fit are left out behind the second step; where nothing may come any more, the text
    ends. Only ``max_tokens`` and ``stop`` end it before that.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float], hash=False)
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    n: int = 1
    ignore_eos: bool = False
    json_schema: Mapping[str, object] | str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            check_number(name, getattr(self, name))
        for name in ("top_k", "seed", "n"):
            check_whole(name, getattr(self, name))
        if not 0 <= self.temperature <= sys.float_info.max:
            raise LutraError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise LutraError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise LutraError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise LutraError(f"min_p must be 0 (off) to 1, not {self.min_p}")
        if not 0 < self.repetition_penalty <= sys.float_info.max:
            raise LutraError(
                f"repetition_penalty must be above 0 (1 is off), not {self.repetition_penalty}"
            )
        if self.seed < 0:
            raise LutraError(f"seed must be 0 or more, not {self.seed}")
        if self.n < 1:
            raise LutraError(f"n must be 1 or more, not {self.n}")
        ignored = self.ignore_eos
        check_kind(ignored, bool, f"ignore_eos must be True or False, not {ignored!r}")
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs)
            if self.logprobs < 0:
                raise LutraError(f"logprobs must be 0 (own) or more, not {self.logprobs}")
        forms = [name for name in FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise LutraError(f"{' and '.join(forms)} are given together: give one of them")
        object.__setattr__(self, "json_schema", _schema(self.json_schema))
        for name in forms:
            check_kind(getattr(self, name), str, f"{name} must be a string")
        # of their own, so that nobody changes them
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "stop", _stops(self.stop))

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, also if there is one or none."""
        return tuple(self.stop)

    @property
    def form(self) -> tuple[str, str] | None:
        """The name and the text of what gives the text its form, None if nothing does."""
        for name in FORMS:
            text = getattr(self, name)
            if text is not None:
                return name, text
        return None

    @property
    def changes_logits(self) -> bool:
        """True if a bias or a penalty changes the logits, and their arg-max with them."""
        return self.repetition_penalty != 1 or any(self.logit_bias.values())

    @property
    def n_best(self) -> int:
        """How many of the largest logits are all that a token is drawn from; 0 if it may take all
        of them."""
        if self.changes_logits or self.logprobs is not None or self.form is not None:
            return 0
        return 1 if self.temperature == 0 else self.top_k

    def check_vocabulary(self, size: int) -> None:
        """Refuse what a model of ``size`` tokens has not."""
        for token in self.logit_bias:
            if token >= size:
                raise LutraError(
                    f"logit_bias has token {token}, outside the vocabulary: give ids from 0 to "
                    f"{size - 1}"
                )
        if self.logprobs is not None and self.logprobs > size:
            raise LutraError(
                f"logprobs must be at most {size}, the size of the vocabulary, not {self.logprobs}"
            )


def _schema(given: object) -> str | None:
    """A schema as JSON, which is text that nobody changes."""
    if given is None:
        return None
    try:
        schema: object = json.loads(given) if isinstance(given, str) else given
        text = json.dumps(schema)
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise LutraError(
            f"json_schema must be a JSON schema, a mapping or its text ({reason})"
        ) from None
    message = f"json_schema must be a mapping or JSON text, not {type(schema).__name__}"
    check_kind(schema, Mapping, message)
    return text


def _biases(given: object) -> dict[int, float]:
    message = (
        "logit_bias must be a mapping of token ids to numbers, such as {42: -5.0}, not "
        f"{type(given).__name__}"
    )
    check_kind(given, Mapping, message)
    biases: dict[int, float] = {}
    for token, bias in cast("Mapping[object, object]", given).items():
        check_whole("a token id of logit_bias", token)
        check_number(f"logit_bias of token {token}", bias)
        id, value = int(cast("int", token)), float(cast("float", bias))
        if id < 0:
            raise LutraError(f"a token id of logit_bias must be 0 or more, not {id}")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise LutraError(
                f"logit_bias of token {id} must be {-MAX_BIAS:g} to {MAX_BIAS:g} nats, not {value}"
            )
        biases[id] = value
    return biases


def _stops(given: object) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else given
    message = f"stop must be a string or several in a list, not {type(given).__name__}"
    check_kind(stops, Sequence, message)
    for each in cast("Iterable[object]", stops):
        check_kind(each, str, f"stop must be strings, not {each!r}")
        if not each:
            raise LutraError("a stop string must not be empty: leave it out")
        try:
            cast("str", each).encode()
        except UnicodeEncodeError:
            raise LutraError(
                "a stop string holds bytes that are not UTF-8: give it in UTF-8"
            ) from None
    return tuple(cast("Iterable[str]", stops))


class Sampler:
    """Draws the tokens that follow ``prompt``, of those that fit the ``constraint`` if there is
    one; equal parameters, prompts and logits give equal tokens on every device. ``n``, ``stop`` and
    what the constraint was made of are not its own."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._params, self._constraint = params, constraint
        self._rng = np.random.default_rng(params.seed)
        biases = {token: bias for token, bias in params.logit_bias.items() if bias}
        self._biased = np.array(list(biases), np.int64)
        self._biases = np.array(list(biases.values()), np.float64)
        self._seen = set(prompt)
        self._changes = params.changes_logits

    def copy(self) -> "Sampler":
        """Another sampler, which draws what this one would draw next."""
        other = copy(self)
        other._rng, other._seen = deepcopy(self._rng), set(self._seen)
        other._constraint = None if self._constraint is None else self._constraint.copy()
        return other

    @property
    def needs_logits(self) -> bool:
        """False if the arg-max of the logits, the first of equals, is always drawn and nothing else
        of them is asked for."""
        params = self._params
        constrained = self._constraint is not None
        reported = params.logprobs is not None
        return params.temperature != 0 or self._changes or reported or constrained

    @property
    def n_best(self) -> int:
        """How many of the largest logits are enough, 0 if all are needed."""
        return 0 if self._constraint is not None else self._params.n_best

    def draw_best(self, tokens: NDArray[np.int64], logits: NDArray[np.int64], scale: float) -> int:
        """Return one of the best ``tokens``, :attr:`n_best` of them or more, with their ``logits``:
        the one that all logits give. Both are from the largest on, of equals the first token
        first."""
        token = int(tokens[self._draw(logits, scale)])
        self._seen.add(token)
        return token

    def __call__(self, logits: NDArray[np.int64], scale: float) -> int:
        """Return a token of integer ``logits`` ``[V]``, of which one is worth ``scale``."""
        changed = self._changed(logits, scale)
        if self._constraint is None:
            token = self._draw(changed, scale)
        else:
            allowed = self._constraint.allowed(len(changed))
            token = int(allowed[self._draw(changed[allowed], scale)])
            self._constraint.push(token)
        self._seen.add(token)
        return token

    def is_complete_with(self, n: int) -> bool:
        """True if no token fits behind the first ``n`` that were drawn; more may have been drawn
        since, for a pass that guesses gives several."""
        form = self._constraint
        return form is not None and form.complete and form.n_tokens <= n

    def _changed(self, logits: NDArray[np.int64], scale: float) -> NDArray[np.int64]:
        """The logits ``[V]`` with biases and penalties, whole numbers as they were."""
        if not self._changes:
            return logits
        changed, penalty = logits.astype(np.int64), self._params.repetition_penalty
        with np.errstate(divide="ignore", over="ignore"):
            if len(self._biased):
                changed[self._biased] += _whole(self._biases / scale)
            if penalty != 1:
                seen = np.fromiter(self._seen, np.int64, len(self._seen))
                found = changed[seen]
                changed[seen] = _whole(np.where(found > 0, found / penalty, found * penalty))
        return changed

    def _draw(self, logits: NDArray[np.int64], scale: float) -> int:
        params = self._params
        if params.temperature == 0:
            return int(logits.argmax())
        order = likeliest(logits, params.top_k or len(logits))
        below = (logits[order] - logits[order[0]]).astype(np.float64) * scale
        with np.errstate(over="ignore"):  # a tiny temperature: infinitely less likely
            p = np.exp(below / params.temperature)
        # the first is 1, so these are shares of the likeliest
        likely = int(np.count_nonzero(p >= params.min_p))
        p /= p.sum()
        if params.top_p < 1:
            keep = int(np.searchsorted(np.cumsum(p), params.top_p)) + 1
            order, p = order[:keep], p[:keep]
            p /= p.sum()
        if likely < len(order):
            order, p = order[:likely], p[:likely]
            p /= p.sum()
        index = int(np.searchsorted(np.cumsum(p), self._rng.random(), side="right"))
        return int(order[min(index, len(order) - 1)])


def log_probabilities(logits: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    """Natural logarithms ``[V]`` of the softmax of ``logits`` ``[V]``, one of which is worth
    ``scale``."""
    below = (logits - logits.max()).astype(np.float64) * scale
    return below - np.log(np.exp(below).sum())


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(np.clip(values, -_FARTHEST, _FARTHEST)).astype(np.int64)
