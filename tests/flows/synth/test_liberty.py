"""Libraries are found, unpacked and distinguished; every error is one line."""

import gzip

import pytest
from tests.flows.synth.tiny_library import FLIP_FLOP, GATES, LIBRARY

from lutra_flows.synth.liberty import WHERE, load_libraries
from lutra_golden.errors import LutraError


@pytest.fixture
def folder(tmp_path):
    """A folder with a family of two libraries, one of them packed."""
    found = tmp_path / "libraries"
    found.mkdir()
    (found / "a.lib").write_text(GATES)
    (found / "b.lib.gz").write_bytes(gzip.compress(FLIP_FLOP.encode()))
    (found / "README").write_text("not a library")
    return found


def refuses(tmp_path, where) -> str:
    with pytest.raises(LutraError) as error:
        load_libraries(where, tmp_path / "cache")
    return str(error.value).removeprefix(f"--liberty {where} ")


def test_one_file(tmp_path):
    path = tmp_path / "x.lib"
    path.write_text(LIBRARY)
    (library,) = load_libraries(path, tmp_path / "cache")
    assert library.name == "tiny_all"
    assert library.combinational
    assert library.sequential
    assert library.path.read_text() == LIBRARY


@pytest.mark.parametrize("pattern", ["", "*.lib*", "[ab].*"])
def test_folder_and_pattern(tmp_path, folder, pattern):
    gates, flip_flops = load_libraries(folder / pattern, tmp_path / "cache")
    assert (gates.name, flip_flops.name) == ("tiny_gates", "tiny_flip_flops")
    assert (gates.combinational, gates.sequential) == (True, False)
    assert (flip_flops.combinational, flip_flops.sequential) == (False, True)
    assert flip_flops.path.read_text() == FLIP_FLOP


def test_packing_does_not_change_a_library(tmp_path):
    plain, packed = tmp_path / "x.lib", tmp_path / "y.lib.gz"
    plain.write_text(LIBRARY)
    packed.write_bytes(gzip.compress(LIBRARY.encode()))
    cache = tmp_path / "cache"
    assert load_libraries(plain, cache) == load_libraries(packed, cache)


def test_missing(tmp_path, folder):
    assert refuses(tmp_path, tmp_path / "none.lib") == f"does not exist: {WHERE}"
    for path in folder.iterdir():
        path.unlink()
    assert refuses(tmp_path, folder) == f"has no .lib or .lib.gz in it: {WHERE}"


def test_several_families(tmp_path, folder):
    (folder / "c.lib").write_text(LIBRARY.replace("tiny_all", "other_all"))
    assert refuses(tmp_path, folder) == (
        "holds libraries of several families: other, tiny: give one file, or a pattern like "
        "'folder/asap7*'"
    )


def test_half_a_family(tmp_path, folder):
    advice = "give all of the family's files, in a folder"
    assert refuses(tmp_path, folder / "a.lib") == f"has no sequential cells: {advice}"
    assert refuses(tmp_path, folder / "b.lib.gz") == f"has no combinational cells: {advice}"


def test_no_library(tmp_path):
    path = tmp_path / "x.lib"
    path.write_text("module x; endmodule\n")
    assert refuses(tmp_path, path) == "is no liberty file: it has no `library (...)`"
    path.write_bytes(gzip.compress(LIBRARY.encode())[:-20])
    assert refuses(tmp_path, path).startswith("is no whole gzip file: ")
