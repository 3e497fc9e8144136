"""A configuration for every model: the named one, one made to measure, or a clear refusal."""

import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tests.host.quantize.random_decoder import GROUP, VARIANTS, in_products, random_decoder
from tests.host.random_model import LLAMAS, SHAPES, Shape, load, write_model
from tests.host.tiles import compiled, golden, on_transport

from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.compile.fit import check_fit, engines_for
from lutra.models import find_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale
from lutra_golden.core.configs import CONFIGS, NANO, measured
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import Format
from lutra_golden.model.limits import ACC_MAX, least_shift
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.padding import built_head_dim
from lutra_golden.model.shapes import LINEARS


@pytest.fixture(scope="module")
def tales() -> dict[str, PackedModel]:
    models = {name: load(find_model(name)) for name in ("tales", "tales-llama")}
    formats = {"tales": None, "tales-llama": Format.parse("W4A8")}
    return {name: pack_model(model, formats[name]) for name, model in models.items()}


def packed(folder: Path, shape: Shape, format: str | None = None) -> PackedModel:
    model = load(write_model(folder, shape))
    return pack_model(model, None if format is None else Format.parse(format), GROUP)


# -- one that is there


@pytest.mark.parametrize("name", CONFIGS)
def test_a_named_configuration_that_holds_the_model(
    name: str, tales: dict[str, PackedModel]
) -> None:
    assert configure(tales["tales"], name) == CONFIGS[name]
    llama = configure(tales["tales-llama"], name)
    assert (llama.name, llama.engine) == (f"{name}-lut", "lut")
    assert configure(tales["tales"], name, "mixpe").engine == "mixpe"


def test_a_named_configuration_that_is_too_small(tmp_path: Path) -> None:
    model = packed(tmp_path / "model", SHAPES["odd"])
    base = CONFIGS["pynq_z2"].attention
    config = configure(model, "pynq_z2")
    assert (config.name, config.head_dim, config.n_heads) == ("pynq_z2-fit", 32, 3)
    # a head of 32 elements has four words
    assert (base.head_dim, base.pair_cycles, config.attention.pair_cycles) == (64, 8, 4)


def test_an_object_is_taken_as_it_is(tales: dict[str, PackedModel]) -> None:
    assert configure(tales["tales-llama"], NANO) is NANO
    assert configure(tales["tales-llama"], NANO, "ternary") is NANO
    with pytest.raises(LutraError) as error:
        configure(tales["tales"], NANO, "lut")
    assert str(error.value) == (
        "configuration nano is built with engine ternary, not lut: leave the engine out, or give "
        "another configuration"
    )


def test_names_that_are_not_there(tales: dict[str, PackedModel]) -> None:
    with pytest.raises(LutraError, match=r"^engine must be one of ternary, .*, not 'tpu'$"):
        configure(tales["tales"], engine="tpu")
    with pytest.raises(
        LutraError,
        match=r"^configuration must be one of nano, pynq_z2, kv260, u50, u55c, not 'giant'$",
    ):
        configure(tales["tales"], "giant")


def test_an_engine_that_does_not_run_the_format(tales: dict[str, PackedModel]) -> None:
    config = configure(tales["tales-llama"], engine="ternary")
    with pytest.raises(LutraError, match=r"^engine ternary does not run W4A8, only ternary weig"):
        compile_model(tales["tales-llama"], config)


# -- one made to measure


@pytest.mark.parametrize("engine", ["ternary", "lut", "mixpe", "mac"])
@pytest.mark.parametrize("name", SHAPES)
def test_bitnet_shapes(name: str, engine: str, tmp_path: Path) -> None:
    model = packed(tmp_path / "model", SHAPES[name])
    config = configure(model, engine=engine)
    assert (config.name.startswith("nano-fit"), config.engine) == (True, engine)
    assert config.max_context >= model.context
    program = compile_model(model, config)
    assert program.context == model.context


@pytest.mark.parametrize("format", ["W1A8", "W3A8", "W8A16"])
@pytest.mark.parametrize("name", LLAMAS)
def test_llama_shapes(name: str, format: str, tmp_path: Path) -> None:
    model = packed(tmp_path / "model", LLAMAS[name], format)
    for engine in ("lut", "mixpe", "mac"):
        config = configure(model, engine=engine)
        assert (config.engine, config.matmul.a_width) == (engine, model.a_bits)
        assert model.group is not None
        assert model.group % config.matmul.depth_tile == 0
        compile_model(model, config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_an_architecture_needs(variant: str) -> None:
    model = pack_model(random_decoder(**VARIANTS[variant]), Format.parse("W4A8"), GROUP)
    config = configure(model)
    assert (config.vector.qkv_bias, config.vector.qk_norm) == (
        variant == "biases",
        variant == "qk-norm",
    )
    compile_model(model, config)


def test_a_longer_context_is_measured(tales: dict[str, PackedModel]) -> None:
    assert configure(tales["tales"]).max_context == 256
    folder = find_model("tales")
    limited = pack_model(load(folder).limited(200))
    assert configure(limited) == NANO
    long = replace(tales["tales"], context=300)
    assert configure(long).max_context == 512


@pytest.mark.parametrize(
    ("feature", "hardware"), [("biased", "qkv_bias"), ("head_normed", "qk_norm")]
)
def test_hardware_that_a_named_configuration_lacks(
    feature: str, hardware: str, tales: dict[str, PackedModel]
) -> None:
    model = tales["tales-llama"]
    assert not getattr(configure(model).vector, hardware)
    assert getattr(configure(replace(model, **{feature: True})).vector, hardware)


def test_a_named_configuration_has_the_models_activations(tales: dict[str, PackedModel]) -> None:
    model = replace(tales["tales-llama"], a_bits=16)
    for engine in ("lut", "mixpe", "mac"):
        assert configure(model, engine=engine, made_to_measure=False).matmul.a_width == 16


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_of_four_bits(name: str, tales: dict[str, PackedModel]) -> None:
    ternary, llama = (replace(model, key_bits=4, value_bits=4) for model in tales.values())
    config = configure(ternary, name)
    assert config == CONFIGS[name].with_(name=f"{name}-kv4", key_width=4, value_width=4)
    assert configure(llama, name).name == f"{name}-kv4-lut"
    assert configure(llama, name).attention.key_width == 4
    large = configure(replace(ternary, context=300))
    assert (large.name, large.attention.key_width, large.max_context) == ("nano-kv4-fit", 4, 512)


def channel_wise(scale: int) -> PackedModel:
    """A down projection of depth 8,192 with one group, codes of 8 bits and scales up to ``scale``.

    The codes of its first row are the largest that there are.
    """
    shape = replace(LLAMAS["llama"], intermediate_size=8192, num_hidden_layers=1)
    rng, n, depth = np.random.default_rng(3), shape.hidden_size, 8192
    with TemporaryDirectory() as folder:
        model = packed(Path(folder) / "model", shape, "W8A8")
    codes = rng.integers(0, 256, (n, depth))
    codes[0] = 255
    weights = GroupedWeights(
        codes=codes.astype(np.uint8),
        scale=rng.integers(1, scale + 1, (n, 1)),
        zero=np.full((n, 1), 255),
        bits=8,
        group=depth,
    )
    weights.zero[0], weights.scale[0] = 0, scale
    (layer,), shift = model.layers, least_shift(weights.peak, 127, ACC_MAX)
    e = layer.down_proj.scale.e - scale.bit_length() - shift
    down = PackedLinear(weights, Scale(layer.down_proj.scale.m, e), shift)
    bits = max(model.scale_bits, weights.scale_bits)
    return replace(model, layers=[replace(layer, down_proj=down)], scale_bits=bits)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
@pytest.mark.parametrize(
    ("scale", "sum_width", "scale_width"), [(255, 38, 8), (4095, 42, 12), (65535, 46, 16)]
)
def test_channel_wise_weights_of_great_depth(
    scale: int, sum_width: int, scale_width: int, engine: str
) -> None:
    """Worst-case codes: the adders are as wide as the sums."""
    model = channel_wise(scale)
    config = configure(model, engine=engine)
    assert (config.matmul.sum_width, config.matmul.scale_width) == (sum_width, scale_width)
    tiles, tokens = on_transport(compiled(model, config)), [3, 1, 2]
    found, expected = tiles.run_tile(tokens, 0, 0), golden(model).run_tile(tokens, 0, 0)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_shift_that_takes_wider_scales(tales: dict[str, PackedModel]) -> None:
    model = channel_wise(255)
    (layer,) = model.layers
    far = replace(model, layers=[replace(layer, down_proj=replace(layer.down_proj, shift=16))])
    assert configure(far).matmul.scale_width == 9
    compile_model(far, configure(far))


@pytest.mark.parametrize("format", ["W4A8", "W8A16"])
def test_squared_relu_of_grouped_weights(format: str) -> None:
    """Gate and up are shifted to the 21 bits that their product takes, on any engine."""
    model = pack_model(random_decoder(**VARIANTS["sub-norms"]), Format.parse(format), GROUP)
    for engine in ("lut", "mixpe", "mac"):
        config = configure(model, engine=engine)
        assert config.vector.gate_width == 21
        with pytest.raises(LutraError, match=r"a gate accumulator \(bits\) needs 21, has 20 "):
            compile_model(model, config.with_(gate_width=20))
        tiles, tokens = on_transport(compiled(model, config)), [3, 1, 2]
        found, expected = tiles.run_tile(tokens, 0, 0), golden(model).run_tile(tokens, 0, 0)
        np.testing.assert_array_equal(found.logits, expected.logits)


def test_buffers_hold_what_a_model_needs() -> None:
    """Heads of all kinds, their biases, and the wider of gate and up."""
    model = pack_model(random_decoder(**VARIANTS["sub-norms"]), Format.parse("W4A8"), GROUP)
    wide = replace(model, n_heads=16, n_kv_heads=8, biased=True)
    rows = 32 * built_head_dim(model.head_dim)
    assert rows > max(model.hidden_size, 2 * model.intermediate_size)
    config = measured(wide, NANO, "lut")
    assert config.matmul.acc_blocks == rows // 8
    assert config.vector.param_words == rows // 2
    for small in ("gate_proj", "up_proj"):
        layers = [
            replace(layer, **{small: replace(layer.linear(small), known_peak=1)})
            for layer in (model.layers[i] for i in range(len(model.layers)))
        ]
        assert measured(replace(model, layers=layers), NANO, "lut").vector.gate_width == 21


def test_scales_of_sixteen_bits() -> None:
    model = pack_model(random_decoder(), Format.parse("W4A8"), GROUP)
    assert configure(model).matmul.scale_width == 8
    assert configure(replace(model, scale_bits=13)).matmul.scale_width == 13


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            Shape(llama=True, intermediate_size=104),
            (
                "no configuration holds model: depth_tile must be one of 64, 32, 16 and divide "
                "groups "
                "and depths 64, 64, 104"
            ),
        ),
    ],
)
def test_what_no_configuration_holds(shape: Shape, message: str, tmp_path: Path) -> None:
    if shape.llama:
        model = load(write_model(tmp_path / "model", shape))
        model = pack_model(model, Format.parse("W4A8"), 8)
    else:
        model = packed(tmp_path / "model", shape)
    with pytest.raises(LutraError) as error:
        compile_model(model, configure(model, engine="lut" if shape.llama else "ternary"))
    assert re.fullmatch(message, str(error.value))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            Shape(hidden_size=512, head_dim=64, num_attention_heads=4, num_key_value_heads=2),
            (
                "configuration nano is too small for the model: the residual buffer needs 512, has "
                "256 (256 missing): set hidden_max=512 or more"
            ),
        ),
        (
            Shape(
                hidden_size=64,
                intermediate_size=1024,
                head_dim=64,
                num_attention_heads=4,
                num_key_value_heads=2,
            ),
            (
                "configuration nano is too small for the model: the activation buffer "
                "(depth tiles) needs 15, has 11 (4 missing): set act_tiles=15 or more"
            ),
        ),
        (
            Shape(),
            (
                "configuration nano is built for head_dim 64, the model has 32: "
                "use a configuration with head_dim=32"
            ),
        ),
    ],
)
def test_a_configuration_that_is_not_enlarged(shape: Shape, message: str, tmp_path: Path) -> None:
    model = packed(tmp_path / "model", shape)
    config = configure(model, made_to_measure=False)
    assert config == NANO
    with pytest.raises(LutraError) as error:
        compile_model(model, config)
    assert str(error.value) == message
    # and enlarged, it holds it
    assert configure(model).name == "nano-fit"
    compile_model(model, configure(model))


# -- groups of activations, offsets of groups of weights

G32 = ActivationGroups(size=32)


def with_groups(size: int = 32) -> PackedModel:
    groups = ActivationGroups(size=size)
    return pack_model(random_decoder(), Format.parse("W4A8"), GROUP, a_groups=groups)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
@pytest.mark.parametrize("size", [32, 64, 128])
def test_groups_of_activations(size: int, engine: str) -> None:
    """Of attention's output a group ends with its head, padded to 32."""
    model = with_groups(size)
    config = configure(model, engine=engine)
    assert config.matmul.a_groups == model.a_groups
    assert config.attention_groups == G32
    assert config.name.endswith(f"-k16-g{size}")
    assert config.matmul.sum_width >= 28 + 8 + 7
    compile_model(model, config)


def test_a_named_configuration_with_groups_of_activations(tales: dict[str, PackedModel]) -> None:
    model = replace(tales["tales-llama"], a_groups=G32)
    config = configure(model, made_to_measure=False)
    assert (config.name, config.matmul.depth_tile) == ("nano-lut-k32-g32", 32)


def test_groups_of_activations_need_their_configuration() -> None:
    model, plain = with_groups(), pack_model(random_decoder(), Format.parse("W4A8"), GROUP)
    with pytest.raises(LutraError) as error:
        compile_model(model, configure(plain))
    assert str(error.value) == (
        "configuration nano-fit-lut-k16 is built for activations with one scale per token, "
        "W4A8g32 has exponents of 0 to 7 per group of 32: use a configuration with "
        "a_groups=ActivationGroups(size=32, shift_max=7)"
    )
    with pytest.raises(LutraError) as error:
        compile_model(plain, configure(model))
    assert str(error.value) == (
        f"configuration {configure(model).name} is built for activations with exponents of 0 to 7 "
        "per group of 32, W4A8 has one scale per token: use a configuration with a_groups=None"
    )
    with pytest.raises(LutraError, match=r"is built for .* per group of 64, .* per group of 32: "):
        compile_model(model, configure(with_groups(64)))


def test_the_ternary_engine_has_no_groups(tales: dict[str, PackedModel]) -> None:
    model = replace(tales["tales"], a_groups=G32, format="W1.58A8g32")
    assert engines_for(model) == engines_for(replace(tales["tales"], offsets=True))
    assert configure(model, made_to_measure=False).engine == "lut"
    with pytest.raises(
        LutraError,
        match=r"^engine ternary does not run W1\.58A8g32, only ternary weights with one scale per "
        r"matrix and 8-bit activations with one scale per token: use engine lut, mixpe or mac$",
    ):
        check_fit(model, configure(model, engine="ternary"))


def with_offsets(offset: int) -> PackedModel:
    """Offsets of up to ``offset`` in the first layer's matrices."""
    model, rng = pack_model(random_decoder(), Format.parse("W4A8"), GROUP), np.random.default_rng(5)
    layer = model.layers[0]
    parts = dict[str, PackedLinear]()
    for name in ("o_proj", "down_proj"):
        linear = layer.linear(name)
        offsets = rng.integers(-offset, offset + 1, linear.weights.scale.shape)
        offsets[0] = offset
        weights = replace(linear.weights, offset=offsets)
        shift = least_shift(weights.peak, 127, ACC_MAX)
        parts[name] = PackedLinear(weights, linear.scale, shift)
    return replace(model, layers=[replace(layer, **parts), model.layers[1]], offsets=True)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
@pytest.mark.parametrize(("offset", "width"), [(1000, 18), (1 << 18, 27), (1 << 28, 33)])
def test_offsets_of_groups(offset: int, width: int, engine: str) -> None:
    """The fields of weight words are as wide as offsets need, which may be ports of DSP slices."""
    model = with_offsets(offset)
    config = configure(model, engine=engine)
    assert config.matmul.offset_width == width
    assert config.name.endswith(f"-k16-o{width}")
    params = config.matmul
    largest = int(np.abs(model.layers[0].o_proj.weights.doubled()).max())
    assert offset <= largest < 1 << 32
    assert params.sum_width > largest.bit_length()
    compile_model(model, config)


@pytest.mark.parametrize("engine", ["lut", "mixpe", "mac"])
def test_offsets_in_two_levels(engine: str) -> None:
    """Those of K-quants count as others do: they take fields of more than 18 bits here."""
    model = pack_model(in_products(), None, GROUP, offsets=True, head_bits=8)
    weights = model.layers[0].gate_proj
    assert weights.stored.levels is not None and weights.weights.offset is not None
    assert np.abs(weights.weights.offset).max() >= 1 << 18
    config = configure(model, engine=engine)
    assert config.matmul.offset_width == 27
    compile_model(model, config)


def test_offsets_need_their_configuration() -> None:
    model = with_offsets(1 << 18)
    plain = pack_model(random_decoder(), Format.parse("W4A8"), GROUP)
    with pytest.raises(LutraError) as error:
        compile_model(model, configure(plain))
    assert str(error.value) == (
        "configuration nano-fit-lut-k16 is built for zero points, the model's groups of weights "
        "have offsets: use a configuration with offset_width=27, or pack the model again with "
        "--no-offsets"
    )
    narrow = configure(model).with_(offset_width=18)
    with pytest.raises(
        LutraError,
        match=r"^configuration nano-fit-lut-k16-o27: offsets of groups, less scale times zero "
        r"point, must fit 18 bits, not -.*: they take an offset_width of 20$",
    ):
        compile_model(model, narrow)
    # and zero points are offsets, where an engine takes those
    compile_model(plain, configure(model))


def test_a_shift_that_groups_exceed() -> None:
    """The same sums of weights times a power of two are shifted by more."""
    model = with_groups()
    layers = list[PackedLayer]()
    for i in range(len(model.layers)):
        linear = model.layers[i].down_proj
        weights = replace(linear.weights, scale=linear.weights.scale // 64)
        down = PackedLinear(weights, linear.scale, 2)
        layers.append(replace(model.layers[i], down_proj=down))
    small = replace(model, layers=layers)
    assert small.head_shift < 7
    for engine in ("lut", "mac"):
        config = configure(small, engine=engine)
        tiles, tokens = on_transport(compiled(small, config)), [3, 1, 2]
        found, expected = tiles.run_tile(tokens, 0, 0), golden(small).run_tile(tokens, 0, 0)
        np.testing.assert_array_equal(found.logits, expected.logits)
    least = min(layer.linear(name).shift for layer in model.layers for name in LINEARS)
    bits = model.scale_bits + 7 - least
    assert configure(model).matmul.scale_width == bits > model.scale_bits
    with pytest.raises(LutraError, match=rf"of 8 bits, the model has scales of {bits}: use a conf"):
        compile_model(model, configure(model).with_(scale_width=8))
