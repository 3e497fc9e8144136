"""Keys and values of the device ``cpu`` in pages: shared, copied before writes, given back."""

import ctypes
import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.devices.cpu.test_sessions import Golden, assert_same, go, resident, text_of
from tests.host.random_model import GROUP, LLAMAS, write_model

from lutra.models import load_model
from lutra.quantize.pack import pack_model
from lutra_golden.errors import LutraError
from lutra_golden.matmul.format import Format
from lutra_golden.model.packed import PackedModel

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.base import Step
from lutra.devices.cpu import cache as pages
from lutra.devices.cpu.device import CpuDevice, CpuSession
from lutra.devices.pages import NoRoom

PAGE = 16
N = 3 * PAGE - 3


def long_model(folder: Path) -> PackedModel:
    """A model with a context of four pages."""
    shape = replace(LLAMAS["llama-grouped"], max_position_embeddings=4 * PAGE)
    return pack_model(load_model(write_model(folder, shape)), Format.parse("w4a8"), GROUP)


@pytest.fixture(params=[8, 4])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PackedModel:
    return replace(long_model(tmp_path), key_bits=request.param, value_bits=request.param)


@pytest.fixture
def make(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CpuDevice]]:
    """Devices with small pages, for so many of them."""
    monkeypatch.setattr(pages, "PAGE", PAGE)
    made = list[CpuDevice]()

    def make(n_pages: int | None = None) -> CpuDevice:
        device = CpuDevice(threads=2)
        device.load(model)
        made.append(device)
        if n_pages is not None:
            device._pool.n_pages = n_pages  # pyright: ignore[reportPrivateUsage]
        return device

    yield make
    for device in made:
        device.close()


def held(device: CpuDevice) -> int:
    return device._pool.n_held  # pyright: ignore[reportPrivateUsage]


def test_sessions_over_several_pages(make: Callable[..., CpuDevice], model: PackedModel) -> None:
    """Side by side, so that no session's pages follow one another."""
    device = make()
    texts = [text_of(model, i, N) for i in range(3)]
    golden = [Golden(model, text) for text in texts]
    sessions = [device.session() for _ in texts]
    at = 0
    for size in (1, PAGE - 1, 1, 5, PAGE, N):
        size = min(size, N - at)
        steps = [
            Step(session=s, tokens=t[at : at + size]) for s, t in zip(sessions, texts, strict=True)
        ]
        for i, result in enumerate(device.run(steps)):
            golden[i].check(result, at, size)
        at += size
    assert at == N
    for session, expected in zip(sessions, golden, strict=True):
        assert_same(session.export(), expected.kv(N))
    assert held(device) == 9


def test_forks_share_whole_pages(make: Callable[..., CpuDevice], model: PackedModel) -> None:
    device = make()
    text, other = text_of(model, 1, N), text_of(model, 2, N)
    golden, session = Golden(model, text), device.session()
    go(device, session, text)
    assert held(device) == 3
    for n in (1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 5, N - 1):
        fork = session.fork(n)
        assert held(device) == 3
        go(device, fork, other[:1])
        assert held(device) == 4  # the page that it writes in
        mixed = Golden(model, [*text[:n], other[0]])
        assert_same(fork.export(), mixed.kv(n + 1))
        fork.close()
        assert held(device) == 3
    assert_same(session.export(), golden.kv(N))


def test_who_was_forked_writes_a_copy_too(
    make: Callable[..., CpuDevice], model: PackedModel
) -> None:
    device = make()
    text, other = text_of(model, 1, N), text_of(model, 2, N)
    session = device.session()
    go(device, session, text)
    fork = session.fork()
    n = PAGE + 3
    session.truncate(n)
    go(device, session, other[:2])
    assert_same(session.export(), Golden(model, [*text[:n], *other[:2]]).kv(n + 2))
    assert_same(fork.export(), Golden(model, text).kv(N))
    fork.restore(session.export())
    assert_same(fork.export(), session.export())
    session.restore(Golden(model, other).kv(N))
    assert_same(fork.export(), Golden(model, [*text[:n], *other[:2]]).kv(n + 2))


def test_layers_of_different_lengths(make: Callable[..., CpuDevice], model: PackedModel) -> None:
    """A page that is copied takes the positions of the layer that has most."""
    device, n_layers = make(), len(model.layers)
    text = text_of(model, 1, N)
    golden, session = Golden(model, text), device.session()
    device.run([Step(session=session, tokens=text, layers=range(1))])
    fork = session.fork()
    (half,) = device.run([Step(session=device.session(), tokens=text, layers=range(1))])
    (result,) = device.run(
        [Step(session=fork, tokens=text, layers=range(1, n_layers), residual=half.residual)]
    )
    golden.check(result, 0, N)
    assert_same(fork.export(), golden.kv(N))


def test_sessions_take_pages_as_they_grow(
    make: Callable[..., CpuDevice], model: PackedModel
) -> None:
    device, text = make(3), text_of(model, 1, N)
    golden = Golden(model, text)
    sessions = [device.session() for _ in range(5)]  # empty ones take nothing
    golden.check(go(device, sessions[0], text[:PAGE]), 0, PAGE)
    golden.check(go(device, sessions[1], text[: PAGE + 1]), 0, PAGE + 1)
    size = device._pool.page_bytes  # pyright: ignore[reportPrivateUsage]
    message = (
        f"^no memory for {PAGE} more positions on device cpu: {size:,} bytes needed, 0 free: close "
        "a session"
    )
    with pytest.raises(NoRoom, match=message):
        go(device, sessions[0], text[PAGE : PAGE + 1])
    with pytest.raises(NoRoom, match="no memory for another session"):
        device.session()
    with pytest.raises(NoRoom):
        sessions[2].restore(golden.kv(3))
    assert (sessions[0].length, sessions[2].length) == (PAGE, 0)
    sessions[1].close()
    golden.check(go(device, sessions[0], text[PAGE:]), PAGE, N - PAGE)
    sessions.pop(0)
    gc.collect()
    golden.check(go(device, sessions[2], text), 0, N)


def test_memory_is_reserved_ahead(make: Callable[..., CpuDevice], model: PackedModel) -> None:
    device, text = make(4), text_of(model, 1, N)
    first, second = device.session(), device.session()
    first.reserve(N)
    assert held(device) == 3 and first.length == 0
    with pytest.raises(NoRoom):
        second.reserve(1, spare=1)
    second.reserve(1)
    first.reserve(2)  # is there
    with pytest.raises(NoRoom):
        second.reserve(10**9)  # a context at most
    with pytest.raises(LutraError, match=r"^n must be a whole number"):
        first.reserve("1")  # pyright: ignore[reportArgumentType]
    Golden(model, text).check(go(device, first, text), 0, N)
    first.close()
    with pytest.raises(LutraError, match=r"^the session is closed"):
        first.reserve(1)


def test_what_a_session_gives_back_is_free(
    make: Callable[..., CpuDevice], model: PackedModel
) -> None:
    """The system has the memory again, and pages that come again are used again."""
    device = make()
    pool = device._pool  # pyright: ignore[reportPrivateUsage]

    def full() -> CpuSession:
        session = device.session()
        session.reserve(model.context)
        return session

    sessions = [full() for _ in range(64)]
    used = [pool.address(page) for session in sessions for page in session.table.pages]
    assert len(set(used)) == 64 * -(-model.context // PAGE)
    ctypes.memset(used[0], 1, pool.page_bytes)
    before = resident()
    sessions.clear()
    gc.collect()
    assert pool.n_held == 0
    assert not any(ctypes.string_at(used[0], pool.page_bytes))
    assert resident() <= before
    again = full()
    assert {pool.address(page) for page in again.table.pages} <= set(used)
