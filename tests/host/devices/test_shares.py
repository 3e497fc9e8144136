"""Devices compute shares of steps together, and meet in between."""

import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement

import numpy as np
import pytest

from lutra.devices.base import Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.cpu.meeting import CpuMeeting
from lutra.devices.golden import GoldenDevice
from lutra.devices.shares import Meeting, PartyLeft, Share, SharingDevice, first_best, joined
from lutra.open_model import open_packed_model
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import LayerShare, divide

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

MAKERS: dict[str, Callable[[], GoldenDevice | CpuDevice]] = {
    "golden": GoldenDevice,
    "cpu:1": lambda: CpuDevice(1),
    "cpu:2": lambda: CpuDevice(2),
}
ROWS = 48
STEPS = [list(range(5, 85)), [7], [9, 11], [3] * 20]


@pytest.fixture(scope="module")
def tales() -> PackedModel:
    return open_packed_model("tales")


@pytest.fixture(scope="module")
def expected(tales: PackedModel) -> list[StepResult]:
    with GoldenDevice() as device:
        device.load(tales)
        session = device.session()
        return [
            device.run([Step(session=session, tokens=tokens, logits_from=len(tokens) // 2)])[0]
            for tokens in STEPS
        ]


def together(
    devices: Sequence[GoldenDevice | CpuDevice], shares: Sequence[LayerShare], meeting: Meeting
) -> list[StepResult]:
    """Results of the steps, each device in a thread."""
    sessions = [device.session() for device in devices]
    results = list[StepResult]()
    for tokens in STEPS:
        found = dict[int, StepResult]()

        def run(
            i: int, tokens: Sequence[int] = tokens, found: dict[int, StepResult] = found
        ) -> None:
            step = Step(session=sessions[i], tokens=tokens, logits_from=len(tokens) // 2)
            [found[i]] = devices[i].run_share([step], Share(shares[i], meeting))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(devices))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results.append(joined([found[i] for i in range(len(devices))], shares))
    return results


@pytest.mark.parametrize("names", combinations_with_replacement(MAKERS, 2), ids=str)
def test_pairs_give_the_bits_of_one(
    names: Sequence[str], tales: PackedModel, expected: Sequence[StepResult]
) -> None:
    """Of passes of one token, of a few, and of many, in whatever proportion."""
    devices = [MAKERS[name]() for name in names]
    for device in devices:
        device.load(tales)
        assert isinstance(device, SharingDevice)
    kind = CpuMeeting if "golden" not in names else Meeting
    for rows, heads in (((1, 1), None), ((1, 3), (3, 1)), ((0, 1), (1, 0))):
        with kind(tales, ROWS, 2) as meeting:
            for found, one in zip(
                together(devices, divide(tales, rows, heads), meeting), expected, strict=True
            ):
                np.testing.assert_array_equal(found.logits, one.logits)
                np.testing.assert_array_equal(found.argmax, one.argmax)
                np.testing.assert_array_equal(found.scale, one.scale)
    for device in devices:
        device.close()


@pytest.mark.parametrize("kind", [Meeting, CpuMeeting])
def test_who_has_left_is_not_waited_for(kind: type[Meeting], tales: PackedModel) -> None:
    """Neither by those who wait, nor by those who come later; the session is as it was."""
    [share, _] = divide(tales, (1, 1))
    for make in MAKERS.values():
        device = make()
        device.load(tales)
        session = device.session()
        for late in (False, True):
            with kind(tales, ROWS, 2) as meeting:
                timer = threading.Timer(0 if late else 0.2, meeting.leave)
                timer.start()
                if late:
                    timer.join()
                with pytest.raises(PartyLeft, match="another device of the share has failed"):
                    device.run_share([Step(session=session, tokens=[1, 2])], Share(share, meeting))
                with pytest.raises(PartyLeft):
                    meeting.wait()
            assert session.length == 0
        assert device.run([Step(session=session, tokens=[1, 2])])[0].logits.shape[0] == 2
        device.close()


def test_an_error_while_the_library_waits_is_told(tales: PackedModel) -> None:
    """It goes round the library, which cannot be passed through."""

    class Interrupted(Meeting):
        def wait(self) -> None:
            raise KeyboardInterrupt

    with CpuDevice(1) as device, pytest.raises(KeyboardInterrupt):
        device.load(tales)
        [share, _] = divide(tales, (1, 1))
        step = Step(session=device.session(), tokens=[1])
        device.run_share([step], Share(share, Interrupted(tales, ROWS, 2)))


def test_no_memory_for_a_meeting(tales: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from lutra.devices.cpu.library import library

    monkeypatch.setattr(library(), "lutra_cpu_meeting_new", lambda parties: None)
    with pytest.raises(LutraError, match="no memory for a meeting"):
        CpuMeeting(tales, ROWS, 2)


def test_the_first_of_equals_wins_in_whichever_share() -> None:
    shares = [share(range(0, 2)), share(range(2, 2)), share(range(2, 4))]
    logits = [np.array([[1, 5], [7, 7]]), np.zeros((2, 0), np.int64), np.array([[5, 5], [8, 9]])]
    results = [
        StepResult(
            logits=part,
            scale=np.ones(2),
            argmax=first_best(part, each.vocabulary),
            saturated=each.vocabulary.start == 2,
        )
        for part, each in zip(logits, shares, strict=True)
    ]
    assert [each.argmax.tolist() for each in results] == [[1, 0], [-1, -1], [2, 3]]
    found = joined(results, shares)
    assert found.argmax.tolist() == [1, 3]
    assert found.logits.tolist() == [[1, 5, 5, 5], [7, 7, 8, 9]]
    assert found.saturated


def share(vocabulary: range) -> LayerShare:
    none = range(0)
    return LayerShare(
        queries=none, keys=none, heads=none, hidden=none, inner=none, vocabulary=vocabulary
    )
