"""Defaults of a model that is packed: its groups of activations, offsets, and bits of what a
checkpoint of integers has in floating point."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from tests.host.quantize.random_decoder import GROUP, encoded, random_decoder
from tests.host.random_model import Shape, write_model

from lutra.checkpoints.weights import Dense, Grouped, Ternary
from lutra.commands.cli import main
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.auto import auto_capabilities
from lutra.devices.base import Device
from lutra.devices.boards import BOARD_DRIVERS
from lutra.devices.choose import DeviceOptions, make_device
from lutra.devices.golden import GoldenDevice
from lutra.llm import LLM
from lutra.models.decoder import Decoder
from lutra.packed.file import open_packed
from lutra.quantize import default_parts, float_bits, group_of
from lutra.quantize.driver import Recipe, quantize_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.capabilities import COMMON_PARTS, EVERY_PART, Capabilities
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS

W4A8, TERNARY = Format.parse("W4A8"), Format.parse("W1.58A8")
SHAPE = Shape(llama=True, intermediate_size=128)
NOTE = (
    "packed as W8A8, with one scale per token, as {} no activations in groups: -dev cpu is closer "
    "to the checkpoint, and gives other logits"
)
PACKED = (
    "packed with one scale per token, which every device runs: --a-group 32 --offsets is closer "
    "to the checkpoint, on all devices but boards that are built without\n"
)


def test_parts_are_what_the_device_runs() -> None:
    model = random_decoder()
    groups = ActivationGroups(size=32)
    assert default_parts(model, None, None, None, None, EVERY_PART) == (groups, True, None)
    assert default_parts(model, None, None, None, None, COMMON_PARTS) == (None, False, None)
    offsets = Capabilities(offsets=True)
    assert default_parts(model, None, None, None, None, offsets) == (None, True, None)


def test_parts_that_are_asked_for() -> None:
    model = random_decoder()
    assert default_parts(model, None, 0, False, 0, EVERY_PART) == (None, False, None)
    groups = ActivationGroups(size=128)
    assert default_parts(model, None, 128, True, 4, COMMON_PARTS) == (groups, True, 4)
    # a format is what its name says, on every device
    assert default_parts(model, W4A8, None, None, None, EVERY_PART) == (None, False, None)
    assert default_parts(model, W4A8, 128, True, 8, EVERY_PART) == (groups, True, 8)


def test_models_that_need_no_groups() -> None:
    """Those that were trained with one scale per token, and activations of sixteen bits."""
    for changed in ({"activation_bits": 8}, {"made_for_a_bits": 16}):
        model = replace(random_decoder(), **changed)
        assert default_parts(model, None, None, None, None, EVERY_PART) == (None, True, None)


def test_codes_of_a_file_are_kept_where_a_device_runs_them() -> None:
    """Embedding and head must both have them; those with offsets need offsets."""
    model, values = random_decoder(), random_decoder().embed_tokens
    exact, affine = encoded(5), encoded(4, affine=True)
    coded = Capabilities(vocabulary=True)
    for embedding, head, capabilities, bits in (
        (exact, None, coded, 8),
        (exact, encoded(8), coded, 8),
        (exact, None, COMMON_PARTS, None),
        (exact, values, EVERY_PART, None),
        (values, exact, EVERY_PART, None),
        (affine, exact, EVERY_PART, 8),
        (exact, affine, coded, None),
    ):
        changed = replace(model, embed_tokens=embedding, lm_head=head)
        assert default_parts(changed, None, None, None, None, capabilities).head_bits == bits
        assert default_parts(changed, W4A8, None, None, None, capabilities).head_bits is None
        assert default_parts(changed, None, None, None, 0, capabilities).head_bits is None
        assert default_parts(changed, None, None, None, 4, capabilities).head_bits == 4


def test_a_group_in_the_format() -> None:
    """What it says is the group, of ternary weights, too; anything else beside it is refused."""
    ternary = Format.parse("W1.58g32A8")
    assert [group_of(each, None) for each in (None, W4A8, ternary)] == [64, 64, 32]
    assert (group_of(W4A8, 128), group_of(ternary, 32)) == (128, 32)
    with pytest.raises(LutraError, match=r"^format W1.58g32A8 is of groups of 32, and group is 64"):
        group_of(ternary, 64)
    model = random_decoder()
    packed = [
        pack_model(model, ternary, 32),
        quantize_model(model, Recipe(format=ternary, group=32, float_bits=float_bits(ternary))),
    ]
    for each in packed:
        assert (each.format, each.ternary, each.group) == ("W1.58g32A8", False, 32)
        assert all(layer.linear(name).weights.trits for layer in each.layers for name in LINEARS)
    # beside codes of a checkpoint floats have eight bits, unless the format is asked for
    default = Recipe(format=ternary, group=32, float_bits=float_bits(None))
    assert not default.ternary
    with pytest.raises(LutraError, match=r"^W1.58g32A8 is rounded to nearest, not by gptq: leave"):
        Recipe(format=ternary, group=32, method="gptq")
    bitnet = replace(
        model,
        layers=[
            replace(layer, q_proj=Ternary(np.ones((64, 64), np.int8), 0.5))
            for layer in model.layers
        ],
    )
    with pytest.raises(LutraError, match="are ternary and would gain nothing from more bits"):
        pack_model(bitnet, ternary, 32)


def mixed() -> Decoder:
    """A model with codes of four bits in groups, but for its output projections."""
    model, rng = random_decoder(), np.random.default_rng(3)

    def grouped(weight: Dense) -> Grouped:
        n, k = weight.shape
        scale = (rng.uniform(0.5, 1, (n, k // GROUP)) / 64).astype(np.float32)
        codes = rng.integers(0, 16, (n, k), np.uint8)
        return Grouped(codes=codes, scale=scale, zero=np.full_like(scale, 8), bits=4, group=GROUP)

    names = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
    layers = [
        replace(layer, **{name: grouped(Dense(layer.linear(name).dequantized())) for name in names})
        for layer in model.layers
    ]
    return replace(model, layers=layers)


def test_a_float_matrix_beside_integers_gets_eight_bits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        packed = pack_model(mixed())
        bits = [each.o_proj.weights.bits for each in packed.layers]
        assert bits == [8, 8] and packed.layers[0].q_proj.weights.bits == 4
        recipe = Recipe(format=Format.parse("W4A8"), float_bits=float_bits(None), group=GROUP)
        assert quantize_model(mixed(), recipe).layers[0].o_proj.weights.bits == 8
    said = (
        "2 of 14 matrices of random are in floating point, beside integers: they are rounded to 8 "
        "bits"
    )
    assert [each.getMessage() for each in caplog.records] == [said, said]
    # a format that is asked for is for these matrices
    assert pack_model(mixed(), W4A8).layers[0].o_proj.weights.bits == 4
    assert (float_bits(None), float_bits(W4A8), float_bits(TERNARY)) == (8, 4, 8)


def test_nothing_is_said_of_a_model_in_floating_point(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pack_model(random_decoder(), None, GROUP)
    assert not caplog.records


def test_a_device_gets_what_it_runs(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "otter", SHAPE)
    for device, format, notes in (
        ("golden", "W8A8g32", []),
        (GoldenDevice(), "W8A8g32", []),
        ("interpreted", "W8A8g32", []),
        ("board://otter", "W8A8", [NOTE.format("device board://otter has")]),
    ):
        llm = LLM(folder, device, load=False)
        assert (llm.packed.format, llm.notes) == (format, notes)
    assert LLM(folder, "board://otter", format="W8A8", load=False).notes == []
    assert LLM(folder, "golden", a_group=0, load=False).packed.format == "W8A8"


def test_an_accelerator_gets_what_its_hardware_has() -> None:
    def parts(
        name: str, config: str | AcceleratorConfig | None = None, engine: str | None = None
    ) -> Capabilities:
        device = make_device(name, DeviceOptions(config=config, engine=engine))
        assert isinstance(device, AcceleratorDevice)
        return device.capabilities

    # simulated, it is made for the model
    assert parts("interpreted") == parts("rtl") == parts("rtl", "kv260") == EVERY_PART
    assert parts("xrt") == parts("xrt", "u50") == COMMON_PARTS
    assert parts("interpreted", NANO) == COMMON_PARTS
    # that of ternary weights has no groups
    assert parts("rtl", engine="ternary") == COMMON_PARTS
    assert parts("rtl", engine="mixpe") == EVERY_PART
    for built in (
        Capabilities(activation_groups=True, vocabulary=True),
        Capabilities(offsets=True, vocabulary=True),
        EVERY_PART,
    ):
        config = with_engine(
            NANO,
            "mac",
            depth_tile=32,
            a_groups=ActivationGroups() if built.activation_groups else None,
            offset_width=18 if built.offsets else 0,
        )
        assert parts("interpreted", config) == parts("xrt", config) == built
    # of the size that models are packed with
    config = with_engine(NANO, "mac", a_groups=ActivationGroups(size=64))
    assert parts("interpreted", config) == Capabilities(vocabulary=True)


def test_auto_packs_for_all_devices_that_it_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "otter", SHAPE)
    assert auto_capabilities() == EVERY_PART
    llm = LLM(folder, load=False)
    assert (llm.packed.format, llm.notes) == ("W8A8g32", [])
    boards = {name: replace(board, is_here=lambda: True) for name, board in BOARD_DRIVERS.items()}
    monkeypatch.setattr("lutra.devices.auto.BOARD_DRIVERS", boards)
    assert auto_capabilities() == COMMON_PARTS
    llm = LLM(folder, load=False)
    assert llm.packed.format == "W8A8"
    assert llm.notes[-1] == NOTE.format("some devices have")


def test_a_device_of_another_kind_gets_what_all_run(tmp_path: Path) -> None:
    class Foreign:
        name = "foreign"

        def __init__(self, inner: GoldenDevice) -> None:
            self.inner = inner
            self.load, self.session = inner.load, inner.session
            self.run, self.greedy, self.close = inner.run, inner.greedy, inner.close

        @property
        def model(self) -> PackedModel:
            return self.inner.model

    folder = write_model(tmp_path / "otter", SHAPE)
    device = cast("Device", Foreign(GoldenDevice()))
    assert LLM(folder, device, load=False).packed.format == "W8A8"


def test_what_is_not_kept_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_given: object) -> None:
        raise KeyboardInterrupt

    source = write_model(tmp_path / "otter", SHAPE)
    monkeypatch.setattr("lutra.commands.pack._pack", interrupted)
    assert main(["pack", str(source), "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.startswith("note: " + PACKED)


def test_pack_is_for_every_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_model(tmp_path / "otter", SHAPE), tmp_path / "out"
    found: list[tuple[str, str]] = []
    for options in ([], ["--a-group", "32"], ["--a-group", "0"], ["--format", "W4A8"]):
        assert main(["pack", str(source), "-o", str(out), "--json", *options]) == 0
        text = capsys.readouterr()
        found.append((json.loads(text.out)["format"], text.err))
    replaced = f"note: the packed model in {out} is replaced\n"
    assert found == [
        ("W8A8", "note: " + PACKED),
        ("W8A8g32", replaced),
        ("W8A8", replaced),
        ("W4A8", replaced),
    ]
    assert open_packed(out).model.a_groups is None
