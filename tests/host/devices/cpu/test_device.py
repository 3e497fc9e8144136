"""The device ``cpu`` behind the LLM, and what takes its place."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.host.packed_models import golden_tiles
from tests.host.tiles import Tiles, run_tiles

from lutra.commands.cli import main
from lutra.devices import auto, processors
from lutra.devices.choose import choose_device
from lutra.devices.cpu import library as cpu_library
from lutra.devices.cpu.device import CpuDevice
from lutra.llm import LLM
from lutra.open_model import open_packed_model
from lutra.text.sampling import SamplingParams
from lutra_golden.errors import LutraError
from lutra_golden.machine import available_cores
from lutra_golden.matmul.format import FORMATS, TERNARY_NAME
from lutra_golden.model.checks import check_numbers
from lutra_golden.model.packed import PackedLinear, PackedModel
from lutra_golden.model.shapes import Gate
from lutra_golden.model.stored import StoredWeights

compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without a C compiler on which the library never was compiled."""
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    cpu_library.library.cache_clear()
    yield
    cpu_library.library.cache_clear()


@compiler
def test_a_story_is_the_golden_models() -> None:
    sampling = SamplingParams(temperature=1.0, seed=5)
    prompt = "The king's youngest son went into the forest and met an old man who said to him"
    llm = LLM("tales", "cpu", check=True)
    completion = llm.generate(prompt, 24, sampling)
    assert completion.stats.bit_exact
    golden = LLM("tales", "golden").generate(prompt, 24, sampling)
    assert completion.tokens == golden.tokens
    assert llm.device.counters() == {} and llm.device.pass_tokens > golden.stats.prompt_tokens
    llm.close()


@compiler
@pytest.mark.parametrize("model", ["tales", "tales-llama"])
def test_every_way_to_draw_gives_the_golden_models_tokens(model: str) -> None:
    options = SamplingParams(
        temperature=1.2, seed=5, min_p=0.02, repetition_penalty=1.3, logit_bias={262: 2.5, 270: -9},
        stop=["the king", "!"], logprobs=3, n=2,
    )  # fmt: skip
    prompt = "Once upon a time there was"
    llms = LLM(model, "cpu"), LLM(model, "golden")
    for sampling in (options, replace(options, temperature=0, n=1)):
        one, other = (each.generate(prompt, 12, sampling) for each in llms)
        for a, b in zip((one, *one.alternatives), (other, *other.alternatives), strict=True):
            assert (a.tokens, a.text, a.finish_reason) == (b.tokens, b.text, b.finish_reason)
            assert a.logprobs == b.logprobs
    llms[0].close()


@compiler
def test_logits_of_a_context_that_is_filled() -> None:
    packed_tales = open_packed_model("tales")
    device = CpuDevice(threads=1)
    device.load(packed_tales)
    tokens = np.random.default_rng(0).integers(0, 2048, packed_tales.context).tolist()
    tiles = Tiles(device)
    whole = tiles.run_tile(tokens, 0, 0)
    parts = run_tiles(tiles, tokens, [100, 100])
    np.testing.assert_array_equal(whole.logits, parts.logits)
    with pytest.raises(LutraError, match=r"positions 256\.\.256 exceed the context of 256"):
        tiles.run_tile([1], 256, 0)
    device.close()
    with pytest.raises(LutraError, match=r"no model is loaded: call load\(model\) first"):
        device.session()


@compiler
@pytest.mark.parametrize("format", [name for name in FORMATS if TERNARY_NAME not in name])
def test_the_shipped_llama_in_every_format(format: str) -> None:
    model = open_packed_model("tales-llama", format)
    tokens = np.random.default_rng(0).integers(0, 2048, 40).tolist()
    expected = golden_tiles(model, tokens)
    device = CpuDevice(threads=2)
    device.load(model)
    found = run_tiles(Tiles(device), tokens, [37, 1, 1])
    for name in ("logits", "scale", "argmax"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    device.close()


@compiler
def test_an_engine_is_not_chosen_for_it() -> None:
    with pytest.raises(LutraError, match="device cpu has no matmul engine to choose: leave eng"):
        LLM("tales", "cpu", engine="ternary")


@compiler
def test_auto_takes_it() -> None:
    device, reasons = choose_device("auto", threads=3)
    assert isinstance(device, CpuDevice) and device.threads == 3 and not reasons
    assert CpuDevice().threads == available_cores() >= 1


def test_without_a_compiler_numpy_runs_and_says_so(
    no_compiler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = "device cpu needs a C compiler, and there is no no-such-compiler: install one"
    with pytest.raises(LutraError, match=missing):
        choose_device("cpu")
    llm = LLM("tales")
    assert llm.device.name == "golden"
    assert len(llm.notes) == 1 and llm.notes[0].startswith(missing)
    assert llm.notes[0].endswith("; device golden runs instead, in NumPy")
    for command in ("run -dev auto -n 2", "bench -p 2 -n 2 -r 1"):
        assert main(command.split()) == 0
        captured = capsys.readouterr()
        assert captured.err == f"note: {llm.notes[0]}\n" and "golden" in captured.out


class SmallGpu(CpuDevice):
    """A GPU that is there, and too small for any model."""

    name = "cuda"

    def __init__(self, _progress: object) -> None:
        super().__init__()

    def _load(self, model: PackedModel) -> None:
        raise LutraError("the GPU has too little memory for the model's weights")


@compiler
def test_a_gpu_that_is_too_small_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "gpu_count", lambda: 1)
    monkeypatch.setattr(processors, "CudaDevice", SmallGpu)
    llm = LLM("tales")
    golden = LLM("tales", "golden").generate("A king", 3)
    assert llm.generate("A king", 3).tokens == golden.tokens
    assert llm.device.name == "cpu"
    assert llm.notes == [
        "the GPU has too little memory for the model's weights; device cpu runs instead"
    ]
    monkeypatch.setattr(processors, "CudaDevice", no_torch)
    assert LLM("tales").notes == ["device cuda cannot be used, no torch; device cpu runs instead"]
    with pytest.raises(LutraError, match="too little memory"):
        LLM("tales", SmallGpu(None))


def no_torch(progress: object) -> None:
    raise LutraError("device cuda cannot be used, no torch")


def test_sums_that_can_pass_28_bits_are_refused(
    packed_llama: Callable[[str, str], PackedModel],
) -> None:
    model = packed_llama("llama", "w4a8")
    check_numbers(model)

    def wide(linear: PackedLinear) -> PackedLinear:
        stored = linear.stored
        assert stored.scale is not None
        scale = np.full(stored.scale.shape, 60000, np.uint16)
        return PackedLinear(replace(stored, scale=scale), linear.scale, 0)

    layer = model.layers[0]
    broken = replace(model, layers=[replace(layer, o_proj=wide(layer.o_proj)), *model.layers[1:]])
    with pytest.raises(LutraError, match=r"sums of layer 0 o_proj need \d+ bits, there are 28: pa"):
        check_numbers(broken)


@pytest.mark.parametrize("name", ["gate_proj", "up_proj"])
def test_sums_that_squared_relu_cannot_multiply_are_refused(
    name: str, packed: Callable[[str], PackedModel]
) -> None:
    """Three accumulators of 21 bits fit 64 bits; other matrices have 28."""
    model = packed("odd")
    layer = model.layers[0]
    linear = layer.linear(name)
    stored = StoredWeights.of(linear.weights, grouped=True)
    assert stored.scale is not None

    def scaled(by: int) -> PackedModel:
        assert stored.scale is not None
        wide = replace(stored, scale=np.full(stored.scale.shape, by, np.uint16))
        loud = PackedLinear(wide, linear.scale, 0)
        return replace(model, layers=[replace(layer, **{name: loud}), *model.layers[1:]])

    top = scaled(1).layers[0].linear(name).peak * 127
    largest = ((1 << 20) - 1) // top
    check_numbers(scaled(largest))
    with pytest.raises(LutraError, match=rf"sums of layer 0 {name} need 22 bits, there are 21: pa"):
        check_numbers(scaled(2 * largest))
    gated = replace(scaled(2 * largest), gate=Gate.SILU)
    check_numbers(gated)
