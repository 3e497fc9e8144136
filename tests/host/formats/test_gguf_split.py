"""Models in several files: read from any of them, and what is refused."""

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import MODELS, field_bytes, gguf_bytes, write_gguf

from lutra.checkpoints import open_checkpoint
from lutra.formats.gguf_split import GgufModel, model_files, model_name
from lutra.formats.gguf_vocabulary import read_vocabulary
from lutra.models import load_model
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

AGAIN = "copy or download"
N_PARTS = 3


def values(n: int, start: int) -> bytes:
    return np.arange(start, start + n, dtype="<f4").tobytes()


def part(i: int, *, n: int = N_PARTS, total: int = 4, names: str = "") -> bytes:
    """Part ``i`` of a model of four tensors, the second of which has two of them."""
    fields = [
        field_bytes("split.no", 2, i),
        field_bytes("split.count", 2, n),
        field_bytes("split.tensors.count", 5, total),
    ]
    if i == 0:
        fields = [field_bytes("general.architecture", 8, "llama"), *fields]
    tensors = [(name, [8], 0, values(8, ord(name))) for name in names or ("a", "bc", "d")[i]]
    return gguf_bytes(fields, tensors)


def written(folder: Path, **changes: bytes) -> list[Path]:
    """The parts in a folder; ``p1`` is another content of the first."""
    paths = [folder / f"otter-{i + 1:05d}-of-{N_PARTS:05d}.gguf" for i in range(N_PARTS)]
    for i, path in enumerate(paths):
        path.write_bytes(changes.get(f"p{i + 1}", part(i)))
    return paths


def test_any_part_opens_all(tmp_path: Path) -> None:
    paths = written(tmp_path)
    for path in paths:
        model = GgufModel(path)
        assert list(model.files) == paths
        assert model.metadata.text("general.architecture") == "llama"
        assert list(model.tensors) == ["a", "b", "c", "d"]
        for name, tensor in model.tensors.items():
            assert model.bytes(tensor).tobytes() == values(8, ord(name))
        assert model_name(path) == "otter"


def test_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "otter-7b.gguf"
    path.write_bytes(gguf_bytes([], [("x", [8], 0, values(8, 0))]))
    assert GgufModel(path).files == [path]
    assert (model_name(path), model_files(path)) == ("otter-7b", [path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"p2": part(2, names="bc")},
            "{1} is part 3 of 3, not 2 of 3: the parts are of different models",
        ),
        (
            {"p3": part(2, n=4)},
            "{2} is part 3 of 4, not 3 of 3: the parts are of different models",
        ),
        (
            {"p3": part(2, total=5)},
            "{2} is of a model of 5 tensors, not 4: the parts are of different models",
        ),
        ({"p3": part(2, names="de")}, "{0} and its parts have 5 tensors, not 4: copy or download"),
        ({"p3": part(2, names="a")}, "{2}: tensor a is in {0} already: copy or download the parts"),
        ({"p2": b"GGUF"}, "{1}: the version at byte 4 takes 4 bytes, but 0 are left"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    paths = written(tmp_path, **changes)
    with pytest.raises(LutraError) as error:
        GgufModel(paths[0])
    assert str(error.value).startswith(message.format(*paths))


def test_a_part_that_is_missing_or_has_another_name(tmp_path: Path) -> None:
    paths = written(tmp_path)
    paths[1].unlink()
    for path in (paths[0], paths[2]):
        message = f"{path} is one of 3 parts, and {paths[1]} is missing: put all parts into one "
        with pytest.raises(LutraError) as error:
            GgufModel(path)
        assert str(error.value) == message + "folder"
    other = Path(shutil.copy(paths[2], tmp_path / "last.gguf"))
    with pytest.raises(LutraError) as error:
        GgufModel(other)
    assert str(error.value) == (
        f"{other} is part 3 of 3, and its name must end in -00003-of-00003: give the parts the "
        "names that they had"
    )


def test_a_model_that_the_package_cuts(tmp_path: Path) -> None:
    """The same weights, name and tokens from any part as from one file."""
    fields: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(96)],
        "tokenizer.ggml.scores": [0.0] * 96,
    }
    model = replace(MODELS["llama"], fields=fields)
    whole = tmp_path / "whole" / "otter.gguf"
    whole.parent.mkdir()
    held = write_gguf(whole, model)
    write_gguf(tmp_path / "otter.gguf", model, split_max_tensors=8)
    paths = sorted(tmp_path.glob("otter-*.gguf"))
    assert len(paths) > 2
    for path in (paths[0], paths[1], paths[-1]):
        found = load_model(path)
        assert found.name == "otter"
        for layer, expected in zip(found.layers, load_model(whole).layers, strict=True):
            np.testing.assert_array_equal(
                layer.down_proj.dequantized(), expected.down_proj.dequantized()
            )
        assert len(open_checkpoint(path).names()) == len(held)
        assert Tokenizer.open(path).vocab_size == 96
        assert read_vocabulary(GgufModel(path).metadata).tokenizer.get_vocab_size() == 96
    paths[1].rename(tmp_path / "away")
    with pytest.raises(
        LutraError, match=rf"^{paths[0]} is one of \d+ parts, and {paths[1]} is mis"
    ):
        load_model(paths[0])


def test_a_header_is_all_that_is_read(tmp_path: Path) -> None:
    """Sizes are checked in every part before anything is decoded."""
    paths = written(tmp_path)
    cut = paths[2].read_bytes()[:-4]
    paths[2].write_bytes(cut)
    with pytest.raises(LutraError, match=rf"^{paths[2]}: d lies at bytes .* beyond the end"):
        GgufModel(paths[0])
    assert struct.unpack("<I", cut[4:8]) == (3,)
