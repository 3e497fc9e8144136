"""Rows of a head that two stages read whole: ``python -m lutra_flows.head -m FILE TEXT...``.

Windows of the texts, the same number of each, go through the model on the device ``cpu`` but for
its last layer; that one and the head in two stages are the golden model's.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lutra import LLM
from lutra.devices.base import Step
from lutra.progress import StepProgress
from lutra_flows.pages import markdown_table
from lutra_golden.arith.fixed import Int
from lutra_golden.errors import LutraError
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.two_stage import Best, TwoStageHead

__all__ = ["main", "streams", "table"]

_AT_ONCE = 50  # positions whose logits are in memory together


def streams(llm: LLM, decoder: Decoder, tokens: Sequence[int]) -> Int:
    """The residual stream ``[n, hidden_size]`` behind the last layer, of one text."""
    last = len(llm.packed.layers) - 1
    x = decoder.embed(tokens)
    if last:
        with closing(llm.device.session()) as session:
            [result] = llm.device.run([Step(session=session, tokens=tokens, layers=range(last))])
        assert result.residual is not None
        x = result.residual.astype(np.int64)
    return decoder.layer(last, x, [Rows(decoder.caches(), slice(0, len(tokens)), 0)])


def table(found: dict[int, list[Best]], n_rows: int) -> str:
    """Shares of ``n_rows`` rows, by the number of best tokens, as Markdown."""
    head = ["best tokens", "positions", "rows read whole", "median", "largest tenth from", "most"]
    rows = list[list[str]]()
    for n, every in found.items():
        shares: NDArray[np.float64] = np.array([each.rescored for each in every]) / n_rows
        kept = [np.mean(shares), np.median(shares), np.quantile(shares, 0.9), shares.max()]
        fallbacks = sum(each.fallback for each in every)
        rows.append([str(n), str(len(every)), *(f"{share:.2%}" for share in kept), str(fallbacks)])
    return markdown_table([*head, "fallbacks"], rows, numbers_from=0)


def _windows(llm: LLM, texts: Sequence[Path], n: int, size: int) -> list[list[int]]:
    """Windows of ``size`` tokens, ``n`` tokens in all, in turns from the texts."""
    tokens = [llm.tokenizer.encode(path.read_text(encoding="utf-8")) for path in texts]
    found, at = list[list[int]](), 0
    while sum(map(len, found)) < n:
        own = tokens[at % len(texts)]
        first = at // len(texts) * size
        window = own[first : first + min(size, n - sum(map(len, found)))]
        if not window:
            raise LutraError(
                f"{texts[at % len(texts)]} has {len(own)} tokens, too few for its share of {n}: "
                "give longer texts or more of them, or a smaller -n"
            )
        found.append(window)
        at += 1
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Count rows for every position; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_flows.head", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="text in a file")
    parser.add_argument("-m", "--model", default="tales", help="model (default %(default)s)")
    parser.add_argument("-t", "--threads", type=int, metavar="N")
    parser.add_argument("-n", type=int, default=1000, help="positions (default %(default)s)")
    parser.add_argument(
        "--window", type=int, default=250, metavar="N", help="tokens of a text (default 250)"
    )
    parser.add_argument(
        "-k", type=int, nargs="+", default=(1, 10, 40), metavar="N", help="best tokens to find"
    )
    args = parser.parse_args(argv)
    try:
        if min(args.n, args.window, *args.k) < 1:
            raise LutraError("-n, --window and -k must be 1 or more")
        found: dict[int, list[Best]] = {n: [] for n in args.k}
        with (
            StepProgress() as progress,
            LLM(
                args.model, "cpu", threads=args.threads, context=args.window, progress=progress
            ) as llm,
        ):
            if not TwoStageHead.divides(llm.packed):
                raise LutraError(
                    f"the head of {args.model} has fewer than four bits: it has no two stages"
                )
            decoder, done = Decoder(llm.packed), 0
            for window in _windows(llm, args.texts, args.n, args.window):
                x = streams(llm, decoder, window)
                for first in range(0, len(x), _AT_ONCE):
                    progress("positions", done / args.n)
                    for n, every in found.items():
                        every += decoder.best(x[first : first + _AT_ONCE], n)[0]
                    done += len(x[first : first + _AT_ONCE])
            n_rows = llm.packed.vocab_size
    except LutraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}: give a text file", file=sys.stderr)
        return 2
    print(table(found, n_rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
