"""Structures and constants that Python and C share."""

import re
from ctypes import Structure, sizeof
from pathlib import Path

import numpy as np

from lutra.devices.cpu import interface
from lutra.devices.cpu.interface import STRUCTURES, golden_header, layout, version
from lutra_golden.arith.silu import silu_table

HEADER = Path(interface.__file__).parent / "csrc" / "lutra_cpu.h"


def members(structure: type[Structure]) -> list[str]:
    return [field[0] for field in structure._fields_]


def test_every_structure_of_the_header_has_its_members_in_the_same_order() -> None:
    """Comments aside; that they lie at the same places is compared when the library is loaded."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found = {
        name: re.findall(r"(\w+)\s*[,;]", body)
        for body, name in re.findall(r"typedef struct \{(.*?)\} (\w+);", text, re.DOTALL)
    }
    assert found == {name: members(structure) for name, structure in STRUCTURES.items()}


def test_the_layout_is_sizes_and_offsets() -> None:
    places = layout()
    assert len(places) == sum(1 + len(members(s)) for s in STRUCTURES.values())
    assert places[:3] == [8, 0, 4]
    assert places[-1] + 4 == sizeof(list(STRUCTURES.values())[-1])


def test_constants_and_tables_are_the_golden_models() -> None:
    text = golden_header()
    constants = dict(re.findall(r"^    (\w+) = (-?\d+),$", text, re.MULTILINE))
    assert (constants["ROPE_FRAC"], constants["SCALE_E_MIN"]) == ("14", "-512")
    values = re.search(r"silu_rise\[512\].*= \{(.*)\};", text)
    assert values is not None
    np.testing.assert_array_equal([int(x) for x in values[1].split(", ")], silu_table()[1])
    assert f'"{version()}"' in text


def test_no_source_has_a_number_that_the_golden_model_names() -> None:
    """Shifts and limits are names, but for halves that round, and bytes and their halves."""
    for name in ("vector_body.h", "vector.c", "model.c"):
        text = re.sub(r"/\*.*?\*/", "", (HEADER.parent / name).read_text(), flags=re.DOTALL)
        assert not re.findall(r"1 << \d+|[<>]{2} (?!1\b|8\b|4 & 15)\d+|\b(?:127|32767)\b", text), (
            name
        )
