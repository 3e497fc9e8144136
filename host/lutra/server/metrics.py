"""Figures of a server as Prometheus reads them, under the names that vLLM gives them; what vLLM has
not begins with ``lutra``."""

import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lutra.serving.results import Completion

__all__ = ["Metrics", "resident_bytes"]

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class _Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    @property
    def mean(self) -> float | None:
        """Mean of the values, None if there are none."""
        n = sum(self._counts)
        return self._sum / n if n else None

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:.9g}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """Counters of requests and tokens of the model ``name``; ``requests`` gives those that run and
    those that wait."""

    def __init__(self, name: str, requests: Callable[[], tuple[int, int]]) -> None:
        escaped = name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._labels = f'model_name="{escaped}"'
        self._requests, self._lock = requests, threading.Lock()
        self._prompt, self._known, self._generated = 0, 0, 0
        self._drafted, self._accepted = 0, 0
        self._ended = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._refused = 0
        self._latest_first: float | None = None
        self._first, self._next = _Histogram(_SECONDS), _Histogram(_SECONDS)
        self._whole = _Histogram(_LONG)

    def token(self, *, first: float | None = None, after: float | None = None) -> None:
        """Note a token that was made: the ``first`` of a request, so many seconds behind its
        arrival; one that came ``after`` so many behind another of its completion; or neither."""
        with self._lock:
            self._generated += 1
            if first is not None:
                self._first.observe(first)
                self._latest_first = first
            if after is not None:
                self._next.observe(after)

    def ended(self, completions: Iterable[Completion], seconds: float) -> None:
        """Note a request that came to its end."""
        with self._lock:
            self._whole.observe(seconds)
            for each in completions:
                self._ended[each.finish_reason] += 1
                self._prompt += each.stats.prompt_tokens
                self._known += each.stats.reused_tokens
                self._drafted += each.stats.drafted_tokens
                self._accepted += each.stats.accepted_tokens

    def stopped(self, reason: str) -> None:
        """Note a request that ended early, by ``abort`` of the client or an ``error``."""
        with self._lock:
            self._ended[reason] += 1

    def refused(self) -> None:
        """Note a request that had no room in the queue."""
        with self._lock:
            self._refused += 1

    def figures(self) -> dict[str, object]:
        """The figures that people look at, as JSON; tokens of prompts and completions count when a
        request has ended, those of answers as they are made."""
        running, waiting = self._requests()
        with self._lock:
            return {
                "requests": {"running": running, "waiting": waiting, "refused": self._refused},
                "completions": dict(self._ended),
                "tokens": {
                    "prompt": self._prompt, "known": self._known, "generated": self._generated
                },
                "first_token_s": {"latest": self._latest_first, "mean": self._first.mean},
                "between_tokens_s": {"mean": self._next.mean},
            }  # fmt: skip

    def text(self) -> str:
        """All figures, in Prometheus's text format."""
        running, waiting = self._requests()
        with self._lock:
            lines = list(self._lines(running, waiting))
        memory = resident_bytes()
        if memory is not None:
            lines += _one("process_resident_memory_bytes", "gauge", "Memory in use.", {"": memory})
        return "\n".join(lines) + "\n"

    def _lines(self, running: int, waiting: int) -> Iterator[str]:
        own = self._labels

        def one(
            name: str, kind: str, text: str, value: float, whose: str = "vllm"
        ) -> Iterator[str]:
            yield from _one(f"{whose}:{name}", kind, text, {f"{{{own}}}": value})

        yield from one("num_requests_running", "gauge", "Requests on the device.", running)
        yield from one("num_requests_waiting", "gauge", "Requests that wait for room.", waiting)
        yield from one("prompt_tokens_total", "counter", "Tokens of prompts.", self._prompt)
        yield from one("generation_tokens_total", "counter", "Generated tokens.", self._generated)
        yield from one(
            "prefix_cache_queries_total", "counter", "Tokens of prompts looked up.", self._prompt
        )
        yield from one(
            "prefix_cache_hits_total", "counter", "Tokens of prompts known already.", self._known
        )
        yield from one(
            "spec_decode_num_draft_tokens_total", "counter", "Guessed tokens.", self._drafted
        )
        yield from one(
            "spec_decode_num_accepted_tokens_total", "counter", "Guessed tokens that were right.",
            self._accepted,
        )  # fmt: skip
        yield from _one(
            "vllm:request_success_total",
            "counter",
            "Completions that ended, by reason.",
            {f'{{{own},finished_reason="{why}"}}': n for why, n in self._ended.items()},
        )
        yield from one(
            "num_requests_refused_total", "counter", "Requests refused for a full queue.",
            self._refused, "lutra",
        )  # fmt: skip
        for name, text, histogram in (
            ("time_to_first_token_seconds", "Time to the first token.", self._first),
            ("inter_token_latency_seconds", "Time between tokens.", self._next),
            ("e2e_request_latency_seconds", "Time of a whole request.", self._whole),
        ):
            yield f"# HELP vllm:{name} {text}"
            yield f"# TYPE vllm:{name} histogram"
            yield from histogram.lines(f"vllm:{name}", own)


def _one(name: str, kind: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {value}"


def resident_bytes() -> int | None:
    """Resident bytes of this process, None where Linux does not say so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
