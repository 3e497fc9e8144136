"""Packed models on disk: the same after a round trip, whole or not there, and nothing that lies."""

import json
import random
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.host.packed_models import (
    Config,
    Tensors,
    assert_same,
    golden_logits,
    rehash,
    store_for,
    tamper,
    write,
)
from tests.host.quantize.random_decoder import (
    GROUP,
    VARIANTS,
    in_products,
    random_decoder,
    random_tokens,
)

from lutra.checkpoints.weights import Dense, Grouped, Weight
from lutra.models.decoder import Decoder, DecoderLayer
from lutra.packed.file import is_packed, open_packed, write_packed
from lutra.packed.store import is_unfinished
from lutra.quantize.driver import Recipe, quantize_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedLayer, PackedModel
from lutra_golden.model.shapes import LINEARS, Gate

Get = Callable[[str], PackedModel]
FILES = ("config.json", "model.safetensors")


def widened(model: PackedModel) -> PackedModel:
    """The same model with group scales of 16 bits."""

    def layer(layer: PackedLayer) -> PackedLayer:
        w = layer.down_proj.weights
        wide = GroupedWeights(
            codes=w.codes, scale=w.scale * 200, zero=w.zero, bits=w.bits, group=w.group
        )
        shift = layer.down_proj.shift + 8
        return replace(layer, down_proj=replace(layer.down_proj, source=wide, shift=shift))

    return replace(model, layers=[layer(each) for each in model.layers], scale_bits=16)


def with_offsets() -> Decoder:
    """A checkpoint whose groups have codes of four bits and offsets, as Q4_K's."""
    model, rng = random_decoder(), np.random.default_rng(8)
    layers = list[DecoderLayer]()
    for layer in model.layers:
        parts = dict[str, Weight]()
        for name in LINEARS:
            n, k = layer.linear(name).shape
            scale = rng.uniform(0.01, 0.02, (n, k // GROUP)).astype(np.float32)
            parts[name] = Grouped(
                codes=rng.integers(0, 16, (n, k)).astype(np.uint8),
                scale=scale,
                zero=np.zeros_like(scale),
                bits=4,
                group=GROUP,
                offset=-(7.3 * scale).astype(np.float32),
            )
        layers.append(replace(layer, **parts))
    return replace(model, layers=layers)


def in_five_bits() -> Decoder:
    """A checkpoint in groups of five bits about one of two zero points, as Q5_0's: the signs of the
    scales decide which, in one layer they are all the same."""
    model, rng = random_decoder(), np.random.default_rng(9)
    layers = list[DecoderLayer]()
    for i, layer in enumerate(model.layers):
        parts = dict[str, Weight]()
        for name in LINEARS:
            n, k = layer.linear(name).shape
            size = (n, k // GROUP)
            signs = rng.choice([-1, 1], size) if i else 1
            scale = (signs * rng.uniform(0.01, 0.02, size)).astype(np.float32)
            parts[name] = Grouped(
                codes=rng.integers(0, 32, (n, k)).astype(np.uint8),
                scale=scale,
                zero=np.full_like(scale, 16),
                bits=5,
                group=GROUP,
            )
        layers.append(replace(layer, **parts))
    return replace(model, layers=layers)


@pytest.fixture(scope="module")
def models() -> dict[str, PackedModel]:
    """Small models of every kind."""
    found = {
        name: pack_model(random_decoder(**options), Format(w_bits=4, a_bits=8), GROUP)
        for name, options in VARIANTS.items()
    }
    # squared ReLU is for ternary weights: accumulators of others are too wide for it
    silu = random_decoder(**VARIANTS["sub-norms"] | {"gate": Gate.SILU})
    found["sub-norms"] = pack_model(silu, Format(w_bits=4, a_bits=8), GROUP)
    for bits in (1, 2, 3, 6, 8):
        format = Format(w_bits=bits, a_bits=16 if bits == 6 else 8)
        found[str(format)] = pack_model(random_decoder(), format, GROUP)
    source = random_decoder(**VARIANTS["biases"])
    recipe = Recipe(format=Format(w_bits=4, a_bits=8), group=GROUP, bits_budget=3.5)
    found["mixed"] = quantize_model(source, recipe, random_tokens(source, 2, 16))
    found["wide scales"] = widened(found["llama"])
    found["offsets"] = pack_model(with_offsets(), None, GROUP, offsets=True)
    groups = ActivationGroups(size=64, shift_max=3)
    found["grouped activations"] = pack_model(
        random_decoder(), Format(w_bits=4, a_bits=8), GROUP, a_groups=groups
    )
    decoder = random_decoder(qk_norm=True)
    found["coded"] = pack_model(decoder, Format(w_bits=4, a_bits=8), GROUP, head_bits=4)
    untied = replace(decoder, lm_head=Dense(decoder.embed_tokens.dequantized()[::-1]))
    found["coded apart"] = pack_model(untied, Format(w_bits=8, a_bits=8), GROUP, head_bits=8)
    ternary = Format(w_bits=2, a_bits=8, ternary=True, group=GROUP)
    found["trits"] = pack_model(random_decoder(), ternary, GROUP)
    found["five bits"] = pack_model(in_five_bits(), None, GROUP)
    found["two levels"] = pack_model(in_products(), None, GROUP, offsets=True, head_bits=8)
    return found


KINDS = [*VARIANTS, "W1A8", "W2A8", "W3A8", "W6A16", "W8A8", "mixed", "wide scales"]
KINDS += ["offsets", "grouped activations", "coded", "coded apart", "trits", "five bits"]
KINDS += ["two levels"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip(kind: str, models: dict[str, PackedModel], tmp_path: Path) -> None:
    model, out = models[kind], tmp_path / "otter"
    fingerprint = write(out, model)
    assert sorted(each.name for each in out.iterdir()) == sorted(FILES)
    assert is_packed(out)
    opened = open_packed(out)
    assert (
        opened.fingerprint == fingerprint == json.loads((out / FILES[0]).read_text())["fingerprint"]
    )
    assert opened.n_bytes == sum((out / name).stat().st_size for name in FILES)
    assert opened.model.name == model.name
    assert_same(model, opened.model)
    tokens = random_tokens(random_decoder(), 1, 11)[0].tolist()
    np.testing.assert_array_equal(golden_logits(model, tokens), golden_logits(opened.model, tokens))


def test_codes_of_embedding_and_head(models: dict[str, PackedModel], tmp_path: Path) -> None:
    """A tied matrix is in the file once; there are no arrays of the other kind."""
    for kind, parts in (("coded", ["embedding"]), ("coded apart", ["embedding", "head"])):
        write(tmp_path / kind, models[kind])
        names = load_file(tmp_path / kind / FILES[1])
        found = sorted(name for name in names if name.startswith("vocabulary."))
        assert found == [
            f"vocabulary.{part}.{each}" for part in parts for each in ("codes", "scale")
        ]
        assert not {"embedding", "head", "head_rows"} & set(names)
        opened = open_packed(tmp_path / kind).model.vocabulary
        assert opened is not None and opened.tied is (kind == "coded")


def test_ternary_weights_in_groups_have_two_bits(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    model = models["trits"]
    assert (model.format, model.ternary, model.w_bits) == ("W1.58g32A8", False, 2)
    write(tmp_path / "out", model)
    tensors = load_file(tmp_path / "out" / FILES[1])
    codes = tensors["layers.0.gate_proj.codes"]
    assert codes.shape == (96, 128 * 2 // 8)
    # one zero point for all, which is a number of the configuration
    assert not any(name.endswith(".zero") for name in tensors)


def test_five_bits_and_two_zero_points(models: dict[str, PackedModel], tmp_path: Path) -> None:
    """Codes take five bits, zero points of a matrix one or two numbers and a bit for each group."""
    model = models["five bits"]
    assert model.w_bits == 6 and "W6A" in model.format
    write(tmp_path / "out", model)
    tensors = load_file(tmp_path / "out" / FILES[1])
    layers = json.loads((tmp_path / "out" / FILES[0]).read_text())["layers"]
    for i, zero in ((0, 32), (1, [30, 32])):
        assert layers[i]["gate_proj"]["bits"] == 5 and layers[i]["gate_proj"]["zero"] == zero
        assert tensors[f"layers.{i}.gate_proj.codes"].shape == (96, 128 * 5 // 8)
        assert (f"layers.{i}.gate_proj.marks" in tensors) is (i == 1)
    assert tensors["layers.1.gate_proj.marks"].shape == (96, 1)
    assert not any(name.endswith(".zero") for name in tensors)


def test_two_levels_are_records(models: dict[str, PackedModel], tmp_path: Path) -> None:
    """4.5 and 6.625 bits a weight: one array in the place of scales and offsets."""
    write(tmp_path / "out", models["two levels"])
    tensors = load_file(tmp_path / "out" / FILES[1])
    config = json.loads((tmp_path / "out" / FILES[0]).read_text())
    layer, names = config["layers"][1], ("layers.1.gate_proj", "layers.1.down_proj")
    assert layer["gate_proj"]["levels"] == {"bits": 6, "shift": 6}
    assert layer["down_proj"]["levels"] == {"bits": 8, "shift": 7}
    assert layer["gate_proj"]["offset_shift"] is not None
    assert layer["down_proj"]["offset_shift"] is None
    assert tensors[f"{names[0]}.levels"].shape == (256, 1, 16)
    assert tensors[f"{names[1]}.levels"].shape == (256, 1, 18)
    sizes = {
        name: sum(x.nbytes for each, x in tensors.items() if each.startswith(f"{name}."))
        for name in (*names, "vocabulary.embedding")
    }
    assert [8 * n_bytes / (256 * 256) for n_bytes in list(sizes.values())[:2]] == [4.5, 6.625]
    assert 8 * sizes["vocabulary.embedding"] / (96 * 256) == 6.625
    opened = open_packed(tmp_path / "out").model
    for name, n_bytes in zip(("gate_proj", "down_proj"), sizes.values(), strict=False):
        assert opened.layers[1].linear(name).stored.n_bytes == n_bytes
    assert opened.vocabulary is not None
    assert opened.vocabulary.n_bytes == sizes["vocabulary.embedding"]
    assert not any(name.endswith((".scale", ".offset")) for name in tensors)


@pytest.mark.parametrize(
    "zero", [[32, 30], [30, 30], [30], [30, 32, 33], [True, 32], [30, 1 << 16], [-1, 3], "30"]
)
def test_zero_points_that_can_not_be(
    zero: object, models: dict[str, PackedModel], tmp_path: Path
) -> None:
    write(tmp_path / "out", models["five bits"])

    def change(config: dict[str, Any]) -> None:
        config["layers"][1]["q_proj"]["zero"] = zero

    message = refusal(tamper(tmp_path / "out", config=change))
    assert re.match(r"config\.json: layers\.1\.q_proj\.zero must be ", message)
    assert repr(zero) in message


def test_marks_that_can_not_be(models: dict[str, PackedModel], tmp_path: Path) -> None:
    write(tmp_path / "out", models["five bits"])
    wrong = put("layers.1.q_proj.marks", lambda x: x.astype(np.int8))
    assert refusal(tamper(tmp_path / "out", tensors=wrong)).startswith(
        "model.safetensors: layers.1.q_proj.marks must be uint8, not int8: pack the model again"
    )


def test_fraction_bits_are_kept(models: dict[str, PackedModel], tmp_path: Path) -> None:
    model = models["llama"]
    embedding_frac = min(model.embedding_frac, model.residual_frac - 2)
    model = replace(model, residual_frac=model.residual_frac - 1, embedding_frac=embedding_frac)
    write(tmp_path / "out", model)
    assert_same(model, open_packed(tmp_path / "out").model)


@pytest.mark.parametrize("name", ["least", "grouped", "odd"])
def test_a_round_trip_of_bitnet(name: str, packed: Get, tmp_path: Path) -> None:
    model = packed(name)
    write(tmp_path / "out", model)
    opened = open_packed(tmp_path / "out").model
    assert_same(model, opened)
    assert opened.ternary
    tensors = load_file(tmp_path / "out" / FILES[1])
    assert not any(name.endswith((".scale", ".zero")) for name in tensors)
    tokens = [0, 5, 40, 7, 100]
    np.testing.assert_array_equal(golden_logits(model, tokens), golden_logits(opened, tokens))


def test_kinds_are_what_their_names_say(models: dict[str, PackedModel]) -> None:
    widths = {
        layer.linear(name).weights.bits
        for layer in models["mixed"].layers
        for name in ("q_proj", "o_proj", "up_proj", "down_proj")
    }
    assert len(widths) > 1
    assert models["wide scales"].layers[0].down_proj.weights.scale_bits > 8
    assert models["biases"].layers[0].bias is not None
    assert models["qk-norm"].layers[0].head_norms is not None
    assert models["window"].layers[0].window == 5
    assert models["sub-norms"].layers[0].attention_norm is not None


# -- the same bytes


def test_two_packings_are_the_same_bytes(models: dict[str, PackedModel], tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "else" / "b"
    assert write(a, models["mixed"]) == write(b, models["mixed"])
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_a_name_is_kept_beside_the_fingerprint(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    """The model is the same, whatever it is called; what a terminal obeys is replaced."""
    name = "otter\x1b[31m \N{GREEK SMALL LETTER ALPHA}" + 100 * "!"
    a, b = tmp_path / "a", tmp_path / "b"
    assert write(a, models["llama"]) == write(b, replace(models["llama"], name=name))
    assert (a / FILES[1]).read_bytes() == (b / FILES[1]).read_bytes()
    assert open_packed(b).model.name == name.replace("\x1b", "?")[:100]
    # files of before have the folder's
    content = json.loads((b / FILES[0]).read_text())
    del content["name"]
    (b / FILES[0]).write_text(json.dumps(content))
    assert open_packed(b).model.name == "b"


def test_what_differs_has_another_fingerprint(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    model = models["llama"]
    embedding = model.embedding.copy()
    embedding[3, 4] ^= 1
    found = {
        write(tmp_path / str(i), each)
        for i, each in enumerate(
            (model, replace(model, embedding=embedding), replace(model, bos=1))
        )
    }
    assert len(found) == 3


def test_layers_that_were_stored_before_are_the_same(
    models: dict[str, PackedModel], tmp_path: Path
) -> None:
    """Packed in two goes: the first layer by a process that was interrupted."""
    model = models["biases"]
    write(tmp_path / "whole", model)
    out = tmp_path / "out"
    store_for(out, model).save(0, model.layers[0])
    assert is_unfinished(out)
    assert not is_packed(out)
    store = store_for(out, model)
    assert (len(store), store.load(1)) == (1, None)
    first = store.load(0)
    assert first is not None
    assert_same(replace(model, layers=[first]), replace(model, layers=model.layers[:1]))
    for i in (0, 1):
        store.save(i, first if i == 0 else model.layers[1])
    write_packed(out, model, store)
    store.clear()
    assert not is_unfinished(out)
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_settings_find_nothing(models: dict[str, PackedModel], tmp_path: Path) -> None:
    model = models["llama"]
    store_for(tmp_path, model, method="rtn").save(0, model.layers[0])
    assert store_for(tmp_path, model, method="rtn").load(0) is not None
    other = store_for(tmp_path, model, method="gptq")
    assert other.load(0) is None
    # nothing is left behind of either
    other.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "no numbers", "no tensors"])
def test_a_damaged_layer_is_packed_again(
    damage: str, models: dict[str, PackedModel], tmp_path: Path
) -> None:
    model = models["llama"]
    store = store_for(tmp_path, model)
    store.save(0, model.layers[0])
    (place,) = store.folder.glob("layer-*")
    path = place / ("layer.json" if damage == "no numbers" else FILES[1])
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    assert store.load(0) is None
    with pytest.raises(IndexError, match=r"^layer 0 is not finished$"):
        _ = store[0]
    store.save(0, model.layers[0])
    assert store.load(0) is not None


# -- interrupts


class Killed(BaseException):
    """Ends like a process killed by a signal: nothing runs after it."""


@pytest.mark.parametrize("before", ["nothing", "another model"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_model_is_there_whole_or_not_at_all(
    before: str,
    stop: int,
    models: dict[str, PackedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before the first file, between the two, before what lies beside them."""
    out, model, n = tmp_path / "out", models["llama"], 0
    if before != "nothing":
        write(out, models["W3A8"])
    store = store_for(out, model)
    for i, layer in enumerate(model.layers):
        store.save(i, layer)

    def step() -> None:
        nonlocal n
        n += 1
        if n > stop:
            raise Killed

    replace_file = Path.replace

    def counted(self: Path, target: Path) -> Path:
        step()
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        with pytest.raises(Killed):
            write_packed(out, model, store, lambda _: step())
    assert not is_packed(out)
    assert is_unfinished(out)
    # and the next attempt finishes it
    write_packed(out, model, store)
    assert_same(open_packed(out).model, model)


@pytest.mark.parametrize("stop", ["mkdir", "open", "write_text", "rename"])
def test_a_layer_is_there_whole_or_not_at_all(
    stop: str, models: dict[str, PackedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each of the steps that write a layer over one that is there already."""
    model = models["llama"]
    store = store_for(tmp_path, model)
    store.save(0, model.layers[0])

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, stop, killed)
        with pytest.raises(Killed):
            store.save(0, model.layers[1])
    found = store.load(0)
    assert (found is None) == (stop == "rename")
    if found is not None:
        assert_same(replace(model, layers=[found]), replace(model, layers=model.layers[:1]))
    store.save(0, model.layers[1])
    assert_same(replace(model, layers=store[:]), replace(model, layers=model.layers[1:]))


# -- what is refused


@pytest.fixture
def folder(models: dict[str, PackedModel], tmp_path: Path) -> Path:
    write(tmp_path / "model", models["biases"])
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    """Error of opening a model and reading all of it: one line that names the file first."""
    with pytest.raises(LutraError) as error:
        list(open_packed(folder).model.layers)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(str(folder))
    return text.removeprefix(f"{folder}/")


def set_to(*path: str | int, to: object) -> Callable[[Config], None]:
    def change(content: Config) -> None:
        inner: Any = content
        for each in path[:-1]:
            inner = inner[each]
        inner[path[-1]] = to

    return change


def without(*path: str | int) -> Callable[[Config], None]:
    def change(content: Config) -> None:
        inner: Any = content
        for each in path[:-1]:
            inner = inner[each]
        del inner[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("vocabulary", to=[]), "vocabulary must be an object, not []"),
        (set_to("vocabulary", "embedding", to=3), "vocabulary.embedding must be an object, not 3"),
        (set_to("vocabulary", "head", to=None), "vocabulary.head must be an object, not None"),
        (set_to("vocabulary", "tied", to=1), "tied must be true or false, not 1"),
        (
            set_to("vocabulary", "embedding", "shift", to=1),
            "vocabulary.embedding.shift must be 0: pack the model again",
        ),
        (
            set_to("vocabulary", "embedding", "bits", to=7),
            "vocabulary.embedding.bits must be one of 1, 2, 3, 4, 5, 6, 8, not 7",
        ),
        (
            set_to("vocabulary", "head", "shift", to=25),
            "vocabulary.head.shift must be in 0..24, not 25",
        ),
        (
            set_to("vocabulary", "head", "scale", to=[1, 0]),
            "vocabulary.head.scale must be a mantissa of 16 bits and an exponent in -128..128",
        ),
        (
            set_to("vocabulary", "embedding", "scale", to=[40000, 5]),
            "rows of the embedding are shifted by",
        ),
    ],
)
def test_codes_that_can_not_be(
    change: Callable[[Config], None],
    message: str,
    models: dict[str, PackedModel],
    tmp_path: Path,
) -> None:
    write(tmp_path / "model", models["coded"])
    assert refusal(tamper(tmp_path / "model", change)).startswith(f"config.json: {message}")


LAYER = ("layers", 1)
SCALE_TEXT = (
    r"config.json: {} must be a mantissa of 16 bits and an exponent in -128..128, not {}: "
    "pack the model again"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_to("lutra_version", to=1),
            "config.json is of packed format 1, this Lutra reads 7: pack its checkpoint again",
        ),
        (
            set_to("lutra_version", to=8),
            "config.json is of packed format 8, this Lutra reads 7: update Lutra, or pack its che",
        ),
        (
            set_to("activation_groups", to={"size": 48, "shift_max": 7}),
            "config.json: activation_groups: size must be one of (32, 64, 128), not 48: pack the m",
        ),
        (
            set_to("activation_groups", to={"size": 32, "shift_max": 70}),
            "config.json: activation_groups: shift_max must be one of (1, 3, 7), not 70: pack the",
        ),
        (
            set_to("activation_groups", to={"size": 32}),
            "config.json: shift_max must be a positive whole number, not None",
        ),
        (set_to("name", to=3), "config.json: name must be a text, not 3: pack the model again"),
        (
            without("lutra_version"),
            "config.json is of packed format None, this Lutra reads 7: pack its checkpoint",
        ),
        (
            without("hidden_size"),
            "config.json: hidden_size must be a positive whole number, not No",
        ),
        (
            set_to("hidden_size", to=1 << 40),
            "config.json: hidden_size must be at most 16777216, no",
        ),
        (
            set_to("hidden_size", to="64"),
            "config.json: hidden_size must be a positive whole number",
        ),
        (set_to("vocab_size", to=95), "model.safetensors: head must be [95, 64], not [96, 64]"),
        (set_to("n_heads", to=3), "model.safetensors: layers.0.q_proj.codes must be [48, 64], not"),
        (set_to("n_kv_heads", to=3), "config.json: n_heads must be a multiple of 3, not 4"),
        (set_to("head_dim", to=18), "config.json: head_dim must be a multiple of 4, not 18"),
        (set_to("head_dim", to=8), "model.safetensors: rope must be [48, 8], not [48, 16]"),
        (
            set_to("context", to=49),
            "model.safetensors: rope must be [49, 16], not [48, 16]: config",
        ),
        (
            set_to("key_bits", to=4),
            "config.json: key_bits and value_bits must be 8 and 8, 8 and 4 or 4 and 4, not 4 and 8",
        ),
        (without("key_bits"), "config.json: key_bits must be a positive whole number, not None"),
        (set_to("a_bits", to=7), "config.json: a_bits 7 is not supported; supported is 8 or 16"),
        (
            set_to("gate", to="gelu"),
            "config.json: gate 'gelu' is not supported; supported is 'relu",
        ),
        (set_to("gate", to=[]), "config.json: gate [] is not supported"),
        (set_to("format", to=None), "config.json: format must be a text, not None"),
        (set_to("ternary", to=1), "config.json: ternary must be true or false, not 1"),
        (set_to("bos", to=96), "config.json: bos must be a token id in 0..95, not 96"),
        (set_to("eos", to=[-1]), "config.json: eos must be a token id in 0..95, not -1"),
        (set_to("residual_frac", to=21), "config.json: residual_frac must be in 0..20, not 21"),
        (set_to("embedding_frac", to=21), "config.json: embedding_frac must be in 4.."),
        (set_to("embedding_frac", to=3), "config.json: embedding_frac must be in 4..20, not 3"),
        (set_to("head_shift", to=0), "config.json: head_shift must be in 1..24, not 0"),
        (set_to("head_shift", to=25), "config.json: head_shift must be in 1..24, not 25"),
        (set_to("head_eps", to=-1), "config.json: head_eps must be in 0..65535, not -1"),
        (set_to("norm_frac", to=True), "config.json: norm_frac must be in 0..24, not True"),
        (
            set_to("head_scale", to=float("nan")),
            "config.json: head_scale must be positive, not nan",
        ),
        (set_to("head_scale", to=-1.0), "config.json: head_scale must be positive, not -1.0"),
        (
            set_to("head_scale", to=float("inf")),
            "config.json: head_scale must be positive, not inf",
        ),
        (set_to("eps", to=[1, 0]), SCALE_TEXT.format("eps", "[1, 0]")),
        (set_to("eps", to=[65536, 0]), SCALE_TEXT.format("eps", "[65536, 0]")),
        (set_to("eps", to=[40000]), SCALE_TEXT.format("eps", "[40000]")),
        (set_to("layers", to=[]), "config.json: layers must be a list of objects"),
        (set_to("layers", to=[1, 2]), "config.json: layers must be a list of objects"),
        (
            set_to("w_bits", to=3),
            "config.json: layer 0 differs from the model's sizes, q_proj ha",
        ),
        (
            set_to("scale_bits", to=5),
            "config.json: layer 0 differs from the model's sizes, q_proj",
        ),
        (
            set_to("group", to=64),
            "config.json: layer 0 differs from the model's sizes, q_proj has",
        ),
        (
            set_to("group", to=None),
            "config.json: layer 0 differs from the model's sizes, q_proj h",
        ),
        (
            set_to("ternary", to=True),
            "config.json: layer 0 differs from the model's sizes, q_pro",
        ),
        (
            set_to("biased", to=False),
            "config.json: layer 0 differs from the model's sizes, it has",
        ),
        (without(*LAYER, "q_proj"), "config.json: layers.1.q_proj must be an object, not None"),
        (set_to(*LAYER, "q_proj", to=3), "config.json: layers.1.q_proj must be an object, not 3"),
        (
            set_to(*LAYER, "up_proj", "bits", to=7),
            "config.json: layers.1.up_proj.bits must be one of 1, 2, 3, 4, 5, 6, 8, not 7: pack",
        ),
        (
            set_to(*LAYER, "up_proj", "bits", to=8),
            "model.safetensors: layers.1.up_proj.codes must be [96, 128], not [96, 64]: config",
        ),
        (
            set_to(*LAYER, "up_proj", "group", to=48),
            "config.json: layers.1.up_proj.group must divide the depth of 64, not be 48: pack",
        ),
        (
            set_to(*LAYER, "up_proj", "group", to=0),
            "config.json: layers.1.up_proj.group must be in 1..64, not 0: pack the model again",
        ),
        (
            set_to(*LAYER, "up_proj", "group", to=64),
            "model.safetensors: layers.1.up_proj.scale must be [96, 1], not [96, 2]: config.json",
        ),
        (
            set_to(*LAYER, "up_proj", "group", to=None),
            "model.safetensors: layers.1.up_proj: codes without groups must be 0, 1 and 2 in",
        ),
        (
            set_to(*LAYER, "up_proj", "scale", to=[40000, 129]),
            SCALE_TEXT.format("layers.1.up_proj.scale", "[40000, 129]"),
        ),
        (
            set_to(*LAYER, "up_proj", "scale", to=[-40000, 0]),
            SCALE_TEXT.format("layers.1.up_proj.scale", "[-40000, 0]"),
        ),
        (
            set_to(*LAYER, "up_proj", "scale", to=[32767, 0]),
            SCALE_TEXT.format("layers.1.up_proj.scale", "[32767, 0]"),
        ),
        (
            set_to(*LAYER, "up_proj", "scale", to=None),
            SCALE_TEXT.format("layers.1.up_proj.scale", "None"),
        ),
        (
            set_to(*LAYER, "up_proj", "shift", to=25),
            "config.json: layers.1.up_proj.shift must be in 0..24, not 25: pack the model again",
        ),
        (
            set_to(*LAYER, "up_proj", "shift", to=24),
            "config.json: layers.1.gate_proj, up_proj must have one shift, not [",
        ),
        (
            set_to(*LAYER, "input_norm", to=None),
            "config.json: layers.1.input_norm and ffn_input_norm must be there: pack the model",
        ),
        (
            set_to(*LAYER, "attention_norm", to=3),
            "model.safetensors has no tensor layers.1.attention_norm: copy the model again",
        ),
        (
            set_to(*LAYER, "bias", to=17),
            "config.json: layers.1.bias must be in 0..16, not 17: pack the model again",
        ),
        (
            set_to(*LAYER, "key_centre", to=1),
            "config.json: key_centre must be true or false, not 1",
        ),
        (
            set_to(*LAYER, "head_norms", to=3),
            "model.safetensors has no tensor layers.1.query_norm: copy the model again",
        ),
        (
            set_to(*LAYER, "window", to=-1),
            "config.json: layers.1.window must be in 0..2147483647, not -1: pack the model again",
        ),
    ],
)
def test_numbers_that_can_not_be(
    change: Callable[[Config], None], message: str, folder: Path
) -> None:
    assert refusal(tamper(folder, change)).startswith(message)


GATE = ("layers", 1, "gate_proj")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to(*GATE, "levels", to=3), "config.json: layers.1.gate_proj.levels must be an object"),
        (
            set_to(*GATE, "levels", "bits", to=9),
            "config.json: layers.1.gate_proj.levels.bits must be in 0..8, not 9: pack the model",
        ),
        (
            set_to(*GATE, "levels", "bits", to=8),
            "model.safetensors: layers.1.gate_proj.levels must be [256, 1, 20], not [256, 1, 16]",
        ),
        (
            set_to(*GATE, "levels", "shift", to=7),
            "config.json: layers.1.gate_proj.levels.shift must be in 0..6, not 7: pack the model",
        ),
        (
            set_to(*GATE, "levels", "shift", to=2),
            "model.safetensors: layers.1.gate_proj.levels: multiples must be in 0..4, not up to",
        ),
        (
            set_to(*GATE, "offset_shift", to=None),
            "model.safetensors: layers.1.gate_proj.levels must be [256, 1, 8], not [256, 1, 16]",
        ),
        (
            set_to(*GATE, "offset_shift", to=17),
            "config.json: layers.1.gate_proj.offset_shift must be in 0..16, not 17: pack the",
        ),
        (
            set_to(*GATE, "levels", to=None),
            "model.safetensors has no tensor layers.1.gate_proj.scale: copy the model again",
        ),
    ],
)
def test_two_levels_that_can_not_be(
    change: Callable[[Config], None],
    message: str,
    models: dict[str, PackedModel],
    tmp_path: Path,
) -> None:
    write(tmp_path / "model", models["two levels"])
    assert refusal(tamper(tmp_path / "model", change)).startswith(message)


def put(name: str, value: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = value(tensors[name])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head"), "model.safetensors has no tensor head: copy the model again"),
        (
            put("head", lambda x: x.astype(np.int16)),
            "model.safetensors: head must be int8, not int16: pack the model again",
        ),
        (
            put("head", lambda x: np.full_like(x, 122)),
            "model.safetensors: head must be in -121..121 and head_rows positive: pack the model",
        ),
        (
            put("head", lambda x: np.full_like(x, -122)),
            "model.safetensors: head must be in -121..121 and head_rows positive: pack the model",
        ),
        (
            put("head_rows", np.zeros_like),
            "model.safetensors: head must be in -121..121 and head_rows positive: pack the model",
        ),
        (
            put("norm", lambda x: x[:-1]),
            "model.safetensors: norm must be [64], not [63]: config.json and the tensors are of",
        ),
        (
            put("layers.1.bias", lambda x: x.astype(np.float32)),
            "model.safetensors: layers.1.bias must be int16, not float32: pack the model again",
        ),
        (
            put("layers.1.key_centre", lambda x: x[:-1]),
            "model.safetensors: layers.1.key_centre must be [16], not [15]: config.json and the",
        ),
        (
            put("layers.1.q_proj.codes", lambda x: x[::-1, :-1]),
            "model.safetensors: layers.1.q_proj.codes must be [64, 64], not [64, 63]: config.json",
        ),
        (
            put("layers.1.q_proj.scale", lambda x: x.astype(np.float32)),
            "model.safetensors: layers.1.q_proj.scale must be uint8 or uint16, not float32: pack",
        ),
        (
            put("layers.1.q_proj.zero", lambda x: x + np.uint16(1000)),
            "model.safetensors: layers.1.q_proj: zero must be in 0..30, not up to 10",
        ),
    ],
)
def test_tensors_that_can_not_be(
    change: Callable[[Tensors], None], message: str, folder: Path
) -> None:
    assert refusal(tamper(folder, tensors=change)).startswith(message)


def test_tensors_of_another_model(
    folder: Path, models: dict[str, PackedModel], tmp_path: Path
) -> None:
    write(tmp_path / "other", models["grouped"])
    shutil.copyfile(tmp_path / "other" / FILES[1], folder / FILES[1])
    assert refusal(folder) == (
        "model.safetensors is not the file that config.json was written with (SHA-256 differs): "
        "copy or pack the model again"
    )
    rehash(folder)
    assert "config.json and the tensors are of different models" in refusal(folder)


def test_one_bit_is_seen(folder: Path) -> None:
    path = folder / FILES[1]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "SHA-256 differs" in refusal(folder)


def test_a_number_that_was_changed_is_seen(folder: Path) -> None:
    path = folder / FILES[0]
    content = json.loads(path.read_text())
    content["layers"][0]["q_proj"]["scale"][1] += 1
    path.write_text(json.dumps(content))
    text = refusal(folder)
    assert re.fullmatch(
        r"config\.json was changed since it was written \(its fingerprint would be [0-9a-f]{16}\): "
        "copy or pack the model again",
        text,
    )


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"kv_bits": 4}, "--format W4A8 --kv 4"),
        ({"key_bits": 8, "value_bits": 4}, "--format W4A8 --kv 8/4"),
        ({"activation_groups": {"size": 64}}, "--format W4A8 --a-group 64 --kv 8"),
        (
            {"format": "W8A8g32", "activation_groups": {"size": 32}},
            "--format W8A8 --a-group 32 --kv 8",
        ),
        ({"activation_groups": {"size": [3]}}, "--format W4A8 --kv 8"),
        ({"format": "W1.58g128A8"}, "--format W1.58g128A8 --kv 8"),
        ({"format": "W1g64A8g32"}, "--format W1g64A8 --kv 8"),
        ({"format": "W1.58g256A8"}, "--kv 8"),
        ({"vocabulary": {"embedding": {"bits": 8}}}, "--format W4A8 --head 8 --kv 8"),
        ({"vocabulary": {"embedding": {"bits": 1}}}, "--format W4A8 --head 4 --kv 8"),
        (
            {"vocabulary": {"embedding": {"bits": 4}, "head": {"bits": 5}}},
            "--format W4A8 --head 8 --kv 8",
        ),
        ({"vocabulary": {"embedding": [8]}}, "--format W4A8 --kv 8"),
        ({"format": "W3.5A8"}, "--kv 8"),
        ({"format": ["W4A8"], "kv_bits": 5}, "--kv 8"),
    ],
)
def test_the_command_that_packs_again(
    fields: dict[str, object], options: str, folder: Path, tmp_path: Path
) -> None:
    """In the bits of the old file, and whatever its folder is called."""
    out = folder.rename(tmp_path / "my model")
    content = json.loads((out / FILES[0]).read_text())
    if "kv_bits" in fields and options.endswith("4"):
        del content["key_bits"], content["value_bits"]
    (out / FILES[0]).write_text(json.dumps(content | fields | {"lutra_version": 2}))
    with pytest.raises(LutraError) as error:
        open_packed(out)
    assert str(error.value).endswith(f"(lutra pack CHECKPOINT -o '{out}' {options})")


def test_a_truncated_file(folder: Path) -> None:
    path = folder / FILES[1]
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(folder).startswith("model.safetensors is not a whole safetensors file (")


def test_a_missing_file(folder: Path) -> None:
    (folder / FILES[1]).unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert refusal(folder) == (
        "model.safetensors does not exist: copy the model again, both of its files"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", '"lutra_version"', "3", "[" * 100_000])
def test_what_is_no_packed_model(content: str, tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_text(content)
    assert is_packed(tmp_path) == (content == '"lutra_version"')
    with pytest.raises(LutraError, match=r"is not JSON|is of packed format None"):
        open_packed(tmp_path)


def test_a_number_of_thousands_of_digits(folder: Path) -> None:
    path = folder / FILES[0]
    path.write_text(path.read_text().replace('"context": 48', f'"context": 4{"8" * 9999}'))
    assert refusal(folder).startswith("config.json is not JSON (Exceeds the limit")


# -- whatever the files say


NASTY = (
    None, True, False, 0, 1, -1, 2, 3, 5, 7, 16, 24, 63, 64, 127, 128, 255, 1 << 15, 1 << 16,
    (1 << 31) - 1, 1 << 31, 1 << 64, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), "", "64",
    "relu2", [], [0], [0, 0], [32768, -128], [65535, 128], [1, 2, 3], {}, {"bits": 4}, [[]], [{}],
)  # fmt: skip


def use(folder: Path) -> None:
    """Open a model, lower it to a program and run that, whatever it may be."""
    golden_logits(open_packed(folder).model, [0, 5])


def change_anything(rng: random.Random, content: Any) -> None:
    """Put something else into a random place, or take it away."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        inner = content[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            content = inner
            continue
        if isinstance(content, dict) and rng.random() < 0.1:
            del content[key]
        elif isinstance(inner, int) and not isinstance(inner, bool) and rng.random() < 0.3:
            content[key] = inner + rng.choice((-1, 1, 2, 8))
        else:
            # a copy, for what is in it may be changed next
            content[key] = deepcopy(rng.choice(NASTY))
        return


def fuzz_numbers(folder: Path, seed: int, n: int) -> int:
    """Random changes; returns how many were refused. Anything but a LutraError escapes."""
    rng, refused = random.Random(seed), 0
    original = (folder / FILES[0]).read_text()
    for _ in range(n):
        content = json.loads(original)
        for _ in range(rng.choice((1, 1, 2))):
            change_anything(rng, content)
        (folder / FILES[0]).write_text(json.dumps(content))
        rehash(folder)
        try:
            use(folder)
        except LutraError:
            refused += 1
    (folder / FILES[0]).write_text(original)
    return refused


def fuzz_bytes(folder: Path, seed: int, n: int) -> int:
    """Random bytes of the tensors, their names and offsets, likewise."""
    rng, refused = random.Random(seed), 0
    path = folder / FILES[1]
    original = path.read_bytes()
    header = 8 + int.from_bytes(original[:8], "little")
    for _ in range(n):
        content = bytearray(original)
        for _ in range(rng.choice((1, 3, 20))):
            end = rng.choice((8, header, len(content)))
            content[rng.randrange(end)] = rng.choice((0, 1, 0x22, 0x30, 0x39, 0x7F, 0x80, 0xFF))
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        rehash(folder)
        try:
            use(folder)
        except LutraError:
            refused += 1
    path.write_bytes(original)
    rehash(folder)
    return refused


@pytest.fixture(params=["least", "qk-norm"])
def small(
    request: pytest.FixtureRequest, packed: Get, models: dict[str, PackedModel], tmp_path: Path
) -> Path:
    model = packed("least") if request.param == "least" else models[request.param]
    write(tmp_path / "model", model)
    return tmp_path / "model"


def test_numbers_of_any_kind(small: Path) -> None:
    assert 50 < fuzz_numbers(small, 1, 150) < 150
    use(small)


def test_bytes_of_any_kind(small: Path) -> None:
    assert 30 < fuzz_bytes(small, 1, 100) < 100
    use(small)


@pytest.mark.slow
def test_much_of_any_kind(small: Path) -> None:
    fuzz_numbers(small, 2, 3000)
    fuzz_bytes(small, 2, 2000)


def test_exponents_that_leave_the_path_are_refused(
    packed: Callable[[str], PackedModel], tmp_path: Path
) -> None:
    """Of products of scales, each of which can be stored."""
    model = packed("odd")
    layer = model.layers[0]
    loud = {
        name: replace(layer.linear(name), scale=Scale(layer.linear(name).scale.m, np.asarray(85)))
        for name in ("gate_proj", "up_proj")
    }
    write(tmp_path, replace(model, layers=[replace(layer, **loud), *model.layers[1:]]))
    message = rf"^{tmp_path}/config\.json: layer 0: the exponent of .* can reach \d+, scales hold "
    with pytest.raises(LutraError, match=message):
        open_packed(tmp_path)
