"""The device ``auto`` beside an emulated card: which device is taken, and why others are not."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from tests.host.devices.test_xrt import InterpretedKernel

from lutra import LLM, SamplingParams
from lutra.compile.configure import configure
from lutra.devices import auto, boards, estimate, processors
from lutra.devices.accelerator.lock import BoardLock
from lutra.devices.auto import AutoDevices, notes_on
from lutra.devices.base import DeviceError
from lutra.devices.boards import BOARD_DRIVERS
from lutra.devices.emulated.card import EmulatedCard
from lutra.devices.estimate import Estimates, Rate
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.core.configs import U55C
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.timing.boards import find_profile

GREEDY = SamplingParams(temperature=0.0)
PROMPT = "the king"


class Speeds:
    """A profile of fixed rates."""

    def __init__(self, **rates: float) -> None:
        self._rates = rates

    def decode(
        self, device: str, model: PackedModel, config: AcceleratorConfig | None = None
    ) -> Rate:
        return Rate(tokens_per_s=self._rates.get(device, 0.0))


FAST = Speeds(xrt=100, cuda=50, cpu=10)
SLOW = Speeds(xrt=5, cuda=50, cpu=10)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no board, and an empty cache; the CPU's library is that of other tests."""
    monkeypatch.setattr(auto, "gpu_count", lambda: 0)
    monkeypatch.setattr(auto, "interpreted", lambda: False)
    monkeypatch.setattr(processors, "CpuDevice", lambda *_: processors.GoldenDevice())
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))


class Host:
    """A machine with a card, which ``pyxrt`` finds, and the place of its bitstreams."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels: list[InterpretedKernel] = []
        self.card = EmulatedCard(find_profile("u55c"), kernels=self._kernel)
        module = self.card.module()
        module.__spec__ = ModuleSpec("pyxrt", None)
        monkeypatch.setitem(sys.modules, "pyxrt", module)
        monkeypatch.setattr(auto, "Estimates", lambda: FAST)
        self.folder = folder
        folder.mkdir(parents=True)

    def _kernel(self, config: AcceleratorConfig) -> InterpretedKernel:
        self.kernels.append(InterpretedKernel(config))
        return self.kernels[-1]

    def put(self, config: AcceleratorConfig, name: str | None = None) -> Path:
        """Put the image of a configuration into its place."""
        image = self.card.image(config)
        path = self.folder / f"{name or image.stem}.xclbin"
        shutil.copy(image, path)
        return path


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path / "cache" / "bitstreams", monkeypatch)
    yield made
    made.card.close()


@pytest.fixture
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("least")


@pytest.fixture
def model(packed: Callable[[str], PackedModel]) -> PackedModel:
    return packed("least")


@pytest.fixture
def config(model: PackedModel) -> AcceleratorConfig:
    """Needs of the model on the card."""
    return configure(model, "u55c")


def wish(folder: Path) -> tuple[list[int], list[str]]:
    """Tokens that ``auto`` generates, and its notes."""
    with LLM(folder) as llm:
        tokens = llm.generate(PROMPT, 4, GREEDY).tokens
        return [*tokens], [llm.device.name, *llm.notes]


def expected(folder: Path) -> list[int]:
    with LLM(folder, "golden") as llm:
        return llm.generate(PROMPT, 4, GREEDY).tokens


# -- which device is taken


def test_where_there_is_no_board_nothing_is_estimated_or_imported(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "decode_cycles", None)
    monkeypatch.setattr(estimate, "_cpu_memory_rate", None)
    found = AutoDevices(model)
    assert (found.take().name, found.reasons) == ("golden", [])
    assert "pynq" not in sys.modules
    seconds: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        assert not any(driver.is_here() for driver in BOARD_DRIVERS.values())
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_a_board_that_is_the_fastest_is_taken(
    folder: Path, config: AcceleratorConfig, host: Host
) -> None:
    host.put(config)
    assert wish(folder) == (expected(folder), ["xrt"])
    assert host.kernels and host.card.free_bytes == host.card.board.buffer_bytes


def test_a_slower_one_is_not(
    folder: Path, config: AcceleratorConfig, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it said why, be it usable or not."""
    monkeypatch.setattr(auto, "Estimates", lambda: SLOW)
    monkeypatch.setattr(processors, "CpuDevice", lambda *_: Named("cpu"))
    assert wish(folder)[1] == ["cpu"]
    host.put(config)
    assert wish(folder)[1] == ["cpu"]
    assert not host.kernels


class Named(processors.GoldenDevice):
    """The golden device by another name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


@pytest.mark.parametrize(
    ("speeds", "order"),
    [
        (FAST, ["xrt", "cuda", "cpu", "golden"]),
        (SLOW, ["cuda", "cpu", "xrt", "golden"]),
        (Speeds(xrt=20, cuda=50, cpu=10), ["cuda", "xrt", "cpu", "golden"]),
        # kernels that are interpreted: slower than the CPU, and still asked for first
        (Speeds(xrt=20, cuda=0, cpu=10), ["xrt", "cuda", "cpu", "golden"]),
        (Speeds(xrt=5, cuda=0, cpu=10), ["cuda", "cpu", "xrt", "golden"]),
        (Speeds(), ["cuda", "cpu", "xrt", "golden"]),
    ],
)
def test_the_order(
    speeds: Speeds,
    order: list[str],
    model: PackedModel,
    config: AcceleratorConfig,
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host.put(config)
    monkeypatch.setattr(auto, "gpu_count", lambda: 1)
    monkeypatch.setattr(processors, "CudaDevice", lambda *_: Named("cuda"))
    monkeypatch.setattr(processors, "CpuDevice", lambda *_: Named("cpu"))
    found = AutoDevices(model, profile=speeds)
    assert [found.take().name for _ in order] == order
    assert not found.has_more and not found.reasons


# -- why a board is passed over


def passed_over(folder: Path, reason: str) -> None:
    tokens, (device, note) = wish(folder)
    assert (tokens, device) == (expected(folder), "golden")
    assert note.startswith(reason), note
    assert note.endswith("; device golden runs instead, in NumPy") and "\n" not in note


def test_no_bitstream(folder: Path, host: Host) -> None:
    reason = f"device xrt has no bitstream in {host.folder}: make one with `lutra build --board NA"
    passed_over(folder, reason)


def test_another_fingerprint(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    path = host.put(config, "lutra")
    facts = {"configuration": "u55c", "fingerprint": "0123456789abcdef"}
    path.with_suffix(".json").write_text(json.dumps(facts))
    passed_over(
        folder,
        "device xrt: lutra.xclbin was built from another configuration u55c (0123456789abcdef) "
        f"than this Lutra's ({U55C.fingerprint:016x}): build it again with `lutra build --board u5",
    )


def test_a_bitstream_of_unknown_origin(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    host.put(config, "mine")
    passed_over(folder, "device xrt: mine.xclbin does not say what it was built from: copy the lut")


def test_a_model_that_does_not_fit(folder: Path, host: Host) -> None:
    path = host.put(U55C, "lutra")
    facts = {"configuration": "u55c", "fingerprint": f"{U55C.fingerprint:016x}"}
    path.with_suffix(".json").write_text(json.dumps(facts))
    passed_over(folder, "device xrt: configuration u55c is built for head_dim 64, the model has 32")


def test_a_file_that_says_nothing(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    host.put(config).with_suffix(".json").write_text("[]")
    path = host.folder / f"{config.fingerprint:016x}.json"
    passed_over(folder, f"device xrt: {path} cannot be read (it is no object): copy it from the bu")


def test_a_missing_module(
    folder: Path, config: AcceleratorConfig, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card's driver is there, and XRT's module is not."""
    host.put(config)
    monkeypatch.setitem(sys.modules, "pyxrt", None)
    here = replace(BOARD_DRIVERS["xrt"], is_here=lambda: True)
    monkeypatch.setattr(auto, "BOARD_DRIVERS", {"xrt": here})
    passed_over(folder, "device xrt needs XRT's Python module (")


def test_a_machine_with_the_cards_driver_has_one(tmp_path: Path) -> None:
    assert not boards._has_card(tmp_path)
    (tmp_path / "sys/bus/pci/drivers/xocl").mkdir(parents=True)
    assert boards._has_card(tmp_path)


def test_a_board_that_fails_to_load(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    host.put(config)
    host.card.faults.busy = True
    passed_over(folder, "device xrt: ")
    host.card.faults.busy = False
    assert wish(folder)[1] == ["xrt"]


def test_a_board_that_another_process_has(
    folder: Path, config: AcceleratorConfig, host: Host
) -> None:
    host.put(config)
    lock = BoardLock(f"xrt-{host.card.place}")
    lock.acquire("xrt")
    passed_over(folder, "device xrt is in use by process ")
    lock.release()


def test_a_board_of_too_little_memory(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    host.put(config)
    host.card.faults.hole_bytes = 1 << 12
    passed_over(folder, "device xrt: the card has no ")


# -- before the first token


def test_a_board_that_fails_before_the_first_token(
    folder: Path, config: AcceleratorConfig, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The prompt runs again on the next device, and one line says so."""
    host.put(config)
    llm = LLM(folder)
    host.card.faults.failed = "ERT_CMD_STATE_ERROR"
    with caplog.at_level(logging.WARNING):
        completion = llm.generate(PROMPT, 4, GREEDY)
    assert completion.tokens == expected(folder)
    assert completion.stats.computed_tokens == completion.stats.prompt_tokens
    assert llm.device.name == "golden"
    (note,) = llm.notes
    assert note.startswith("device xrt") or note.startswith("a run of device xrt failed with ")
    assert note in caplog.text
    assert host.card.free_bytes == host.card.board.buffer_bytes
    llm.close()


def test_logits_go_on_elsewhere(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    host.put(config)
    llm = LLM(folder)
    host.card.faults.failed = "ERT_CMD_STATE_ERROR"
    found = llm.logits([1, 2, 3])
    assert llm.device.name == "golden" and len(llm.notes) == 1
    for one, other in zip(found, LLM(folder, "golden").logits([1, 2, 3]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_later_it_is_an_error(folder: Path, config: AcceleratorConfig, host: Host) -> None:
    host.put(config)
    llm = LLM(folder)
    llm.generate(PROMPT, 1, GREEDY)
    host.card.faults.failed = "ERT_CMD_STATE_ERROR"
    with pytest.raises(DeviceError, match=r"^a run of device xrt failed with "):
        llm.generate("another", 1, GREEDY)
    assert (llm.device.name, llm.notes) == ("xrt", [])
    assert llm.generate(PROMPT, 4, GREEDY).tokens == expected(folder)
    llm.close()


def test_a_device_that_was_named_is_not_replaced(
    folder: Path, config: AcceleratorConfig, host: Host
) -> None:
    host.put(config)
    llm = LLM(folder, "xrt", config=config)
    host.card.faults.failed = "ERT_CMD_STATE_ERROR"
    with pytest.raises(DeviceError, match=r"^a run of device xrt failed with "):
        llm.generate(PROMPT, 1, GREEDY)
    assert llm.device.name == "xrt"
    llm.close()


# -- a bitstream that is named


def test_a_bitstream_by_name(
    folder: Path, config: AcceleratorConfig, host: Host, tmp_path: Path
) -> None:
    path = shutil.copy(host.put(config), tmp_path)
    shutil.rmtree(host.folder)
    with LLM(folder, bitstream=Path(path)) as llm:
        assert llm.device.name == "xrt"
    with LLM(folder, bitstream=tmp_path / "other.xclbin") as llm:
        assert llm.notes[0].startswith(f"device xrt: there is no bitstream {tmp_path}/other.xclbin")
    with LLM(folder, bitstream=Path("lutra.bit")) as llm:
        assert llm.notes[0].startswith("no board is here that loads lutra.bit")


@pytest.mark.pynq
def test_a_zynq_without_a_board_of_pynqs(
    folder: Path, model: PackedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is there, and finds nothing."""
    config = configure(model, "kv260")
    path = tmp_path / f"{config.fingerprint:016x}.bit"
    path.touch()
    here = replace(BOARD_DRIVERS["pynq"], is_here=lambda: True)
    monkeypatch.setattr(auto, "BOARD_DRIVERS", {"pynq": here})
    monkeypatch.setattr(auto, "Estimates", lambda: Speeds(pynq=100))
    with LLM(folder, bitstream=path) as llm:
        (note,) = llm.notes
        assert note.startswith("device pynq finds no board: run it as root on a board with PYNQ, o")
        assert llm.generate(PROMPT, 4, GREEDY).tokens == expected(folder)


# -- estimates


def test_estimates(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, config = Estimates(), configure(model, "u55c")
    assert profile.decode("golden", model) == Rate(tokens_per_s=0.0)
    board = profile.decode("xrt", model, config).tokens_per_s
    faster = config.with_(clock_hz=2 * config.clock_hz)
    assert profile.decode("xrt", model, faster).tokens_per_s == pytest.approx(2 * board)
    assert profile.decode("cpu", model).tokens_per_s > 0
    n_bytes, layers = estimate.token_bytes(model), len(model.layers)
    assert n_bytes > model.head.nbytes
    monkeypatch.setattr(estimate, "interpreted", lambda: False)
    for rate in (1e6, 1e12):
        monkeypatch.setattr(estimate, "gpu_memory_rate", lambda rate=rate: rate)
        seconds = n_bytes / rate + layers * 20e-6
        assert profile.decode("cuda", model).tokens_per_s == pytest.approx(1 / seconds)
    monkeypatch.setattr(estimate, "interpreted", lambda: True)
    assert profile.decode("cuda", model).tokens_per_s == 0


def test_reasons_name_what_runs_instead() -> None:
    assert notes_on(Named("cpu"), ["a reason"]) == ["a reason; device cpu runs instead"]


def test_a_refusal_of_the_last_device_is_an_error(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object, _model: PackedModel) -> None:
        raise LutraError("no memory")

    monkeypatch.setattr(processors.GoldenDevice, "_load", refuse)
    found = AutoDevices(model)
    with pytest.raises(LutraError, match=r"^no memory$"):
        found.load(model)
