"""From floats to integers: every rounding is to the nearest, and nothing leaves its type."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.quantize.random_decoder import random_decoder
from tests.host.random_model import GROUP, LLAMAS, SHAPES, Shape, load, write_model

from lutra.checkpoints.weights import Dense, Grouped, Integers, Ternary
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.base import Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.models import find_model
from lutra.models.decoder import Decoder
from lutra.models.layers import round_activations
from lutra.quantize import default_format
from lutra.quantize.pack import pack_model
from lutra.quantize.reference import reference
from lutra.quantize.rtn import round_to_nearest
from lutra_golden.arith.fixed import round_shift
from lutra_golden.arith.scale import Scale, scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import Kv
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.limits import ACC_MAX, HEAD_MAX, LOGIT_ACC_MAX, least_shift
from lutra_golden.model.packed import PackedModel, PackedNorm
from lutra_golden.model.shapes import LINEARS, Gate
from lutra_golden.vector.residual import LOGIT_SHIFT


def value(scale: Scale) -> float:
    return float(scale_to_float(scale))


def changed(model: Decoder, **tensors: NDArray[np.float32]) -> Decoder:
    """``model`` with other tensors in its first layer."""
    return replace(model, layers=[replace(model.layers[0], **tensors), *model.layers[1:]])


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_the_checkpoints(
    name: str, checkpoint: Callable[[str], Decoder], packed: Callable[[str], PackedModel]
) -> None:
    c, model = checkpoint(name).config, packed(name)
    assert model.hidden_size == c.hidden_size
    assert model.intermediate_size == c.intermediate_size
    assert (model.n_heads, model.n_kv_heads) == (c.num_attention_heads, c.num_key_value_heads)
    assert model.context == c.max_position_embeddings
    assert len(model.layers) == c.num_hidden_layers
    assert value(model.eps) == pytest.approx(c.rms_norm_eps, rel=2**-16)
    assert model.rope.shape == (model.context, model.head_dim)


def test_weights_are_kept_and_their_scales_rounded_once(
    checkpoint: Callable[[str], Decoder], packed: Callable[[str], PackedModel]
) -> None:
    for source, layer in zip(checkpoint("odd").layers, packed("odd").layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            linear, expected = layer.linear(name), source.linear(name)
            assert isinstance(expected, Ternary)
            np.testing.assert_array_equal(linear.weights.doubled(), 2 * expected.codes.astype(int))
            assert linear.shift == 1
            # queries come out in units of log2, divided by the square root of their size
            factor = np.log2(np.e) / np.sqrt(32) if name == "q_proj" else 1.0
            assert value(linear.scale) == pytest.approx(expected.scale * factor, rel=2**-16)


def test_norms_take_as_many_bits_as_there_are(
    checkpoint: Callable[[str], Decoder], packed: Callable[[str], PackedModel]
) -> None:
    source, layer = checkpoint("grouped").layers[0], packed("grouped").layers[0]
    for norm, weight in (
        (layer.input_norm, source.input_layernorm),
        (layer.attention_norm, source.attn_sub_norm),
        (layer.ffn_input_norm, source.post_attention_layernorm),
        (layer.ffn_norm, source.ffn_sub_norm),
    ):
        assert norm is not None
        assert weight is not None
        assert norm.gamma.dtype == np.int16
        assert np.abs(norm.gamma.astype(int)).max() > 16000
        assert np.abs(norm.gamma / 2.0**norm.frac - weight).max() <= 0.5 / 2.0**norm.frac


@pytest.mark.parametrize(
    ("weight", "frac"), [(1.0, 14), (1.9999, 14), (2.0, 13), (32767.0, 0), (0.0, 24), (1e-6, 24)]
)
def test_fraction_bits_of_a_norm(
    weight: float, frac: int, checkpoint: Callable[[str], Decoder]
) -> None:
    gamma = np.full(32, -weight, np.float32)
    norm = pack_model(changed(checkpoint("least"), input_layernorm=gamma)).layers[0].input_norm
    assert norm.frac == frac
    np.testing.assert_array_equal(norm.gamma, np.rint(gamma * 2.0**frac).astype(np.int16))


def test_a_norm_beyond_int16_is_refused(checkpoint: Callable[[str], Decoder]) -> None:
    gamma = np.full(32, 40000, np.float32)
    message = "^layer 0 input_layernorm reaches 40000, beyond int16: rescale it$"
    with pytest.raises(LutraError, match=message):
        pack_model(changed(checkpoint("least"), input_layernorm=gamma))


@pytest.mark.parametrize("name", SHAPES)
def test_embedding_is_rounded_to_int16(
    name: str, checkpoint: Callable[[str], Decoder], packed: Callable[[str], PackedModel]
) -> None:
    model, source = packed(name), checkpoint(name).embed_tokens.dequantized()
    assert model.embedding_frac <= model.residual_frac
    error = model.embedding / 2.0**model.embedding_frac - source
    assert np.abs(error).max() <= 0.5 / 2.0**model.embedding_frac


@pytest.mark.parametrize("name", SHAPES)
def test_head_is_the_embedding_in_five_trits(
    name: str, checkpoint: Callable[[str], Decoder], packed: Callable[[str], PackedModel]
) -> None:
    model, source = packed(name), checkpoint(name).embed_tokens.dequantized()
    assert HEAD_MAX == (3**5 - 1) // 2
    assert np.abs(model.head.astype(int)).max() == HEAD_MAX
    assert model.head_rows.min() >= 1
    row = model.head_rows[:, None] * (model.head_scale / (1 << LOGIT_SHIFT))
    assert (np.abs(model.head * row - source) <= 0.5001 * row).all()


def test_rows_of_zeros_do_not_break_the_head(checkpoint: Callable[[str], Decoder]) -> None:
    embedding = checkpoint("least").embed_tokens.dequantized().copy()
    embedding[5] = 0
    embedding[6] = 1e-12
    model = pack_model(replace(checkpoint("least"), embed_tokens=Dense(embedding)))
    assert not model.head[5:7].any()
    assert (model.head_rows[5:7] == 1).all()


def test_the_head_of_a_ternary_model_is_never_shifted(tmp_path: Path) -> None:
    """Steps are coarser where sums would pass the accumulators, and only there."""
    shape = replace(SHAPES["least"], hidden_size=640)
    model = load(write_model(tmp_path, shape))
    embedding = np.random.default_rng(1).choice([-1, 1], (304, 640)).astype(np.float32)
    embedding[1::3] *= np.float32(0.0041)
    embedding[2::3, 1:] *= np.float32(0.5)
    packed = pack_model(replace(model, embed_tokens=Dense(embedding)))
    sums = np.abs(packed.head.astype(int)).sum(axis=1)
    assert packed.head_shift == 1
    assert 0.99 * LOGIT_ACC_MAX < sums.max() * 127 <= LOGIT_ACC_MAX
    peak = np.abs(packed.head.astype(int)).max(axis=1)
    assert (peak[2::3] == HEAD_MAX).all()
    assert (np.delete(peak, np.s_[2::3]) <= LOGIT_ACC_MAX // 127 // 640).all()
    row = packed.head_rows[:, None] * (packed.head_scale / (1 << LOGIT_SHIFT))
    assert (np.abs(packed.head * row - embedding) <= 0.5001 * row).all()


def test_an_embedding_of_zeros_is_refused(checkpoint: Callable[[str], Decoder]) -> None:
    empty = np.zeros_like(checkpoint("least").embed_tokens.dequantized())
    with pytest.raises(LutraError, match=r"^the embedding is all zeros: the checkpoint is empty, "):
        pack_model(replace(checkpoint("least"), embed_tokens=Dense(empty)))


def test_an_embedding_beyond_int16_is_refused(checkpoint: Callable[[str], Decoder]) -> None:
    huge = checkpoint("least").embed_tokens.dequantized() * np.float32(1e6)
    with pytest.raises(LutraError, match=r"^the embedding reaches .*, beyond int16: rescale the "):
        pack_model(replace(checkpoint("least"), embed_tokens=Dense(huge)))


def test_the_residual_stream_keeps_headroom(checkpoint: Callable[[str], Decoder]) -> None:
    embedding = checkpoint("least").embed_tokens.dequantized() * np.float32(1000)
    large = replace(checkpoint("least"), embed_tokens=Dense(embedding))
    model = pack_model(large)
    tokens = np.random.default_rng(0).integers(0, 304, 32)
    assert large.residual_peak(tokens) * 2**model.residual_frac < (1 << 31) / 4
    assert pack_model(checkpoint("least")).residual_frac == 20


def test_an_embedding_row_far_above_the_others_fits(checkpoint: Callable[[str], Decoder]) -> None:
    """With a factor of 16 above it, as above everything that the fixed sequence reaches."""
    source, token = checkpoint("least"), 3
    embedding = source.embed_tokens.dequantized().copy()
    embedding[token] = np.where(embedding[token] > 0, 20_000, -20_000)
    model = pack_model(replace(source, embed_tokens=Dense(embedding)))
    assert (model.residual_frac, model.embedding_frac) == (12, 0)
    results: list[StepResult] = []
    for device in (GoldenDevice(), AcceleratorDevice(InterpretedTransport())):
        device.load(model)
        results += device.run([Step(session=device.session(), tokens=[token, 3])])
    a, b = results
    assert not (a.saturated or b.saturated)
    np.testing.assert_array_equal(a.logits, b.logits)
    wide = replace(model, residual_frac=model.embedding_frac + 17)
    with pytest.raises(LutraError, match=r"^embeddings are shifted by 17 bits, 0 to 16 fit"):
        check_numbers(wide)


def test_what_the_largest_row_drives_is_measured() -> None:
    """A row far above the others makes a layer drive a channel beyond what other tokens reach."""
    model = random_decoder(seed=3)
    token, quiet = 77, model.layers[0]
    embedding = model.embed_tokens.dequantized().copy()
    embedding[:, 7], embedding[token] = 0, 0
    embedding[token, 7] = 8
    gate, up, down = (quiet.linear(x).dequantized().copy() for x in LINEARS[4:])
    gate[0], up[0], down[:, 0] = 0, 0, 0
    gate[0, 7] = up[0, 7] = 2
    down[11, 0] = 1e5
    layer = replace(quiet, gate_proj=Dense(gate), up_proj=Dense(up), down_proj=Dense(down))
    driven = replace(
        model, embed_tokens=Dense(embedding), layers=[layer, *model.layers[1:]], lm_head=None
    )
    tokens = np.array([5, token, 9])
    assert driven.residual_peak(tokens) > 1e6
    packed = pack_model(driven, Format.parse("W8A16"), 32)
    assert driven.residual_peak(tokens) * 2**packed.residual_frac < 1 << 31
    device = GoldenDevice()
    device.load(packed)
    [result] = device.run([Step(session=device.session(), tokens=list(tokens))])
    assert not result.saturated


def test_keys_of_four_bits_are_refused_where_they_cost_too_much() -> None:
    """Attention that looks at one position, by a difference that four bits do not hold."""
    model = random_decoder()
    assert pack_model(model, Format.parse("W8A16"), 32, kv_bits=4).kv == "4"
    layers = [
        replace(
            layer,
            k_proj=Dense(40 * layer.k_proj.dequantized()),
            o_proj=Dense(8 * layer.o_proj.dequantized()),
        )
        for layer in model.layers
    ]
    sharp = replace(model, layers=layers)
    assert pack_model(sharp, Format.parse("W8A16"), 32, kv_bits=(8, 4)).kv == "8/4"
    message = (
        r"^keys of 4 bits diverge by \d\.\d{3} nats from keys of 8 on the calibration tokens, "
        r"0\.05 are accepted: give --kv 8/4, or --kv 8$"
    )
    with pytest.raises(LutraError, match=message):
        pack_model(sharp, Format.parse("W8A16"), 32, kv_bits=4)


def test_an_embedding_row_that_takes_the_others_bits_is_named(
    checkpoint: Callable[[str], Decoder], caplog: pytest.LogCaptureFixture
) -> None:
    source = checkpoint("least")
    embedding = source.embed_tokens.dequantized().copy()
    for factor, told in ((1, 0), (32, 0), (10_000, 1)):
        loud = embedding.copy()
        peaks = np.abs(loud).max(axis=1)
        loud[7] *= factor * np.median(peaks) / peaks[7]
        caplog.clear()
        model = pack_model(replace(source, embed_tokens=Dense(loud)))
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == told
        for message in messages:
            assert np.median(np.abs(model.embedding.astype(int)).max(axis=1)) < 8
            assert "of token 7, is 9972 times the median row, to which it leaves 1.9 bit" in message


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e-45, r"^the scale of layer 0 q_proj is \S+, scales hold 1e-34 to 1e\+43: rescale the"),
        (1e300, r"^the scale of layer 0 q_proj is \S+, scales hold 1e-34 to 1e\+43: rescale the"),
    ],
)
def test_scales_that_cannot_be_stored_are_refused(
    scale: float, message: str, checkpoint: Callable[[str], Decoder]
) -> None:
    model = checkpoint("least")
    layer = model.layers[0]
    weight = layer.linear("q_proj")
    assert isinstance(weight, Ternary | Integers)
    loud = replace(layer, q_proj=replace(weight, scale=scale))
    with pytest.raises(LutraError, match=message):
        pack_model(replace(model, layers=[loud, *model.layers[1:]]))


def test_scales_whose_products_leave_their_exponents_are_refused(
    checkpoint: Callable[[str], Decoder],
) -> None:
    """Gate and up of 1e30, though either can be stored: squared ReLU and the norm multiply them."""
    model = checkpoint("least")

    def loud(scale: float) -> Decoder:
        parts = {
            name: replace(model.layers[0].linear(name), scale=scale)
            for name in ("gate_proj", "up_proj")
        }
        return replace(model, layers=[replace(model.layers[0], **parts), *model.layers[1:]])

    pack_model(loud(1e10))
    for scale in (1e30, 1e-30):
        with pytest.raises(LutraError, match=r"^layer 0: the exponent of .* can reach -?\d+, scal"):
            pack_model(loud(scale))


def test_packing_is_deterministic(checkpoint: Callable[[str], Decoder]) -> None:
    a, b = (pack_model(checkpoint("least")) for _ in range(2))
    np.testing.assert_array_equal(a.embedding, b.embedding)
    np.testing.assert_array_equal(a.head, b.head)
    assert (a.residual_frac, a.head_scale, a.eps) == (b.residual_frac, b.head_scale, b.eps)


def test_the_shipped_model_uses_the_range_of_its_types() -> None:
    model = pack_model(load(find_model("tales")))
    norms: list[PackedNorm] = [model.norm]
    for layer in model.layers:
        assert layer.attention_norm is not None
        assert layer.ffn_norm is not None
        norms += [layer.input_norm, layer.attention_norm, layer.ffn_input_norm, layer.ffn_norm]
    for norm in norms:
        assert 16383 < np.abs(norm.gamma.astype(int)).max() <= 32767
        assert 0 <= norm.frac <= 24
    assert 0 <= model.embedding_frac <= model.residual_frac <= 20


def test_a_model_without_grouping_is_packed_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path, Shape(num_attention_heads=1, num_key_value_heads=1))
    assert pack_model(load(folder)).n_kv_heads == 1


# -- Llama


FORMATS = ("W1A8", "W3A8", "W4A8", "W8A8", "W4A16", "W8A16")


@pytest.mark.parametrize("format", FORMATS)
def test_matrices_are_the_quantised_ones(
    format: str, llama: Callable[[str], Decoder], packed_llama: Callable[[str, str], PackedModel]
) -> None:
    """An accumulator of the integers, times scales and 2**shift / 2, is the product in float."""
    parsed, model = Format.parse(format), packed_llama("llama-odd", format)
    # of one bit the group belongs to the name
    name = f"W1g{GROUP}A8" if parsed.w_bits == 1 else format
    assert (model.format, model.group) == (name, GROUP)
    assert model.gate is Gate.SILU
    for source, layer in zip(llama("llama-odd").layers, model.layers, strict=True):
        assert layer.attention_norm is layer.ffn_norm is None
        assert layer.q_proj.shift == layer.k_proj.shift == layer.v_proj.shift
        assert layer.gate_proj.shift == layer.up_proj.shift
        for name in LINEARS:
            linear = getattr(layer, name)
            expected = round_to_nearest(source.linear(name).dequantized(), parsed.w_bits, GROUP)
            np.testing.assert_array_equal(linear.weights.codes, expected.weights.codes)
            factor = np.log2(np.e) / np.sqrt(32) if name == "q_proj" else 1.0
            worth = value(linear.scale) / 2.0**linear.shift
            assert worth == pytest.approx(expected.scale / 2 * factor, rel=2**-16)


@pytest.mark.parametrize("name", LLAMAS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_shift_is_the_least_that_keeps_the_accumulators(
    name: str, format: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    model = packed_llama(name, format)
    q_max = (1 << (model.a_bits - 1)) - 1
    for layer in model.layers:
        for names in (
            ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)
        ):  # fmt: skip
            linears = [getattr(layer, name) for name in names]
            peak = max(np.abs(x.weights.doubled()).sum(axis=1).max() for x in linears)
            assert peak == max(linear.peak for linear in linears)
            shift = linears[0].shift
            assert round_shift(peak * q_max, shift) <= ACC_MAX
            assert shift == 0 or round_shift(peak * q_max, shift - 1) > ACC_MAX
    peak = 2 * q_max * np.abs(model.head.astype(int)).sum(axis=1).max()
    assert round_shift(peak, model.head_shift) <= LOGIT_ACC_MAX
    assert (model.head_shift == 1) == (model.a_bits == 8)


def test_the_head_is_the_same_whatever_the_activations(
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    narrow, wide = (packed_llama("llama-grouped", name) for name in ("W4A8", "W4A16"))
    np.testing.assert_array_equal(narrow.head, wide.head)
    np.testing.assert_array_equal(narrow.head_rows, wide.head_rows)
    assert wide.head_scale == narrow.head_scale * 2 ** (wide.head_shift - narrow.head_shift)


def test_integer_weights_have_a_shift_of_one(packed: Callable[[str], PackedModel]) -> None:
    assert packed("odd").gate is Gate.RELU2
    for layer in packed("odd").layers:
        assert {getattr(layer, name).shift for name in LINEARS} == {1}
    assert packed("odd").head_shift == 1
    assert packed("odd").group is None


def test_sums_that_no_shift_holds_are_refused() -> None:
    """A row so deep that int16 activations pass 28 bits by more than 24."""
    assert least_shift((ACC_MAX << 24) // 32767, 32767, ACC_MAX) == 24
    message = (
        r"^sums of up to \d+ do not fit the accumulators even with a shift of 24: "
        "the model's rows are too deep$"
    )
    with pytest.raises(LutraError, match=message):
        least_shift(1 << 38, 32767, ACC_MAX)


def test_every_model_has_a_format_of_its_own(
    checkpoint: Callable[[str], Decoder], llama: Callable[[str], Decoder]
) -> None:
    assert str(default_format(checkpoint("least"))) == "W1.58A8"
    assert str(default_format(llama("llama"))) == "W8A8"
    assert str(default_format(replace(llama("llama"), made_for_a_bits=16))) == "W8A16"
    grouped = Grouped(
        codes=np.zeros((2, 32), np.uint8),
        scale=np.ones((2, 1), np.float32),
        zero=np.ones((2, 1), np.float32),
        bits=4,
        group=32,
    )
    model = llama("llama")
    layer = replace(model.layers[0], q_proj=grouped)
    assert str(default_format(replace(model, layers=[layer]))) == "W4A8"
    assert str(pack_model(checkpoint("least")).format) == "W1.58A8"
    packed = pack_model(llama("llama-whole"), None, 64)
    assert (str(packed.format), packed.group) == ("W8A8", 64)


def test_formats_of_another_kind_of_model_are_refused(
    checkpoint: Callable[[str], Decoder], llama: Callable[[str], Decoder]
) -> None:
    message = r"^the weights of least are ternary and .*: use format W1\.58A8, not W4A8$"
    with pytest.raises(LutraError, match=message):
        pack_model(checkpoint("least"), Format.parse("W4A8"))
    message = (
        r"^the weights of llama are not ternary, and W1\.58A16 is for ternary weights only: "
        "use format W1A16, W1.58g128A16, W2A16, W3A16, W4A16, W6A16, W8A16$"
    )
    with pytest.raises(LutraError, match=message):
        pack_model(llama("llama"), Format.parse("W1.58A16"))


def test_bits_of_the_cache() -> None:
    model = random_decoder()
    pairs: list[Kv] = [8, "8/4", "8,4", (4, 4)]
    kinds = [pack_model(model, group=32, kv_bits=each).kv for each in pairs]
    assert kinds == ["8", "8/4", "8/4", "4"]
    with pytest.raises(LutraError, match=r"^kv must be 8, 8/4 or 4 bits, not 5$"):
        pack_model(model, kv_bits=5)


def test_the_reference_rounds_a_cache_of_four_bits(checkpoint: Callable[[str], Decoder]) -> None:
    packed = pack_model(checkpoint("odd"))
    eight, four = reference(packed), reference(replace(packed, key_bits=4, value_bits=4))
    tokens = np.arange(9)
    k = np.random.default_rng(1).normal(size=(2, 3, 8))
    assert (eight.key_bits, four.key_bits) == (eight.value_bits, four.value_bits) == (None, 4)
    mixed = reference(pack_model(checkpoint("odd"), kv_bits=(8, 4)))
    assert (mixed.key_bits, mixed.value_bits) == (None, 4)
    assert not np.array_equal(eight.forward(tokens), four.forward(tokens))
    rounded = np.multiply(*round_activations(k, 4))
    step = np.abs(k).max(axis=-1, keepdims=True) / 7
    np.testing.assert_allclose(rounded / step, np.rint(k / step), atol=1e-9)
    assert np.abs(np.rint(rounded / step)).max() == 7
