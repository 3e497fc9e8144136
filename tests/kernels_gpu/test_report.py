from pathlib import Path

import pytest

pytest.importorskip("triton")

from lutra_kernels.catalogue import Variant, variants
from lutra_kernels.report import BEGIN, END, main, replace_table, table

PAGE = Path(__file__).parents[2] / "docs/kernels.md"


def _rows(page: str) -> list[str]:
    between = page.partition(BEGIN)[2].partition(END)[0]
    return [line for line in between.splitlines() if line.startswith("| ")][1:]


def test_the_page_has_every_variant() -> None:
    rows = _rows(PAGE.read_text(encoding="utf-8"))
    assert [row.split(" | ")[0] for row in rows] == [f"| {v.name}" for v in variants()]


@pytest.mark.slow
def test_the_page_is_what_this_compiler_gives() -> None:
    import triton

    page = PAGE.read_text(encoding="utf-8")
    if f"Triton {triton.__version__};" not in page:
        pytest.skip(f"the page is of another Triton than {triton.__version__}")
    assert replace_table(page, table(variants())) == page


def test_a_broken_limit_ends_the_report() -> None:
    first = variants()[0]
    tight = Variant(**{**vars(first), "max_registers": 8})
    with pytest.raises(RuntimeError, match=rf"^{first.name} on sm_80: \d+ registers, more than 8"):
        table([tight])


def test_pages_without_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=f"^the page must have {BEGIN} and {END}$"):
        replace_table("nothing", "x")
    assert replace_table(f"a {BEGIN} old {END} z", "new") == f"a {BEGIN}\nnew\n{END} z"
    assert main([str(tmp_path / "none.md")]) == 2
    expected = (
        f"{tmp_path}/none.md must be a page with a table to replace: run in the project's root"
    )
    assert capsys.readouterr().out.strip() == expected
