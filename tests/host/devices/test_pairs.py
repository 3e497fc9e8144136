"""Any two devices: the same bits, and a sequence that moves from one to the other at any position.

The RTL's part is in tests/system, the GPU's, which needs a process of its own, in
tests/kernels_gpu.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import cast

import numpy as np
import pytest
from tests.host.mixtures import check_mixtures

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.base import Device, Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import SequenceKv
from lutra_golden.model.packed import PackedModel

STORY = [3, 200, 7, 90, 11, 5, 260, 41]
MODELS = ("ternary", "ternary-kv4", "llama", "llama-kv4")
DEVICES: dict[str, Callable[[], Device]] = {
    "golden": GoldenDevice,
    "cpu": lambda: CpuDevice(2),
    "interpreted": lambda: AcceleratorDevice(InterpretedTransport()),
}
Packed = Callable[[str], PackedModel]
Ready = Callable[[str, str], Device]


@pytest.fixture(scope="module")
def model(packed: Packed, packed_llama: Callable[[str, str], PackedModel]) -> Packed:
    """A small model, ternary or in W4A8, with a cache of 8 or 4 bits."""

    def make(name: str) -> PackedModel:
        found = packed("odd") if name.startswith("ternary") else packed_llama("llama-odd", "W4A8")
        bits = 4 if name.endswith("kv4") else 8
        return replace(found, key_bits=bits, value_bits=bits)

    return cache(make)


@pytest.fixture(scope="module")
def ready(model: Packed) -> Iterator[Ready]:
    """The device of this name with the model of that name."""
    devices: list[Device] = []

    def make(kind: str, name: str) -> Device:
        device = DEVICES[kind]()
        device.load(model(name))
        devices.append(device)
        return device

    yield cache(make)
    for device in devices:
        device.close()


def run(
    device: Device, tokens: list[int], kv: SequenceKv | None = None
) -> tuple[StepResult, SequenceKv]:
    """The tokens in a new session that begins with ``kv``; what it holds afterwards."""
    session = device.session()
    if kv is not None:
        session.restore(kv)
    (result,) = device.run([Step(session=session, tokens=tokens)])
    held = session.export()
    session.close()
    return result, held


def assert_rows(actual: StepResult, whole: StepResult, rows: slice) -> None:
    np.testing.assert_array_equal(actual.logits, whole.logits[rows])
    np.testing.assert_array_equal(actual.scale, whole.scale[rows])
    np.testing.assert_array_equal(actual.argmax, whole.argmax[rows])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("here", "there"), list(permutations(DEVICES, 2)))
def test_a_story_moves_at_every_position(here: str, there: str, name: str, ready: Ready) -> None:
    """Keys and values move as bytes; the logits equal those of a run on one device."""
    whole, held = run(ready("golden", name), STORY)
    for n in range(1, len(STORY)):
        first, kv = run(ready(here, name), STORY[:n])
        assert_rows(first, whole, slice(n))
        rest, after = run(ready(there, name), STORY[n:], SequenceKv.from_bytes(kv.to_bytes()))
        assert_rows(rest, whole, slice(n, None))
        assert after.to_bytes() == held.to_bytes()


@pytest.mark.parametrize("kind", DEVICES)
def test_sessions_share_a_run(kind: str, ready: Ready) -> None:
    """Steps of any lengths at any positions, with logits of any of their tokens."""
    texts = np.random.default_rng(3).integers(0, 280, (5, 12)).tolist()
    check_mixtures(ready(kind, "llama"), ready("golden", "llama"), texts)


@pytest.mark.parametrize("kind", DEVICES)
def test_tokens_in_arrays(kind: str, ready: Ready) -> None:
    """Several sequences of them, which no device may add up."""
    device = ready(kind, "llama")
    texts = [np.array(text, np.uint16) for text in (STORY[:3], STORY[3:6], STORY[6:])]
    steps = [Step(session=device.session(), tokens=cast(list[int], text)) for text in texts]
    for text, result in zip(texts, device.run(steps), strict=True):
        assert_rows(result, run(ready("golden", "llama"), text.tolist())[0], slice(None))


@pytest.mark.parametrize("kind", DEVICES)
def test_layers_in_two_places(kind: str, ready: Ready) -> None:
    """The first layers here, the others on golden: the residual stream goes between them."""
    device, golden = ready(kind, "llama"), ready("golden", "llama")
    whole, held = run(golden, STORY)
    n_layers = len(held.layers)
    for split in range(1, n_layers):
        here, there = device.session(), golden.session()
        for part in (STORY[:5], STORY[5:]):
            (below,) = device.run([Step(session=here, tokens=part, layers=range(split))])
            assert below.residual is not None and not len(below.logits)
            (above,) = golden.run(
                [
                    Step(
                        session=there,
                        tokens=part,
                        layers=range(split, n_layers),
                        residual=below.residual,
                    )
                ]
            )
        assert_rows(above, whole, slice(5, None))
        both = dict(here.export(range(split)).layers)
        both |= there.export(range(split, n_layers)).layers
        joined = SequenceKv(key_bits=8, value_bits=8, layers=both)
        assert joined.to_bytes() == held.to_bytes()


@pytest.mark.parametrize("kind", DEVICES)
def test_truncate_and_fork(kind: str, ready: Ready) -> None:
    device = ready(kind, "ternary-kv4")
    whole, _ = run(ready("golden", "ternary-kv4"), STORY)
    session = device.session()
    device.run([Step(session=session, tokens=[*STORY[:4], 9, 9, 9])])
    fork = session.fork(4)
    session.truncate(3)
    for each, n in ((fork, 4), (session, 3)):
        (result,) = device.run([Step(session=each, tokens=STORY[n:])])
        assert_rows(result, whole, slice(n, None))
    session.close()
    with pytest.raises(LutraError, match=r"^the session is closed: open another one$"):
        device.run([Step(session=session, tokens=[1])])
    assert fork.length == len(STORY)


@pytest.mark.parametrize("kind", DEVICES)
def test_threads(kind: str, ready: Ready) -> None:
    """Eight sessions, each run token by token by a thread of its own."""
    device = ready(kind, "ternary")
    rng = np.random.default_rng(4)
    texts = [rng.integers(0, 280, 6).tolist() for _ in range(8)]
    expected = [run(ready("golden", "ternary"), text)[0] for text in texts]

    def decode(text: list[int]) -> list[StepResult]:
        session = device.session()
        return [device.run([Step(session=session, tokens=[token])])[0] for token in text]

    with ThreadPoolExecutor(8) as pool:
        for found, whole in zip(pool.map(decode, texts), expected, strict=True):
            for i, result in enumerate(found):
                assert_rows(result, whole, slice(i, i + 1))
