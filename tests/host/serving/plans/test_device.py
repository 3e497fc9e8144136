"""A device of several devices gives the bits of one, whatever the plan, and whoever fails."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from tests.host.random_model import Shape, load, write_model

from lutra.devices.base import Chunk, Device, DeviceError, PassResult, Step, StepResult
from lutra.devices.cpu.device import CpuDevice
from lutra.devices.golden import GoldenDevice, GoldenSession
from lutra.quantize.pack import pack_model
from lutra.serving.loaded import LoadedModel
from lutra.serving.plans import device as plans_device
from lutra.serving.plans.carriers import Carrier, Shaped
from lutra.serving.plans.device import PlannedDevice, fixed
from lutra.serving.plans.facts import Fact
from lutra.serving.plans.layout import Plan, RowShare, Stage, by_rows
from lutra.serving.sequence import TokenSequence
from lutra_golden.arith.fixed import Int
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv, SequenceKv
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shares import Party

N_LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    shape = Shape(
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=N_LAYERS,
        vocab_size=301,
        max_position_embeddings=128,
    )
    return pack_model(load(write_model(tmp_path_factory.mktemp("models") / "long", shape)))


class Mortal(GoldenDevice):
    """Counts what it is asked to do, and fails at the call number ``dies_at``, and ever after."""

    pass_tokens = 8

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.dies_at = 0, -1

    def live(self) -> None:
        self.calls += 1
        if self.calls > self.dies_at >= 0:
            raise DeviceError("it hangs: power it off and on")

    def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
        self.live()
        return super()._pass_of(party, chunks)

    def _session(self, model: PackedModel) -> "MortalSession":
        self.live()
        caches = super()._session(model).caches
        return MortalSession(self, caches)


class MortalSession(GoldenSession):
    """Keys and values are out of reach, too, when their device has failed."""

    def _read(self, layer: int, n: int) -> LayerKv:
        self._mortal.live()
        return super()._read(layer, n)

    def _write(self, layer: int, kv: LayerKv) -> None:
        self._mortal.live()
        super()._write(layer, kv)

    @property
    def _mortal(self) -> Mortal:
        assert isinstance(self._device, Mortal)
        return self._device


def planned(
    model: PackedModel, plan: Plan, devices: Sequence[Device], carrier: Carrier | None = None
) -> PlannedDevice:
    device = PlannedDevice(devices, fixed(plan), carrier=carrier)
    device.load(model)
    return device


def pipeline(n_layers: int, cut: int) -> Plan:
    route = Stage(0, range(cut)), Stage(1, range(cut, n_layers))
    return Plan(route, route)


def phases(n_layers: int) -> Plan:
    return Plan(Plan.on(0, n_layers).decode, Plan.on(1, n_layers).decode)


def pipelined_prompts(n_layers: int) -> Plan:
    """Prompts on both, answers on the second one."""
    return Plan(pipeline(n_layers, 1).prefill, Plan.on(1, n_layers).decode)


def rows(n_layers: int) -> Plan:
    """Rows of all layers on both, heads on the first one."""
    route = by_rows((RowShare(0, 1, 1), RowShare(1, 2, 0)), n_layers)
    return Plan(route, route)


def prompts_by_rows(n_layers: int) -> Plan:
    """Prompts on both, answers on the second one, which has all keys and values, too."""
    return Plan(rows(n_layers).prefill, Plan.on(1, n_layers).decode)


def answers_by_rows(n_layers: int) -> Plan:
    return Plan(Plan.on(0, n_layers).prefill, rows(n_layers).decode)


def rows_of_some(n_layers: int) -> Plan:
    """Rows of the first layers on both, all of the others on the second one."""
    [whole] = rows(n_layers).decode
    first = Stage(0, range(n_layers - 1), whole.shares)
    route = first, Stage(1, range(n_layers - 1, n_layers))
    return Plan(route, route)


def plans(n_layers: int) -> dict[str, Plan]:
    return {
        "whole": Plan.on(0, n_layers),
        "phases": phases(n_layers),
        "pipeline": pipeline(n_layers, 1),
        "pipelined prompts": pipelined_prompts(n_layers),
        "rows": rows(n_layers),
        "prompts by rows": prompts_by_rows(n_layers),
        "answers by rows": answers_by_rows(n_layers),
        "rows of some": rows_of_some(n_layers),
    }


KINDS = [
    "whole",
    "phases",
    "pipeline",
    "pipelined prompts",
]
ROW_KINDS = ["rows", "prompts by rows", "answers by rows", "rows of some"]
"""Plans for devices that compute shares of layers."""
TEXT = [np.random.default_rng(seed).integers(0, 60, 150).tolist() for seed in range(3)]


def story(device: Device, prompt: Sequence[int], n: int) -> list[StepResult]:
    """Results of a prompt and of ``n`` greedy tokens, then of a second turn."""
    session = device.session()
    results = device.run([Step(session=session, tokens=prompt)])
    for _ in range(n):
        token = int(results[-1].argmax[-1])
        results += device.run([Step(session=session, tokens=[token])])
    results += device.run([Step(session=session, tokens=TEXT[2][:20], logits_from=15)])
    results += device.run([Step(session=session, tokens=TEXT[2][:3])])
    session.close()
    return results


def same(found: Sequence[StepResult], expected: Sequence[StepResult]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in ("logits", "scale", "argmax"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def golden(model: PackedModel) -> GoldenDevice:
    device = GoldenDevice()
    device.load(model)
    return device


@pytest.mark.parametrize("kind", [*KINDS, *ROW_KINDS])
def test_every_plan_gives_the_bits_of_one_device(kind: str, model: PackedModel) -> None:
    """Of prompts that are one token, a few, and more than a pass, on golden and cpu."""
    plan = plans(N_LAYERS)[kind]
    for devices in ([Mortal(), CpuDevice(1)], [CpuDevice(1), Mortal()]):
        with planned(model, plan, devices) as device:
            for n in (1, 7, 70):
                same(story(device, TEXT[0][:n], 3), story(golden(model), TEXT[0][:n], 3))
            assert not device.notes


@pytest.mark.parametrize("kind", [*KINDS, *ROW_KINDS])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_device_that_dies_at_any_stage_is_left_out(
    kind: str, victim: int, model: PackedModel
) -> None:
    """At each of its calls: sessions, passes, layers that are read and written."""
    plan = plans(N_LAYERS)[kind]
    expected = story(golden(model), TEXT[0][:20], 2)
    dies_at, died = 0, True
    while died:
        devices = [Mortal(), Mortal()]
        with planned(model, plan, devices) as device:
            devices[victim].dies_at = devices[victim].calls + dies_at
            same(story(device, TEXT[0][:20], 2), expected)
            died = bool(device.notes)
            if died:
                assert "is left out: it hangs" in device.notes[0]
                assert device.sites == [1 - victim]
        dies_at += 1
    assert dies_at > 4 or (kind, victim) == ("whole", 1)


def test_the_last_device_s_error_is_told(model: PackedModel) -> None:
    devices = [Mortal(), Mortal()]
    with planned(model, phases(N_LAYERS), devices) as device:
        session = device.session()
        device.run([Step(session=session, tokens=[1, 2])])
        for each in devices:
            each.dies_at = each.calls
        with pytest.raises(DeviceError, match="it hangs"):
            device.run([Step(session=session, tokens=[3])])
        assert session.length == 2
        with pytest.raises(DeviceError, match="failed before: it hangs"):
            device.run([Step(session=session, tokens=[3])])
        assert device.run([]) == []


def test_a_device_that_cannot_load_is_left_out(model: PackedModel) -> None:
    class Gone(GoldenDevice):
        def _load(self, model: PackedModel) -> None:
            raise DeviceError("no answer: check the cable")

    with planned(model, phases(N_LAYERS), [Gone(), GoldenDevice()]) as device:
        assert device.notes == ["device golden is left out: no answer: check the cable"]
        same(story(device, TEXT[0][:9], 1), story(golden(model), TEXT[0][:9], 1))


@pytest.mark.parametrize("move", [Plan.on(0, 3), Plan.on(1, 3), pipeline(3, 2), rows(3)], ids=str)
def test_hand_over_at_every_token(move: Plan, model: PackedModel) -> None:
    """Plans change in mid-sentence, between any two tokens of prompt and answer."""
    tokens = TEXT[0][:12]
    [expected] = golden_run(model, tokens)
    begin = Plan.on(1 - move.decode[0].site, 3)
    for at in range(1, len(tokens)):
        with planned(model, begin, [Mortal(), CpuDevice(1)]) as device:
            results = moved_at(device, move, tokens, at)
        logits = np.concatenate([each.logits for each in results])
        np.testing.assert_array_equal(logits, expected.logits)


def moved_at(device: PlannedDevice, move: Plan, tokens: Sequence[int], at: int) -> list[StepResult]:
    """Results of tokens one by one behind the first ``at``, where the plan changes to ``move``."""
    session = device.session()
    results = device.run([Step(session=session, tokens=tokens[:at])])
    session.plan = move
    for token in tokens[at:]:
        results += device.run([Step(session=session, tokens=[token])])
    session.close()
    return results


def golden_run(model: PackedModel, tokens: Sequence[int]) -> list[StepResult]:
    device = golden(model)
    return device.run([Step(session=device.session(), tokens=tokens)])


@pytest.mark.parametrize("kind", [*KINDS, *ROW_KINDS])
def test_sessions_share_passes_and_are_kept_apart(kind: str, model: PackedModel) -> None:
    """Prompts beside answers, cut, copied, exported and restored."""
    with planned(model, plans(N_LAYERS)[kind], [Mortal(), CpuDevice(1)]) as device:
        one = golden(model)
        own, other = [device.session() for _ in range(3)], [one.session() for _ in range(3)]
        sizes = [(40, 1, 0), (1, 30, 2), (5, 1, 40)]
        at = [0, 0, 0]
        for row in sizes:
            pairs = [(i, n) for i, n in enumerate(row) if n]
            parts = [TEXT[i][at[i] : at[i] + n] for i, n in pairs]
            for i, n in pairs:
                at[i] += n
            found, expected = (
                each.run(
                    [
                        Step(session=sessions[i], tokens=part, logits_from=len(part) // 2)
                        for (i, _), part in zip(pairs, parts, strict=True)
                    ]
                )
                for each, sessions in ((device, own), (one, other))
            )
            same(found, expected)
        for a, b in zip(own, other, strict=True):
            assert a.export().to_bytes() == b.export().to_bytes()
        own[0].truncate(17)
        fork = own[0].fork(9)
        fresh = device.session()
        fresh.restore(own[1].export())
        for session, text, n in ((own[0], 0, 17), (fork, 0, 9), (fresh, 1, own[1].length)):
            [result] = device.run([Step(session=session, tokens=[5, 6])])
            [expected] = golden_run(model, [*TEXT[text][:n], 5, 6])
            np.testing.assert_array_equal(result.logits, expected.logits[-2:])


@pytest.mark.parametrize("kind", [*KINDS, *ROW_KINDS])
def test_greedy_tokens(kind: str, model: PackedModel) -> None:
    with planned(model, plans(N_LAYERS)[kind], [Mortal(), GoldenDevice()]) as device:
        tokens: list[list[int]] = []
        for each in (device, golden(model)):
            sequence = TokenSequence.open(each, None)
            result, _ = sequence.run(TEXT[0][:20], 19)
            made, last = list[int](), int(result.argmax[-1])
            while len(made) < 12:
                found, _ = sequence.greedy(last, 12 - len(made), ())
                made += found.tokens
                last = made[-1]
            tokens.append(made)
        assert tokens[0] == tokens[1]


def test_keys_and_values_pass_a_link_while_the_prompt_goes_on(model: PackedModel) -> None:
    """All but the last layer's are there when the first token is."""
    carrier = Shaped(latency_s=0.0, bytes_per_s=1e9)
    with planned(model, phases(N_LAYERS), [Mortal(), Mortal()], carrier) as device:
        session = device.session()
        device.run([Step(session=session, tokens=TEXT[0][:30])])
        [result] = device.run([Step(session=session, tokens=[3])])
        [expected] = golden_run(model, [*TEXT[0][:30], 3])
        np.testing.assert_array_equal(result.logits, expected.logits[-1:])
        second = device.devices[1]
        assert isinstance(second, Mortal)
        # opened, layers written, and one pass: nothing was computed twice
        assert second.calls == 1 + N_LAYERS + 1


def test_a_device_that_dies_within_a_layer_is_left_out(model: PackedModel) -> None:
    """While the other one waits for its rows: at any of their products, of the library's, too."""
    expected = story(golden(model), TEXT[0][:20], 2)

    class Broken(GoldenDevice):
        def _load(self, model: PackedModel) -> None:
            super()._load(model)
            assert self._decoder is not None
            product, left = self._decoder.product, [self.products]

            def count(i: int, name: str, a: Int, rows: range | None = None) -> Int:
                left[0] -= 1
                if left[0] < 0:
                    raise DeviceError("it hangs: power it off and on")
                return product(i, name, a, rows)

            self._decoder.product = count

        products = 0

    for other in (GoldenDevice, lambda: CpuDevice(1)):
        for products in (0, 3, 10, 20):
            broken = Broken()
            broken.products = products
            with planned(model, rows(N_LAYERS), [other(), broken]) as device:
                same(story(device, TEXT[0][:20], 2), expected)
                assert device.sites == [0]
                assert "is left out: it hangs" in device.notes[0]


def test_an_error_of_a_step_is_no_failure(model: PackedModel) -> None:
    """All devices of its rows refuse it, and meet again at the next one."""
    for devices in ([GoldenDevice(), GoldenDevice()], [CpuDevice(1), CpuDevice(1)]):
        with planned(model, rows(N_LAYERS), devices) as device:
            session = device.session()
            with pytest.raises(LutraError, match="outside the vocabulary"):
                device.run([Step(session=session, tokens=[10**6])])
            [result] = device.run([Step(session=session, tokens=[1, 2])])
            [expected] = golden_run(model, [1, 2])
            np.testing.assert_array_equal(result.logits, expected.logits)
            assert not device.notes


def test_what_passes_took_is_given_to_who_learns_from_it(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some passes at a time, those of greedy tokens, too; each once."""
    monkeypatch.setattr(plans_device, "_LESSON", 2)
    lessons: list[list[Fact]] = []

    def learn(facts: Sequence[Fact]) -> None:
        lessons.append(list(facts))

    with PlannedDevice([GoldenDevice()], fixed(Plan.on(0, N_LAYERS)), learn=learn) as device:
        device.load(model)
        session = device.session()
        device.run([Step(session=session, tokens=[1, 2, 3])])
        assert not lessons
        made = device.greedy(session, 4, 1)
        [[prompt, answer]] = lessons
        assert (prompt.sizes, prompt.positions) == ((3,), (0,))
        assert (answer.sizes, answer.positions) == ((1,), (3,))
        assert min(prompt.seconds, answer.seconds) > 0
        device.run([Step(session=session, tokens=made.tokens)])
        assert len(lessons) == 1 and len(device.took) == 1


def test_rows_are_divided_by_devices_that_can(model: PackedModel) -> None:
    class Whole(GoldenDevice):
        run_share = None  # pyright: ignore[reportAssignmentType]

    with planned(model, rows(N_LAYERS), [GoldenDevice(), Whole()]) as device:
        session = device.session()
        with pytest.raises(LutraError, match="device golden computes whole layers only"):
            device.run([Step(session=session, tokens=[1])])
        assert session.length == 0
    for shares in ((RowShare(0, 1),), (RowShare(0, 1), RowShare(0, 1)), (RowShare(1, 1),)):
        with pytest.raises(LutraError, match="give two or more different ones, that one first"):
            Stage(0, range(2), shares)
    labels = ["a", "b"]
    assert (
        rows(2).describe(labels)
        == "33% of rows and 100% of heads on a, 67% of rows and 0% of heads on b"
    )
    assert [plan.kind for plan in (rows(2), prompts_by_rows(2), rows_of_some(2))] == [
        "row split", "phase split", "pipeline",
    ]  # fmt: skip
    assert not prompts_by_rows(2).is_handed_over and answers_by_rows(2).is_handed_over


class Counted:
    """A carrier that notes layers and positions, and whose thread it was."""

    def __init__(self) -> None:
        self.carried = list[tuple[int, int, bool]]()

    def carry(self, kv: SequenceKv) -> SequenceKv:
        n = next(iter(kv.layers.values())).length
        own = threading.current_thread().name.startswith("lutra to ")
        self.carried.append((len(kv.layers), n, own))
        return kv


def test_layers_are_sent_one_by_one_while_the_prompt_goes_on(model: PackedModel) -> None:
    """Each in the thread of its link, also to all those who divide the answer's rows; what has
    been computed there is not sent."""
    for plan, n in ((phases(N_LAYERS), 1), (answers_by_rows(N_LAYERS), 1), (rows(N_LAYERS), 0)):
        counted = Counted()
        with planned(model, plan, [GoldenDevice(), GoldenDevice()], counted) as device:
            session = device.session()
            device.run([Step(session=session, tokens=TEXT[0][:30])])
            device.run([Step(session=session, tokens=[3])])
        assert counted.carried == [(1, 30, True)] * N_LAYERS * n


def test_keys_and_values_come_from_a_device_that_has_all_of_them(model: PackedModel) -> None:
    """Not from the one that computed the prompt, which lacks the answer."""
    counted = Counted()
    with planned(model, phases(N_LAYERS), [GoldenDevice() for _ in range(3)], counted) as device:
        session = device.session()
        device.run([Step(session=session, tokens=TEXT[0][:30])])
        for token in (3, 4):
            device.run([Step(session=session, tokens=[token])])
        counted.carried.clear()
        session.plan = Plan.on(2, N_LAYERS)
        [result] = device.run([Step(session=session, tokens=[5])])
        assert counted.carried == [(N_LAYERS, 32, False)]
    [expected] = golden_run(model, [*TEXT[0][:30], 3, 4, 5])
    np.testing.assert_array_equal(result.logits, expected.logits[-1:])


def test_refusals(model: PackedModel) -> None:
    with pytest.raises(LutraError, match="needs devices"):
        PlannedDevice([], fixed(Plan.on(0, 2)))
    with pytest.raises(LutraError, match="consecutive layers"):
        Plan.on(0, 2).__class__((Stage(0, range(1, 2)),), (Stage(0, range(2)),))
    with pytest.raises(LutraError, match="end at layers"):
        Plan((Stage(0, range(1)),), (Stage(0, range(2)),))
    with pytest.raises(LutraError, match="or another model"):
        planned(model, Plan.on(0, N_LAYERS + 1), [GoldenDevice()])
    with planned(model, phases(N_LAYERS), [GoldenDevice(), GoldenDevice()]) as device:
        session = device.session()
        with pytest.raises(LutraError, match="divides layers itself"):
            device.run([Step(session=session, tokens=[1], layers=range(1))])
        with pytest.raises(LutraError, match="is not one of device plan"):
            device.run([Step(session=device.devices[0].session(), tokens=[1])])
        with pytest.raises(LutraError, match="outside the vocabulary"):
            device.run(
                [
                    Step(session=session, tokens=[1]),
                    Step(session=device.session(), tokens=[10**6]),
                ]
            )
        assert session.length == 0
        session.close()
        with pytest.raises(LutraError, match="closed"):
            session.truncate(0)


@pytest.mark.parametrize("kind", [*KINDS, *ROW_KINDS])
def test_known_prefixes_stay(kind: str, model: PackedModel) -> None:
    with planned(model, plans(N_LAYERS)[kind], [Mortal(), CpuDevice(1)]) as device:
        loaded = LoadedModel(model, device, None, 1 << 20)
        sequence, n = loaded.begin(TEXT[0][:30])
        assert n == 0
        sequence.run(TEXT[0][:30], 29)
        loaded.end(sequence)
        sequence, n = loaded.begin([*TEXT[0][:20], 1, 2])
        assert n == 20
        result, _ = sequence.run([1, 2], 0)
        [expected] = golden_run(model, [*TEXT[0][:20], 1, 2])
        np.testing.assert_array_equal(result.logits, expected.logits[-2:])
        loaded.close()
