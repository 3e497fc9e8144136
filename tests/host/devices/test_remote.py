"""Devices that are lent: bits of the device itself over a link, and what becomes of a lost one."""

import gc
import socket
import struct
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tests.host.devices.lent import Lent, lent

from lutra.devices.accelerator.agent import LinkError
from lutra.devices.base import Device, DeviceError, Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice
from lutra.devices.pages import NoRoom
from lutra.devices.remote.link import LentAddress
from lutra.devices.remote.shape import LinkShape
from lutra.devices.remote.wire import narrow, pack, unpack
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

Model = Callable[[str], PackedModel]
KEY = bytes(range(32))
TOKENS = np.random.default_rng(0).integers(0, 60, 30).tolist()


@pytest.fixture(scope="module")
def model(packed: Model) -> PackedModel:
    return packed("grouped")


def loaded(device: Device, model: PackedModel) -> Device:
    device.load(model)
    return device


def same(found: Sequence[StepResult], expected: Sequence[StepResult]) -> None:
    for a, b in zip(found, expected, strict=True):
        for name in ("logits", "scale", "argmax", "residual"):
            one, other = getattr(a, name), getattr(b, name)
            if other is None:
                assert one is None
            else:
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype


def everything(device: Device, n_layers: int) -> list[StepResult]:
    """Steps of two sessions, whole and by layers, greedy tokens, cuts, copies, exports."""
    one, other = device.session(), device.session()
    results = device.run(
        [
            Step(session=one, tokens=TOKENS[:9], logits_from=4),
            Step(session=other, tokens=TOKENS[:3]),
        ]
    )
    made = device.greedy(one, int(results[0].argmax[-1]), 5, [])
    assert one.length == 9 + len(made.tokens)
    one.truncate(8)
    fork = one.fork(6)
    residual = None
    for layer in range(n_layers):
        [result] = device.run(
            [
                Step(
                    session=fork,
                    tokens=TOKENS[:4],
                    layers=range(layer, layer + 1),
                    residual=residual,
                )
            ]
        )
        residual = result.residual
        results.append(result)
    fresh = device.session()
    fresh.restore(one.export())
    assert fresh.export(range(1)).to_bytes() == one.export(range(1)).to_bytes()
    results += device.run([Step(session=fresh, tokens=[5])])
    for each in (one, other, fork, fresh):
        each.close()
    return results


@pytest.mark.parametrize("kind", [GoldenDevice, CpuDevice])
def test_a_lent_device_gives_its_bits(kind: type[GoldenDevice], model: PackedModel) -> None:
    n_layers = len(model.layers)
    with lent(kind()) as there, there.device() as device:
        loaded(device, model)
        same(everything(device, n_layers), everything(loaded(GoldenDevice(), model), n_layers))
        assert device.pass_tokens == kind.pass_tokens
        assert device.capabilities == kind.capabilities
        assert device.facts()["address"] == str(there.address)
        assert device.counters() == {}


def test_keys(model: PackedModel) -> None:
    with lent(GoldenDevice(), KEY) as there:
        with there.device(KEY) as device:
            loaded(device, model)
        with pytest.raises(DeviceError, match="asks for a key: set LUTRA_DEVICE_KEY"):
            there.device().find()
        with pytest.raises(DeviceError, match=r"lutra://127.0.0.1:.*wrong tag"):
            there.device(bytes(32)).find()
    with lent(GoldenDevice()) as there, pytest.raises(DeviceError, match="has no key"):
        there.device(KEY).find()


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    from lutra.devices.remote.device import RemoteDevice

    with pytest.raises(DeviceError, match=r"no lender answers at port .*run `lutra lend` there"):
        RemoteDevice(f"lutra://127.0.0.1:{port}").find()
    with pytest.raises(LutraError, match="is lutra://host, lutra://host:port or"):
        LentAddress.parse("lutra://")


def test_the_model_is_sent_once_and_stays(model: PackedModel, packed: Model) -> None:
    device = GoldenDevice()
    with lent(device) as there:
        with there.device() as first:
            loaded(first, model)
            before = device.model
            with there.device() as second:
                loaded(second, model)
                second.session()
                with pytest.raises(LutraError, match=r"is lent to 127.0.0.1:.*another model"):
                    second.load(packed("least"))
            first.session()
        with there.device() as third:
            loaded(third, model)
            assert device.model is before
        until(lambda: there.log[-1].endswith("gone"))
        with there.device() as fourth:
            loaded(fourth, packed("least"))
            assert device.model is not before


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sessions_end_with_their_host_or_when_nobody_has_them(model: PackedModel) -> None:
    inner = GoldenDevice()
    with lent(inner) as there:
        with there.device() as device:
            loaded(device, model)
            sessions = [device.session() for _ in range(3)]
            assert n_sessions(inner) == 3
            sessions.pop()
            gc.collect()
            sessions[0].close()
            with pytest.raises(LutraError, match="the session is closed"):
                sessions[0].truncate(0)
            device.counters()  # the message that tells of it
            assert n_sessions(inner) == 1
            device.load(model)
            assert n_sessions(inner) == 0
            with pytest.raises(LutraError, match="no longer loaded"):
                sessions[1].truncate(0)
            device.session()
        until(lambda: n_sessions(inner) == 0)


def n_sessions(device: GoldenDevice) -> int:
    gc.collect()
    return len(device._sessions)


def test_refusals_leave_the_link(model: PackedModel) -> None:
    with lent(GoldenDevice()) as there, there.device() as device:
        with pytest.raises(LutraError, match="no model is loaded"):
            _ = device.model
        loaded(device, model)
        session = device.session()
        with pytest.raises(LutraError, match="outside the vocabulary"):
            device.run([Step(session=session, tokens=[10**6])])
        with pytest.raises(LutraError, match="must be integers"):
            device.run([Step(session=session, tokens=["a"])])  # type: ignore[list-item]
        with pytest.raises(LutraError, match="cannot be cut"):
            session.truncate(3)
        with pytest.raises(LutraError, match="not one of device lutra://"):
            device.run([Step(session=loaded(GoldenDevice(), model).session(), tokens=[1])])
        assert device.run([]) == []
        device.run([Step(session=session, tokens=[1])])
        assert session.length == 1


def test_memory_is_reserved_there(model: PackedModel) -> None:
    inner = CpuDevice(1, memory_limit=1 << 16)
    with lent(inner) as there, there.device() as device:
        loaded(device, model)
        assert device.page == inner.page > 1
        sessions = [device.session()]
        with pytest.raises(NoRoom, match="no memory"):
            while True:
                with pytest.raises(NoRoom):
                    sessions[-1].reserve(1, spare=10**6)
                sessions[-1].reserve(1)
                sessions.append(device.session())
        assert len(sessions) > 1
        for each in sessions[1:]:
            each.close()
        device.session().reserve(1)
        device.run([Step(session=sessions[0], tokens=[1])])


def test_a_fault_of_the_device_is_one_here(model: PackedModel) -> None:
    class Faulty(GoldenDevice):
        def _pass(self, chunks: object) -> None:  # type: ignore[override]
            raise DeviceError("it hangs: power it off and on")

    with lent(Faulty()) as there, there.device() as device:
        loaded(device, model)
        with pytest.raises(DeviceError, match=r"lutra://.*: it hangs"):
            device.run([Step(session=device.session(), tokens=[1])])
        device.session()  # the link goes on


def test_a_lost_link_says_what_waits_and_comes_back_with_a_model(model: PackedModel) -> None:
    shape = LinkShape()
    with lent(GoldenDevice()) as there, there.device(shape=shape) as device:
        loaded(device, model)
        session = device.session()
        shape.lose_at = shape.events
        words = "a step of 3 tokens through layers 0-0 waits for lutra://.*: the link was lost"
        with pytest.raises(DeviceError, match=words):
            device.run([Step(session=session, tokens=[1, 2, 3], layers=range(1))])
        with pytest.raises(DeviceError, match="a cut to 0 positions waits for"):
            session.truncate(0)
        with pytest.raises(DeviceError, match="is lost"):
            _ = device.model
        session.close()
        with pytest.raises(DeviceError, match="the link was lost"):
            device.load(model)
        shape.mend()
        loaded(device, model)
        device.run([Step(session=device.session(), tokens=[1, 2, 3])])


def test_a_lender_that_ends_is_a_lost_link(model: PackedModel) -> None:
    with lent(GoldenDevice()) as there, there.device() as device:
        loaded(device, model)
        there.server.close()
        with pytest.raises(DeviceError, match=r"a new session waits for .* closed the link"):
            device.session()


def test_a_shaped_link_takes_its_time(model: PackedModel) -> None:
    """Latency of each message and of its answer, and the time of the bytes, both ways."""
    shape = LinkShape()
    with lent(GoldenDevice()) as there, there.device(shape=shape) as device:
        loaded(device, model)
        session = device.session()
        device.run([Step(session=session, tokens=TOKENS)])
        kv = session.export()
        n_bytes = len(kv.to_bytes())
        shape.latency_s, shape.bytes_per_s = 0.05, n_bytes / 0.2
        for call in (lambda: session.restore(kv), session.export):
            before, start = shape.n_bytes, time.perf_counter()
            call()
            took = time.perf_counter() - start
            assert n_bytes < shape.n_bytes - before < n_bytes + 1000
            assert 0.3 <= took < 3.0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xff\xff\xff{}",
        pack({})[:-1],
        pack({}, [np.zeros(4, np.int8)])[:-1],
        pack({}, [np.zeros(4, np.int8)]) + b"1",
        struct.pack("<I", 2) + b"[]",
        pack({}, [np.zeros(4, np.float32)]),
    ],
    ids=str,
)
def test_messages_of_another_form_are_refused(body: bytes) -> None:
    with pytest.raises(LinkError, match="none of this version"):
        unpack(body)


def test_messages() -> None:
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 5), np.int64),
        np.array([1.5]),
    ]
    fields, found = unpack(pack({"op": "x"}, arrays))
    assert fields == {"op": "x"}
    for a, b in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    for values, kind in (([127, -128], "int8"), ([128], "int16"), ([-(2**15) - 1], "int32"),
                         ([2**31], "int64"), ([], "int8")):  # fmt: skip
        assert narrow(np.array(values, np.int64)).dtype == kind


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"op": "sit", "drop": []}, "unknown operation 'sit'"),
        ({"op": "run"}, "cannot be carried out"),
        ({"op": "run", "drop": [], "steps": 3}, "cannot be carried out"),
        ({"op": "run", "drop": 3, "steps": []}, "cannot be carried out"),
        ({"op": "part", "drop": []}, "cannot be carried out"),
    ],
)
def test_a_host_that_talks_nonsense_loses_its_link_alone(
    fields: dict[str, object], reason: str, model: PackedModel
) -> None:
    with lent(GoldenDevice()) as there, there.device() as good, there.device() as bad:
        loaded(good, model)
        loaded(bad, model)
        with pytest.raises(DeviceError, match=reason):
            drop(bad, fields, there)
        good.run([Step(session=good.session(), tokens=[1])])


def drop(device: Device, fields: dict[str, object], there: Lent) -> None:
    """Send a message as it is."""
    from lutra.devices.accelerator.board_link import BoardLink

    try:
        link = BoardLink(there.address, None)
        link.ask(pack({"op": "hello", "client": "0"}), 5.0)
        link.ask(pack(fields), 5.0)
    except LinkError as error:
        raise DeviceError(str(error)) from None
