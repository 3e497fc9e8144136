"""Whole models in the C library: every logit is the golden device's."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.host.random_model import LLAMAS, SHAPES, load

from lutra.host.compiler import compile_model
from lutra.host.configure import configure
from lutra.host.devices.base import TileResult
from lutra.host.devices.golden import GoldenDevice
from lutra.host.models import find_model
from lutra.host.packing import PackedModel, pack_model

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.host.devices.cpu.binding import CpuModel, CpuResult
from lutra.host.devices.cpu.library import target_names

TARGETS = [name for name, available in target_names().items() if available]


def golden(model: PackedModel, tokens: Sequence[int]) -> TileResult:
    """What the golden device makes of all tokens."""
    program = compile_model(model, configure(model))
    device, tile = GoldenDevice(), program.config.m_tile
    device.load(program)
    parts = [device.run_tile(tokens[i : i + tile], i, 0) for i in range(0, len(tokens), tile)]
    return TileResult(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.argmax for part in parts]),
        None,
        any(part.saturated for part in parts),
    )


def run(model: CpuModel, tokens: Sequence[int], sizes: Sequence[int]) -> CpuResult:
    """All logits of ``tokens``, in calls of ``sizes``."""
    model.reset()
    parts: list[CpuResult] = []
    position = 0
    for size in sizes:
        chunk = tokens[position : position + size]
        if chunk:
            parts.append(model.run(chunk, position, 0))
        position += len(chunk)
    assert position == len(tokens)
    return CpuResult(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([part.argmax for part in parts]),
        any(part.saturated for part in parts),
    )


def assert_same(actual: CpuResult, expected: TileResult, head_scale: float) -> None:
    np.testing.assert_array_equal(actual.logits, expected.logits)
    np.testing.assert_array_equal(actual.scale * head_scale, expected.scale)
    np.testing.assert_array_equal(actual.argmax, expected.argmax)
    assert actual.saturated == expected.saturated


def tokens_of(model: PackedModel, n: int = 99) -> list[int]:
    rng = np.random.default_rng(1)
    return [int(t) for t in rng.integers(0, model.vocab_size, min(n, model.context))]


def check(
    model: PackedModel, tokens: Sequence[int], targets: Sequence[str] = TARGETS, threads: int = 1
) -> None:
    """All ways through a model give the golden device's logits."""
    expected = golden(model, tokens)
    n = len(tokens)
    for name in targets:
        for tile, sizes in ((128, [n]), (7, [n]), (128, [1] * n), (128, [3, 1, 2, 5, n])):
            cpu = CpuModel(model, threads=threads, few=name, many=name, tile=tile)
            assert_same(run(cpu, tokens, sizes), expected, model.head_scale)
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
def test_a_cache_of_four_bits(name: str, packed: Callable[[str], PackedModel]) -> None:
    model = replace(packed(name), kv_bits=4)
    check(model, tokens_of(model))
    assert not np.array_equal(
        golden(model, tokens_of(model)).logits, golden(packed(name), tokens_of(model)).logits
    )


def test_the_shipped_model() -> None:
    model = pack_model(load(find_model("tales")))
    check(model, tokens_of(model, 40))
