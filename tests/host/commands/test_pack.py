"""lutra quantize, pack and show: every method, interrupts, and what is refused."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.host.models.small_models import write_variant
from tests.host.packed_models import assert_same
from tests.host.random_model import Shape, write_model, write_tokenizer

from lutra.commands.cli import main
from lutra.commands.show import packed_figures
from lutra.models import load_model
from lutra.packed.file import is_packed, open_packed
from lutra.packed.layers import LayerSizes
from lutra.packed.store import PackedStore, is_unfinished
from lutra.quantize.driver import METHODS
from lutra.quantize.pack import pack_model
from lutra.text.tokenizer import Tokenizer, copy_tokenizer
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS

TALE = Path(__file__).parent.parent / "data/tale.txt"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
SHAPE = Shape(
    llama=True,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
CALIB = ["--calib", str(TALE), "--calib-windows", "4"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("pack") / "otter", SHAPE)


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("pack") / "beaver", replace(SHAPE, llama=False))


def fails(capsys: Capture, *arguments: object) -> str:
    """Run a command that cannot succeed; return the one line that it says, behind notes."""
    assert main(list(map(str, arguments))) == 2
    output = capsys.readouterr()
    *notes, line = output.err.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert output.out == ""
    return line.removeprefix("error: ")


def quantize(source: Path, out: Path, *options: str) -> PackedModel:
    arguments = ["quantize", str(source), "-o", str(out), "--group", "32", *options]
    assert main(arguments) == 0
    return open_packed(out).model


def same_bytes(a: Path, b: Path) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in FILES)


# -- what is written


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    options = ["--format", "w3a8", "--method", method, *(CALIB if METHODS[method] else [])]
    model = quantize(source, out, *options)
    assert (model.format, model.group, model.name) == ("W3A8", 32, "otter")
    assert not is_unfinished(out)
    output = capsys.readouterr()
    fingerprint = open_packed(out).fingerprint
    size = sum((out / name).stat().st_size for name in FILES[:2])
    assert output.out == f"{out}: otter in W3A8, {size:,} bytes, fingerprint {fingerprint}\n"
    plain = pack_model(load_model(source), Format.parse("W3A8"), 32)
    a, b = (each.layers[0].down_proj.weights.codes for each in (model, plain))
    assert np.array_equal(a, b) == (method == "rtn")
    # and once more, over what is there
    before = [(out / name).read_bytes() for name in FILES]
    quantize(source, out, *options)
    assert before == [(out / name).read_bytes() for name in FILES]


def test_pack_takes_a_model_as_it_is(ternary: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["pack", str(ternary), "-o", str(out)]) == 0
    assert_same(open_packed(out).model, pack_model(load_model(ternary)))


def test_pack_in_a_format(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    command = ["pack", str(source), "-o", str(out), "--format", "W6A16", "--group", "64", "--json"]
    assert main([*command, "-c", "20"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["format"], figures["context"], figures["layers"]) == ("W6A16", 20, 2)
    expected = pack_model(load_model(source).limited(20), Format.parse("W6A16"), 64)
    assert_same(open_packed(out).model, expected)


def test_a_cache_of_four_bits(source: Path, tmp_path: Path) -> None:
    """The layers are those of eight bits."""
    out, options = tmp_path / "out", ["--method", "gptq", *CALIB]
    eight, four = (
        quantize(source, tmp_path / "eight", *options),
        quantize(source, out, *options, "--kv", "4"),
    )
    assert (eight.kv, four.kv) == ("8", "4")
    assert_same(replace(four, key_bits=8, value_bits=8), eight)
    assert open_packed(out).fingerprint != open_packed(tmp_path / "eight").fingerprint
    assert main(["pack", str(source), "-o", str(out), "--kv", "4"]) == 0
    assert_same(open_packed(out).model, pack_model(load_model(source), kv_bits=4))


def test_activations_in_groups(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out, groups = tmp_path / "out", ActivationGroups(size=64)
    assert main(["pack", str(source), "-o", str(out), "--a-group", "64"]) == 0
    assert_same(open_packed(out).model, pack_model(load_model(source), a_groups=groups))
    assert packed_figures(open_packed(out))["activation_group"] == 64
    assert main(["pack", str(source), "-o", str(out), "--a-group", "64", "--format", "W4A16"]) == 2
    assert "activations of 16 bits need no groups: leave --a-group out" in capsys.readouterr().err


def test_a_budget_and_its_table(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    model = quantize(source, out, "--method", "gptq", "--bits-budget", "3.5", *CALIB)
    output = capsys.readouterr().out
    assert "bits chosen by measured sensitivity" in output
    lines = [line for line in output.splitlines() if re.match(r" +\d", line)]
    assert len(lines) == 2
    for i, line in enumerate(lines):
        layer = model.layers[i]
        stacks = ("q_proj", "o_proj", "gate_proj", "down_proj")
        bits = [layer.linear(name).weights.bits for name in stacks]
        assert list(map(int, re.findall(r"(\d) \(", line))) == bits
    sizes = [model.layers[i].linear(name).weights for i in range(2) for name in LINEARS]
    mean = sum(w.bits * w.codes.size for w in sizes) / sum(w.codes.size for w in sizes)
    assert 3 < mean <= 3.5
    assert model.format == f"W{mean:.2f}".rstrip("0").rstrip(".") + "A8"


def test_the_calibration_text_decides(source: Path, tmp_path: Path) -> None:
    found = [
        open_packed(tmp_path / str(i)).fingerprint
        for i, seed in enumerate(("0", "0", "1"))
        if quantize(source, tmp_path / str(i), "--method", "gptq", "--seed", seed, *CALIB)
    ]
    assert found[0] == found[1] != found[2]


# -- interrupts


class Interrupted:
    """Interrupts the saving of a layer; counts those that are saved."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None) -> None:
        self.saved: list[int] = []
        save = PackedStore.save

        def counted(store: PackedStore, i: int, layer: Any) -> None:
            if i == at:
                raise KeyboardInterrupt
            self.saved.append(i)
            save(store, i, layer)

        patch.setattr(PackedStore, "save", counted)


@pytest.fixture
def interrupt() -> Iterator[Callable[[int | None], Interrupted]]:
    """Interrupts the next runs at a layer; None lets them be."""
    with pytest.MonkeyPatch.context() as patch:

        def begin(at: int | None) -> Interrupted:
            patch.undo()
            return Interrupted(patch, at)

        yield begin


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "w4a8"],
        ["--format", "w3a8", "--method", "gptq", "--act-order", *CALIB],
        ["--bits-budget", "3.5", "--method", "awq", *CALIB],
    ],
)
def test_an_interrupted_run_goes_on(
    options: list[str],
    source: Path,
    tmp_path: Path,
    interrupt: Callable[[int | None], Interrupted],
    capsys: Capture,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    quantize(source, whole, *options)
    capsys.readouterr()
    command = ["quantize", str(source), "-o", str(out), "--group", "32", *options]
    interrupt(1)
    assert main(command) == 130
    output = capsys.readouterr()
    assert output.err.splitlines()[-1] == "interrupted: run the same command again to resume"
    assert output.out == ""
    assert is_unfinished(out)
    assert not is_packed(out)
    for use in (
        ["show", out],
        ["run", "-dev", "golden", "-m", out],
        ["verify", out, "--against", source],
    ):
        assert fails(capsys, *use) == (
            f"{out} is not packed to the end, because that was interrupted: run the same command "
            "(lutra pack or lutra quantize) again to finish it"
        )
    resumed = interrupt(None)
    assert main(command) == 0
    assert resumed.saved == [1]
    assert same_bytes(whole, out)
    assert not is_unfinished(out)


def test_other_settings_begin_again(
    source: Path, tmp_path: Path, interrupt: Callable[[int | None], Interrupted]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    quantize(source, whole, "--format", "w3a8")
    interrupt(1)
    assert main(["quantize", str(source), "-o", str(out), "--group", "32"]) == 130
    resumed = interrupt(None)
    quantize(source, out, "--format", "w3a8")
    assert resumed.saved == [0, 1]
    assert same_bytes(whole, out)
    # what the first settings left is gone
    assert not is_unfinished(out)


def test_another_version_begins_again(
    source: Path,
    tmp_path: Path,
    interrupt: Callable[[int | None], Interrupted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Layers of another format would lie beside those of this one."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("lutra.commands.pack.VERSION", 5)
        interrupt(1)
        assert main(["quantize", str(source), "-o", str(out), "--group", "32"]) == 130
    resumed = interrupt(None)
    quantize(source, out)
    assert resumed.saved == [0, 1]


def test_a_source_that_changed_begins_again(
    tmp_path: Path, interrupt: Callable[[int | None], Interrupted]
) -> None:
    source, out = write_model(tmp_path / "model", SHAPE), tmp_path / "out"
    command = ["quantize", str(source), "-o", str(out)]
    interrupt(1)
    assert main(command) == 130
    write_model(source, SHAPE, seed=2)
    resumed = interrupt(None)
    assert main(command) == 0
    assert resumed.saved == [0, 1]


# -- what is refused


def test_two_at_a_time(source: Path, tmp_path: Path, capsys: Capture) -> None:
    """One of them; it does not find that the other one has touched its folder."""
    out = tmp_path / "out"
    sizes = LayerSizes(hidden=64, intermediate=128, q=64, kv=32, head_dim=32)
    with PackedStore(out, {}, sizes).held():
        assert fails(capsys, "quantize", source, "-o", out) == (
            f"another process packs a model to {out}: wait until it is done, or give another folder"
        )
        assert list(out.iterdir()) == []
    assert not out.exists()
    quantize(source, out)


def test_a_checkpoint_that_is_refused_midway(
    source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves nothing, for no other run could go on; what was there before stays."""

    def refused(*_: object) -> None:
        raise LutraError("a layer holds infinities: convert the model again")

    monkeypatch.setattr("lutra.commands.pack.write_packed", refused)
    out = tmp_path / "out"
    assert fails(capsys, "pack", source, "-o", out).startswith("a layer holds infinities")
    assert not out.exists()
    (out / ".partial-1").mkdir(parents=True)
    assert fails(capsys, "pack", source, "-o", out).startswith("a layer holds infinities")
    assert [each.name for each in out.iterdir()] == [".partial-1"]


def test_a_disk_that_is_full(
    source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said names the folder, and the run goes on when there is room."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    quantize(source, whole)
    capsys.readouterr()
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr("lutra.packed.file.write_safetensors", full)
        said = fails(capsys, "quantize", source, "-o", out, "--group", "32")
        assert said == f"{out}: No space left on device: free some space"
        assert not is_packed(out)
    quantize(source, out)
    assert same_bytes(whole, out)


def test_a_folder_of_something_else(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    expected = f"{out} exists and is not a packed model: give another folder"
    assert fails(capsys, "pack", source, "-o", out) == expected
    assert [each.name for each in out.iterdir()] == ["thesis.txt"]
    assert fails(capsys, "pack", source, "-o", source).startswith(f"{source} exists and is not a")
    file = out / "thesis.txt"
    assert fails(capsys, "pack", source, "-o", file).startswith(f"{file} exists and is not a")


def test_a_folder_that_can_not_be_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Seen before a model is quantised for it."""
    monkeypatch.setattr("lutra.commands.pack.load_model", None)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert fails(capsys, "pack", source, "-o", out) == (
        f"-o {out} cannot be written (Not a directory): give another folder"
    )


def test_the_name_goes_along(source: Path, tmp_path: Path, capsys: Capture) -> None:
    model = quantize(source, tmp_path / "out")
    assert model.name == "otter"
    capsys.readouterr()
    assert main(["show", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "otter"


def test_a_packed_model_and_an_empty_folder_are_overwritten(
    source: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["pack", str(source), "-o", str(out), "--format", "w3a8"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["pack", str(source), "-o", str(out), "--format", "w2a8"]) == 0
    assert capsys.readouterr().err == f"note: the packed model in {out} is replaced\n"
    assert open_packed(out).model.format == "W2A8"


def test_a_method_that_changes_nothing_is_said(
    ternary: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(ternary), "-o", str(out), "--method", "gptq"]) == 0
    assert capsys.readouterr().err == (
        "note: the weights of beaver are integers already and stay as they are: --method gptq "
        "changes nothing\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format", "w5a8"],
            r"argument --format: format must be one of W1A8, .*, not 'w5a8': see lutra qu",
        ),
        (
            ["--format", "w1.58a8"],
            r"the weights of otter are not ternary, .*: use format W1A8, .*",
        ),
        (["--method", "gptq"], "--method gptq needs a calibration text: give one with --calib FI"),
        (
            ["--bits-budget", "3"],
            "--bits-budget needs a calibration text: give one with --calib FILE",
        ),
        (
            ["--act-order"],
            "--act-order is an option of gptq, not of rtn: leave it out or use gptq",
        ),
        (["--method", "magic"], "argument --method: invalid choice: 'magic' .*"),
        (["--group", "48"], "argument --group: invalid choice: 48 .*"),
        (["-c", "33"], "the context must be at most 32, the limit of otter, not 33"),
        (
            ["--calib", "no-such.txt"],
            "no-such.txt: No such file or directory: give one that exists",
        ),
    ],
)
def test_options_that_can_not_be(
    options: list[str], message: str, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert re.match(message, fails(capsys, "quantize", source, "-o", out, *options))
    assert not out.exists()


def test_ternary_weights_have_their_bits(ternary: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    text = fails(capsys, "quantize", ternary, "-o", out, "--bits-budget", "3", *CALIB)
    assert text.startswith("--bits-budget is for weights in floating point, not for ternary ones")
    text = fails(capsys, "quantize", ternary, "-o", out, "--format", "w4a8")
    assert text.endswith("use format W1.58A8, not W4A8")
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"otter", b"K\xf6nig"])
def test_a_calibration_text_that_can_not_be(
    content: bytes, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = tmp_path / "text"
    text.write_bytes(content)
    options = ["--method", "gptq", "--calib", text]
    found = fails(capsys, "quantize", source, "-o", tmp_path / "out", *options)
    if content.startswith(b"K"):
        assert found == f"{text} is not UTF-8 text: convert it first"
    else:
        n = len(content)
        assert found.startswith(f"the calibration text has {n} tokens, a window takes 31: give a")


def test_a_model_that_is_packed_already(source: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["pack", str(source), "-o", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    text = fails(capsys, "pack", tmp_path / "a", "-o", tmp_path / "b")
    assert text == f"{tmp_path / 'a'} is packed already: give the checkpoint it was made from"


def test_a_model_without_a_tokenizer(tmp_path: Path, capsys: Capture) -> None:
    source = write_variant(tmp_path / "model", "llama")
    text = fails(capsys, "pack", source, "-o", tmp_path / "out")
    assert text.startswith(f"{source}/tokenizer.json does not exist: the model folder must hold")
    assert not (tmp_path / "out").exists()


# -- the tokenizer beside it


def test_the_tokenizer_goes_along(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert main(["pack", str(source), "-o", str(tmp_path / "out")]) == 0
    (source / "tokenizer_config.json").unlink()
    model = open_packed(tmp_path / "out").model
    copied, original = Tokenizer.open(tmp_path / "out", model.bos), Tokenizer.open(source, 0)
    assert copied.chat_template == "{{ messages }}"
    assert copied.encode("the king") == original.encode("the king")


def test_files_of_another_tokenizer_go(tmp_path: Path) -> None:
    a, out = tmp_path / "a", tmp_path / "out"
    for folder in (a, out):
        folder.mkdir()
    (out / "tokenizer.model").write_text("of another model")
    (out / "generation_config.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    write_tokenizer(a)
    copy_tokenizer(a, out)
    assert sorted(each.name for each in out.iterdir()) == ["notes.txt", "tokenizer.json"]


def test_the_vocabulary_of_a_gguf_file_goes_along(tmp_path: Path) -> None:
    gguf_model = pytest.importorskip("tests.host.gguf_model", exc_type=ImportError)
    path, out = tmp_path / "otter.gguf", tmp_path / "out"
    model = gguf_model.MODELS["llama"]
    pieces = ["<unk>", "<s>", "</s>", "\N{LOWER ONE EIGHTH BLOCK}", *"abcdefgh", "ab", "ba"]
    pieces += [f"<{i}>" for i in range(len(pieces), model.vocab_size)]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(model.vocab_size)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (model.vocab_size - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    gguf_model.write_gguf(path, replace(model, fields=fields), "Q8_0")
    assert main(["pack", str(path), "-o", str(out)]) == 0
    packed = open_packed(out).model
    assert packed.format == "W8A8"
    copied, original = Tokenizer.open(out, packed.bos), Tokenizer.open(path)
    assert copied.encode("abba cab") == original.encode("abba cab")
    assert (copied.bos, copied.eos, copied.add_bos) == (original.bos, original.eos, True)
    assert copied.chat_template == original.chat_template
    with pytest.raises(FileNotFoundError):
        copy_tokenizer(path, tmp_path / "none")


# -- show


def shown(capsys: Capture, path: object) -> tuple[dict[str, Any], str]:
    """Output of ``lutra show``, as JSON and as a table."""
    capsys.readouterr()
    assert main(["show", str(path), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert main(["show", str(path)]) == 0
    return figures, capsys.readouterr().out


def test_show_of_a_packed_model(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    quantize(source, out, "--format", "w4a8")
    figures, table = shown(capsys, out)
    opened = open_packed(out)
    assert figures["fingerprint"] == opened.fingerprint
    assert figures["file_bytes"] == opened.n_bytes
    n = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 128)
    assert figures["weights"] == n
    # rows of blocks of 128 weights, a byte of scale and two of zero point in each group of 32
    packed = 2 * (2 * 64 + 2 * 32 + 2 * 128 + 64) * 64
    assert figures["weight_bytes"] == packed + n // 32 * 3
    assert figures["bits_per_weight"] == round(8 * figures["weight_bytes"] / n, 3)
    first = figures["matrices"][0]
    linear = opened.model.layers[0].q_proj
    assert (first["matrix"], first["rows"], first["depth"]) == ("0.q_proj", 64, 64)
    assert (first["bits"], first["group"], first["shift"]) == (4, 32, linear.shift)
    assert first["scales"] == f"{linear.weights.scale.min()}..{linear.weights.scale.max()}"
    assert len(figures["matrices"]) == 14
    rows = [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]
    assert ["fingerprint", opened.fingerprint] in rows
    assert ["bits per weight", str(figures["bits_per_weight"])] in rows
    assert ["weights", f"{n:,}"] in rows
    assert next(row for row in rows if row[0] == "1.down_proj")[1:5] == ["64", "128", "4", "32"]


def test_show_of_a_ternary_model(ternary: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["pack", str(ternary), "-o", str(tmp_path / "out")]) == 0
    figures, table = shown(capsys, tmp_path / "out")
    assert figures["format"] == "W1.58A8"
    assert (figures["matrices"][0]["bits"], figures["matrices"][0]["group"]) == ("1.58", None)
    assert re.search(r"0\.q_proj +64 +64 +1\.58 +- ", table)


def test_show_of_checkpoints(source: Path, ternary: Path, tmp_path: Path, capsys: Capture) -> None:
    figures, table = shown(capsys, source)
    assert (figures["file"], figures["weights_are"]) == ("safetensors", "float32")
    assert (figures["runs_by_default_in"], figures["layers"]) == ("W8A8g32", 2)
    assert figures["file_bytes"] == (source / "model.safetensors").stat().st_size
    assert re.search(r"runs by default in +W8A8g32 ", table)
    figures, _ = shown(capsys, ternary)
    assert (figures["weights_are"], figures["runs_by_default_in"]) == ("ternary", "W1.58A8")
    gguf_model = pytest.importorskip("tests.host.gguf_model", exc_type=ImportError)
    gguf_model.write_gguf(tmp_path / "x.gguf", gguf_model.MODELS["qwen3"], "Q4_0")
    figures, table = shown(capsys, tmp_path / "x.gguf")
    assert (figures["file"], figures["architecture"]) == ("GGUF", "Qwen3ForCausalLM")
    assert figures["weights_are"] == "4 bits in groups of 32"
    (kind,) = figures["types"]
    assert (kind["type"], kind["matrices"], kind["bits"]) == ("Q4_0", 14, 4.5)
    assert kind["weights"] == figures["weights"]
    assert (figures["embedding"], figures["head"]) == ("F16: int16", "F16: five trits")
    gguf_model.write_gguf(tmp_path / "coded.gguf", gguf_model.MODELS["qwen3"], "Q4_0", outer="Q5_0")
    coded, _ = shown(capsys, tmp_path / "coded.gguf")
    assert coded["embedding"] == "Q5_0: codes and scales, int16 on boards and engine ternary"
    assert coded["head"] == "Q5_0: codes and scales, five trits on boards and engine ternary"
    assert re.search(r"^Q4_0 +14 +\d+ +4\.5 +W4 in groups of 32 +codes and scales$", table, re.M)


def test_show_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    text = fails(capsys, "show", tmp_path / "nowhere")
    assert "is neither a folder nor a shipped model" in text
