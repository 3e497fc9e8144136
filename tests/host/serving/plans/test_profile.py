"""Profiles: tables, measurements, cycle formulas, the file, and devices by name."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from tests.host.random_model import Shape, load, write_model

from lutra.devices.base import Chunk, PassResult, Step, StepResult
from lutra.devices.golden import GoldenDevice
from lutra.open_model import open_packed_model
from lutra.quantize.pack import pack_model
from lutra.serving.plans import measure
from lutra.serving.plans.carriers import Direct, Shaped
from lutra.serving.plans.facts import Fact, Facts, pass_s
from lutra.serving.plans.layout import Stage
from lutra.serving.plans.measure import (
    empty_kv,
    kv_bytes_of,
    measure_crowd,
    measure_device,
    measure_link,
    measure_meeting,
)
from lutra.serving.plans.profile import Deviation, DeviceProfile, LinkProfile, Table, weakest
from lutra.serving.plans.sites import MOST_SITES, Site, common_capabilities, parse_sites
from lutra.serving.plans.store import ProfileStore, fingerprint_of
from lutra_golden.core.configs import NANO
from lutra_golden.errors import LutraError
from lutra_golden.model.capabilities import COMMON_PARTS, EVERY_PART
from lutra_golden.model.packed import PackedModel
from lutra_golden.model.shapes import LINEARS
from lutra_golden.model.shares import Party
from lutra_golden.timing.boards import BOARD_PROFILES
from lutra_golden.timing.decode import decode_cycles, pass_cycles


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    shape = Shape(num_hidden_layers=3, vocab_size=301, max_position_embeddings=64)
    return pack_model(load(write_model(tmp_path_factory.mktemp("models") / "long", shape)))


def linear(tokens: Sequence[int], positions: Sequence[int]) -> Table:
    """A pass of n tokens at p takes 1 + n + n p seconds."""
    rows = tuple(tuple(1.0 + n + n * p for p in positions) for n in tokens)
    return Table(tokens=tuple(tokens), positions=tuple(positions), seconds=rows)


def profile(**changes: object) -> DeviceProfile:
    table = linear((1, 2, 8), (0, 10))
    given: dict[str, object] = {
        "device": "cpu", "kind": "measured", "fingerprint": "f", "n_layers": 4, "pass_tokens": 8,
        "chunk": table, "batch": table, "layer": table.scaled(0.125),
    }  # fmt: skip
    return DeviceProfile(**(given | changes))  # type: ignore[arg-type]


def test_tables_are_linear_between_entries_and_beyond() -> None:
    table = linear((1, 4), (0, 8))
    for n, p in ((1, 0), (2.5, 4), (4, 8), (9, 100), (3, -1)):
        assert table.at(n, p) == pytest.approx(1 + n + n * p)
    assert linear((1, 4), (3,)).at(2, 99) == pytest.approx(1 + 2 + 6)
    assert table.at(0, 0) == table.at(1, 0)
    assert table.at(4, -50) == 0.0
    assert table.scaled(2).at(1, 0) == 4.0


@pytest.mark.parametrize(
    "bad",
    [
        {"tokens": (), "positions": (0,), "seconds": ()},
        {"tokens": (2, 1), "positions": (0,), "seconds": ((1.0,), (1.0,))},
        {"tokens": (1,), "positions": (0, 5), "seconds": ((1.0,),)},
        {"tokens": (1,), "positions": (0,), "seconds": ((-1.0,),)},
        {"tokens": (1,), "positions": (0,), "seconds": ((float("nan"),),)},
    ],
)
def test_tables_that_are_none(bad: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError):
        Table(**bad)  # type: ignore[arg-type]


def test_passes_of_prompts_and_answers() -> None:
    own = profile()
    # 8 tokens at 0, then 3 at 8
    assert own.prefill_s(11) == pytest.approx((1 + 8) + (1 + 3 + 3 * 8))
    assert own.prefill_s(3, 5, layers=2) == pytest.approx(2 * 0.125 * (1 + 3 + 15))
    assert own.decode_s(2, 5) == pytest.approx(1 + 2 + 10)
    assert own.tail_s(2, 5, 1) == pytest.approx(13 * (1 - 3 * 0.125))
    assert own.scaled(2.0).decode_s(2, 5) == pytest.approx(26)


def test_sessions_that_share_a_pass_count_as_one_that_attends_as_far() -> None:
    own = profile(layer=linear((1, 8), (0, 10)).scaled(0.0))
    every = range(4)
    assert pass_s(own, [5], [3], every) == pytest.approx(own.prefill_s(5, 3))
    # 3 and 4 tokens at 2 attend to 12 and 18 positions, 7 of one session at 0 to 28
    assert pass_s(own, [3, 4], [2, 2], every) == pytest.approx(1 + 7 + (12 + 18 - 28))
    assert pass_s(own, [1, 1], [4, 6], every) == pytest.approx(own.decode_s(2, 5))
    assert pass_s(profile(), [1, 1], [4, 6], range(2)) == pytest.approx(2 * 0.125 * 13)


def test_more_sessions_than_share_a_pass_take_several() -> None:
    """A pass has 8 tokens: of 19 sessions two are full, and the third one has 3."""
    for layers in (range(4), range(2), range(2, 4)):
        eight, three = (pass_s(profile(), [1] * n, [5] * n, layers) for n in (8, 3))
        assert pass_s(profile(), [1] * 19, [5] * 19, layers) == pytest.approx(2 * eight + three)


def test_a_share_of_rows_takes_less_but_for_what_everybody_computes() -> None:
    """Half of the rows take 0.7 of the time: 0.4 of it goes on whatever the share."""
    own = profile(half=linear((1, 2, 8), (0, 10)).scaled(0.7))
    for rows, share in ((1.0, 1.0), (0.5, 0.7), (0.25, 0.55), (0.0, 0.4)):
        assert own.of_rows(5, 3, rows) == pytest.approx(share)
        found = pass_s(own, [1, 1], [4, 6], range(4), rows)
        assert found == pytest.approx(share * own.decode_s(2, 5))
    assert profile().of_rows(5, 3, 0.5) == 1.0
    slower = own.scaled(2.0)
    assert slower.of_rows(5, 3, 0.5) == pytest.approx(0.7)
    assert DeviceProfile.from_json(json.loads(json.dumps(own.to_json()))) == own


def test_rows_of_a_table_are_corrected_by_passes_of_about_as_many_tokens() -> None:
    """By the root of what all of them took by what was predicted, if that is off by 3 %."""
    table = linear((1, 4, 64), (0, 8))
    seen = [
        Deviation(tokens=3, seconds=5.0, predicted=1.0),
        Deviation(tokens=6, seconds=3.0, predicted=1.0),
        Deviation(tokens=64, seconds=1.02, predicted=1.0),
    ]
    found = table.corrected(seen)
    for position in (0, 8):
        assert found.at(4, position) == pytest.approx(2 * table.at(4, position))
        assert found.at(1, position) == table.at(1, position)
        assert found.at(64, position) == table.at(64, position)
    assert table.corrected([]) == table
    # a clock that stood still says nothing
    assert table.corrected([Deviation(tokens=1, seconds=0.0, predicted=1.0)]) == table


def test_profiles_learn_from_passes_of_all_rows_and_of_some() -> None:
    own = profile(half=linear((1, 2, 8), (0, 10)).scaled(0.7))
    assert own.corrected([Deviation(tokens=8, seconds=1.02, predicted=1.0)]) is own
    slow = Deviation(tokens=8, seconds=4.0, predicted=1.0)
    slower = own.corrected([slow])
    assert slower.runs == 1 and slower.half is not None and own.half is not None
    for table, before in (
        (slower.chunk, own.chunk), (slower.batch, own.batch), (slower.layer, own.layer),
        (slower.half, own.half),
    ):  # fmt: skip
        assert table.at(8, 3) == pytest.approx(2 * before.at(8, 3))
        assert table.at(1, 3) == before.at(1, 3)
    # some rows were seen to take no longer, and then say nothing of the whole
    mixed = own.corrected([slow, Deviation(tokens=8, seconds=1.0, predicted=1.0, divided=True)])
    assert mixed.chunk == slower.chunk and mixed.half == own.half
    only = own.corrected([replace(slow, divided=True)])
    assert only.chunk == own.chunk and only.half == slower.half


def test_facts_are_taken_once() -> None:
    facts = Facts()
    every = [
        Fact(stage=Stage(1, range(4)), sizes=(n,), positions=(3,), seconds=1.0) for n in (5, 6)
    ]
    for fact in every:
        facts.note(fact)
    assert len(facts) == 2
    assert facts.take() == every
    assert facts.take() == []


def test_the_weakest_kind_is_that_of_a_sum() -> None:
    assert weakest(["measured", "simulated"]) == "simulated"
    assert weakest(["modelled", "measured"]) == "modelled"
    assert weakest(["measured"]) == "measured"


class Timed(GoldenDevice):
    """A clock that goes on by what its passes take: per layer 1 and a token's 2 and position's 3;
    10 the head, 5 a call."""

    pass_tokens = 16

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
        layers = chunks[0].layers
        n = sum(len(chunk.tokens) for chunk in chunks)
        seen = sum(len(chunk.tokens) * chunk.position for chunk in chunks)
        began = self.now
        self.now += 5 + len(layers) * (1 + 2 * n + 3 * seen)
        self.now += 10 * (layers.stop == len(self.model.layers))
        if party is not None:  # 8 is everybody's
            self.now -= (self.now - began - 8) * (1 - len(party.share.inner) / 96)
        result = super()._pass_of(party, chunks)
        return PassResult(
            logits=result.logits, scale=result.scale, argmax=result.argmax,
            residual=result.residual, cycles=100,
        )  # fmt: skip

    def perf_counter(self) -> float:
        return self.now


def test_a_device_is_measured(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Timed()
    device.load(model)
    monkeypatch.setattr(measure, "time", device)
    found = measure_device(device, "mine", "f", budget_s=1e9)
    assert (found.kind, found.pass_tokens, found.n_layers) == ("measured", 16, 3)
    assert found.chunk.positions == (0, 48)
    assert found.chunk.tokens == (1, 2, 3, 4, 8, 16)
    assert found.batch.tokens == (1, 2, 3, 4, 5, 6, 7, 8, 16)
    for n, p in ((1, 0), (16, 48), (5, 20)):
        assert found.chunk.at(n, p) == pytest.approx(15 + 3 * (1 + 2 * n + 3 * n * p))
        assert found.batch.at(n, p) == pytest.approx(15 + 3 * (1 + 2 * n + 3 * n * p))
        # of two layers, which share the call
        assert found.layer.at(n, p) == pytest.approx(2.5 + 1 + 2 * n + 3 * n * p)
    assert found.call_s == pytest.approx(2.5)
    assert found.half is not None
    for n, p in ((1, 0), (16, 48)):
        # 64 of 96 rows, as they are divided in units
        whole = found.chunk.at(n, p)
        assert found.half.at(n, p) == pytest.approx(8 + (whole - 8) * 2 / 3)
    # all sessions were closed again
    assert device.session().length == 0


def test_what_there_is_no_time_for_is_fitted(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one entry elsewhere, of which the growth with the position is known."""
    device = Timed()
    device.load(model)
    monkeypatch.setattr(measure, "time", device)
    short = measure_device(device, "mine", "f", budget_s=1.0)
    for n in (1, 16):
        # not even one of them was within the budget
        assert short.chunk.at(n, 48) == short.chunk.at(n, 0) == pytest.approx(15 + 3 * (1 + 2 * n))
    some = measure_device(device, "mine", "f", budget_s=700.0)
    assert some.half is not None
    for n in (1, 16):
        # one of whole passes was: the others are taken to grow with the position as they do
        more = some.chunk.at(n, 48) - some.chunk.at(n, 0)
        assert more == pytest.approx(9 * n * 48)
        assert some.batch.at(n, 48) - some.batch.at(n, 0) == pytest.approx(more)
        assert some.layer.at(n, 48) - some.layer.at(n, 0) == pytest.approx(more / 3)
        assert some.half.at(n, 48) - some.half.at(n, 0) == pytest.approx(more / 2)


def test_cycles_of_a_simulator_by_its_clock(model: PackedModel) -> None:
    device = Timed()
    device.load(model)
    found = measure_device(device, "mine", "f", clock_hz=50.0, budget_s=1.0)
    assert found.kind == "simulated" and found.half is None
    assert found.chunk.at(1, 0) == found.batch.at(4, 9) == 2.0
    plain = GoldenDevice()
    plain.load(model)
    with pytest.raises(LutraError, match=r"golden has no clock .* leave --cycles out"):
        measure_device(plain, "mine", "f", clock_hz=50.0)


def test_a_link_is_measured(model: PackedModel) -> None:
    devices = [GoldenDevice(), GoldenDevice()]
    for device in devices:
        device.load(model)
    shaped = Shaped(latency_s=0.05, bytes_per_s=1e6)
    found = measure_link(devices[0], devices[1], shaped, repeats=1)
    size = kv_bytes_of(model, model.context, 3)
    assert found.kind == "measured"
    # what else it takes is in it, too
    assert 0.04 < found.latency_s < 0.2
    assert found.seconds(size) > 0.05 + size / 1e6
    kv = empty_kv(model, 5, range(2))
    assert Direct().carry(kv) is kv
    assert shaped.carry(kv).to_bytes() == kv.to_bytes()
    assert len(kv.to_bytes()) - kv_bytes_of(model, 5, 2) < 200
    assert LinkProfile(latency_s=1.0, bytes_per_s=4.0, kind="modelled").seconds(8) == 3.0


def test_a_meeting_is_measured(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what is lost beside the time of the slower one: by this clock, that of the other."""
    devices = [Timed(), Timed()]
    for device in devices:
        device.load(model)

    class Clock:
        def perf_counter(self) -> float:
            return sum(device.now for device in devices)

    monkeypatch.setattr(measure, "time", Clock())
    # 34 seconds, of which 8 are everybody's: the other 26 are 64 and 32 of 96 rows
    assert measure_meeting(devices, repeats=1) == pytest.approx((8 + 26 / 3) / (5 * 3))

    class Whole(GoldenDevice):
        run_share = None  # pyright: ignore[reportAssignmentType]

    assert measure_meeting([devices[0], Whole()]) is None


def test_company_is_measured(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes take as much longer as the other one makes them while it is at work."""

    class Crowded(Timed):
        def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
            began, n = self.now, sum(len(chunk.tokens) for chunk in chunks)
            result = super()._pass_of(party, chunks)
            if theirs.is_set():
                self.now = began + (self.now - began) * (3 if n < 8 else 1)
            return result

    theirs = Event()

    class Clock:
        def perf_counter(self) -> float:
            return own.now

        def sleep(self, seconds: float) -> None:
            assert theirs.wait(60)

    class Other(Timed):
        def _pass_of(self, party: Party | None, chunks: Sequence[Chunk]) -> PassResult:
            result = super()._pass_of(party, chunks)
            theirs.set()
            return result

    own, other = Crowded(), Other()
    for device in (own, other):
        device.load(model)
    monkeypatch.setattr(measure, "time", Clock())
    [few, *_] = measure_crowd(own, other, repeats=1)
    assert few == (1, pytest.approx(3.0))


def test_times_do_not_depend_on_what_keys_and_values_are(model: PackedModel) -> None:
    """At least the zeros that stand for them are taken by every device."""
    device = GoldenDevice()
    device.load(model)
    session = device.session()
    session.restore(empty_kv(model, 9, range(3)))
    [result] = device.run([Step(session=session, tokens=[1])])
    assert isinstance(result, StepResult)
    assert session.length == 10


def test_profiles_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ProfileStore(tmp_path / "profiles")
    assert store.load("f") is None
    store.save(profile())
    assert store.load("f") == profile()
    store.save(profile().scaled(2.0))
    assert store.load("f") == profile().scaled(2.0)
    assert [path.name for path in store.folder.iterdir()] == ["f.json"]
    for broken in ("{", "[]", '{"kind": "guessed"}', json.dumps(profile().to_json() | {"kind": 1})):
        (store.folder / "f.json").write_text(broken)
        assert store.load("f") is None
        assert "is not used" in caplog.text
    store.forget("f")
    store.forget("f")
    assert not list(store.folder.iterdir())
    blocked = tmp_path / "file"
    blocked.write_text("")
    ProfileStore(blocked / "profiles").save(profile())
    assert "is not kept" in caplog.text


def test_a_fingerprint_is_of_device_and_shape(model: PackedModel) -> None:
    one = fingerprint_of({"name": "cpu", "threads": 1}, model)
    assert one == fingerprint_of({"threads": 1, "name": "cpu"}, model)
    assert one != fingerprint_of({"name": "cpu", "threads": 2}, model)
    assert one != fingerprint_of({"name": "cpu", "threads": 1}, open_packed_model("tales"))
    assert len(one) == 16


def test_sites_by_name() -> None:
    found = parse_sites(["cpu:1", " cpu:1", "rtl", "kv260"]) + parse_sites(["board://there:99"])
    assert [each.label for each in found] == [
        "cpu:1", "cpu:1#2", "rtl", "kv260", "board://there:99"
    ]  # fmt: skip
    assert [each.threads for each in found] == [1, 1, None, None, None]
    assert [each.is_here for each in found] == [True, True, True, False, True]
    assert common_capabilities(found[:2]) == EVERY_PART
    assert common_capabilities(found) == COMMON_PARTS
    assert Site.parse("golden").make().name == "golden"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tpu", "a device of a plan must be cuda, cpu, .*kv260.*, not 'tpu'"),
        ("auto", "not 'auto'"),
        ("cpu:x", "cpu:x must be cpu:N"),
        ("cpu:0", "threads must be 1 to"),
        ("golden:2", "only device cpu has threads: give golden without :2"),
    ],
)
def test_sites_that_are_none(text: str, said: str) -> None:
    with pytest.raises(LutraError, match=said):
        Site.parse(text)
    with pytest.raises(LutraError, match="needs devices"):
        parse_sites([])
    assert len(parse_sites(["golden"] * MOST_SITES)) == MOST_SITES
    with pytest.raises(LutraError, match="plans are made for up to 4 devices, not 5"):
        parse_sites(["golden"] * (MOST_SITES + 1))


def test_a_modelled_board(tmp_path: Path) -> None:
    tales = open_packed_model("tales")
    site, store = Site.parse("kv260"), ProfileStore(tmp_path)
    found = site.profile(tales, None, store)
    assert (found.kind, found.device, found.pass_tokens) == ("modelled", "kv260", 8)
    assert not list(tmp_path.iterdir())
    with pytest.raises(LutraError, match="kv260 is modelled, and runs nothing"):
        site.make()
    assert found.decode_s(1, 200) > found.decode_s(1, 0) > 0
    assert found.prefill_s(16) < 16 * found.decode_s(1, 0)
    # weights pass four ports of 128 bits, whatever ports the configuration has
    weights = sum(tales.layers[0].linear(name).stored.n_bytes for name in LINEARS)
    assert found.layer.at(1, 0) > weights / (64 * BOARD_PROFILES["kv260"].clock_hz)


def test_a_site_is_measured_once(model: PackedModel, tmp_path: Path) -> None:
    site, store = Site.parse("golden"), ProfileStore(tmp_path)
    device = site.make()
    device.load(model)
    found = site.profile(model, device, store, budget_s=0.01)
    assert site.profile(model, device, store) == found
    store.save(found.scaled(2.0))
    assert site.profile(model, device, store) == found.scaled(2.0)
    assert site.profile(model, device, store, refresh=True, budget_s=0.01).runs == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_cycles_of_passes() -> None:
    """Of two passes of 8 tokens, of which the last has logits; 233,479 were simulated."""
    tales = open_packed_model("tales")
    layers = range(len(tales.layers))
    first = pass_cycles(tales, NANO, 0, 8, 0, layers=layers)
    second = pass_cycles(tales, NANO, 8, 8, 1, layers=layers)
    assert first + second == pytest.approx(233_479, rel=0.003)
    whole = pass_cycles(tales, NANO, 30, 1, 1, layers=layers)
    assert whole == decode_cycles(tales, NANO, 30)
    parts = [pass_cycles(tales, NANO, 30, 1, 1, layers=range(i, i + 1)) for i in layers]
    # a run of its own each, which reads a residual stream and stores another
    assert whole < sum(parts) < whole + 1000 * len(layers)
    assert np.ptp(parts[1:-1]) == 0
