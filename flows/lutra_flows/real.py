"""Real models beside llama.cpp on the same file: ``python -m lutra_flows.real --qwen FILE``.

Perplexity and divergence from the file's own weights in floating point, of llama.cpp and of the
device ``cpu``, over windows of a text, with standard errors; tokens of the text and of a chat; the
device ``golden``, and ``rtl`` if asked for, bit for bit; the time from the command to the first
token. It needs the extra ``peers``, and files that nobody ships: it is no part of CI.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra.commands.options import whole
from lutra.devices.base import Step
from lutra.evaluate.divergence import Divergence, DivergenceSum
from lutra.evaluate.losses import Streams
from lutra.evaluate.peer import LlamaCpp
from lutra.evaluate.perplexity import text_windows
from lutra.llm import LLM
from lutra.models import find_model, load_model
from lutra.models.decoder import Decoder
from lutra.models.layers import log_probabilities
from lutra.progress import StepProgress
from lutra.text.sampling import SamplingParams
from lutra_flows.pages import Goal, insert, markdown_table
from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores

__all__ = [
    "BEGIN",
    "END",
    "QWEN",
    "KnownFile",
    "Limits",
    "Options",
    "Report",
    "check",
    "main",
    "table",
]

BEGIN = "<!-- begin: lutra_flows.real -->"
END = "<!-- end: lutra_flows.real -->"
TOKENS = 16384
"""Tokens that the goals are judged on."""
_WINDOW = 512
_PIECE = 1 << 24  # bytes of a file that are hashed at a time
_ROWS = 128  # of logits at a time
_PROMPT = "def add("
_FLOAT, _PEER = "float", "llama.cpp"
_MESSAGES = ({"role": "user", "content": "Write a function that reverses a string."},)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Goals of a file: KL divergence in nats, and the change of perplexity, either way."""

    kl: float = 0.004
    change: float = 0.005


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """A published file: its bytes and their SHA-256, and its goals."""

    name: str
    n_bytes: int
    sha256: str
    limits: Limits

    def check(self, path: Path) -> None:
        """LutraError if ``path`` is another file."""
        size = path.stat().st_size
        if size != self.n_bytes:
            raise LutraError(
                f"{path} has {size:,} bytes, {self.name} has {self.n_bytes:,}: give that file, or "
                "this one as --other"
            )
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        if (found := digest.hexdigest()) != self.sha256:
            raise LutraError(
                f"{path} has SHA-256 {found}, {self.name} has {self.sha256}: copy it again, or "
                "give this one as --other"
            )


QWEN = KnownFile(
    name="Qwen2.5-Coder-0.5B-Instruct-Q4_K_M",
    n_bytes=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    limits=Limits(kl=0.003, change=0.003),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Amounts of work: tokens for quality, for the devices' equality and for a chat, threads, and
    whether starts are timed."""

    tokens: int = TOKENS
    golden_tokens: int = 16
    rtl_tokens: int = 2
    chat_tokens: int = 24
    threads: int = 1
    starts: bool = True


@dataclass(frozen=True, kw_only=True)
class Report:
    """Findings on one file.

    ``quality`` are divergences from the file in floating point, by the name of what ran it: the
    packed ``format``, or the peer. ``exact`` are numbers of tokens whose logits on a device are all
    the golden model's. ``chat`` is how many of ``chat_tokens`` greedy tokens are those of
    llama.cpp. ``starts`` are seconds from the command to the first token, and of processor time to
    its end: with nothing kept of the model, then again.
    """

    name: str
    format: str
    quality: Mapping[str, Divergence]
    exact: Mapping[str, int]
    chat: int
    chat_tokens: int
    starts: Sequence[tuple[float, float]]
    limits: Limits

    @property
    def goals(self) -> list[Goal]:
        """The device's divergence and change of perplexity."""
        found = self.quality[self.format]
        return [
            Goal(name=f"{self.name}: KL", value=found.kl, limit=self.limits.kl, at_most=True),
            Goal(
                name=f"{self.name}: change of perplexity",
                value=abs(found.change),
                limit=self.limits.change,
                at_most=True,
            ),
        ]


def _device_rows(llm: LLM, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Logits of ``tokens``, some rows at a time."""
    session = llm.device.session()
    try:
        for first in range(0, len(tokens), _ROWS):
            step = Step(session=session, tokens=tokens[first : first + _ROWS])
            (result,) = llm.device.run([step])
            yield (result.logits * result.scale[:, None]).astype(np.float32)
    finally:
        session.close()


def _quality(
    llm: LLM,
    peer: LlamaCpp,
    source: Decoder,
    windows: Sequence[Sequence[int]],
    progress: StepProgress,
) -> dict[str, Divergence]:
    """Divergences of device and peer from the source in floating point."""
    streams = Streams({_FLOAT: source}, windows)
    for i, window in enumerate(source.config.windows):
        progress("running the file in floating point", i / len(source.layers))
        streams.take(source.layers[i], window)
    sums = {llm.packed.format: DivergenceSum(), _PEER: DivergenceSum()}
    for n, tokens in enumerate(windows):
        progress("comparing", n / len(windows))
        theirs = peer.logits(tokens[:-1])
        for i, ours in enumerate(_device_rows(llm, tokens[:-1])):
            rows = slice(i * _ROWS, i * _ROWS + len(ours))
            targets = np.array(tokens[rows.start + 1 : rows.stop + 1], np.int64)
            exact = log_probabilities(source.logits(streams.x[_FLOAT][n][rows]))
            sums[llm.packed.format].add(exact, log_probabilities(ours), targets)
            sums[_PEER].add(exact, log_probabilities(theirs[rows]), targets)
    return {name: each.result() for name, each in sums.items()}


def _chat(llm: LLM, peer: LlamaCpp, n: int) -> int:
    """Number of the first ``n`` greedy tokens of an answer that device and peer share; LutraError
    if they make other tokens of the question."""
    ours = llm.tokenizer.encode_template(llm.chat_template.render(_MESSAGES))
    theirs = peer.chat_prompt(_MESSAGES)
    if ours != theirs:
        raise LutraError(f"the chat's prompt is {ours} here, and {theirs} in llama.cpp")
    with llm.chat(_MESSAGES, n, SamplingParams(temperature=0)) as stream:
        for _ in stream:
            pass
        answer = list(stream.stats.tokens)
    pairs = zip(answer, peer.greedy(theirs, n), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(answer))


def _same(path: Path, device: str, text: str, n: int) -> int:
    """Number of tokens, the text's first ``n`` at most: every logit of ``device`` was the golden
    model's."""
    with LLM(path, device, check=True, context=_WINDOW) as llm:
        tokens = llm.tokenizer.encode(text, add_bos=False)[:n]
        llm.logits(tokens)
    return len(tokens)


def _start(path: Path, cache: Path) -> tuple[float, float]:
    """Seconds that a command takes to its first token, and of processor time to its end."""
    command = [sys.executable, "-m", "lutra", "run", "-m", str(path), "-dev", "cpu", "-n", "1"]
    command += ["-p", _PROMPT]
    environment = os.environ | {"LUTRA_CACHE": str(cache)}
    begin, before = time.perf_counter(), _children()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(len(_PROMPT) + 1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        raise LutraError(f"{' '.join(command)} failed, see above")
    return seconds, _children() - before


def _children() -> float:
    """Seconds of processor time of all processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _starts(path: Path) -> list[tuple[float, float]]:
    """The command with nothing kept of the model, and again."""
    with tempfile.TemporaryDirectory() as folder:
        _start(find_model("tales"), Path(folder))  # compiles the library
        return [_start(path, Path(folder)) for _ in range(2)]


def check(path: Path, text: str, options: Options, limits: Limits) -> Report:
    """Run everything on one file; LutraError if something is not as it must be."""
    with StepProgress() as progress:
        exact: dict[str, int] = {}
        # a device that is not here says so before the work of minutes
        for device, n in (("rtl", options.rtl_tokens), ("cpu", options.golden_tokens)):
            if n:
                progress(f"checking {device} against the golden model", 0.0)
                exact[device] = _same(path, device, text, n)
        llm = LLM(path, "cpu", context=_WINDOW, threads=options.threads, progress=progress)
        peer = LlamaCpp(path, _WINDOW, options.threads)
        tokens = llm.tokenizer.encode(text, add_bos=False)
        if tokens != peer.encode(text):
            raise LutraError(f"{path}: the text has other tokens in llama.cpp")
        bos = llm.tokenizer.bos if llm.tokenizer.add_bos else None
        windows = text_windows(tokens, window=_WINDOW, bos=bos)
        windows = windows[: -(-options.tokens // (_WINDOW - 1))]
        source = replace(load_model(path), dtype=np.float32)
        quality = _quality(llm, peer, source, windows, progress)
        chat = _chat(llm, peer, options.chat_tokens)
        peer.close()
        llm.close()
    return Report(
        name=llm.packed.name,
        format=llm.packed.format,
        quality=quality,
        exact=exact,
        chat=chat,
        chat_tokens=options.chat_tokens,
        starts=_starts(path) if options.starts else (),
        limits=limits,
    )


def table(reports: Sequence[Report]) -> str:
    """The findings as Markdown."""
    heads = "file", "what runs", "tokens", "perplexity", "against float", "KL, nats", "same arg-max"
    of_files = [
        (
            report.name,
            f"Lutra, `cpu`, {name}" if name == report.format else name,
            f"{d.tokens:,}",
            f"{d.ppl:.3f}",
            f"{d.change:+.2%} ± {d.change_stderr:.2%}",
            f"{d.kl:.5f} ± {d.kl_stderr:.5f}",
            f"{d.top1:.1%}",
        )
        for report in reports
        for name, d in report.quality.items()
    ]
    lines = [markdown_table(heads, of_files, numbers_from=2), ""]
    for report in reports:
        exact = "; ".join(f"`{device}` {n} tokens" for device, n in report.exact.items())
        lines.append(
            f"{report.name}: text and chat have llama.cpp's tokens; of {report.chat_tokens} greedy "
            f"tokens of an answer the first {report.chat} are llama.cpp's; every logit is the "
            f"golden model's: {exact or 'not looked at'}."
        )
        n = min(each.tokens for each in report.quality.values())
        if n < TOKENS:
            lines.append(
                f"{n:,} tokens are fewer than the {TOKENS:,} that the goals are meant for."
            )
        for when, (wall, processor) in zip(("first", "second"), report.starts, strict=False):
            lines.append(
                f"Command to first token, {when} time: {wall:.1f} s; {processor:.1f} s of "
                "processor time to its end."
            )
    of_goals = [
        (goal.name, f"{goal.limit:g}", f"{goal.value:.5f}", "yes" if goal.met else "**no**")
        for report in reports
        for goal in report.goals
    ]
    lines += ["", markdown_table(("goal", "at most", "measured", "met"), of_goals)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit code, 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m lutra_flows.real", description=__doc__)
    parser.add_argument("--qwen", type=Path, metavar="FILE", help=f"{QWEN.name}.gguf")
    parser.add_argument(
        "--other", type=Path, metavar="FILE", action="append", default=[], help="any GGUF model"
    )
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="text in UTF-8")
    parser.add_argument(
        "--tokens",
        type=whole(1),
        default=TOKENS,
        metavar="N",
        help=f"tokens to predict (default {TOKENS}, which the goals are meant for)",
    )
    parser.add_argument(
        "--golden-tokens",
        type=whole(0),
        default=16,
        metavar="N",
        help="tokens to compare with the device golden (default 16)",
    )
    parser.add_argument(
        "--rtl-tokens",
        type=whole(0),
        default=2,
        metavar="N",
        help="tokens to run on the device rtl (default 2; each takes minutes)",
    )
    parser.add_argument("--no-starts", action="store_true", help="do not time the first token")
    parser.add_argument("-t", "--threads", type=whole(1), default=available_cores(), metavar="N")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="page to write the tables to, docs/quality.md"
    )
    args = parser.parse_args(argv)
    options = Options(
        tokens=args.tokens,
        golden_tokens=args.golden_tokens,
        rtl_tokens=args.rtl_tokens,
        threads=args.threads,
        starts=not args.no_starts,
    )
    try:
        files = [(path, Limits()) for path in args.other]
        if args.qwen is not None:
            QWEN.check(args.qwen)
            files.insert(0, (args.qwen, QWEN.limits))
        if not files:
            raise LutraError("there is no file to check: give --qwen FILE or --other FILE")
        text = args.text.read_text(encoding="utf-8")
        reports = [check(path, text, options, limits) for path, limits in files]
        found = table(reports)
        if args.page is not None:
            page = insert(args.page.name, args.page.read_text("utf-8"), (BEGIN, END), found)
            args.page.write_text(page, "utf-8")
    except (LutraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found)
    return 0 if all(goal.met for report in reports for goal in report.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
