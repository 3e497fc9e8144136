"""Embedding and head in codes: every engine gives the golden logits."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.host.models.small_models import write_variant
from tests.host.tiles import compiled, golden, on_transport, run_tiles
from tests.system.small_architectures import GROUP, SHAPE, config_of_engine
from tests.system.test_architectures import SIZES, assert_the_rtl_gives_the_same, tokens_for
from tests.system.test_groups import config_of

from lutra.checkpoints.weights import Dense
from lutra.compile.compiler import compile_model
from lutra.compile.configure import configure
from lutra.compile.fit import engines_for
from lutra.compile.program import Program
from lutra.models import load_model
from lutra.models.decoder import Decoder
from lutra.quantize.pack import pack_model
from lutra_golden.arith.quantize import ActivationGroups
from lutra_golden.control.isa import FLAG_LOGITS, FLAG_LOW, Opcode
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import NANO, with_engine
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import Format
from lutra_golden.model.limits import ACC_MAX, least_shift
from lutra_golden.model.packed import PackedLinear, PackedModel
from lutra_golden.timing.decode import decode_cycles
from lutra_golden.timing.memory import IDEAL_MEMORY, random_timing

pytestmark = pytest.mark.usefixtures("no_coverage")

Packed = Callable[[str], PackedModel]
W4A8 = Format(w_bits=4, a_bits=8)


def _read(folder: Path, variant: str, **changes: Any) -> Decoder:
    sizes = {
        "hidden_size": SHAPE.hidden_size,
        "intermediate_size": SHAPE.intermediate_size,
        "num_attention_heads": SHAPE.num_attention_heads,
        "num_key_value_heads": SHAPE.num_key_value_heads,
        "vocab_size": SHAPE.vocab_size,
        "max_position_embeddings": SHAPE.max_position_embeddings,
        "head_dim": SHAPE.head_dim,
    }
    return load_model(write_variant(folder, variant, changes=sizes | changes))


def _tied(folder: Path) -> PackedModel:
    return pack_model(_read(folder, "llama"), W4A8, GROUP, head_bits=4)


def _untied(folder: Path) -> PackedModel:
    """Eight bits beside layers of four, and activations in groups."""
    model = _read(folder, "llama-untied")
    return pack_model(model, W4A8, GROUP, a_groups=ActivationGroups(size=32), head_bits=8)


def _offsets(folder: Path) -> PackedModel:
    """A head of six bits with offsets and wide scales in groups of 16, which layers have not."""
    model = _untied(folder)
    assert model.vocabulary is not None
    rng, (n, k) = np.random.default_rng(6), (model.vocab_size, model.hidden_size)
    weights = GroupedWeights(
        codes=rng.integers(0, 64, (n, k), np.uint8),
        scale=rng.integers(1, 2000, (n, k // 16)),
        zero=np.zeros((n, k // 16), np.int64),
        bits=6,
        group=16,
        offset=4 * rng.integers(-30_000, 1, (n, k // 16)),
    )
    shift = least_shift(weights.peak, model.a_peak, ACC_MAX, least=1)
    head = PackedLinear(weights, model.vocabulary.head.scale, shift)
    return replace(model, vocabulary=replace(model.vocabulary, head=head))


def _ternary(folder: Path) -> PackedModel:
    """Rows of one step and its negative, which packing keeps: the ternary engine runs them."""
    model = _read(folder, "bitnet")
    trits = np.random.default_rng(5).integers(-1, 2, (SHAPE.vocab_size, SHAPE.hidden_size))
    model = replace(model, embed_tokens=Dense(0.03 * trits), lm_head=None)
    return pack_model(model, head_bits=4)


MAKERS = {"tied": _tied, "untied": _untied, "offsets": _offsets, "ternary": _ternary}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: MAKERS[name](root / name))


def small(name: str, engine: str, model: PackedModel) -> AcceleratorConfig:
    """A small configuration, which other tests have as well."""
    if name in ("tied", "ternary"):
        return config_of_engine(engine)
    # offsets of the head alone
    return config_of(engine, replace(model, offsets=name == "offsets"))


CASES = [
    *((name, engine) for name in MAKERS for engine in ("lut", "mixpe", "mac")),
    ("ternary", "ternary"),
]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_programs_are_the_golden_device(name: str, engine: str, packed: Packed) -> None:
    model, tokens = packed(name), tokens_for(packed(name))
    assert model.vocabulary is not None
    assert model.vocabulary.tied == (name in ("tied", "ternary"))
    expected = run_tiles(golden(model), tokens)
    for config in (small(name, engine, model), configure(model, engine=engine)):
        found = run_tiles(on_transport(compiled(model, config)), tokens, SIZES)
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.scale, expected.scale)
        np.testing.assert_array_equal(found.argmax, expected.argmax)
        assert found.saturated == expected.saturated


@pytest.mark.rtl
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("tied", "lut"),
        ("offsets", "mixpe"),
        ("ternary", "ternary"),
        pytest.param("untied", "lut", marks=pytest.mark.slow),
        pytest.param("untied", "mixpe", marks=pytest.mark.slow),
        pytest.param("untied", "mac", marks=pytest.mark.slow),
        pytest.param("tied", "mixpe", marks=pytest.mark.slow),
        pytest.param("tied", "mac", marks=pytest.mark.slow),
    ],
)
def test_the_rtl_gives_the_logits_of_the_golden_device(
    name: str, engine: str, packed: Packed
) -> None:
    timing = random_timing(2) if name == "offsets" else IDEAL_MEMORY
    model = packed(name)
    assert_the_rtl_gives_the_same(model, small(name, engine, model), timing)


def test_what_the_program_has_of_them(packed: Packed) -> None:
    """The halves of the residual stream's rows, one vector of scales for all chunks of the head."""
    model = packed("tied")
    program: Program = compile_model(model, config_of_engine("lut"))
    first, second = program.parts.embed
    assert (first.opcode, second.opcode) == (Opcode.EMBED, Opcode.EMBED)
    assert (first.flags, second.flags) == (0, FLAG_LOW)
    assert (first.args["shift"], second.args["shift"]) == (16, 0)
    kinds = [operation.opcode for operation in program.parts.head]
    # gamma of the last norm, then the scales
    assert kinds.count(Opcode.LDPARAM) == 2
    products = [each for each in program.parts.head if each.opcode is Opcode.LMMA]
    assert {each.args["planes"] for each in products} == {4}
    assert all(each.flags & FLAG_LOGITS for each in products)
    assert kinds.count(Opcode.LOGITS) > 1


def test_engines_that_run_them(packed: Packed) -> None:
    grouped = ["lut", "mixpe", "mac"]
    assert engines_for(packed("ternary")) == ["ternary", *grouped, "lookup"]
    model, other = packed("ternary"), packed("tied").vocabulary
    assert model.vocabulary is not None and other is not None
    model = replace(model, vocabulary=replace(model.vocabulary, head=other.head))
    assert engines_for(model) == grouped
    assert configure(model).engine == "lut"
    with pytest.raises(
        LutraError,
        match=r"^engine ternary does not run W1.58A8 with a head of 4 bits, only ternary weights "
        r"with one scale per matrix and 8-bit activations with one scale per token: use engine "
        r"lut, mixpe or mac, or pack the model with --head 0$",
    ):
        compile_model(model, config_of_engine("ternary"))


def test_what_a_configuration_lacks_for_the_head(packed: Packed) -> None:
    model = packed("offsets")
    whole = config_of("mac", replace(model, offsets=True))
    compile_model(model, whole)
    for changes, message in (
        ({"offset_width": 0}, "built for zero points, the model's groups of weights have offsets"),
        ({"scale_width": 8}, "built for group scales of 8 bits, the model has scales of 11: "),
        ({"depth_tile": 32}, "groups of 16 are not whole depth tiles of configuration small-group"),
        ({"sum_width": 36}, r"a sum of the engine \(bits\) needs \d+, has 36 "),
    ):
        with pytest.raises(LutraError, match=message):
            compile_model(model, whole.with_(**changes))


def test_a_configuration_is_measured_for_the_head(packed: Packed) -> None:
    config = configure(packed("offsets"))
    assert config.matmul.depth_tile == 16
    assert config.matmul.scale_width >= 11
    assert config.matmul.offset_width > 0
    # without it
    plain = replace(packed("offsets"), vocabulary=packed("untied").vocabulary)
    found = configure(plain).matmul
    assert (found.depth_tile, found.offset_width) == (32, 0)


def test_fewer_bits_of_the_head_take_fewer_cycles(packed: Packed) -> None:
    model, config = packed("tied"), with_engine(NANO, "lut", depth_tile=32)
    wide = replace(model, vocabulary=packed("untied").vocabulary)
    assert decode_cycles(model, config, 3) < decode_cycles(wide, config, 3)
