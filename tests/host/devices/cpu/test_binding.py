"""Whole models in the C library: every logit equals the golden decoder's."""

import ctypes
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.models.small_models import TOKENS, write_variant
from tests.host.packed_models import loud_models
from tests.host.quantize.random_decoder import encoded, in_products
from tests.host.random_model import LLAMAS, SHAPES, load

from lutra.checkpoints.weights import Dense
from lutra.devices.base import Step
from lutra.devices.golden import GoldenDevice
from lutra.models import find_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.arith.scale import Scale, scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedLayer, PackedLinear, PackedModel
from lutra_golden.model.shapes import LINEARS

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.cpu import binding
from lutra.devices.cpu.binding import CpuModel, CpuResult, KeptArrays, RowTable, matrix_of
from lutra.devices.cpu.cache import CpuCache, CpuPages
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cpu.library import library, target_names
from lutra.devices.cpu.steps import Pool

# accelerators need multiples of 32
SIZES = {"hidden_size": 64, "intermediate_size": 96}
TARGETS = [name for name, available in target_names().items() if available]


def room(model: CpuModel) -> CpuCache:
    """Memory for a sequence that fills the context."""
    shape = model.shape
    cache = CpuCache(shape, CpuPages(shape, -(-shape.context // shape.page)))
    cache.reserve(0, shape.context, 0)
    return cache


def one(
    model: CpuModel, cache: CpuCache, tokens: Sequence[int], position: int, wanted: int = 0
) -> CpuResult:
    """Tokens of one sequence through all layers."""
    rows = RowTable.empty(len(tokens))
    rows.set(slice(None), cache, position, np.array(tokens, np.int32), wanted)
    return model.run(rows, range(model.shape.n_layers))


def run(model: CpuModel, tokens: Sequence[int], sizes: Sequence[int]) -> CpuResult:
    """All logits of ``tokens``, in passes of up to ``sizes``."""
    cache, parts, position = room(model), list[CpuResult](), 0
    for size in sizes:
        end = min(position + size, len(tokens))
        while position < end:
            chunk = tokens[position : min(position + model.rows, end)]
            parts.append(one(model, cache, chunk, position))
            position += len(chunk)
    assert position == len(tokens)
    return CpuResult(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.argmax for part in parts]),
        any(part.saturated for part in parts),
        None,
    )


def golden(model: PackedModel, tokens: Sequence[int]) -> CpuResult:
    """The same of the golden decoder."""
    decoder = Decoder(model)
    x, caches = decoder.embed(tokens), decoder.caches()
    for i in range(len(model.layers)):
        x = decoder.layer(i, x, [Rows(caches, slice(0, len(tokens)), 0)])
    logits, scale = decoder.head(x)
    return CpuResult(
        logits.astype(np.int32), scale_to_float(scale), logits.argmax(axis=1).astype(np.int32),
        decoder.saturation.seen, None,
    )  # fmt: skip


def assert_same(actual: CpuResult, expected: CpuResult) -> None:
    np.testing.assert_array_equal(actual.logits, expected.logits)
    np.testing.assert_array_equal(actual.scale, expected.scale)
    np.testing.assert_array_equal(actual.argmax, expected.argmax)
    assert actual.saturated == expected.saturated


def tokens_of(model: PackedModel, n: int = 99) -> list[int]:
    rng = np.random.default_rng(1)
    return [int(t) for t in rng.integers(0, model.vocab_size, min(n, model.context))]


def check(
    model: PackedModel, tokens: Sequence[int], targets: Sequence[str] = TARGETS, threads: int = 1
) -> None:
    """All ways through a model give the golden decoder's logits."""
    expected = golden(model, tokens)
    n = len(tokens)
    for name in targets:
        for rows, sizes in ((128, [n]), (7, [n]), (128, [1] * n), (128, [3, 1, 2, 5, n])):
            cpu = CpuModel(model, threads=threads, few=name, many=name, rows=rows)
            assert_same(run(cpu, tokens, sizes), expected)
            cpu.close()


@pytest.mark.parametrize("name", SHAPES)
def test_ternary_models(name: str, packed: Callable[[str], PackedModel]) -> None:
    check(packed(name), tokens_of(packed(name)))


@pytest.mark.parametrize("format", ["w1a8", "w2a8", "w3a8", "w4a8", "w4a16", "w6a8", "w8a8"])
@pytest.mark.parametrize("name", LLAMAS)
def test_llamas(name: str, format: str, packed_llama: Callable[[str, str], PackedModel]) -> None:
    model = packed_llama(name, format)
    check(model, tokens_of(model, 12 if name == "llama-odd" else 30))


@pytest.mark.parametrize("name", ["grouped", "odd"])
@pytest.mark.parametrize("kv", [(8, 4), (4, 4)])
def test_a_cache_of_four_bits(
    name: str, kv: tuple[int, int], packed: Callable[[str], PackedModel]
) -> None:
    model = replace(packed(name), key_bits=kv[0], value_bits=kv[1])
    check(model, tokens_of(model))
    few, many = (golden(each, tokens_of(model)) for each in (model, packed(name)))
    assert not np.array_equal(few.logits, many.logits)


def test_the_shipped_model() -> None:
    model = pack_model(load(find_model("tales")))
    check(model, tokens_of(model, 40))


@pytest.mark.parametrize(
    ("variant", "format"),
    [
        ("qwen2", "w4a8"),
        ("qwen2-window", "w2a16"),
        ("qwen3", "w4a16"),
        ("qwen3-wide-heads", "w3a8"),
        ("mistral-window", "w8a8"),
        ("falcon3", None),
        ("bitnet-large", None),
        ("llama-untied", "w6a8"),
    ],
)
def test_architectures(variant: str, format: str | None, tmp_path: Path) -> None:
    """Biases, norms of heads, windows, heads that are padded."""
    sizes = SIZES | ({"head_dim": 16} if variant == "qwen3-wide-heads" else {})
    decoder = load(write_variant(tmp_path / "model", variant, changes=sizes))
    model = pack_model(decoder, Format.parse(format) if format else None, 16)
    check(model, TOKENS, TARGETS[-1:])
    check(model, TOKENS, TARGETS[:1], threads=3)


@pytest.mark.parametrize(
    ("variant", "format", "groups"),
    [
        ("qwen2", "w4a8", ActivationGroups()),
        ("qwen3-wide-heads", "w3a8", ActivationGroups()),
        ("mistral-window", "w8a8", ActivationGroups(size=64, shift_max=3)),
        ("bitnet-large", None, ActivationGroups(size=128)),
    ],
)
def test_activations_in_groups(
    variant: str, format: str | None, groups: ActivationGroups, tmp_path: Path
) -> None:
    """Heads of 48 in rows of 64 keep groups of their own; ternary matrices have none of weights."""
    sizes = SIZES | ({"head_dim": 48} if variant == "qwen3-wide-heads" else {})
    decoder = load(write_variant(tmp_path / "model", variant, changes=sizes))
    wanted = Format.parse(format) if format else None
    model, plain = (pack_model(decoder, wanted, 16, a_groups=each) for each in (groups, None))
    check(model, TOKENS, TARGETS[-1:])
    check(model, TOKENS, TARGETS[:1], threads=3)
    assert not np.array_equal(golden(model, TOKENS).logits, golden(plain, TOKENS).logits)


@pytest.mark.parametrize("groups", [None, ActivationGroups()])
def test_groups_with_offsets(
    groups: ActivationGroups | None, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    plain, rng = packed_llama("llama-grouped", "w4a8"), np.random.default_rng(2)
    layers = list[PackedLayer]()
    for layer in plain.layers:
        parts = dict[str, PackedLinear]()
        for name in LINEARS:
            linear = layer.linear(name)
            offset = rng.integers(-2000, 2001, linear.weights.scale.shape)
            weights = replace(linear.weights, offset=offset)
            parts[name] = PackedLinear(weights, linear.scale, 9)
        layers.append(replace(layer, **parts))
    model = replace(plain, layers=layers, offsets=True, a_groups=groups)
    model = replace(model, head_shift=model.head_shift + 7)
    check(model, tokens_of(model, 20))


@pytest.mark.parametrize("groups", [None, ActivationGroups()])
def test_two_levels(groups: ActivationGroups | None) -> None:
    """Matrices, embedding and head as K-quants have them: no more bytes are read than stored."""
    model = pack_model(in_products(), None, 32, a_groups=groups, offsets=True, head_bits=8)
    coded = model.vocabulary
    assert coded is not None
    stored = [model.layers[0].gate_proj.stored, coded.head.stored]
    assert [each.levels is not None and each.levels.bits for each in stored] == [6, 8]
    for linear in (model.layers[0].gate_proj, coded.head):
        assert matrix_of(linear).n_bytes == linear.stored.n_bytes
    check(model, tokens_of(model, 20), TARGETS)
    check(model, tokens_of(model, 20), TARGETS[:1], threads=3)


@pytest.mark.parametrize("head_bits", [4, 8])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("groups", [None, ActivationGroups()])
def test_embedding_and_head_in_codes(
    head_bits: int, tied: bool, groups: ActivationGroups | None, tmp_path: Path
) -> None:
    variant = "qwen3" if tied else "llama-untied"
    decoder = load(write_variant(tmp_path / "model", variant, changes=SIZES))
    model = pack_model(decoder, Format.parse("w4a8"), 16, a_groups=groups, head_bits=head_bits)
    assert model.vocabulary is not None and model.vocabulary.tied is tied
    check(model, TOKENS, TARGETS)
    check(model, TOKENS, TARGETS[:1], threads=3)


def test_coded_embedding_has_every_bit(tmp_path: Path) -> None:
    """The residual stream behind the first layer is golden's to the last place."""
    decoder = load(write_variant(tmp_path / "model", "llama-untied", changes=SIZES))
    model = pack_model(decoder, Format.parse("W4A8"), 16, head_bits=8)
    streams = list[NDArray[np.int32] | None]()
    for device in (CpuDevice(), GoldenDevice()):
        device.load(model)
        step = Step(session=device.session(), tokens=TOKENS, layers=range(1))
        streams.append(device.run([step])[0].residual)
        device.close()
    assert streams[0] is not None
    np.testing.assert_array_equal(streams[0], streams[1])


def test_codes_of_a_head_that_lies_on_a_grid(tmp_path: Path) -> None:
    """One bit, ternary in groups and ternary of one scale: the codes of the body."""
    decoder = load(write_variant(tmp_path / "model", "llama-untied", changes=SIZES))
    rng, shape = np.random.default_rng(3), decoder.embed_tokens.shape
    step = rng.integers(50, 99, (shape[0], shape[1] // 32)).repeat(32, axis=1) * 2.0**-12
    one = (2.0 * rng.integers(0, 2, shape) - 1) * step
    trits = rng.integers(-1, 2, shape).astype(np.float64)
    for embedding, head, bits in ((one, trits * step, (1, 2)), (trits / 16, one, (2, 1))):
        source = replace(
            decoder,
            embed_tokens=Dense(embedding.astype(np.float32)),
            lm_head=Dense(head.astype(np.float32)),
        )
        model = pack_model(source, Format.parse("W1.58g32A8"), 32, head_bits=4)
        coded = model.vocabulary
        assert coded is not None
        assert (coded.embedding.stored.bits, coded.head.stored.bits) == bits
        assert model.format == "W1.58g32A8"
        check(model, TOKENS, TARGETS)


@pytest.mark.parametrize("groups", [None, ActivationGroups()])
def test_codes_of_a_file_in_embedding_and_head(
    groups: ActivationGroups | None, tmp_path: Path
) -> None:
    """Five bits about one of two zero points, eight, and four with offsets."""
    decoder = load(write_variant(tmp_path / "model", "llama-untied", changes=SIZES))
    n, k = decoder.embed_tokens.shape
    five, eight = encoded(5, n=n, k=k), encoded(8, n=n, k=k, seed=5)
    affine = encoded(4, affine=True, n=n, k=k)
    for embedding, head, bits in (
        (five, eight, (5, 8)),
        (affine, five, (4, 5)),
        (eight, affine, (8, 4)),
    ):
        source = replace(decoder, embed_tokens=embedding, lm_head=head)
        model = pack_model(
            source, Format.parse("W4A8"), 16, a_groups=groups, offsets=True, head_bits=8
        )
        coded = model.vocabulary
        assert coded is not None
        assert (coded.embedding.stored.bits, coded.head.stored.bits) == bits
        check(model, TOKENS, TARGETS)


def test_matrices_of_different_bits(packed_llama: Callable[[str, str], PackedModel]) -> None:
    two, three, four, eight = (packed_llama("llama-grouped", f"w{n}a8") for n in (2, 3, 4, 8))
    layers = [
        replace(
            four.layers[i],
            q_proj=replace(two.layers[i].q_proj, shift=9),
            k_proj=replace(three.layers[i].k_proj, shift=9),
            v_proj=replace(four.layers[i].v_proj, shift=9),
            gate_proj=replace(four.layers[i].gate_proj, shift=9),
            up_proj=replace(eight.layers[i].up_proj, shift=9),
        )
        for i in range(len(four.layers))
    ]
    model = replace(four, layers=layers, w_bits=8)
    check(model, tokens_of(model, 20))
    # of a gate in strips and a product beside it that is not
    layers = [
        replace(layer, gate_proj=replace(two.layers[i].gate_proj, shift=9))
        for i, layer in enumerate(layers)
    ]
    check(replace(model, layers=layers), tokens_of(model, 20))


def loud(model: PackedModel, name: str) -> PackedModel:
    """Its embedding is next to the ends of the residual stream, and the last ``name`` goes on."""
    linear = model.layers[-1].linear(name)
    changed = replace(linear, scale=Scale(linear.scale.m, linear.scale.e + 14))
    layers = [*model.layers[:-1], replace(model.layers[-1], **{name: changed})]
    # shifted by 16
    ends = np.where(model.embedding < 0, -32767, 32767).astype(np.int16)
    frac = model.residual_frac - 16
    return replace(model, layers=layers, embedding=ends, embedding_frac=frac)


@pytest.mark.parametrize("name", ["o_proj", "down_proj"])
def test_saturation_is_told(name: str, packed: Callable[[str], PackedModel]) -> None:
    """Includes the last layer, whose products are added when the head's norm reads them."""
    model = loud(packed("grouped"), name)
    tokens = tokens_of(model, 12)
    assert golden(model, tokens).saturated
    check(model, tokens)
    cpu = CpuModel(model, threads=1, few=TARGETS[0], many=TARGETS[0])
    assert one(cpu, room(cpu), tokens, 0, len(tokens)).saturated
    cpu.close()


@pytest.mark.parametrize("last", [1, 2])
def test_saturation_of_one_row_is_told(last: int, packed: Callable[[str], PackedModel]) -> None:
    """Behind or before the row of another sequence, all of which is zeros."""
    model = loud(packed("grouped"), "down_proj")
    embedding = model.embedding.copy()
    embedding[2] = 0
    model = replace(model, embedding=embedding)
    assert golden(model, [1]).saturated and not golden(model, [2]).saturated
    cpu = CpuModel(model, threads=1, few=TARGETS[0], many=TARGETS[0])
    assert not one(cpu, room(cpu), [2], 0).saturated
    rows, caches = RowTable.empty(2), [room(cpu) for _ in range(2)]
    for i, token in enumerate((3 - last, last)):
        rows.set(slice(i, i + 1), caches[i], 0, np.array([token], np.int32), 0)
    assert cpu.run(rows, range(cpu.shape.n_layers)).saturated
    cpu.close()


@pytest.mark.parametrize("place", ["scores", "attention", "heads", "residual", "gate"])
def test_every_place_that_saturates_is_told(
    place: str, packed_llama: Callable[[str, str], PackedModel]
) -> None:
    model = packed_llama("llama-odd", "w4a8")
    tokens = tokens_of(model, 5)
    assert not golden(model, tokens).saturated
    loud = loud_models(model)[place]
    assert golden(loud, tokens).saturated
    check(loud, tokens)


def test_only_the_logits_that_are_asked_for(packed: Callable[[str], PackedModel]) -> None:
    model = packed("grouped")
    tokens = tokens_of(model, 11)
    expected = golden(model, tokens)
    cpu = CpuModel(model, threads=2, few=TARGETS[-1], many=TARGETS[0])
    cache = room(cpu)
    for first in (0, 1, 5, 10, 11):
        result = one(cpu, cache, tokens, 0, first)
        np.testing.assert_array_equal(result.logits, expected.logits[first:])
        np.testing.assert_array_equal(result.argmax, expected.argmax[first:])
        np.testing.assert_array_equal(result.scale, expected.scale[first:])
    rows = RowTable.empty(11)
    rows.set(slice(None), cache, 0, np.array(tokens, np.int32), 11)
    rows.table["wanted"][[2, 3, 9]] = 1
    result = cpu.run(rows, range(cpu.shape.n_layers))
    np.testing.assert_array_equal(result.logits, expected.logits[[2, 3, 9]])
    np.testing.assert_array_equal(result.scale, expected.scale[[2, 3, 9]])
    cpu.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "kv"), [("ternary", 8), ("grouped", 4), ("w4a8", 8), ("w3a16", 4), ("w8a8", 4)]
)
def test_rows_of_several_sequences_share_passes(
    name: str,
    kv: int,
    target: str,
    packed: Callable[[str], PackedModel],
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    """Prompts and single tokens, of one to twenty sequences, as if each were alone."""
    model = packed_llama("llama-grouped", name) if name.startswith("w") else packed("grouped")
    model = replace(model, key_bits=kv, value_bits=kv)
    rng = np.random.default_rng(7)
    texts = [rng.integers(0, model.vocab_size, 12).tolist() for _ in range(20)]
    expected = [golden(model, text) for text in texts]
    cpu = CpuModel(model, threads=2, few=target, many=target)
    caches, at = [room(cpu) for _ in texts], [0] * len(texts)
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20):
        which = rng.choice(len(texts), n, replace=False).tolist()
        sizes = [min(int(rng.choice([0, 1, 1, 1, 3])), 12 - at[i]) for i in which]
        rows, first = RowTable.empty(sum(sizes)), 0
        for i, size in zip(which, sizes, strict=True):
            tokens = np.array(texts[i][at[i] : at[i] + size], np.int32)
            rows.set(slice(first, first + size), caches[i], at[i], tokens, 0)
            first += size
        if not first:
            continue
        result, first = cpu.run(rows, range(cpu.shape.n_layers)), 0
        for i, size in zip(which, sizes, strict=True):
            there, here = slice(at[i], at[i] + size), slice(first, first + size)
            np.testing.assert_array_equal(result.logits[here], expected[i].logits[there])
            np.testing.assert_array_equal(result.scale[here], expected[i].scale[there])
            np.testing.assert_array_equal(result.argmax[here], expected[i].argmax[there])
            at[i], first = at[i] + size, first + size
    assert max(at) > 5
    cpu.close()


def test_layers_one_after_another(packed: Callable[[str], PackedModel]) -> None:
    """The residual stream goes out of some layers and into the next ones."""
    model = packed("grouped")
    tokens, n_layers = tokens_of(model, 9), len(model.layers)
    assert n_layers > 1
    cpu = CpuModel(model, threads=2, few=TARGETS[0], many=TARGETS[-1])
    whole = run(cpu, tokens, [4, 5])
    cache = room(cpu)
    logits: list[np.ndarray] = []
    for first, size in ((0, 4), (4, 5)):
        rows, stream, result = RowTable.empty(size), None, None
        chunk = np.array(tokens[first : first + size], np.int32)
        for i in range(n_layers):
            rows.set(slice(None), cache, first, chunk if i == 0 else 0 * chunk, 1)
            result = cpu.run(rows, range(i, i + 1), stream)
            stream = result.residual
            assert (stream is None) == (i == n_layers - 1)
        assert result is not None
        logits.append(result.logits)
    np.testing.assert_array_equal(logits[0], whole.logits[1:4])
    np.testing.assert_array_equal(logits[1], whole.logits[5:])
    cpu.close()


def test_arg_max_is_the_first_of_equals(packed: Callable[[str], PackedModel]) -> None:
    model = packed("grouped")
    head, rows = model.head.copy(), model.head_rows.copy()
    head[5:], rows[5:] = head[5], rows[5]
    same = replace(model, head=head, head_rows=rows)
    for threads in (1, 4):
        cpu = CpuModel(same, threads=threads, few=TARGETS[0], many=TARGETS[0])
        cache, tokens = room(cpu), tokens_of(same, 9)
        # which thread takes which rows differs from pass to pass
        for _ in range(200 if threads > 1 else 1):
            result = one(cpu, cache, tokens, 0)
            np.testing.assert_array_equal(result.argmax, result.logits.argmax(axis=1))
            assert 5 in result.argmax
        cpu.close()


def test_a_sequence_can_begin_anew(packed: Callable[[str], PackedModel]) -> None:
    """Entries past a position are not read after the position is reused."""
    model = packed("grouped")
    tokens = tokens_of(model, 20)
    cpu = CpuModel(model, threads=1, few=TARGETS[0], many=TARGETS[0])
    cache = room(cpu)
    first = one(cpu, cache, tokens, 0)
    one(cpu, cache, tokens[::-1], 0, 20)
    again = one(cpu, cache, tokens[:7], 0), one(cpu, cache, tokens[7:], 7)
    np.testing.assert_array_equal(np.concatenate([r.logits for r in again]), first.logits)
    cpu.close()


def test_heads_that_are_too_large_are_refused(packed: Callable[[str], PackedModel]) -> None:
    model = replace(packed("least"), head_dim=320)
    with pytest.raises(
        LutraError,
        match=r"^device cpu has heads of up to 256, the model's are of 320: run it with -dev gold",
    ):
        CpuModel(model, threads=1, few="scalar", many="scalar")


def test_odd_groups_are_refused(packed_llama: Callable[[str, str], PackedModel]) -> None:
    linear = packed_llama("llama", "w4a8").layers[0].q_proj
    w = linear.weights
    fine = replace(w, group=8, scale=w.scale.repeat(4, axis=1), zero=w.zero.repeat(4, axis=1))
    with pytest.raises(LutraError, match=r"^device cpu needs groups of a multiple of 16, not 8: p"):
        matrix_of(replace(linear, source=fine))


@pytest.mark.parametrize(
    ("name", "status", "what"),
    [
        ("pool_new", None, "its working memory"),
        ("engine_new", None, "its working memory"),
        ("run", -1, "attention over 5 positions"),
    ],
)
def test_no_memory_is_one_line(
    name: str,
    status: int | None,
    what: str,
    packed: Callable[[str], PackedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library(), f"lutra_cpu_{name}", lambda *_: status)
    message = f"^device cpu has no memory for {what}: use a smaller model or context$"
    with pytest.raises(LutraError, match=message):
        cpu = CpuModel(packed("least"), threads=1, few="scalar", many="scalar")
        one(cpu, room(cpu), [1] * 5, 0)


def test_matrices_are_copied_into_large_pages() -> None:
    keep = KeptArrays(copies=True)
    sizes = 7, 40000, 1, 33, 5_000_001  # the last is copied in pieces
    arrays = [np.arange(n).astype(np.uint16).reshape(1, -1) for n in sizes]
    places = [keep.matrix(array) for array in arrays]
    pool = Pool(2)
    keep.fill(pool.address)
    pool.close()
    for array, place in zip(arrays, places, strict=True):
        assert place != array.ctypes.data and place % 64 == 0
        found = np.ctypeslib.as_array((ctypes.c_uint16 * array.size).from_address(place))
        np.testing.assert_array_equal(found, array[0])
    assert places[1] - places[0] == 64
    where = KeptArrays().matrix(arrays[1])
    assert where == arrays[1].ctypes.data


def test_matrices_are_copied_in_strips() -> None:
    """Elements of each size; a last strip that is not whole, and pieces of several strips."""
    keep, strip = KeptArrays(copies=True, strip=32), 32
    rng = np.random.default_rng(3)
    shapes = (np.uint8, 70, 5), (np.uint16, 32, 100), (np.uint32, 3, 1), (np.uint32, 9000, 97)
    arrays = [rng.integers(0, 200, (n, k)).astype(kind) for kind, n, k in shapes]
    places = [keep.matrix(array, strip) for array in arrays]
    pool = Pool(2)
    keep.fill(pool.address)
    pool.close()
    for array, place in zip(arrays, places, strict=True):
        rows = -(-len(array) // strip) * strip
        whole = np.zeros((rows, array.shape[1]), array.dtype)
        whole[: len(array)] = array
        expected = whole.reshape(-1, strip, array.shape[1]).transpose(0, 2, 1)
        found = np.ctypeslib.as_array((ctypes.c_uint8 * expected.nbytes).from_address(place))
        np.testing.assert_array_equal(found.view(array.dtype), expected.ravel())


def test_what_is_copied_is_aligned_and_then_forgotten() -> None:
    """Codes at an odd place of a file, as four bytes each."""
    keep, pool = KeptArrays(copies=True, strip=32), Pool(1)
    values = np.arange(4 * 40 * 3 + 1, dtype=np.uint32).astype(np.uint8)[1:].view(np.uint32)
    values, expected = values.reshape(40, 3), values.reshape(40, 3).copy()
    assert not values.flags.aligned
    place, other = keep.matrix(values, 32), np.ones((2, 8), np.uint8)
    forgotten = weakref.ref(other)
    keep.matrix(other)
    del other
    assert forgotten() is not None
    copy = keep._awaited[0][0]
    assert copy.source % values.itemsize == 0
    keep.fill(pool.address)
    pool.close()
    assert forgotten() is None
    found = np.ctypeslib.as_array((ctypes.c_uint32 * (64 * 3)).from_address(place))
    np.testing.assert_array_equal(found.reshape(2, 3, 32)[0], expected[:32].T)


def resident_bytes(path: Path) -> int:
    """Bytes of a mapped file that count as this process's memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    places = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    found = [next(line for line in lines[i:] if line.startswith("Rss:")) for i in places]
    return sum(int(line.split()[1]) * 1024 for line in found)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="a system that does not say")
def test_a_file_that_was_copied_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "codes"
    np.arange(1 << 20, dtype=np.uint32).tofile(path)
    values = np.asarray(np.memmap(path, np.uint8, "r")[4096:]).view(np.uint32).reshape(1, -1)
    assert values.sum() and resident_bytes(path) >= values.nbytes
    keep, pool = KeptArrays(copies=True), Pool(1)
    keep.matrix(values)
    keep.fill(pool.address)
    pool.close()
    assert resident_bytes(path) == 0
    np.testing.assert_array_equal(values[0], np.arange(1024, 1 << 20))


def test_a_model_that_fills_half_of_the_memory_stays_where_it_is(
    packed: Callable[[str], PackedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed("least")
    expected = golden(model, [1, 2, 3])
    asked: list[int] = []

    def none(n_bytes: int) -> bool:
        asked.append(n_bytes)
        return False

    monkeypatch.setattr(binding, "_spare_memory", none)
    cpu = CpuModel(model, threads=1, few="scalar", many="scalar")
    assert_same(run(cpu, [1, 2, 3], [3]), expected)
    cpu.close()
    codes = sum(
        layer.linear(name).stored.codes.nbytes for layer in model.layers for name in LINEARS
    )
    assert asked == [codes + model.head.nbytes]
