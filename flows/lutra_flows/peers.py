"""Lutra's device ``cpu`` compared with llama.cpp on one machine: ``python -m lutra_flows.peers``.

Both run a GGUF file, ``-m FILE``, or a model of random weights, ``--shape NAME``, on as many
threads, in turns. A shape is written as a GGUF file that both run, in the types of a released one
(:mod:`lutra_flows.peer_models`), except for 2B-4T: llama.cpp has no such architecture with these
weights in its TQ2_0 format, so it is given Llama's, with the same matrices: ternary layers in
TQ2_0, embedding and head in Q6_K, as it stores them by itself. Beside the rates stand the bytes
that a token reads, and what the machine reads in the same turns. It needs the extra ``peers``.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from lutra.commands.bench import Row, bench
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cpu.steps import Pool, read_seconds
from lutra.formats.gguf import GgufFile
from lutra.models import RANDOM
from lutra.open_model import open_packed_model
from lutra.packed.random import random_packed
from lutra.progress import StepProgress
from lutra.quantize.vocabulary import HEAD_BITS
from lutra_flows.pages import markdown_table
from lutra_flows.peer_models import PEER_MODELS, write_gguf
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command
from lutra_golden.machine import available_cores
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.packed import PackedModel

__all__ = ["Comparison", "main", "measure", "table"]

_SHAPE = "bitnet-2b-4t"
_TURNS = 2
_READ_BYTES, _PIECE = 256 << 20, 16 << 20
_Progress = Callable[[str, float], None]


class _LlamaCpp:
    """llama.cpp through its C interface, as its own bench drives it."""

    def __init__(self, path: Path, threads: int, n_batch: int, context: int) -> None:
        import llama_cpp

        self._lib = llama_cpp
        # what it says of itself while it loads is many lines
        self._silent = self._lib.llama_log_callback(lambda _level, _text, _data: None)
        self._lib.llama_log_set(self._silent, None)
        self._lib.llama_backend_init()
        options = self._lib.llama_model_default_params()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise LutraError(f"llama.cpp does not load {path}: its version is another one")
        settings = self._lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, n_batch, n_batch
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._lib.llama_init_from_model(self._model, settings)
        if not self._context:
            raise LutraError("llama.cpp has no memory for its context")

    def run(self, tokens: list[int]) -> None:
        """Process tokens after the previous ones; logits of the last one."""
        array = (self._lib.llama_token * len(tokens))(*tokens)
        batch = self._lib.llama_batch_get_one(array, len(tokens))
        if self._lib.llama_decode(self._context, batch):
            raise LutraError("llama.cpp fails to decode")
        self._lib.llama_get_logits_ith(self._context, -1)

    def reset(self) -> None:
        """Empty the KV cache."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def close(self) -> None:
        """Release it."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


def _peer_rows(
    path: Path, vocab: int, threads: int, n_prompt: int, n_gen: int, repetitions: int
) -> list[tuple[str, float]]:
    """``(test, tokens per second)`` of each repetition; the first of a kind does not count."""
    peer = _LlamaCpp(path, threads, max(n_prompt, 1), max(n_prompt, n_gen) + 1)
    tokens: list[int] = np.random.default_rng(0).integers(0, vocab, n_prompt + n_gen).tolist()
    found: list[tuple[str, float]] = []
    for i in range(repetitions + 1):
        for test, n, step in ((f"pp{n_prompt}", n_prompt, n_prompt), (f"tg{n_gen}", n_gen, 1)):
            if not n:
                continue
            peer.reset()
            start = time.perf_counter()
            for first in range(0, n, step):
                peer.run(tokens[first : first + step])
            if i:
                found.append((test, n / (time.perf_counter() - start)))
    peer.close()
    return found


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rates of both, and what bounds their decoding.

    ``token_bytes`` are bytes of matrices that a token reads, by the device of a row. ``read`` are
    bytes per second that a loop reads which does nothing else, of every turn.
    """

    rows: Sequence[Row]
    token_bytes: Mapping[str, int]
    read: Sequence[float]


def _file_bytes(path: Path) -> int:
    """Bytes of a file's matrices that each token reads; of a separate embedding it reads a row."""
    tensors = GgufFile(path).tensors
    return sum(
        tensor.n_bytes
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1 and not ("output.weight" in tensors and name.startswith("token_"))
    )


def _read_rate(threads: int) -> float:
    """Bytes per second that threads read from memory: the median of pieces."""
    pool = Pool(threads)
    seconds = read_seconds(pool, np.ones(_READ_BYTES, np.uint8), _PIECE)
    pool.close()
    return _PIECE / float(np.median(seconds))


def _turns(
    path: Path,
    model: PackedModel,
    peer: str,
    *,
    threads: int,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    progress: _Progress | None,
) -> Comparison:
    """Both by turns: the peer with a file, Lutra with a packed model."""
    collected: dict[tuple[str, str], list[float]] = {}
    ours, read = "lutra cpu", list[float]()
    token_bytes = {peer: _file_bytes(path)}
    for turn in range(_TURNS):
        if progress:
            progress("measuring", turn / _TURNS)
        vocab = model.vocab_size
        for test, rate in _peer_rows(path, vocab, threads, n_prompt, n_gen, repetitions):
            collected.setdefault((peer, test), []).append(rate)
        read.append(_read_rate(threads))
        device = CpuDevice(threads)
        for row in bench(model, device, n_prompt=n_prompt, n_gen=n_gen, repetitions=repetitions):
            collected.setdefault((ours, row.test), []).extend(row.rates)
        token_bytes[ours] = device.token_bytes
        device.close()
    rows = [
        Row(model=model.name, device=device, test=test, rates=tuple(rates))
        for (device, test), rates in collected.items()
    ]
    return Comparison(rows=rows, token_bytes=token_bytes, read=read)


def measure(
    file: Path | None = None,
    *,
    shape: str = _SHAPE,
    head_bits: int | None = None,
    threads: int,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    progress: _Progress | None = None,
) -> Comparison:
    """Rates of both, taken in turns: with a GGUF file, or a shape if there is none.

    ``head_bits`` are the bits of Lutra's embedding and head; None leaves them as they are by
    default.
    """
    try:
        peer = f"llama.cpp {version('llama-cpp-python')}"
    except PackageNotFoundError:
        raise LutraError(
            "the peer llama.cpp is not installed: run "
            f"`{install_command('peers')}`, which compiles it"
        ) from None

    def turns(path: Path, model: PackedModel, peer: str) -> Comparison:
        return _turns(
            path,
            model,
            peer,
            threads=threads,
            n_prompt=n_prompt,
            n_gen=n_gen,
            repetitions=repetitions,
            progress=progress,
        )

    def opened(path: Path) -> PackedModel:
        return open_packed_model(
            path, progress=progress, capabilities=EVERY_PART, head_bits=head_bits
        )

    if file is not None:
        return turns(file, opened(file), peer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{shape}.gguf"
        write_gguf(path, PEER_MODELS[shape], progress=progress)
        if shape != _SHAPE:
            return turns(path, opened(path), peer)
        model = random_packed(RANDOM + shape, head_bits=head_bits, progress=progress)
        return turns(path, model, f"{peer} TQ2_0")


def table(comparison: Comparison) -> str:
    """Rates as Markdown; those of decoding also as bytes that are read per second."""
    heads = "engine", "test", "t/s", "median", "least", "most", "MB a token", "GB/s"
    rows = list[list[str]]()
    for row in comparison.rows:
        low, middle, high = min(row.rates), float(np.median(row.rates)), max(row.rates)
        size, reads = comparison.token_bytes[row.device], ("", "")
        if row.test.startswith("tg"):
            reads = f"{size / 1e6:.0f}", f"{size * middle / 1e9:.1f}"
        rates = (f"{rate:.1f}" for rate in (middle, low, high))
        rows.append([row.device, row.test, row.figures, *rates, *reads])
    rates = ", ".join(f"{rate / 1e9:.1f}" for rate in comparison.read)
    table = markdown_table(heads, rows, numbers_from=2)
    return f"{table}\n\nThe machine reads {rates} GB/s, in each turn."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lutra_flows.peers", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-m", "--model", type=Path, metavar="FILE", help="GGUF file that both run")
    source.add_argument(
        "--shape",
        choices=tuple(PEER_MODELS),
        default=_SHAPE,
        help=f"random weights of this shape ({_SHAPE})",
    )
    parser.add_argument(
        "--head", type=int, choices=HEAD_BITS, help="bits of Lutra's embedding and head"
    )
    parser.add_argument("-t", "--threads", type=int, default=available_cores())
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=128)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="in each of two turns (3)")
    parser.add_argument("--json", type=Path, help="write the rows to a file")
    args = parser.parse_args(argv)
    try:
        with StepProgress() as progress:
            comparison = measure(
                args.model,
                shape=args.shape,
                head_bits=args.head,
                threads=args.threads,
                n_prompt=args.n_prompt,
                n_gen=args.n_gen,
                repetitions=args.repetitions,
                progress=progress,
            )
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, measured\n")
    print(table(comparison))
    if args.json:
        content = [
            {
                "device": row.device,
                "test": row.test,
                "t_s": row.t_s,
                "samples": row.rates,
                "token_bytes": comparison.token_bytes[row.device],
                "read": comparison.read,
            }
            for row in comparison.rows
        ]
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
