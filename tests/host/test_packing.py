"""From floats to integers: every rounding is to the nearest, and nothing leaves its type."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.host.random_model import SHAPES, Shape, write_model

from lutra.host.errors import LutraError
from lutra.host.models import find_model
from lutra.host.models.bitnet import BitNet, load_bitnet
from lutra.host.packing import HEAD_PLANES, PackedModel, PackedNorm, pack_bitnet
from lutra.sim.golden.arith.scale import Scale, scale_to_float
from lutra.sim.golden.vector.residual import LOGIT_SHIFT


def value(scale: Scale) -> float:
    return float(scale_to_float(scale))


def changed(model: BitNet, **tensors: np.ndarray) -> BitNet:
    """``model`` with other tensors in its first layer."""
    return replace(model, layers=[replace(model.layers[0], **tensors), *model.layers[1:]])


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_the_checkpoints(
    name: str, checkpoint: Callable[[str], BitNet], packed: Callable[[str], PackedModel]
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
    checkpoint: Callable[[str], BitNet], packed: Callable[[str], PackedModel]
) -> None:
    for source, layer in zip(checkpoint("odd").layers, packed("odd").layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            linear, expected = getattr(layer, name), getattr(source, name)
            np.testing.assert_array_equal(linear.weight, expected.weight)
            # queries come out in units of log2, divided by the square root of their size
            factor = np.log2(np.e) / np.sqrt(32) if name == "q_proj" else 1.0
            assert value(linear.scale) == pytest.approx(expected.scale * factor, rel=2**-16)


def test_norms_take_as_many_bits_as_there_are(
    checkpoint: Callable[[str], BitNet], packed: Callable[[str], PackedModel]
) -> None:
    source, layer = checkpoint("grouped").layers[0], packed("grouped").layers[0]
    for norm, weight in (
        (layer.input_norm, source.input_layernorm),
        (layer.attention_norm, source.attn_sub_norm),
        (layer.ffn_input_norm, source.post_attention_layernorm),
        (layer.ffn_norm, source.ffn_sub_norm),
    ):
        assert norm.gamma.dtype == np.int16
        assert np.abs(norm.gamma.astype(int)).max() > 16000
        assert np.abs(norm.gamma / 2.0**norm.frac - weight).max() <= 0.5 / 2.0**norm.frac


@pytest.mark.parametrize(
    ("weight", "frac"), [(1.0, 14), (1.9999, 14), (2.0, 13), (32767.0, 0), (0.0, 24), (1e-6, 24)]
)
def test_fraction_bits_of_a_norm(
    weight: float, frac: int, checkpoint: Callable[[str], BitNet]
) -> None:
    gamma = np.full(32, -weight, np.float32)
    norm = pack_bitnet(changed(checkpoint("least"), input_layernorm=gamma)).layers[0].input_norm
    assert norm.frac == frac
    np.testing.assert_array_equal(norm.gamma, np.rint(gamma * 2.0**frac).astype(np.int16))


def test_a_norm_beyond_int16_is_refused(checkpoint: Callable[[str], BitNet]) -> None:
    gamma = np.full(32, 40000, np.float32)
    message = "^layer 0 input_layernorm reaches 40000, beyond int16: rescale the norm$"
    with pytest.raises(LutraError, match=message):
        pack_bitnet(changed(checkpoint("least"), input_layernorm=gamma))


@pytest.mark.parametrize("name", SHAPES)
def test_embedding_is_rounded_to_int16(
    name: str, checkpoint: Callable[[str], BitNet], packed: Callable[[str], PackedModel]
) -> None:
    model, source = packed(name), checkpoint(name).embed_tokens
    assert model.embedding_frac <= model.residual_frac
    error = model.embedding / 2.0**model.embedding_frac - source
    assert np.abs(error).max() <= 0.5 / 2.0**model.embedding_frac


@pytest.mark.parametrize("name", SHAPES)
def test_head_is_the_embedding_in_five_trits(
    name: str, checkpoint: Callable[[str], BitNet], packed: Callable[[str], PackedModel]
) -> None:
    model, source = packed(name), checkpoint(name).embed_tokens
    limit = (3**HEAD_PLANES - 1) // 2
    assert limit == 121
    assert np.abs(model.head.astype(int)).max() == limit
    assert model.head_rows.min() >= 1
    row = model.head_rows[:, None] * (model.head_scale / (1 << LOGIT_SHIFT))
    assert (np.abs(model.head * row - source) <= 0.5001 * row).all()


def test_rows_of_zeros_do_not_break_the_head(checkpoint: Callable[[str], BitNet]) -> None:
    embedding = checkpoint("least").embed_tokens.copy()
    embedding[5] = 0
    embedding[6] = 1e-12
    model = pack_bitnet(replace(checkpoint("least"), embed_tokens=embedding))
    assert not model.head[5:7].any()
    assert (model.head_rows[5:7] == 1).all()


def test_an_embedding_of_zeros_is_refused(checkpoint: Callable[[str], BitNet]) -> None:
    empty = np.zeros_like(checkpoint("least").embed_tokens)
    with pytest.raises(LutraError, match=r"^the embedding is all zeros: the checkpoint is empty, "):
        pack_bitnet(replace(checkpoint("least"), embed_tokens=empty))


def test_an_embedding_beyond_int16_is_refused(checkpoint: Callable[[str], BitNet]) -> None:
    huge = checkpoint("least").embed_tokens * 1e6
    with pytest.raises(LutraError, match=r"^the embedding reaches .*, beyond int16: rescale the "):
        pack_bitnet(replace(checkpoint("least"), embed_tokens=huge))


def test_the_residual_stream_keeps_headroom(checkpoint: Callable[[str], BitNet]) -> None:
    large = replace(checkpoint("least"), embed_tokens=checkpoint("least").embed_tokens * 1000)
    model = pack_bitnet(large)
    tokens = np.random.default_rng(0).integers(0, 304, 32)
    assert large.residual_peak(tokens) * 2**model.residual_frac < (1 << 31) / 4
    assert pack_bitnet(checkpoint("least")).residual_frac == 20


def test_packing_is_deterministic(checkpoint: Callable[[str], BitNet]) -> None:
    a, b = (pack_bitnet(checkpoint("least")) for _ in range(2))
    np.testing.assert_array_equal(a.embedding, b.embedding)
    np.testing.assert_array_equal(a.head, b.head)
    assert (a.residual_frac, a.head_scale, a.eps) == (b.residual_frac, b.head_scale, b.eps)


def test_the_shipped_model_uses_the_range_of_its_types() -> None:
    model = pack_bitnet(load_bitnet(find_model("tales")))
    norms: list[PackedNorm] = [model.norm]
    for layer in model.layers:
        norms += [layer.input_norm, layer.attention_norm, layer.ffn_input_norm, layer.ffn_norm]
    for norm in norms:
        assert 16383 < np.abs(norm.gamma.astype(int)).max() <= 32767
        assert 0 <= norm.frac <= 24
    assert 0 <= model.embedding_frac <= model.residual_frac <= 20


def test_a_model_without_grouping_is_packed_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path, Shape(num_attention_heads=1, num_key_value_heads=1))
    assert pack_bitnet(load_bitnet(folder)).n_kv_heads == 1
