"""Proofs about the RTL: ``python -m lutra_sim.formal [check ...]``."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lutra_sim.formal.catalogue import CHECKS
from lutra_sim.formal.prove import Check, FormalToolsError, Verdict, check_tools, prove, warm_up
from lutra_sim.rtl.toolchain import cache_folder

__all__ = ["main", "table"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print their table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lutra_sim.formal", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("checks", nargs="*", help="names of checks; all without any")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="checks at a time (%(default)s)")
    parser.add_argument("--list", action="store_true", help="name the checks and do no more")
    options = parser.parse_args(arguments)
    known = {check.name: check for check in CHECKS}
    if options.list:
        width = max(map(len, known))
        print("\n".join(f"{check.name:<{width}}  {check.claim}" for check in CHECKS))
        return 0
    unknown = [name for name in options.checks if name not in known]
    if unknown:
        print(f"error: no check is called {unknown[0]!r}: --list names them", file=sys.stderr)
        return 2
    if options.jobs < 1:
        print(f"error: --jobs must be positive, not {options.jobs}", file=sys.stderr)
        return 2
    checks = [known[name] for name in options.checks] or CHECKS
    try:
        check_tools()
        verdicts = _run(checks, options.jobs)
    except FormalToolsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(table(verdicts))
    failed = [verdict for verdict in verdicts if not verdict.passed]
    cpu_s = sum(verdict.cpu_s for verdict in verdicts)
    print(
        f"\n{len(verdicts) - len(failed)} of {len(verdicts)} checks passed, "
        f"{cpu_s:.0f} s of processor time"
    )
    for verdict in failed:
        print(f"error: {verdict.check.name}: {verdict.reason}", file=sys.stderr)
    return 1 if failed else 0


def _run(checks: Sequence[Check], jobs: int) -> list[Verdict]:
    """Verdicts in the order of ``checks``; the long ones are begun first."""
    folder = cache_folder() / "formal"
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    verdicts: dict[str, Verdict] = {}
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("proving", total=len(checks))
        # the first call of Yosys compiles it, in minutes that are no check's
        warm_up(lambda: console.print("compiling Yosys for this machine, once: this takes minutes"))
        ordered = sorted(checks, key=lambda check: not check.slow)
        futures = [pool.submit(prove, check, folder / check.name) for check in ordered]
        try:
            for future in as_completed(futures):
                verdict = future.result()
                verdicts[verdict.check.name] = verdict
                bar.advance(task)
                if not console.is_terminal:
                    print(
                        f"{len(verdicts)}/{len(checks)}  {verdict.check.name} {verdict.word}, "
                        f"{verdict.cpu_s:.1f} s of processor time",
                        file=sys.stderr,
                        flush=True,
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [verdicts[check.name] for check in checks]


def table(verdicts: Sequence[Verdict]) -> str:
    """Claims, how they were proved, in what processor time."""
    rows = [("check", "claim", "how", "CPU s", "verdict")]
    rows += [(v.check.name, v.check.claim, v.how, f"{v.cpu_s:.1f}", v.word) for v in verdicts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column == 3 else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
