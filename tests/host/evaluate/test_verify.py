"""lutra verify: what is the same model passes, and the first part that is not is named."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.host.packed_models import Config, Tensors, tamper
from tests.host.random_model import Shape, write_model

from lutra.commands.cli import main
from lutra.evaluate import verify as module
from lutra.evaluate.verify import PartError, Verification, transformers_run, verify
from lutra.models import load_model
from lutra.packed.file import open_packed

SHAPE = Shape(
    llama=True,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
BITNET = replace(SHAPE, llama=False, hidden_size=128, options={"model_type": "bitnet"})
PROMPT = "the king and the thief"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("verify") / "otter", SHAPE)


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("verify") / "beaver", BITNET)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is run by Lutra, as where transformers is not installed."""
    monkeypatch.setattr(module, "transformers_run", lambda *_: None)


def packed(source: Path, out: Path, format: str = "W8A8", *options: str) -> Path:
    command = ["pack", str(source), "-o", str(out), "--group", "32", "--format", format]
    assert main([*command, *options]) == 0
    return out


def verified(
    capsys: Capture, model: Path, source: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    command = ["verify", str(model), "--against", str(source), "-p", PROMPT, "--json", *options]
    code = main(command)
    return code, json.loads(capsys.readouterr().out)


# -- what is the same


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("format", ["W1A8", "W2A8", "W3A8", "W4A8", "W6A8", "W8A8", "W4A16"])
def test_every_format_is_within_its_limits(
    format: str, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = packed(source, tmp_path / "out", format)
    code, found = verified(capsys, model, source)
    # one bit is named with the size of its groups
    name = "W1g32A8" if format == "W1A8" else format
    assert (code, found["first_over"], found["format"]) == (0, None, name)
    names = [part["name"] for part in found["parts"]]
    assert names == ["embedding", "layer 0", "layer 1", "layer 2", "head"]
    assert 0 <= found["kl"]
    assert 0 <= found["top1"] <= 1
    assert found["runner"] == "lutra in floating point"
    parts = ["weights", "activations", "queries and keys", "values", "head", "all together"]
    assert list(found["losses"]) == parts
    if format == "W8A8":
        assert found["logits"] < 0.05
        assert found["kl"] < 0.01
        assert all(part["own"] < 0.03 for part in found["parts"])


@pytest.mark.usefixtures("alone")
def test_a_cache_of_four_bits(source: Path, tmp_path: Path, capsys: Capture) -> None:
    model = packed(source, tmp_path / "out", "W8A8", "--kv", "8/4")
    code, found = verified(capsys, model, source)
    assert (code, found["first_over"]) == (0, None)
    layers = found["parts"][1:-1]
    assert all(part["limit"] == 0.3 and 0.02 < part["own"] for part in layers)


@pytest.mark.usefixtures("alone")
def test_a_ternary_model(ternary: Path, tmp_path: Path, capsys: Capture) -> None:
    model = packed(ternary, tmp_path / "out", "W1.58A8")
    code, found = verified(capsys, model, ternary)
    assert (code, found["first_over"]) == (0, None)
    assert all(part["own"] < 0.01 for part in found["parts"][:-1])


@pytest.mark.usefixtures("alone")
def test_limits_follow_the_bits_of_a_layer(source: Path, tmp_path: Path, capsys: Capture) -> None:
    text = Path(__file__).parent.parent / "data/tale.txt"
    out = tmp_path / "out"
    command = ["quantize", str(source), "-o", str(out), "--group", "32", "--bits-budget", "2.7"]
    assert main([*command, "--calib", str(text), "--calib-windows", "2"]) == 0
    _, found = verified(capsys, out, source)
    model = open_packed(out).model
    limits = {2: 1.0, 3: 0.6, 4: 0.3}
    for i, part in enumerate(found["parts"][1:-1]):
        layer = model.layers[i]
        stacks = ("q_proj", "o_proj", "gate_proj", "down_proj")
        assert part["limit"] == limits[min(layer.linear(name).weights.bits for name in stacks)]


@pytest.mark.usefixtures("alone")
def test_the_table(source: Path, tmp_path: Path, capsys: Capture) -> None:
    model = packed(source, tmp_path / "out", "W4A8")
    capsys.readouterr()
    assert main(["verify", str(model), "--against", str(source), "-p", PROMPT]) == 0
    text = capsys.readouterr().out
    assert "relative errors, measured; the checkpoint was run by lutra in floating point" in text
    assert "which also reads the packed model: a fault of reading the checkpoint does not" in text
    assert re.search(
        r"^queries and keys +[\d.]+ \+/- [\d.]+ +[+-][\d.]+% \+/- ", text, re.MULTILINE
    )
    assert re.search(r"^layer 2 +0\.\d{4} +0\.3000 +0\.\d{4} +0\.\d{4}$", text, re.M)
    assert re.search(r"^embedding +0\.\d{4} +0\.1000 +- +-$", text, re.M)
    assert re.search(r"^logits: RMS error 0\.\d{4} of their standard deviation$", text, re.M)
    assert re.search(r"^top-1 agreement: \d+\.\d% of \d+ tokens$", text, re.M)
    assert re.search(r"^KL divergence: 0\.\d{5} nats$", text, re.M)
    assert text.endswith("all parts are within their limits\n")


@pytest.mark.parametrize("kind", ["llama", "bitnet"])
def test_the_source_by_transformers(
    kind: str, source: Path, ternary: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Its states and logits are those of our own forward pass, which is another program."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = source if kind == "llama" else ternary
    tokens = np.array([0, 5, 40, 7, 100, 33])
    run = transformers_run(path, tokens)
    assert run is not None
    states, logits = run
    expected, whole = module.run_source(load_model(path), tokens)
    assert len(states) == len(expected) == 3
    for found, state in zip([*states, logits], [*expected, whole], strict=True):
        np.testing.assert_allclose(found, state, atol=0.02 * np.abs(state).max())
    model = packed(path, tmp_path / "out", "W8A8" if kind == "llama" else "W1.58A8")
    code, figures = verified(capsys, model, path)
    assert (code, figures["runner"]) == (0, "transformers")


def test_what_transformers_does_not_read_is_run_without(tmp_path: Path) -> None:
    assert transformers_run(tmp_path / "no-folder.gguf", np.array([0, 1])) is None
    (tmp_path / "config.json").write_text('{"model_type": "otter"}')
    assert transformers_run(tmp_path, np.array([0, 1])) is None


# -- what is not


def rows_of(name: str, order: Callable[[int], np.ndarray]) -> Callable[[Tensors], None]:
    """The rows of a matrix in another order, with their scales and zero points."""

    def change(tensors: Tensors) -> None:
        for part in ("codes", "scale", "zero"):
            values = tensors.get(f"{name}.{part}")
            if values is not None:
                tensors[f"{name}.{part}"] = values[order(len(values))]

    return change


def reversed_rows(n: int) -> np.ndarray:
    return np.arange(n)[::-1]


def interleaved(n: int) -> np.ndarray:
    """The rows of heads of 32 as GGUF files have them: a pair of a rotation side by side."""
    return np.arange(n).reshape(-1, 2, 16).swapaxes(1, 2).ravel()


def missed_permutation(tensors: Tensors) -> None:
    for name in ("q_proj", "k_proj"):
        rows_of(f"layers.1.{name}", interleaved)(tensors)


def inverted(name: str) -> Callable[[Config], None]:
    """A scale ``m * 2**e`` is taken for its inverse."""

    def change(content: Config) -> None:
        scale = content["layers"][1][name]["scale"]
        scale[:] = [round(2**31 / scale[0]), -31 - scale[1]]

    return change


def doubled_scale(content: Config) -> None:
    content["layers"][1]["o_proj"]["scale"][1] += 1


DAMAGES: dict[str, dict[str, Callable[[Any], None]]] = {
    "rows in another order": {"tensors": rows_of("layers.1.up_proj", reversed_rows)},
    "an inverted scale": {"config": inverted("down_proj")},
    "a scale of another power": {"config": doubled_scale},
    "the permutation of queries and keys missed": {"tensors": missed_permutation},
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["W4A8", "W8A8", "ternary"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_first_part_that_is_wrong_is_named(
    damage: str, kind: str, source: Path, ternary: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = ternary if kind == "ternary" else source
    model = packed(path, tmp_path / "out", "W1.58A8" if kind == "ternary" else kind)
    assert verified(capsys, model, path)[0] == 0
    tamper(model, **DAMAGES[damage])
    code, found = verified(capsys, model, path)
    assert code == 1
    assert found["first_over"].startswith("layer 1: ")
    assert found["parts"][1]["own"] < found["parts"][1]["limit"]
    assert main(["verify", str(model), "--against", str(path), "-p", PROMPT]) == 1
    assert "first part over its limit: layer 1: " in capsys.readouterr().out


@pytest.mark.usefixtures("alone")
def test_two_rows_that_were_swapped(source: Path, tmp_path: Path, capsys: Capture) -> None:
    """A small fault shows beside a limit that is as small."""

    def swapped(n: int) -> np.ndarray:
        rows = np.arange(n)
        rows[[3, 4]] = [4, 3]
        return rows

    model = packed(source, tmp_path / "out", "W8A8")
    assert verified(capsys, model, source, "--limit", "0.03")[0] == 0
    tamper(model, tensors=rows_of("layers.2.gate_proj", swapped))
    code, found = verified(capsys, model, source, "--limit", "0.03")
    assert code == 1
    assert re.fullmatch(
        r"layer 2: 0\.\d{3} off the checkpoint, more than 0\.03", found["first_over"]
    )


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("part", ["embedding", "head"])
def test_rows_of_the_vocabulary(part: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    model = packed(source, tmp_path / "out")

    def change(tensors: Tensors) -> None:
        tensors[part] = tensors[part][::-1]

    tamper(model, tensors=change)
    code, found = verified(capsys, model, source)
    assert code == 1
    assert found["first_over"].startswith(f"{part}: ")


def test_the_first_fault_counts() -> None:
    fine = PartError(name="a", own=0.01, limit=0.1, total=0.2, integer=0.02)
    integer = replace(fine, name="b", integer=0.3)
    rounded = replace(fine, name="c", own=float("nan"))

    def first(*parts: PartError) -> str | None:
        return Verification(
            parts=list(parts), logits=0, top1=1, kl=0, tokens=2, runner="x", losses={}
        ).first_over

    assert first(fine) is None
    assert first(fine, integer, rounded) == (
        "b: the integers are 0.300 off the packed weights, more than 0.1"
    )
    assert first(fine, rounded, integer) == "c: nan off the checkpoint, more than 0.1"


# -- what is refused


def fails(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.usefixtures("alone")
def test_the_default_text_ends_with_the_context(
    source: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = packed(source, tmp_path / "out")
    capsys.readouterr()
    assert main(["verify", str(model), "--against", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 32


def test_arguments_that_can_not_be(source: Path, tmp_path: Path, capsys: Capture) -> None:
    model = packed(source, tmp_path / "out")
    assert fails(capsys, "verify", source, "--against", source) == (
        f"{source} is not a packed model: make one with lutra pack"
    )
    assert fails(capsys, "verify", model, "--against", model) == (
        f"{model} is packed itself: give the checkpoint it was made from"
    )
    for limit in ("0", "-1", "nan"):
        text = fails(capsys, "verify", model, "--against", source, "--limit", limit)
        assert text == (f"argument --limit: must be above 0, not {limit}: see lutra verify --help")
    text = fails(capsys, "verify", model, "--against", source, "-p", "")
    assert text == "the text must have 2 to 32 tokens, not 1: give another one"
    text = fails(capsys, "verify", model, "--against", source, "-p", "king " * 20)
    assert re.fullmatch(r"the text must have 2 to 32 tokens, not \d+: give another one", text)
    assert "is neither a folder" in fails(capsys, "verify", model, "--against", "no-such-model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers 3, {} has 2"),
        ({"intermediate_size": 96}, "intermediate_size 128, {} has 96"),
        ({"num_key_value_heads": 1}, "num_key_value_heads 2, {} has 1"),
        ({"vocab_size": 400}, "vocab_size 304, {} has 400"),
    ],
)
def test_a_source_of_other_sizes(
    change: dict[str, int], message: str, source: Path, tmp_path: Path
) -> None:
    model = open_packed(packed(source, tmp_path / "out")).model
    other = write_model(tmp_path / "other", replace(SHAPE, **change))
    with pytest.raises(module.LutraError) as error:
        verify(model, other, [0, 5, 6])
    assert str(error.value) == (
        f"the packed model has {message.format(other)}: give the checkpoint it was made from"
    )
