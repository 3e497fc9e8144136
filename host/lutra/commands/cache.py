"""``lutra cache``: the packed models that are kept."""

import argparse
import json
import time

from rich.console import Console
from rich.table import Table

from lutra.commands.options import add_json
from lutra.packed.kept import KeptModels

__all__ = ["add_cache"]


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``lutra cache``."""
    parser.add_argument(
        "action",
        choices=("list", "clear"),
        nargs="?",
        default="list",
        help="list the packed models that are kept (default), or remove them",
    )
    add_json(parser)
    parser.set_defaults(command=_cache)


def _cache(args: argparse.Namespace) -> int:
    models = KeptModels()
    if args.action == "clear":
        n, n_bytes = models.clear()
        if args.json:
            print(json.dumps({"folder": str(models.folder), "removed": n, "bytes": n_bytes}))
        else:
            print(f"{models.folder}: removed {n} packed models, {n_bytes:,} bytes")
        return 0
    entries = models.entries()
    total = sum(each.n_bytes for each in entries)
    if args.json:
        listed = [
            {"name": e.name, "format": e.format, "bytes": e.n_bytes, "used": int(e.used)}
            for e in entries
        ]
        figures = {"folder": str(models.folder), "bytes": total, "limit": models.limit_bytes}
        print(json.dumps(figures | {"models": listed}))
        return 0
    if entries:
        table = Table(box=None, pad_edge=False)
        for name in ("model", "format", "bytes", "used"):
            table.add_column(name, justify="right" if name == "bytes" else "left")
        for each in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
            table.add_row(each.name, each.format, f"{each.n_bytes:,}", used)
        Console(highlight=False, markup=False).print(table)
    print(f"{models.folder}: {total:,} of {models.limit_bytes:,} bytes (LUTRA_CACHE_GB)")
    return 0
