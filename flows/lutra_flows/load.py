"""Load on a server with OpenAI's interface: ``python -m lutra_flows.load --url URL``.

So many streams ask for completions of random prompts, each for another one when the one before has
ended. It speaks plain HTTP and OpenAI's fields, so that servers of other projects can be measured
beside Lutra's. With ``--check`` each prompt is first answered alone, and every later answer to it
must be the same.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np

from lutra_flows.pages import markdown_table
from lutra_golden.errors import LutraError

__all__ = ["Figures", "Load", "main", "measure"]

_WAIT_S = 600.0
_MEMORY = "process_resident_memory_bytes "


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to the server at ``url``.

    ``streams`` ask at a time, for ``seconds``, or for ``requests`` in all if that is given. A
    prompt has one of the ``prompts`` tokens, in turn, ids below ``vocabulary``; an answer has
    ``answer``. There are ``distinct`` prompts, each with a seed of its own.
    """

    url: str
    streams: int
    seconds: float
    requests: int | None
    prompts: Sequence[int]
    answer: int
    vocabulary: int
    temperature: float = 0.0
    distinct: int = 64
    ignore_eos: bool = True
    key: str | None = None
    model: str | None = None
    fields: dict[str, object] = field(default_factory=dict[str, object])

    def body(self, i: int) -> dict[str, object]:
        """The request number ``i``."""
        which = i % self.distinct
        rng = np.random.default_rng(which)
        n = self.prompts[which % len(self.prompts)]
        body: dict[str, object] = {
            "prompt": rng.integers(0, self.vocabulary, n).tolist(),
            "max_tokens": self.answer,
            "temperature": self.temperature,
            "seed": which,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.model is not None:
            body["model"] = self.model
        return body | self.fields


@dataclass
class _Answer:
    """One answer: seconds to its first token and to its end, its text and tokens."""

    which: int
    first: float
    whole: float
    text: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Figures:
    """Findings of a load; times in seconds, rates in tokens per second."""

    requests: int
    seconds: float
    lost: dict[str, int]
    wrong: int | None
    first_median: float
    first_p99: float
    per_token_median: float
    total_tokens_per_s: float
    answer_tokens_per_s: float
    memory_begin: int | None
    memory_end: int | None

    def table(self) -> str:
        """The figures as Markdown."""
        rows = [
            ("requests answered", f"{self.requests:,}"),
            ("requests lost", ", ".join(f"{n} x {why}" for why, n in self.lost.items()) or "none"),
            ("wrong answers", "not checked" if self.wrong is None else f"{self.wrong}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("tokens/s, prompts and answers", f"{self.total_tokens_per_s:.1f}"),
            ("tokens/s, answers alone", f"{self.answer_tokens_per_s:.1f}"),
            ("first token, s: median, p99", f"{self.first_median:.3f}, {self.first_p99:.3f}"),
            ("a token, ms: median of answers", f"{1000 * self.per_token_median:.2f}"),
        ]
        if self.memory_begin is not None and self.memory_end is not None:
            begin, end = self.memory_begin / 1e6, self.memory_end / 1e6
            rows.append(("memory of the server, MB: begin, end", f"{begin:.1f}, {end:.1f}"))
        return markdown_table(("figure", "value"), rows, numbers_from=1)


async def measure(load: Load, *, check: bool = False) -> Figures:
    """Put the load on the server."""
    expected: dict[int, str] = {}
    # the first answers take longer; their texts are what later ones are compared with
    for i in range(load.distinct if check else 1):
        expected[i] = (await _ask(load, i)).text
    answers: list[_Answer] = []
    lost: Counter[str] = Counter()
    memory = await _memory(load)
    begun = time.perf_counter()
    end = begun + load.seconds
    n_begun = 0

    def more() -> bool:
        if load.requests is not None:
            return n_begun < load.requests
        return time.perf_counter() < end

    async def stream() -> None:
        nonlocal n_begun
        while more():
            i, n_begun = n_begun, n_begun + 1
            try:
                answers.append(await asyncio.wait_for(_ask(load, i), _WAIT_S))
            except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
                lost[str(error) or type(error).__name__] += 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(stream() for _ in range(load.streams)))
    seconds = time.perf_counter() - begun
    if not answers:
        raise LutraError(f"no request was answered ({', '.join(lost) or 'none was sent'})")
    first = [each.first for each in answers]
    made = sum(each.answer_tokens for each in answers)
    wrong = sum(each.text != expected[each.which] for each in answers) if check else None
    return Figures(
        requests=len(answers),
        seconds=seconds,
        lost=dict(lost),
        wrong=wrong,
        first_median=float(np.median(first)),
        first_p99=float(np.quantile(first, 0.99)),
        per_token_median=float(
            np.median(
                [(each.whole - each.first) / max(each.answer_tokens - 1, 1) for each in answers]
            )
        ),
        total_tokens_per_s=(made + sum(each.prompt_tokens for each in answers)) / seconds,
        answer_tokens_per_s=made / seconds,
        memory_begin=memory,
        memory_end=await _memory(load),
    )


async def _ask(load: Load, i: int) -> _Answer:
    """One request, read to its end."""
    begun = time.perf_counter()
    first, texts, usage, done = None, list[str](), None, False
    async for line in _lines(load, "POST", "/v1/completions", load.body(i)):
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]":
            done = True
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise ValueError(str(chunk["error"].get("message")))
        for choice in chunk["choices"]:
            if first is None:
                first = time.perf_counter() - begun
            texts.append(choice["text"])
        usage = chunk.get("usage") or usage
    if not done or first is None:
        raise EOFError("the stream ended early")
    counted: dict[str, int] = usage or {}
    return _Answer(
        i % load.distinct,
        first,
        time.perf_counter() - begun,
        "".join(texts),
        counted.get("prompt_tokens", 0),
        counted.get("completion_tokens", load.answer),
    )


async def _memory(load: Load) -> int | None:
    """Resident bytes that the server says it has, None if it does not."""
    try:
        async for line in _lines(load, "GET", "/metrics", None):
            if line.startswith(_MEMORY.encode()):
                return int(float(line.split()[-1]))
    except ValueError:  # it has no such path
        pass
    return None


async def _vocabulary(load: Load) -> int | None:
    """Tokens that the model has, as the server says."""
    text = b"".join([line async for line in _lines(load, "GET", "/v1/models", None)])
    meta = json.loads(text)["data"][0].get("meta") or {}
    return meta.get("n_vocab")


async def _lines(
    load: Load, method: str, path: str, body: dict[str, object] | None
) -> AsyncIterator[bytes]:
    """Lines of an answer; ValueError for one that is an error."""
    place = urlsplit(load.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port or 80)
    try:
        content = b"" if body is None else json.dumps(body).encode()
        head = [
            f"{method} {place.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {place.netloc}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        if load.key is not None:
            head.append(f"Authorization: Bearer {load.key}")
        writer.write("\r\n".join([*head, "", ""]).encode() + content)
        status = await reader.readline()
        chunked = False
        while (line := await reader.readline()).strip():
            chunked |= line.lower().startswith(b"transfer-encoding: chunked")
        left = b""
        async for part in _parts(reader, chunked):
            *lines, left = (left + part).split(b"\n")
            if status.split()[1] == b"200":
                for line in lines:
                    yield line.rstrip(b"\r")
            else:
                left = b"\n".join([*lines, left])
        if status.split()[1] != b"200":
            raise ValueError(f"status {status.split()[1].decode()}: {left[:200].decode()}")
        yield left
    except IndexError:
        raise EOFError("the server closed the connection") from None
    finally:
        writer.close()


async def _parts(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        yield await reader.read()
        return
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one load and print its figures; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.load", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:8080", help="server (default %(default)s)"
    )
    parser.add_argument("--model", help="name to ask for (default: none)")
    parser.add_argument("--api-key", metavar="KEY")
    parser.add_argument("--streams", type=int, default=16, help="requests at a time")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, help="end after so many instead")
    parser.add_argument(
        "-p", "--prompt", type=int, nargs="+", default=[128], help="tokens of prompts, in turn"
    )
    parser.add_argument("-n", "--answer", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--temp", type=float, default=0.0, help="temperature (default 0)")
    parser.add_argument("--distinct", type=int, default=64, help="prompts that differ")
    parser.add_argument(
        "--vocabulary",
        type=int,
        metavar="N",
        help="ids of prompts' tokens are below (default: all)",
    )
    parser.add_argument(
        "--plain", action="store_true", help="send OpenAI's fields alone: answers may end early"
    )
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=JSON", help="one more field"
    )
    parser.add_argument("--check", action="store_true", help="compare answers with those alone")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    try:
        print(asyncio.run(_run(args)))
    except (LutraError, OSError, EOFError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(args: argparse.Namespace) -> str:
    for name, least in (("streams", 1), ("answer", 1), ("distinct", 1)):
        if getattr(args, name) < least:
            raise LutraError(f"--{name} must be {least} or more, not {getattr(args, name)}")
    if urlsplit(args.url).scheme != "http":
        raise LutraError(f"--url must be of the form http://HOST:PORT, not {args.url}")
    fields: dict[str, object] = {}
    for each in args.field:
        name, _, value = each.partition("=")
        fields[name] = json.loads(value)

    def load(vocabulary: int) -> Load:
        return Load(
            url=args.url,
            streams=args.streams,
            seconds=args.seconds,
            requests=args.requests,
            prompts=args.prompt,
            answer=args.answer,
            vocabulary=vocabulary,
            temperature=args.temp,
            distinct=args.distinct,
            ignore_eos=not args.plain,
            key=args.api_key,
            model=args.model,
            fields=fields,
        )

    vocabulary = args.vocabulary or await _vocabulary(load(1))
    if vocabulary is None:
        raise LutraError(
            "the server does not say how many tokens its model has: add --vocabulary N"
        )
    figures = await measure(load(vocabulary), check=args.check)
    return json.dumps(asdict(figures)) if args.json else figures.table()


if __name__ == "__main__":
    sys.exit(main())
