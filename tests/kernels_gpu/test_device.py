"""The device ``cuda`` in Triton's interpreter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.host.models.small_models import write_variant
from tests.host.packed_models import golden_tiles
from triton.runtime import interpreter

from lutra.devices.choose import choose_device
from lutra.devices.cuda.device import CudaDevice, describe_gpu
from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.errors import LutraError
from lutra_golden.matmul.engine import GroupedWeights
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedLinear, PackedModel
from lutra_kernels import launch

pytestmark = pytest.mark.interpreted


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_SMS", 1)
    options = replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


def small(folder: Path, variant: str, format: str, kv_bits: int = 8) -> PackedModel:
    changes = {"hidden_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 64}
    checkpoint = load_model(write_variant(folder, variant, changes=changes))
    return pack_model(checkpoint, Format.parse(format), 16, kv_bits=kv_bits)


def check(model: PackedModel) -> None:
    device = CudaDevice()
    device.load_model(model)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, 6).tolist()
    expected = golden_tiles(model, tokens)
    prefill = device.run_tile(tokens[:5], 0, 0)
    decode = device.run_tile(tokens[5:], 5, 0)
    for name in ("logits", "scale", "argmax"):
        found = np.concatenate([getattr(prefill, name), getattr(decode, name)])
        np.testing.assert_array_equal(found, getattr(expected, name))
    device.close()


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_logits_are_the_golden_devices(kv_bits: int, tmp_path: Path) -> None:
    check(small(tmp_path, "qwen3", "W3A8", kv_bits))


def test_matrices_of_different_bits_and_groups(tmp_path: Path) -> None:
    model = small(tmp_path, "llama", "W4A8")
    layer = model.layers[0]

    def other(linear: PackedLinear, bits: int, group: int) -> PackedLinear:
        rng = np.random.default_rng(bits)
        n, k = linear.weights.codes.shape
        weights = GroupedWeights(
            codes=rng.integers(0, 1 << bits, (n, k), np.uint8),
            scale=rng.integers(1, 60, (n, k // group)),
            zero=np.full((n, k // group), (1 << bits) - 1),
            bits=bits,
            group=group,
        )
        return PackedLinear(weights, linear.scale, linear.shift)

    layer = replace(layer, k_proj=other(layer.k_proj, 2, 32), up_proj=other(layer.up_proj, 3, 16))
    check(replace(model, layers=[layer]))


def test_auto_takes_it_in_the_interpreter() -> None:
    device, reasons = choose_device("auto", lambda: pytest.fail("no configuration is needed"))
    assert device.name == "cuda" and not reasons
    assert describe_gpu() == "Triton's interpreter, without a GPU"
    with pytest.raises(LutraError, match=r"no model is loaded: call load_model\(model\) first"):
        device.run_tile([1], 0, 0)
