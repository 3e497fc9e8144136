"""Packed models on the device: what they refuse, and shipped ones in whole."""

import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton")

from tests.kernels_gpu.models import Golden, small_model, tokens_of

from lutra.models import find_model, load_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.matmul.format import FORMATS, TERNARY_NAME, Format
from lutra_golden.model.packed import PackedLinear
from lutra_kernels.errors import GpuUnavailable
from lutra_kernels.model import upload_model
from lutra_kernels.runner import Part, Runner

pytestmark = [pytest.mark.interpreted, pytest.mark.usefixtures("few_programs")]


def test_matrices_of_a_stack_have_one_shift() -> None:
    model = small_model("llama", "W4A8", layers=1)
    layer = model.layers[0]
    k, shift = layer.k_proj, layer.q_proj.shift
    layer = replace(layer, k_proj=PackedLinear(k.source, k.scale, 23))
    expected = f"q_proj, k_proj, v_proj must have one shift, not [{shift}, 23, {shift}]"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        upload_model(replace(model, layers=[layer]))


def test_groups_that_kernels_cannot_take() -> None:
    model = small_model("qwen3", "W2A8", layers=1, head_dim=24)
    expected = (
        "groups of 8 weights in o_proj are not a multiple of 16, which the GPU's kernels need: "
        "pack with larger groups or use another device"
    )
    with pytest.raises(GpuUnavailable, match=f"^{expected}$"):
        upload_model(model)


def test_progress_is_told() -> None:
    seen: list[float] = []
    upload_model(small_model("bitnet", None), seen.append)
    assert seen == [0.0, 0.5]


def test_rows_of_a_pass_are_bounded() -> None:
    runner = Runner(upload_model(small_model("bitnet", None)), pass_tokens=4)
    for parts in ([], [Part(pages=[0], tokens=[1] * 3, position=0)] * 2):
        n = sum(part.n for part in parts)
        with pytest.raises(ValueError, match=f"^a pass has 1 to 4 rows, not {n}$"):
            runner.run(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [("tales", None), *(("tales-llama", each) for each in FORMATS if TERNARY_NAME not in each)],
)
def test_shipped_models(name: str, format: str | None) -> None:
    checkpoint = load_model(find_model(name))
    model = pack_model(checkpoint, Format.parse(format) if format else None)
    runner, golden = Runner(upload_model(model), page=32, split_from=12), Golden(model)
    tokens = tokens_of(model, 13)
    runner.pool.grow(1, 1)
    logits, scales = golden.run(tokens)
    for first, last in ((0, 11), (11, 12), (12, 13)):
        part = Part(pages=[0], tokens=tokens[first:last], position=first, n_logits=last - first)
        found = runner.run([part])
        np.testing.assert_array_equal(found.logits, logits[first:last])
        scale = scale_to_float(found.scale) * model.head_scale
        np.testing.assert_array_equal(scale, scales[first:last])
