"""Faults that the header of a file shows are refused in one line, before its tensors are read,
a device is prepared, or anything is written."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import MODELS, field_bytes, gguf_bytes, write_gguf
from tests.host.random_model import LLAMAS, Shape, write_model

from lutra.commands.cli import main
from lutra.devices import processors
from lutra.llm import LLM
from lutra.models import load_model
from lutra.packed import kept
from lutra_golden.errors import LutraError

VOCABULARY: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": [f"<{i}>" for i in range(96)],
    "tokenizer.ggml.merges": ["<1> <2>"],
}
KNOWN = replace(
    MODELS["qwen2"],
    fields=VOCABULARY | {"tokenizer.ggml.tokens": ["a", "b", "ab", *map(str, range(93))],
                         "tokenizer.ggml.merges": ["a b"]},
)  # fmt: skip


def patched(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Changes bytes of a file's header."""

    def change(path: Path) -> None:
        data = path.read_bytes()
        assert old in data and len(old) == len(new)
        path.write_bytes(data.replace(old, new))

    return change


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache of a world where nothing that takes long is done, and any model is kept."""

    def never(*_: object, **__: object) -> object:
        raise AssertionError("nothing that takes long is done")

    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "LEAST_BYTES", 1)
    monkeypatch.setattr(kept, "each_of", never)
    monkeypatch.setattr(processors, "CpuDevice", never)
    monkeypatch.setattr("lutra.open_model.pack_model", never)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (patched(b"qwen2", b"mamba"), "", "architecture 'mamba' is not supported"),
        (patched(b"blk.1.ffn_up.", b"blk.2.ffn_up."), "", "tensor blk.2.ffn_up.weight is not supp"),
        (patched(b"blk.1.attn_norm.weight", b"blk.0.attn_q_norm.bias"), "", "attn_q_norm.bias is"),
        (patched(b"\4\0\0\0\0\0\0\0gpt2", b"\4\0\0\0\0\0\0\0bert"), "", "model 'bert' is not supp"),
        (None, "--format W1.58A8", "not ternary, and W1.58A8 is for ternary weights only"),
        (None, "--format W4A16 --a-group 32", "activations of 16 bits need no groups"),
        (None, "--format W1.58g64A8 --group 32", "is of groups of 64, and group is 32"),
        (None, "-dev rtl --engine ternary", "engine ternary does not run W8A8, only ternary"),
        (None, "--bitstream x.bit", "only a board loads a bitstream"),
        (None, "-p a -n 32", "32 tokens cannot be generated: the prompt takes 1 of 32 positions"),
        (None, f"-p {'1' * 32}", "the prompt has 32 tokens, the context 32: shorten the prompt"),
    ],
)
def test_of_a_file(
    tmp_path: Path,
    idle: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None] | None,
    options: str,
    message: str,
) -> None:
    path = tmp_path / "otter.gguf"
    write_gguf(path, KNOWN, "Q8_0")
    if change is not None:
        change(path)
    options = options if "-dev" in options else f"{options} -dev cpu"
    assert main(["run", "-m", str(path), "-n", "1", *options.split()]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert message in error
    assert not list(idle.rglob("*"))


@pytest.mark.parametrize(
    "command", ["run -dev cpu -m", "bisect -dev interpreted -m", "pack -o out"]
)
def test_of_a_folder_with_another_tokenizer(
    tmp_path: Path, idle: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    folder = write_model(tmp_path / "mixed", Shape(vocab_size=256))
    assert main([*command.split(), str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder} mixes two models: its tokenizer has 260 tokens, config.json 256: "
        "copy the model again\n"
    )


@pytest.mark.parametrize("options", ["-p 33", "-n 33"])
def test_of_tests_longer_than_the_context(
    tmp_path: Path, idle: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    """Also of random weights, which are not made."""
    path = tmp_path / "otter.gguf"
    write_gguf(path, KNOWN, "Q8_0")
    assert main(["bench", "-dev", "cpu", "-m", str(path), *options.split()]) == 2
    assert "33 tokens do not fit the context of 32: lower -p or -n" in capsys.readouterr().err
    assert main(["bench", "-dev", "cpu", "-m", "random:bitnet-2b-4t", "-p", "4097"]) == 2
    assert "4097 tokens do not fit the context of 4096" in capsys.readouterr().err


def test_of_a_file_of_another_model(tmp_path: Path, idle: Path) -> None:
    """A matrix of the last layer that is missing, or has another shape."""
    path = tmp_path / "otter.gguf"
    sizes = {"embedding_length": 256, "feed_forward_length": 512, "head_count": 4}
    fields = [field_bytes("general.architecture", 8, "llama")]
    for key, value in (
        ("block_count", 2), ("context_length", 32), ("embedding_length", 256),
        ("feed_forward_length", 512), ("attention.head_count", 4),
    ):  # fmt: skip
        fields.append(field_bytes(f"llama.{key}", 4, value))
    fields.append(field_bytes("llama.attention.layer_norm_rms_epsilon", 6, 1e-5))
    wide, d = sizes["feed_forward_length"], sizes["embedding_length"]
    tensors = {"token_embd.weight": (96, d), "output_norm.weight": (d,)}
    for i in range(2):
        tensors |= {f"blk.{i}.{name}.weight": (d,) for name in ("attn_norm", "ffn_norm")}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"blk.{i}.{name}.weight"] = d, d
        for name, shape in (("gate", (wide, d)), ("up", (wide, d)), ("down", (d, wide))):
            tensors[f"blk.{i}.ffn_{name}.weight"] = shape

    def write(held: dict[str, tuple[int, ...]]) -> None:
        entries = [
            (name, shape[::-1], 0, bytes(4 * shape[0] * (shape[1] if shape[1:] else 1)))
            for name, shape in held.items()
        ]
        path.write_bytes(gguf_bytes(fields, entries))

    write(tensors)
    load_model(path)
    for name, shape, message in (
        ("blk.1.ffn_up.weight", (d, wide), r"ffn_up\.weight must be \[512, 256\], not \[256, 512"),
        ("blk.1.ffn_norm.weight", (wide,), r"blk\.1\.ffn_norm\.weight must be \[256\], not \[512"),
        ("blk.1.attn_v.weight", None, r"has no tensor blk\.1\.attn_v\.weight: copy the model"),
        ("blk.0.attn_norm.weight", None, r"has no tensor blk\.0\.attn_norm\.weight: copy the mo"),
    ):
        changed = dict(tensors)
        del changed[name]
        write(changed if shape is None else {**changed, name: shape})
        with pytest.raises(LutraError, match=message):
            LLM(path, "cpu")


def test_of_parts(tmp_path: Path, idle: Path) -> None:
    write_gguf(tmp_path / "otter.gguf", KNOWN, "Q8_0", split_max_tensors=10)
    first, second, *_ = sorted(tmp_path.glob("otter-*"))
    second.unlink()
    with pytest.raises(LutraError, match=rf"{first} is one of \d parts, and {second} is missing"):
        LLM(first, "cpu")


def test_of_a_folder(tmp_path: Path, idle: Path) -> None:
    good = write_model(tmp_path / "good", LLAMAS["llama-whole"])
    text = (good / "config.json").read_text(encoding="utf-8")
    for old, new, message in (
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3', r"no tensor model\.layers\.2\.self"),
        ('"intermediate_size": 128', '"intermediate_size": 192', r"layers\.0\.mlp\.gate_proj\.w"),
    ):
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(LutraError, match=message):
            LLM(folder, "cpu")
