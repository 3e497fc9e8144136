"""The committed reference pages are those that the golden model gives."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lutra_flows.reference import PAGES, main
from lutra_golden.control.ap_ctrl import CTRL_BITS, XRT_REGISTERS
from lutra_golden.control.descriptor import BODY, HEADER
from lutra_golden.control.isa import DOCS, FIELDS, Opcode
from lutra_golden.control.registers import COUNTERS, REGISTERS
from lutra_golden.control.result import RESULT

DOCS_FOLDER = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(("name", "page"), PAGES.items())
def test_committed_pages_are_up_to_date(name: str, page: Callable[[], str]) -> None:
    """If not: ``python -m lutra_flows.reference``."""
    assert (DOCS_FOLDER / name).read_text(encoding="utf-8") == page()


def test_pages_are_written(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "new")])
    for name, page in PAGES.items():
        assert (tmp_path / "new" / name).read_text(encoding="utf-8") == page()


def test_pages_name_everything() -> None:
    isa, registers = PAGES["isa.md"](), PAGES["registers.md"]()
    assert set(DOCS) == set(Opcode)
    for opcode in Opcode:
        assert f"### {opcode.name}\n" in isa
        assert DOCS[opcode] in isa
        for name in FIELDS[opcode]:
            assert f"`{name}`" in isa
    for name in (*REGISTERS, *COUNTERS):
        assert f"`{name}`" in registers
    descriptors = PAGES["descriptors.md"]()
    for name in (*HEADER, *BODY, *RESULT):
        assert f"`{name}`" in descriptors
    xrt = PAGES["xrt.md"]()
    for name in (*XRT_REGISTERS, *CTRL_BITS):
        assert f"`{name}`" in xrt
