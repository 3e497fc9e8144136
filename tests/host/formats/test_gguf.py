"""GGUF files: what the package that defines them writes, and every way a file is wrong."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from tests.host.formats.fuzz_gguf import FORMATS, Fault, fuzz
from tests.host.gguf_model import field_bytes, gguf_bytes

from lutra.formats.gguf import GgufFile, is_gguf
from lutra.formats.gguf_types import TYPES
from lutra_golden.errors import LutraError

FIELD = field_bytes("general.architecture", 8, "llama")
TENSOR = ("x", [4, 2], 0, np.arange(8, dtype="<f4").tobytes())


def test_metadata_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    scalars: dict[str, tuple[Callable[..., None], object]] = {
        "u8": (writer.add_uint8, 255),
        "i8": (writer.add_int8, -128),
        "u16": (writer.add_uint16, 65535),
        "i16": (writer.add_int16, -32768),
        "u32": (writer.add_uint32, 2**32 - 1),
        "i32": (writer.add_int32, -(2**31)),
        "u64": (writer.add_uint64, 2**64 - 1),
        "i64": (writer.add_int64, -(2**63)),
        "f32": (writer.add_float32, 0.5),
        "f64": (writer.add_float64, 0.1),
        "bool": (writer.add_bool, True),
        "text": (writer.add_string, "zwölf 🦦"),
    }
    for key, (add, value) in scalars.items():
        add(key, value)
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("reals", [0.5, 2.0])
    writer.add_array("flags", [True, False])
    writer.add_array("words", ["a", "", "é"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = GgufFile(path).metadata
    for key in ("u8", "u16", "u32", "u64"):
        assert metadata.whole(key) == scalars[key][1]
    for key in ("i8", "i16", "i32", "i64"):
        assert metadata.whole(key, minimum=-(2**63)) == scalars[key][1]
    assert metadata.real("f32") == 0.5
    assert metadata.real("f64") == 0.1
    assert metadata.flag("bool", False) is True
    assert metadata.text("text") == "zwölf 🦦"
    for key, values in (("numbers", [1, -2, 3]), ("reals", [0.5, 2]), ("flags", [True, False])):
        found = metadata.numbers(key)
        assert found is not None
        assert found.tolist() == values
    assert metadata.strings("words") == ["a", "", "é"]
    assert "text" in metadata
    assert "texts" not in metadata


def test_tensors_of_every_type(tmp_path: Path) -> None:
    """Shapes, types and bytes; the package does not write types of forks."""
    path, rng = tmp_path / "model.gguf", np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    expected: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for kind in TYPES:
        if kind.number not in set(gguf.GGMLQuantizationType):
            continue
        raw = rng.integers(0, 256, (3, 256 // kind.block * kind.block_bytes)).astype(np.uint8)
        writer.add_tensor(kind.name, raw, raw_dtype=gguf.GGMLQuantizationType(kind.number))
        expected[kind.name] = (kind.name, (3, 256), raw.tobytes())
    vector = np.arange(5, dtype=np.float32)
    writer.add_tensor("vector", vector)
    expected["vector"] = ("F32", (5,), vector.tobytes())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert list(file.tensors) == list(expected)
    for name, (kind, shape, raw) in expected.items():
        tensor = file.tensors[name]
        assert (tensor.name, tensor.kind.name, tensor.shape) == (name, kind, shape)
        assert tensor.start % 64 == 0
        assert file.bytes(tensor).tobytes() == raw


def test_type_36(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    raw = bytes(range(64)) + bytes(32)
    path.write_bytes(gguf_bytes([FIELD], [("x", [64, 4], 36, raw)], version=2))
    file = GgufFile(path)
    assert file.tensors["x"].kind.name == "I2_S"
    assert file.tensors["x"].shape == (4, 64)
    assert file.bytes(file.tensors["x"]).tobytes() == raw


SIZES = {"Q2_0": (64, 18), "Q2_0_G128": (128, 34)}


@pytest.mark.parametrize("name", SIZES)
def test_blocks_that_share_a_number(name: str, tmp_path: Path) -> None:
    """Both are type 42; the bytes up to the next tensor tell, also of the last one."""
    path, rng = tmp_path / "model.gguf", np.random.default_rng(2)
    block, n_bytes = SIZES[name]
    raw = [rng.bytes(n * 1024 // block * n_bytes) for n in (4, 8)]
    tensors = [
        ("a", [1024, 4], 42, raw[0]), TENSOR, ("b", [1024, 8], 42, raw[1])
    ]  # fmt: skip
    path.write_bytes(gguf_bytes([FIELD], tensors))
    file = GgufFile(path)
    for tensor, bytes_ in zip("ab", raw, strict=True):
        assert file.tensors[tensor].kind.name == name
        assert file.bytes(file.tensors[tensor]).tobytes() == bytes_


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            [("a", [1024, 4], 42, bytes(1280)), TENSOR],
            (
                ": a has the type number 42 and 1280 bytes, not 1152 (Q2_0) or 1088 (Q2_0_G128): "
                "its layout is not known, convert the model again"
            ),
        ),
        (
            # one of each
            [("a", [1024, 4], 42, bytes(1152)), ("b", [1024, 4], 42, bytes(1088)), TENSOR],
            (
                ": b has the type number 42 and 1088 bytes, not 1152 (Q2_0) or 1088 (Q2_0_G128): "
                "its layout is not known, convert the model again"
            ),
        ),
        (
            [("a", [128, 1], 42, bytes(64)), TENSOR],
            (
                ": the bytes of a do not say if it is Q2_0 or Q2_0_G128, which share a type "
                "number: convert the model to another type"
            ),
        ),
        (
            # a fork's TL2
            [("a", [128, 4], 39, bytes(320)), TENSOR],
            (
                ": a has the type number 39 and 320 bytes, not 272 (MXFP4): its layout is not "
                "known, convert the model again"
            ),
        ),
    ],
)
def test_blocks_that_cannot_be_told_apart(
    tensors: list[tuple[str, list[int], int, bytes]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([FIELD], tensors))
    with pytest.raises(LutraError) as error:
        GgufFile(path)
    assert str(error.value) == f"{path}{message}"


def test_codebooks_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([FIELD], [("x", [256, 1], 17, bytes(74))]))
    assert GgufFile(path).tensors["x"].kind.name == "IQ2_XS"
    monkeypatch.setattr("lutra.formats.gguf_types.find_spec", lambda _: None)
    message = "x has the type IQ2_XS, which the package gguf decodes, and that is missing: run `"
    with pytest.raises(LutraError, match=message):
        GgufFile(path)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([], []))
    assert not GgufFile(path).tensors


def test_what_is_taken_for_gguf(tmp_path: Path) -> None:
    named, magic, other = tmp_path / "a.GGUF", tmp_path / "b", tmp_path / "c"
    named.write_bytes(b"")
    magic.write_bytes(b"GGUF")
    other.write_bytes(b"GGM")
    folder = tmp_path / "d.gguf"
    folder.mkdir()
    found = [
        path for path in (named, magic, other, folder, tmp_path / "none.gguf") if is_gguf(path)
    ]
    assert found == [named, magic]


# -- what is refused

CUT = "the file is cut off or damaged, copy or download it again"
AGAIN = "copy or download the file again"
ALIKE = "use a model with equal layers"
LIE = 1 << 62


def _tensor(**change: object) -> bytes:
    """A file of one tensor with another name, dims, kind or raw."""
    parts = {"name": "x", "dims": [4, 2], "kind": 0, "raw": TENSOR[3]} | change
    return gguf_bytes([FIELD], [tuple(parts.values())])  # pyright: ignore[reportArgumentType]


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", " is not a GGUF file, it is empty: give a GGUF file"),
    "magic": (
        b"PK\3\4" * 9,
        " is not a GGUF file, it begins with the bytes 50 4b 03 04, not 'GGUF'",
    ),
    "text": (b"not a model", " is not a GGUF file, it begins with 'not ', not 'GGUF': give a GGUF"),
    "version 1": (
        gguf_bytes([FIELD], [], version=1),
        " is GGUF version 1; supported are 2 and 3: convert the model again",
    ),
    "big endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        " is a big-endian GGUF file, which is not supported: convert the model on",
    ),
    "number of tensors": (
        gguf_bytes([FIELD], [TENSOR], counts=(LIE, 1)),
        f": the number of tensors at byte 8 is {LIE}, but only 144 bytes are left: {CUT}",
    ),
    "number of keys": (
        gguf_bytes([FIELD], [TENSOR], counts=(1, LIE)),
        f": the number of keys at byte 16 is {LIE}, but only 136 bytes are left: {CUT}",
    ),
    "length of a key": (
        gguf_bytes([struct.pack("<Q", LIE) + bytes(99)], []),
        f": the length of key 0 at byte 24 is {LIE}, but only ",
    ),
    "length of a string": (
        gguf_bytes([field_bytes("a", 8, "b")[:-9] + struct.pack("<Q", LIE)], []),
        f": the length of a at byte 37 is {LIE}, but only ",
    ),
    "length of an array": (
        gguf_bytes([field_bytes("a", 9, struct.pack("<IQ", 4, LIE))], []),
        f": the length of a at byte 41 is {LIE}, but only ",
    ),
    "length of an array of strings": (
        gguf_bytes([field_bytes("a", 9, struct.pack("<IQ", 8, LIE))], []),
        f": the length of a at byte 41 is {LIE}, but only ",
    ),
    "array of arrays": (
        gguf_bytes([field_bytes("a", 9, struct.pack("<IQ", 9, 1))], []),
        f": a is an array of arrays, which is not supported, at byte 37: {AGAIN}",
    ),
    "type of a value": (
        gguf_bytes([field_bytes("a", 13, b"12345678")], []),
        f": a has the unknown type 13, at byte 33: {AGAIN}",
    ),
    "type in an array": (
        gguf_bytes([field_bytes("a", 9, struct.pack("<IQ", 13, 1))], []),
        f": a has the unknown type 13, at byte 37: {AGAIN}",
    ),
    "bool": (
        gguf_bytes([field_bytes("a", 7, b"\2")], []),
        f": a must be true or false, not 2, at byte 38: {AGAIN}",
    ),
    "UTF-8": (
        gguf_bytes([field_bytes("a", 8, b"b\xff")], []),
        f": a is not UTF-8 (invalid start byte), at byte 45: {AGAIN}",
    ),
    "empty key": (
        gguf_bytes([field_bytes("", 4, 1)], []),
        f": key 0 must have 1..65535 characters, at byte 24: {AGAIN}",
    ),
    "key twice": (
        gguf_bytes([field_bytes("a", 4, 1)] * 2, []),
        f": key 'a' appears twice, at byte 41: {AGAIN}",
    ),
    "alignment": (
        gguf_bytes([field_bytes("general.alignment", 4, 48)], []),
        ": general.alignment must be a power of two up to 1048576, not 48",
    ),
    "kind of alignment": (
        gguf_bytes([field_bytes("general.alignment", 8, "32")], []),
        ": general.alignment must be a whole number from 1 on, not '32'",
    ),
    "tensor twice": (
        gguf_bytes([FIELD], [TENSOR, TENSOR]),
        f": tensor 'x' appears twice, at byte 110: {AGAIN}",
    ),
    "name of a tensor": (
        _tensor(name=""),
        f": the name of tensor 0 must have 1..65535 characters, at byte 69: {AGAIN}",
    ),
    "no dimensions": (
        _tensor(dims=[]),
        f": x must have 1..4 dimensions, not 0, at byte 78: {AGAIN}",
    ),
    "five dimensions": (
        _tensor(dims=[1] * 5),
        f": x must have 1..4 dimensions, not 5, at byte 78: {AGAIN}",
    ),
    "many dimensions": (
        _tensor(dims=[4] * 6).replace(struct.pack("<IQ", 6, 4), struct.pack("<IQ", 1 << 31, 4)),
        f": x must have 1..4 dimensions, not {1 << 31}, at byte 78: {AGAIN}",
    ),
    "dimension of 0": (_tensor(dims=[4, 0]), ": x has the impossible shape [0, 4], at byte 69"),
    "product of dimensions": (
        _tensor(dims=[1 << 32, 1 << 32]),
        f": x has the impossible shape [{1 << 32}, {1 << 32}], at byte 69",
    ),
    "large dimensions": (_tensor(dims=[1 << 31, 1 << 31]), ", beyond the end of the file ("),
    "type of a tensor": (
        _tensor(kind=15),
        ": x has the type Q8_K; supported are "
        + ", ".join(kind.name for kind in TYPES)
        + ": convert the model to one of these",
    ),
    "unknown type of a tensor": (_tensor(kind=99), ": x has the type number 99; supported are F32"),
    "part of a block": (
        _tensor(kind=8, dims=[33, 2]),
        f": x is [2, 33], but Q8_0 needs a multiple of 32 values, at byte 69: {AGAIN}",
    ),
    "part of an I2_S block": (
        _tensor(kind=36, dims=[96, 2]),
        ": x is [2, 96], but I2_S needs a multiple of 128 values",
    ),
    "offset that is not aligned": (
        gguf_bytes([FIELD], [TENSOR], offsets={"x": 8}),
        f": the offset of x must be a multiple of 32, not 8, at byte 69: {AGAIN}",
    ),
    "offset beyond the end": (
        gguf_bytes([FIELD], [TENSOR], offsets={"x": 1 << 40}),
        f": x lies at bytes {(1 << 40) + 128}..{(1 << 40) + 160}, beyond the end of the file (160)",
    ),
    "offset that overflows": (
        gguf_bytes([FIELD], [TENSOR], offsets={"x": (1 << 64) - 32}),
        ", beyond the end of the file (160): it is cut off",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    raw, message = DAMAGED[name]
    path.write_bytes(raw)
    with pytest.raises(LutraError) as error:
        GgufFile(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_cut_off_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    fields = [FIELD, field_bytes("b", 9, (8, ["c", "dd"])), field_bytes("e", 9, (6, [1.0]))]
    raw = gguf_bytes(fields, [TENSOR])
    path.write_bytes(raw)
    GgufFile(path)
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(LutraError, match=f"^{path}(:| is not a GGUF file)"):
            GgufFile(path)


def test_what_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    with pytest.raises(LutraError, match=f"^{path} does not exist: give a GGUF file$"):
        GgufFile(path)
    with pytest.raises(LutraError, match=rf"^{tmp_path} cannot be read \(.*\): give a GGUF file$"):
        GgufFile(tmp_path)


def test_metadata_that_is_missing_or_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    fields = [
        field_bytes("text", 8, "x" * 99),
        field_bytes("number", 4, 7),
        field_bytes("none", 4, 0),
        field_bytes("nan", 6, float("nan")),
        field_bytes("layers", 9, (4, [2, 2, 3])),
        field_bytes("alike", 9, (4, [2, 2])),
        field_bytes("zeros", 9, (4, [0, 0])),
        field_bytes("words", 9, (8, ["a"])),
        field_bytes("flag", 7, True),
    ]
    path.write_bytes(gguf_bytes(fields, []))
    metadata = GgufFile(path).metadata
    assert metadata.same_number("alike") == 2
    assert metadata.same_number("number") == 7
    assert metadata.same_number("missing", default=3) == 3
    assert metadata.text("missing", default="y") == "y"
    assert metadata.flag("missing", True) is True
    assert metadata.numbers("missing") is None
    assert metadata.strings("missing", default=[]) == []
    shown = f"'{'x' * 56}..."
    for get, message in (
        (lambda: metadata.whole("missing"), "metadata has no missing: copy the model again"),
        (lambda: metadata.whole("text"), f"text must be a whole number from 1 on, not {shown}"),
        (lambda: metadata.whole("none"), "none must be a whole number from 1 on, not 0"),
        (lambda: metadata.whole("flag"), "flag must be a whole number from 1 on, not True"),
        (lambda: metadata.real("words"), "words must be a number, not ['a']"),
        (lambda: metadata.real("nan"), "nan must be positive, not nan"),
        (lambda: metadata.text("number"), "number must be a string, not 7"),
        (lambda: metadata.flag("number", True), "number must be true or false, not 7"),
        (lambda: metadata.strings("number"), "number must be a list of strings, not 7"),
        (lambda: metadata.numbers("words"), "words must be an array of numbers, not ['a']"),
        (
            lambda: metadata.same_number("layers"),
            f"layers differs from layer to layer, which is not supported: {ALIKE}",
        ),
        (lambda: metadata.same_number("zeros"), "zeros must be a whole number from 1 on, not 0"),
    ):
        with pytest.raises(LutraError) as error:
            get()
        assert str(error.value) in (f"{path}: {message}",)


@pytest.mark.parametrize("name", FORMATS)
def test_fuzzing(name: str, tmp_path: Path) -> None:
    """A short run of the fuzzer, which is a program of its own."""
    counts = fuzz(name, 1, tmp_path, runs=100)
    assert counts["read"] > 0
    assert counts["refused"] > 20


def test_the_fuzzer_finds_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, _ = FORMATS["gguf"]

    def crash(path: Path) -> None:
        raise IndexError(f"{len(path.read_bytes()) > 0}")

    monkeypatch.setitem(FORMATS, "gguf", (damage, crash))
    with pytest.raises(Fault, match=r"^gguf, seed 1, round 0: IndexError\('True'\)$"):
        fuzz("gguf", 1, tmp_path, runs=1)


def test_rounds_are_made_from_their_seeds(tmp_path: Path) -> None:
    fuzz("gguf", 1, tmp_path, runs=1)
    damage, found = FORMATS["gguf"][0], []
    for seed in (5, 5, 6):
        damage(random.Random(seed), tmp_path / "model")
        found.append((tmp_path / "model").read_bytes())
    assert found[0] == found[1] != found[2]
