"""``python -m lutra_kernels.report``: compile every kernel and write the table of the page.

The table stands between two marks; the words around it are written by hand.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import triton

from lutra_kernels.catalogue import Variant, faults, variants
from lutra_kernels.compile import ARCHITECTURES, Compiled

__all__ = ["BEGIN", "END", "main", "replace_table", "table"]

PAGE = Path("docs/kernels.md")
_COLUMNS = (
    "kernel, format, tile",
    "registers",
    "shared bytes",
    "spills",
    "products",
    "instructions per weight",
    "limit",
)
BEGIN = "<!-- compiled: begin -->"
END = "<!-- compiled: end -->"


def _row(variant: Variant, codes: dict[int, Compiled]) -> str:
    registers = " / ".join(str(codes[arch].registers) for arch in ARCHITECTURES)
    code = codes[90]
    cost = variant.per_weight(code)
    limit = variant.max_per_weight
    matrix = [name for name in ("IGMMA", "IMMA") if code.count(name)]
    cells = [
        variant.name,
        registers,
        str(code.shared),
        str(max(code.spills for code in codes.values())),
        ", ".join(matrix) or ("dp4a" if code.count("IDP") else ""),
        "" if cost is None else f"{cost:.2f}",
        "" if limit is None else f"{limit:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(chosen: Iterable[Variant]) -> str:
    """The table in Markdown; RuntimeError names a variant that breaks its limits."""
    rows = [
        f"Triton {triton.__version__}; registers for "
        + ", ".join(f"sm_{arch}" for arch in ARCHITECTURES)
        + "; the rest for sm_90.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for variant in chosen:
        codes = {arch: variant.compile(arch) for arch in ARCHITECTURES}
        for code in codes.values():
            if found := faults(variant, code):
                raise RuntimeError(f"{variant.name} on sm_{code.arch}: {', '.join(found)}")
        rows.append(_row(variant, codes))
    return "\n".join(rows)


def replace_table(page: str, new: str) -> str:
    """``page`` with ``new`` between its marks."""
    head, found, rest = page.partition(BEGIN)
    _, also, tail = rest.partition(END)
    if not (found and also):
        raise ValueError(f"the page must have {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{new}\n{END}{tail}"


def main(arguments: list[str] | None = None) -> int:
    """Write the table into the page."""
    parser = argparse.ArgumentParser(prog="python -m lutra_kernels.report", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE, help="default: %(default)s")
    page: Path = parser.parse_args(arguments).page
    if not page.is_file():
        print(f"{page} must be a page with a table to replace: run in the project's root")
        return 2
    text = replace_table(page.read_text(encoding="utf-8"), table(variants()))
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
