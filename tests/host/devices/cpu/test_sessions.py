"""Sessions of the device ``cpu``: shared, moved and cut in every way, they give golden bits."""

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.models.small_models import write_variant

from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.arith.scale import scale_to_float
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.decoder import Decoder, Rows
from lutra_golden.model.packed import PackedModel

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.base import Step, StepResult
from lutra.devices.cpu.binding import CpuModel
from lutra.devices.cpu.device import CpuDevice, CpuSession

N = 14


class Golden:
    """The golden decoder with its caches, and logits of a text."""

    def __init__(self, model: PackedModel, text: Sequence[int]) -> None:
        decoder = Decoder(model)
        self.caches, x = decoder.caches(), decoder.embed(text)
        self.streams = [x]
        for i in range(len(model.layers)):
            x = decoder.layer(i, x, [Rows(self.caches, slice(0, len(text)), 0)])
            self.streams.append(x)
        self.logits, scale = decoder.head(x)
        self.scale = scale_to_float(scale) * model.head_scale
        self.model = model

    def kv(self, n: int) -> SequenceKv:
        layers = {i: cache.first(n) for i, cache in enumerate(self.caches)}
        return SequenceKv(
            key_bits=self.model.key_bits, value_bits=self.model.value_bits, layers=layers
        )

    def check(self, result: StepResult, first: int, n: int) -> None:
        rows = slice(first, first + n)
        np.testing.assert_array_equal(result.logits, self.logits[rows])
        np.testing.assert_array_equal(result.scale, self.scale[rows])
        np.testing.assert_array_equal(result.argmax, self.logits[rows].argmax(axis=1))


def text_of(model: PackedModel, seed: int, n: int = N) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.vocab_size, n).tolist()


@pytest.fixture(params=[8, 4])
def model(request: pytest.FixtureRequest, packed: Callable[[str], PackedModel]) -> PackedModel:
    return replace(packed("grouped"), key_bits=request.param, value_bits=request.param)


@pytest.fixture
def packed_sizes(tmp_path: Path) -> Callable[[int], PackedModel]:
    """Models with heads of a size."""

    def make(head_dim: int) -> PackedModel:
        changes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": head_dim}
        grouped = head_dim % 16 == 0  # padded heads leave groups of 16 to the library
        variant = "qwen3-wide-heads" if grouped else "falcon3"
        decoder = load_model(write_variant(tmp_path / "model", variant, changes=changes))
        return pack_model(decoder, Format.parse("w4a8") if grouped else None, 16)

    return make


@pytest.fixture
def device(model: PackedModel) -> Iterator[CpuDevice]:
    with CpuDevice(threads=2) as found:
        found.load(model)
        yield found


def go(device: CpuDevice, session: CpuSession, tokens: Sequence[int]) -> StepResult:
    (result,) = device.run([Step(session=session, tokens=tokens)])
    return result


def assert_same(a: SequenceKv, b: SequenceKv) -> None:
    assert a.to_bytes() == b.to_bytes()
    # bytes leave out the sign of what has four bits
    for i, layer in a.layers.items():
        np.testing.assert_array_equal(layer.keys, b.layers[i].keys)
        np.testing.assert_array_equal(layer.values, b.layers[i].values)


def test_sessions_side_by_side(device: CpuDevice, model: PackedModel) -> None:
    """Each with its own length; passes are cut in the middle of steps."""
    device.pass_tokens = 5
    texts = [text_of(model, i) for i in range(9)]
    golden = [Golden(model, text) for text in texts]
    sessions = [device.session() for _ in texts]
    rng = np.random.default_rng(3)
    while any(session.length < N for session in sessions):
        which = [i for i in rng.permutation(9).tolist() if sessions[i].length < N][:7]
        starts = [sessions[i].length for i in which]
        sizes = [min(int(rng.integers(1, 5)), N - start) for start in starts]
        steps = [
            Step(session=sessions[i], tokens=texts[i][start : start + size], logits_from=size // 2)
            for i, start, size in zip(which, starts, sizes, strict=True)
        ]
        for i, start, size, result in zip(which, starts, sizes, device.run(steps), strict=True):
            golden[i].check(result, start + size // 2, size - size // 2)


def test_export_and_restore_at_every_position(device: CpuDevice, model: PackedModel) -> None:
    text = text_of(model, 1)
    golden, session, other = Golden(model, text), device.session(), device.session()
    for n in range(N):
        if n:
            go(device, session, text[n - 1 : n])
        kv = session.export()
        assert_same(kv, golden.kv(n))
        other.restore(SequenceKv.from_bytes(kv.to_bytes()))
        assert other.length == n
        golden.check(go(device, other, text[n:]), n, N - n)


@pytest.mark.parametrize(
    ("head_dim", "kv"), [(12, (8, 8)), (20, (4, 4)), (48, (8, 8)), (48, (4, 4)), (48, (8, 4))]
)
def test_padded_heads_are_exported_without_padding(
    head_dim: int, kv: tuple[int, int], packed_sizes: Callable[[int], PackedModel]
) -> None:
    model = replace(packed_sizes(head_dim), key_bits=kv[0], value_bits=kv[1])
    assert model.head_dim == head_dim
    text = text_of(model, 1)
    golden = Golden(model, text)
    with CpuDevice(threads=1) as device:
        device.load(model)
        session, other = device.session(), device.session()
        go(device, session, text[:9])
        assert_same(session.export(), golden.kv(9))
        other.restore(golden.kv(9))
        golden.check(go(device, other, text[9:]), 9, N - 9)
        golden.check(go(device, session.fork(7), text[7:]), 7, N - 7)


def test_truncate_and_fork(device: CpuDevice, model: PackedModel) -> None:
    text, other = text_of(model, 1), text_of(model, 2)
    mixed = Golden(model, text[:6] + other[:5])
    golden, session = Golden(model, text), device.session()
    go(device, session, text)
    branch, whole = session.fork(6), session.fork()
    assert (branch.length, whole.length) == (6, N)
    mixed.check(go(device, branch, other[:5]), 6, 5)
    session.truncate(6)
    golden.check(go(device, session, text[6:]), 6, N - 6)
    assert_same(whole.export(), golden.kv(N))
    session.truncate(0)
    assert session.length == 0 and session.export().length == 0
    golden.check(go(device, session, text), 0, N)


def test_forks_of_every_length(device: CpuDevice, model: PackedModel) -> None:
    """Keys and values lie in blocks of positions, of which the last may hold one."""
    text = text_of(model, 1)
    golden, session = Golden(model, text), device.session()
    go(device, session, text)
    for n in range(N + 1):
        assert_same(session.fork(n).export(), golden.kv(n))


def test_ranges_of_layers(device: CpuDevice, model: PackedModel) -> None:
    """The residual stream goes through two sessions, one for each half of the model."""
    text, n_layers = text_of(model, 1), len(model.layers)
    golden, lower, upper = Golden(model, text), device.session(), device.session()
    cut = n_layers // 2
    assert 0 < cut < n_layers
    for first, size in ((0, 5), (5, 1), (6, N - 6)):
        tokens = text[first : first + size]
        (half,) = device.run([Step(session=lower, tokens=tokens, layers=range(cut))])
        assert half.residual is not None and half.residual.dtype == np.int32
        assert half.logits.shape == (0, model.vocab_size)
        np.testing.assert_array_equal(half.residual, golden.streams[cut][first : first + size])
        (result,) = device.run(
            [
                Step(
                    session=upper,
                    tokens=[1 << 40] * size,  # they only count
                    layers=range(cut, n_layers),
                    residual=half.residual,
                )
            ]
        )
        golden.check(result, first, size)
    with pytest.raises(LutraError, match=r"^layers 0\.\.\d of the session are filled unequally"):
        go(device, lower, [1])
    whole = device.session()
    whole.restore(lower.export(range(cut)))
    whole.restore(upper.export(range(cut, n_layers)))
    assert_same(whole.export(), golden.kv(N))


def test_ranges_and_whole_models_in_one_run(device: CpuDevice, model: PackedModel) -> None:
    text, n_layers = text_of(model, 1), len(model.layers)
    golden, sessions = Golden(model, text), [device.session() for _ in range(3)]
    whole, half, again = device.run(
        [
            Step(session=sessions[0], tokens=text),
            Step(session=sessions[1], tokens=text, layers=range(1)),
            Step(session=sessions[2], tokens=text[:3], logits_from=2),
        ]
    )
    golden.check(whole, 0, N)
    golden.check(again, 2, 1)
    np.testing.assert_array_equal(half.residual, golden.streams[1])
    assert n_layers > 1


def test_threads(device: CpuDevice, model: PackedModel) -> None:
    """Eight threads with a session each, token by token."""
    texts = [text_of(model, i) for i in range(8)]
    golden = [Golden(model, text) for text in texts]

    def story(i: int) -> list[StepResult]:
        session = device.session()
        return [go(device, session, [token]) for token in texts[i]]

    with ThreadPoolExecutor(8) as pool:
        for i, results in enumerate(pool.map(story, range(8))):
            for position, result in enumerate(results):
                golden[i].check(result, position, 1)


def test_an_interrupt_leaves_everything_usable(
    device: CpuDevice, model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second of several passes: no session has moved."""
    device.pass_tokens = 4
    texts = [text_of(model, i) for i in range(2)]
    golden, sessions = [Golden(model, t) for t in texts], [device.session() for _ in texts]
    for session, text in zip(sessions, texts, strict=True):
        go(device, session, text[:3])
    whole, calls = CpuModel.run, list[int]()

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return whole(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(CpuModel, "run", interrupted)
    steps = [Step(session=s, tokens=t[3:]) for s, t in zip(sessions, texts, strict=True)]
    with pytest.raises(KeyboardInterrupt):
        device.run(steps)
    assert [session.length for session in sessions] == [3, 3]
    for i, result in enumerate(device.run(steps)):
        golden[i].check(result, 3, N - 3)


def test_after_fork_the_model_is_loaded_again(device: CpuDevice, model: PackedModel) -> None:
    text = text_of(model, 1)
    golden, session = Golden(model, text), device.session()
    go(device, session, text)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            message = ""
            try:
                go(device, session, [1])
            except LutraError as error:
                message = str(error)
            device.load(model)
            golden.check(go(device, device.session(), text), 0, N)
            device.close()
            code = 0 if "load the model again here" in message and "\n" not in message else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    session.truncate(4)
    golden.check(go(device, session, text[4:]), 4, N - 4)


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
def test_what_is_dropped_is_released(model: PackedModel) -> None:
    """Threads of the library, its working memory, keys and values: none outlives its owner."""

    def use() -> None:
        device = CpuDevice(threads=4)
        device.load(model)
        text = text_of(model, 1, 30)
        sessions = [device.session() for _ in range(20)]
        device.run([Step(session=session, tokens=text) for session in sessions])

    def n_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    use()
    gc.collect()
    threads, before = n_threads(), resident()
    for _ in range(12):
        use()
    gc.collect()
    assert n_threads() == threads
    assert resident() - before < 4 << 20


def test_a_model_that_is_loaded_again_ends_sessions(device: CpuDevice, model: PackedModel) -> None:
    session = device.session()
    device.load(model)
    with pytest.raises(LutraError, match=r"^the session's model is no longer loaded"):
        go(device, session, [1])
    session.close()
    session = device.session()
    session.close()
    with pytest.raises(LutraError, match=r"^the session is closed"):
        go(device, session, [1])
    device.close()
    with pytest.raises(LutraError, match=r"^no model is loaded"):
        device.session()


def test_threads_that_close_while_others_run(device: CpuDevice, model: PackedModel) -> None:
    text, stop = text_of(model, 1), threading.Event()
    golden = Golden(model, text)

    def others() -> None:
        while not stop.is_set():
            session = device.session()
            go(device, session, text[:2])
            session.close()

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(others) for _ in range(2)]
        session = device.session()
        for position, token in enumerate(text):
            golden.check(go(device, session, [token]), position, 1)
        stop.set()
        for each in waiting:
            each.result()


def test_keys_of_another_shape_are_refused(device: CpuDevice, model: PackedModel) -> None:
    session = device.session()
    go(device, session, text_of(model, 1))
    kv = session.export()

    def cut(x: NDArray[np.int8]) -> NDArray[np.int8]:
        return x[..., :-2]

    layer = kv.layers[0]
    narrow = replace(layer, keys=cut(layer.keys), values=cut(layer.values))
    with pytest.raises(LutraError, match="they are of another model"):
        session.restore(replace(kv, layers={0: narrow}))
    bits = 12 - model.key_bits
    with pytest.raises(LutraError, match="bits, the model is packed for"):
        session.restore(replace(kv, key_bits=bits, value_bits=bits))


_LEAVES = """
import atexit, pickle, sys

def late():  # as a daemon thread does, which is in a pass when the process ends
    after = device.run([Step(session=session, tokens=[1, 2, 3])])
    print((before[0].logits == after[0].logits).all())

atexit.register(late)  # before the first finalizer, and so called after all of them

from lutra.devices.base import Step
from lutra.devices.cpu.device import CpuDevice

with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
device = CpuDevice(threads=2)
device.load(model)
other, session = device.session(), device.session()
before = device.run([Step(session=other, tokens=[1, 2, 3])])
"""


def test_nothing_is_taken_from_threads_that_outlive_the_program(
    model: PackedModel, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.write_bytes(pickle.dumps(model))
    done = subprocess.run(
        [sys.executable, "-c", _LEAVES, str(path)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
