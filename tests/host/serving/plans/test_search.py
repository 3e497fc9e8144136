"""Costs of plans, the choice between them, and ``lutra plan``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.host.random_model import Shape, load, write_model

from lutra.commands.cli import main
from lutra.quantize.pack import pack_model
from lutra.serving.plans.costs import Cost, Costs, Workload
from lutra.serving.plans.layout import Plan, RowShare, Stage, by_rows
from lutra.serving.plans.measure import kv_bytes_of
from lutra.serving.plans.plot import check_plot, write_plot
from lutra.serving.plans.profile import DeviceProfile, Kind, LinkProfile, Table
from lutra.serving.plans.search import Alternative, Slo, choose_plan, pareto
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

N_LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    shape = Shape(num_hidden_layers=N_LAYERS, vocab_size=301, max_position_embeddings=512)
    return pack_model(load(write_model(tmp_path_factory.mktemp("models") / "long", shape)))


def device(prompt_s: float, token_s: float, kind: Kind = "measured") -> DeviceProfile:
    """A token of a prompt takes ``prompt_s``, a decoding pass ``token_s``, however many share it;
    the head nothing."""

    def table(seconds: Sequence[float]) -> Table:
        return Table(tokens=(1, 64), positions=(0,), seconds=tuple((each,) for each in seconds))

    chunk = table([prompt_s, 64 * prompt_s])
    return DeviceProfile(
        device="d", kind=kind, fingerprint="f", n_layers=N_LAYERS, pass_tokens=64, chunk=chunk,
        batch=table([token_s, token_s]), layer=chunk.scaled(1 / N_LAYERS),
    )  # fmt: skip


FREE = LinkProfile(latency_s=0.0, bytes_per_s=1e30, kind="measured")


def costs(model: PackedModel, *profiles: DeviceProfile, link: LinkProfile = FREE) -> Costs:
    own = dict(enumerate(profiles))
    links: Mapping[tuple[int, int], LinkProfile] = {
        (i, j): link for i in own for j in own if i != j
    }
    return Costs(model, own, links)


def split(a: int, b: int) -> Plan:
    return Plan(Plan.on(a, N_LAYERS).prefill, Plan.on(b, N_LAYERS).decode)


def pipe(cut: int) -> Plan:
    route = Stage(0, range(cut)), Stage(1, range(cut, N_LAYERS))
    return Plan(route, route)


def test_one_request_on_one_device(model: PackedModel) -> None:
    found = costs(model, device(0.01, 0.5)).of(
        [Plan.on(0, N_LAYERS)], Workload(prompt=100, answer=5)
    )
    assert found.ttft_s == pytest.approx(1.0)
    assert found.tpot_s == pytest.approx(0.5)
    assert found.seconds == pytest.approx(3.0)
    assert (found.exposed_s, found.kind) == (0.0, "measured")


def test_a_pass_is_shared_by_requests(model: PackedModel) -> None:
    """Both prompts, 64 tokens at a time, then tokens of both at once."""
    own = costs(model, device(0.01, 0.5))
    found = own.of([Plan.on(0, N_LAYERS)], Workload(prompt=32, answer=5, requests=2))
    assert found.ttft_s == pytest.approx(0.64)
    assert found.seconds == pytest.approx(0.64 + 4 * 0.5)


def test_requests_side_by_side(model: PackedModel) -> None:
    own = costs(model, device(0.01, 0.5), device(0.02, 0.25))
    plans = [Plan.on(0, N_LAYERS), Plan.on(1, N_LAYERS)]
    found = own.of(plans, Workload(prompt=10, answer=5, requests=2))
    assert found.ttft_s == pytest.approx((0.1 + 0.2) / 2)
    assert found.seconds == pytest.approx(0.1 + 4 * 0.5)


def test_devices_at_work_crowd_each_other(model: PackedModel) -> None:
    """As long as both have requests: passes of few tokens take half as long again, and those of
    prompts no longer than alone."""
    crowd = replace(FREE, crowd=((1, 1.5), (2, 1.5), (32, 1.0)))
    assert [crowd.crowded(n) for n in (1, 17, 99)] == [1.5, 1.25, 1.0] and FREE.crowded(1) == 1.0
    own = costs(model, device(0.01, 0.5), device(0.01, 0.5), link=crowd)
    sides = [Plan.on(0, N_LAYERS), Plan.on(1, N_LAYERS)]
    both = own.of(sides, Workload(prompt=64, answer=5, requests=2))
    assert (both.ttft_s, both.tpot_s) == (pytest.approx(0.64), pytest.approx(0.75))
    one = own.of(sides, Workload(prompt=64, answer=5))
    assert one.tpot_s == pytest.approx(0.5)
    stage = sides[0].decode[0]
    assert own.stage_s(stage, [1], [0], [1]) == pytest.approx(0.75)
    # the second one ends its request at 3.64, where two passes of the first are left
    slower = costs(model, device(0.01, 1.0), device(0.01, 0.5), link=crowd)
    assert slower.of(sides, Workload(prompt=64, answer=5, requests=2)).seconds == pytest.approx(
        0.64 + 2 * 1.5 + 2 * 1.0
    )


def test_phases_take_the_best_of_both(model: PackedModel) -> None:
    """All layers but the last one's keys and values are sent while the prompt goes on."""
    layer = kv_bytes_of(model, 100, 1)
    link = LinkProfile(latency_s=0.0, bytes_per_s=layer / 0.02, kind="modelled")
    own = costs(model, device(0.001, 0.5), device(0.02, 0.1), link=link)
    found = own.of([split(0, 1)], Workload(prompt=100, answer=11))
    assert found.ttft_s == pytest.approx(0.1)
    # a layer takes 0.025 s, its transfer 0.02
    assert found.exposed_s == pytest.approx(0.02)
    assert found.seconds == pytest.approx(0.1 + 0.02 + 10 * 0.1)
    assert found.kind == "modelled"
    slow = costs(
        model, device(0.001, 0.5), device(0.02, 0.1), link=replace(link, bytes_per_s=layer / 0.1)
    )
    # the first layer's goes at 0.025, and 0.4 s for all of them
    found = slow.of([split(0, 1)], Workload(prompt=100, answer=11))
    assert found.exposed_s == pytest.approx(0.025 + 0.4 - 0.1)


def test_phases_overlap_between_requests(model: PackedModel) -> None:
    """While one is answered, the other one's prompt is computed."""
    own = costs(model, device(0.01, 9.0), device(9.0, 0.1))
    found = own.of([split(0, 1)], Workload(prompt=100, answer=6, requests=2))
    assert found.ttft_s == pytest.approx((1.0 + 2.0) / 2)
    assert found.seconds == pytest.approx(2.0 + 5 * 0.1)


def test_layers_in_a_pipeline(model: PackedModel) -> None:
    """A token takes both; chunks of a prompt overlap, 32 tokens at least."""
    own = costs(model, device(0.01, 0.4), device(0.01, 0.4))
    found = own.of([pipe(2)], Workload(prompt=1, answer=3))
    # the second device has no head to speak of: half of each pass
    assert found.tpot_s == pytest.approx(2 * 0.005 + (0.4 - 0.01), rel=0.01)
    found = own.of([pipe(2)], Workload(prompt=64, answer=1))
    assert found.ttft_s == pytest.approx(3 * 0.16)
    link = LinkProfile(latency_s=0.1, bytes_per_s=1e30, kind="measured")
    far = costs(model, device(0.01, 0.4), device(0.01, 0.4), link=link)
    assert far.of([pipe(2)], Workload(prompt=64, answer=1)).ttft_s == pytest.approx(3 * 0.16 + 0.1)


def test_a_device_with_prompts_and_answers_has_one_at_a_time(model: PackedModel) -> None:
    """Prompts in a pipeline of both, 0.48 s each, then the answers of both on the first, not at the
    same time; on a device that has no prompts they begin with the first."""
    own = costs(model, *(device(0.01, 0.4) for _ in range(3)))
    two = Workload(prompt=64, answer=3, requests=2)
    shared = own.of([Plan(pipe(2).prefill, Plan.on(0, N_LAYERS).decode)], two)
    assert shared.ttft_s == pytest.approx((0.48 + 0.96) / 2)
    assert shared.seconds == pytest.approx(0.96 + 2 * 0.4)
    apart = own.of([Plan(pipe(2).prefill, Plan.on(2, N_LAYERS).decode)], two)
    # the first has its answer before the second one comes
    assert apart.seconds == pytest.approx(0.48 + 4 * 0.4)


def test_the_quickest_plan_is_chosen(model: PackedModel) -> None:
    own = costs(model, device(0.001, 0.5), device(0.02, 0.1))
    choice = choose_plan(own, Workload(prompt=100, answer=11))
    assert choice.chosen.plans == (split(0, 1),)
    assert choice.reason.startswith("the quickest: the next kind of plan takes")
    assert choice.exact
    kinds = {each.kind for each in choice.alternatives}
    assert kinds == {"whole", "phase split", "pipeline"}
    times = [each.cost.seconds for each in choice.alternatives]
    assert times == sorted(times)
    # on the devices that are left
    assert choose_plan(own, Workload(prompt=9, answer=9), sites=[1]).chosen.sites == {1}


@pytest.mark.parametrize("requests", [1, 3])
def test_progress_tells_the_share_of_plans(model: PackedModel, requests: int) -> None:
    own, told = costs(model, *[device(0.01, 0.1)] * 3), list[float]()
    choice = choose_plan(
        own,
        Workload(prompt=9, answer=3, requests=requests),
        progress=lambda what, share: told.append(share),
    )
    assert told == sorted(told) and told[0] == 0
    assert told[-1] == pytest.approx(1 - 1 / len(choice.alternatives), abs=0.01)


def test_fewer_devices_are_enough_where_more_do_hardly_better(model: PackedModel) -> None:
    own = costs(model, device(0.001, 0.5), device(0.00101, 0.1))
    choice = choose_plan(own, Workload(prompt=100, answer=101))
    assert choice.chosen.plans == (Plan.on(1, N_LAYERS),)
    assert "1 of the devices do as well" in choice.reason


def test_two_whole_requests_may_be_quicker(model: PackedModel) -> None:
    """Of equal devices a phase split of two requests is never chosen."""
    own = costs(model, device(0.01, 0.1), device(0.01, 0.1))
    choice = choose_plan(own, Workload(prompt=64, answer=100, requests=2))
    assert choice.chosen.kind in ("side by side", "whole")
    assert "side by side" in {each.kind for each in choice.alternatives}


def halved(profile: DeviceProfile, share: float) -> DeviceProfile:
    """Half of the rows take ``share`` of the time."""
    return replace(profile, half=profile.chunk.scaled(share))


def by_row(*rows: float) -> Plan:
    route = by_rows([RowShare(i, each) for i, each in enumerate(rows)], N_LAYERS)
    return Plan(route, route)


def test_rows_take_as_long_as_the_slowest_and_the_meetings(model: PackedModel) -> None:
    """Half of a pass, and what both compute; four meetings in a layer, with the slower way."""
    near = replace(FREE, meeting_s=0.001)
    own = costs(model, halved(device(0.01, 0.4), 0.5), halved(device(0.01, 0.4), 0.6), link=near)
    found = own.of([by_row(1, 1)], Workload(prompt=64, answer=3))
    meetings = 4 * N_LAYERS * 0.001
    assert found.ttft_s == pytest.approx(0.6 * 0.64 + meetings)
    assert found.tpot_s == pytest.approx(0.6 * 0.4 + meetings)
    assert found.exposed_s == 0.0
    found = own.of([by_row(3, 1)], Workload(prompt=64, answer=3))
    assert found.tpot_s == pytest.approx(0.75 * 0.4 + meetings)
    # both have all keys and values when the prompt is computed
    answers = Plan(by_row(1, 1).prefill, Plan.on(1, N_LAYERS).decode)
    found = own.of([answers], Workload(prompt=64, answer=3))
    assert found.ttft_s == pytest.approx(0.6 * 0.64 + meetings)
    assert (found.tpot_s, found.exposed_s) == (pytest.approx(0.4), 0.0)
    # but a third one has not
    wide = costs(
        model, *(halved(device(0.01, 0.4), 0.5) for _ in range(3)),
        link=replace(near, latency_s=0.2),
    )  # fmt: skip
    third = Plan(by_row(1, 1).prefill, Plan.on(2, N_LAYERS).decode)
    assert wide.of([third], Workload(prompt=64, answer=3)).exposed_s > 0.2


def test_rows_are_divided_where_it_pays(model: PackedModel) -> None:
    """One request takes half as long, two are better off side by side; not where meetings take
    longer than they save, nor where devices cannot."""
    pair = [halved(device(0.01, 0.4), 0.5), halved(device(0.01, 0.4), 0.5)]
    near = replace(FREE, meeting_s=0.0001)
    choice = choose_plan(costs(model, *pair, link=near), Workload(prompt=64, answer=20))
    assert choice.chosen.plans == (by_row(0.5, 0.5),)
    assert choice.chosen.kind == "row split"
    # each with a device to itself, two need not meet
    two, slower = Workload(prompt=64, answer=1, requests=2), replace(FREE, meeting_s=0.005)
    choice = choose_plan(costs(model, *pair, link=slower), two)
    assert choice.chosen.kind == "side by side"
    for link in (FREE, replace(FREE, meeting_s=0.1)):
        choice = choose_plan(costs(model, *pair, link=link), Workload(prompt=64, answer=20))
        assert choice.chosen.kind != "row split"
        kinds = {each.kind for each in choice.alternatives}
        assert ("row split" in kinds) == (link.meeting_s is not None)
    # a device that is a hundred times as slow is left out
    slow = halved(device(1.0, 40.0), 0.5)
    choice = choose_plan(costs(model, pair[0], slow, link=near), Workload(prompt=64, answer=20))
    assert "row split" not in {each.kind for each in choice.alternatives}
    # three times as slow: a quarter
    third = halved(device(0.03, 1.2), 0.5)
    choice = choose_plan(costs(model, pair[0], third, link=near), Workload(prompt=64, answer=20))
    assert choice.chosen.plans == (by_row(0.75, 0.25),)


def test_heads_are_where_attention_is_quick(model: PackedModel) -> None:
    """Both multiply equally fast, and the second one attends ten times as slowly: it has no heads,
    and more of the rows."""

    def attending(seconds: float) -> DeviceProfile:
        """A second for the matrices of a token, and so many for 1,000 positions."""
        chunk = Table(
            tokens=(1, 64),
            positions=(0, 1000),
            seconds=tuple(
                tuple(n * (1 + seconds * (p + n / 2) / 1000) for p in (0, 1000)) for n in (1, 64)
            ),
        )
        return replace(
            device(1.0, 1.0), chunk=chunk, batch=chunk, layer=chunk.scaled(1 / N_LAYERS),
            half=chunk.scaled(0.5),
        )  # fmt: skip

    quick, slow = attending(0.5), attending(5.0)
    assert quick.of_rows(1, 999.5, 0.25, 1.0) == pytest.approx(0.75 / 1.5)
    assert slow.of_rows(1, 999.5, 0.75, 0.0) == pytest.approx(0.75 / 6)
    assert slow.of_rows(64, 968, 1.0, 0.5) == pytest.approx(3.5 / 6)
    own = costs(model, quick, slow, link=replace(FREE, meeting_s=1e-6))
    [plan] = choose_plan(own, Workload(prompt=1000, answer=100)).chosen.plans
    [stage] = plan.decode
    assert [share.heads for share in stage.shares] == [1.0, 0.0]
    assert 0.2 < stage.shares[0].rows < 0.5


def test_slos(model: PackedModel) -> None:
    own = costs(model, device(0.001, 0.5), device(0.02, 0.1))
    workload = Workload(prompt=100, answer=2)
    quick = choose_plan(own, workload).chosen
    assert quick.plans[0].prefill[0].site == 0
    choice = choose_plan(own, workload, slo=Slo(tpot_s=0.2))
    assert choice.chosen.cost.tpot_s <= 0.2
    slow = LinkProfile(latency_s=99.0, bytes_per_s=1e30, kind="measured")
    apart = costs(model, device(0.001, 0.5), device(0.02, 0.1), link=slow)
    assert choose_plan(apart, workload).chosen.plans == (Plan.on(0, N_LAYERS),)
    choice = choose_plan(apart, workload, slo=Slo(tpot_s=0.2))
    assert choice.chosen.plans == (Plan.on(1, N_LAYERS),)
    assert choice.reason.startswith("the quickest of those that meet the SLO; ")
    choice = choose_plan(own, workload, slo=Slo(ttft_s=0.01))
    assert choice.reason.startswith("no plan meets the SLO; this one misses it least, by a factor")
    assert Slo.parse("ttft=0.5, tpot=0.05") == Slo(ttft_s=0.5, tpot_s=0.05)
    assert Slo().missed(quick.cost) == 0.0


@pytest.mark.parametrize("text", ["", "ttft", "ttft=x", "ttft=0", "ttft=1,ttft=2", "p99=1"])
def test_slos_that_are_none(text: str) -> None:
    with pytest.raises(LutraError, match="an SLO must be ttft=SECONDS"):
        Slo.parse(text)


def test_a_front_has_what_no_other_beats() -> None:
    def at(ttft: float, tpot: float) -> Alternative:
        cost = Cost(ttft_s=ttft, tpot_s=tpot, seconds=1.0, exposed_s=0.0, kind="measured")
        return Alternative((Plan.on(0, 2),), cost)

    points = [at(3, 1), at(1, 3), at(2, 2), at(2, 3), at(3, 2), at(1, 4)]
    assert pareto(points) == [at(1, 3), at(2, 2), at(3, 1)]


def test_what_does_not_fit_is_left_out(model: PackedModel) -> None:
    own = costs(model, device(0.01, 0.1), device(0.01, 0.1))
    choice = choose_plan(
        own, Workload(prompt=9, answer=9), fits=lambda plan: plan.kind == "pipeline"
    )
    assert {each.kind for each in choice.alternatives} == {"pipeline"}
    with pytest.raises(LutraError, match="no plan fits the memory"):
        choose_plan(own, Workload(prompt=9, answer=9), fits=lambda plan: False)


def test_many_layers_are_balanced_by_a_heuristic(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where not all cuts are looked at, the slowest stage is as quick as it can be."""
    from lutra.serving.plans import search

    monkeypatch.setattr(search, "_EXACT", 1)
    # in proportion to speed, and rounded, each would have two
    own = costs(model, device(0.01, 0.3), device(0.016, 0.48))
    choice = choose_plan(own, Workload(prompt=9, answer=9))
    assert not choice.exact
    cuts = {
        tuple(len(stage.layers) for stage in each.plans[0].decode)
        for each in choice.alternatives
        if each.kind == "pipeline"
    }
    assert cuts == {(3, 1), (1, 3)}


@pytest.mark.parametrize("name", ["prompt", "answer", "requests"])
def test_workloads_that_are_none(name: str) -> None:
    with pytest.raises(LutraError, match=f"{name} must be 1 or more, not 0"):
        Workload(**({"prompt": 1, "answer": 1, "requests": 1} | {name: 0}))


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a device that is here, and a board that is modelled; then three runs beside it."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    sizes = ["-p", "24", "-n", "4", "--budget", "0.2"]
    code = main(
        ["plan", "--devices", "golden,kv260", "--json", *sizes, "--slo", "ttft=100,tpot=100"]
    )
    assert code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["chosen"]["kind"] == "modelled"
    kinds = {name: each["kind"] for name, each in found["devices"].items()}
    assert kinds == {"golden": "measured", "kv260": "modelled"}
    assert {each["kind"] for each in found["alternatives"]} == {"measured", "modelled"}
    assert found["chosen"]["meets_slo"] and found["exact"]
    assert [link["bytes_per_s"] for link in found["links"]] == [1.25e8, 1.25e8]

    arguments = ["plan", "--devices", "golden,golden", *sizes, "-b", "2"]
    assert main([*arguments, "--check", "2", "--run", "--link", "0.0001,1e9"]) == 0
    out = capsys.readouterr().out
    assert "\nchosen: " in out
    assert "measured" in out
    assert "prediction of 2 random requests: off by" in out


def test_the_plot(model: PackedModel, tmp_path: Path) -> None:
    """The same plans give the same file."""
    pytest.importorskip("matplotlib")
    choice = choose_plan(
        costs(model, device(0.001, 0.5), device(0.02, 0.1)), Workload(prompt=9, answer=9)
    )
    texts: list[str] = []
    for name in ("a.svg", "b.svg"):
        check_plot(tmp_path / name)
        write_plot(choice, ["a", "b"], tmp_path / name)
        texts.append((tmp_path / name).read_text())
    assert texts[0].startswith("<?xml") and texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "tpu"], "a device of a plan must be"),
        (["--devices", "golden", "--slo", "x=1"], "an SLO must be"),
        (["--devices", "golden", "--link", "fast"], "--link must be LATENCY,BYTES"),
        (["--devices", "golden,kv260", "--check"], "no modelled boards"),
        (["--devices", "golden", "--check", "--cycles"], "leave --cycles out"),
        (["--devices", "golden,kv260", "--run"], "--run runs plans: give devices that are here"),
        (["--devices", "golden", "--plot", "plans.pdf"], "must end in .svg or .png"),
        (["--devices", "golden", "-p", "250", "-n", "9"], "exceed the context of 256"),
    ],
)
def test_refusals(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err
