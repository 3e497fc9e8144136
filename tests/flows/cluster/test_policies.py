"""Where requests go, and how much of a trace meets an SLO."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.flows.cluster.machines import FREE, Fixed, at_once, cluster, machine

from lutra.models.random import RANDOM_SHAPES
from lutra.serving.plans.profile import LinkProfile
from lutra.serving.plans.search import Slo
from lutra_flows.cluster import __main__ as command
from lutra_flows.cluster.batching import Chunks, WholePrompts
from lutra_flows.cluster.by_cost import ByCost
from lutra_flows.cluster.cluster import Cluster, Outcome, simulate
from lutra_flows.cluster.devices import Shaped, make_machine
from lutra_flows.cluster.goodput import Load, best_division, capacity, goodput
from lutra_flows.cluster.jobs import Job
from lutra_flows.cluster.machine import Machine
from lutra_flows.cluster.policies import DistServe, PolicyMaker, Replicas, Splitwise
from lutra_flows.cluster.trace import SHAPES, Arrival, Lengths, TraceShape, make_trace
from lutra_golden.errors import LutraError

SLO = Slo(ttft_s=1.0, tpot_s=0.2)


def where(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """Tokens of prompts and answers on each kind of machine."""
    return {
        each.machine.name: (each.prompt_tokens, each.answer_tokens) for each in outcome.instances
    }


def served(maker: PolicyMaker, own: Cluster, *arrivals: Arrival) -> dict[str, tuple[int, int]]:
    """Where the tokens of some requests are computed."""
    return where(simulate(own, maker, arrivals))


ONE = Arrival(at=0.0, prompt=100, answer=101)


def test_lutra_divides_a_request_where_that_pays() -> None:
    """The prompt where that is quick, the answer where that is, unless the link is slow."""
    quick_prompts, quick_answers = machine("a", 0.001, 0.5), machine("b", 0.1, 0.01)
    pair = cluster(quick_prompts, quick_answers)
    assert served(ByCost(SLO), pair, ONE) == {"a": (100, 1), "b": (0, 100)}
    far = replace(pair, link=LinkProfile(latency_s=0.0, bytes_per_s=100, kind="modelled"))
    assert served(ByCost(Slo()), far, ONE) == {"a": (0, 0), "b": (100, 101)}
    # a device that does both as well is enough
    both = cluster(quick_prompts, machine("c", 0.001, 0.01))
    assert served(ByCost(SLO), both, ONE) == {"a": (0, 0), "c": (100, 101)}


def test_lutra_takes_the_slower_device_when_the_other_is_busy() -> None:
    pair = cluster(machine("a", 0.005, 0.01), machine("b", 0.009, 0.02))
    assert served(ByCost(SLO), pair, ONE)["b"] == (0, 0)
    outcome = simulate(pair, ByCost(SLO), at_once(4, 100, 101))
    assert where(outcome)["b"][0] > 0
    alone = simulate(pair, Replicas("a"), at_once(4, 100, 101))
    assert outcome.ttft_s.p99 < alone.ttft_s.p99


def test_lutra_misses_an_slo_least() -> None:
    """Nothing meets it: a tenth too slow is better than twice, whatever takes longer in all."""
    slo = Slo(tpot_s=0.1)
    pair = cluster(
        machine("a", 0.001, 0.11), machine("b", 0.0001, 0.2), link=replace(FREE, bytes_per_s=1.0)
    )
    assert served(ByCost(slo), pair, ONE)["a"] == (100, 101)


def test_lutra_moves_an_answer_to_an_idle_device() -> None:
    """The quicker one has no memory when the request comes, and some when its prompt is done."""
    small = machine("b", 0.001, 0.01, kv_bytes=400_000, whole_context=True)
    pair = cluster(machine("a", 0.001, 0.018), small)
    busy = Arrival(at=0.0, prompt=900, answer=2)
    outcome = simulate(pair, ByCost(Slo()), [busy, Arrival(at=0.5, prompt=900, answer=50)])
    assert where(outcome) == {"a": (900, 1), "b": (900, 51)}


def test_splitwise_has_two_pools_and_mixes_them_under_load() -> None:
    pair = cluster(machine("a", 0.001, 0.5), machine("b", 0.1, 0.01))
    assert served(Splitwise("a"), pair, ONE) == {"a": (100, 1), "b": (0, 100)}
    assert served(Splitwise("b"), pair, ONE) == {"a": (0, 100), "b": (100, 1)}
    # more than 8,192 tokens wait: the token pool helps out, and answers where it computes
    many = at_once(13, 700, 2)
    outcome = simulate(pair, Splitwise("a"), many)
    assert where(outcome) == {"a": (12 * 700, 12), "b": (700, 14)}
    # no memory for tokens: the prompt's device keeps the request
    small = cluster(machine("a", 0.001, 0.5), machine("b", kv_bytes=400_000, whole_context=True))
    second = replace(ONE, at=0.01, answer=5)
    assert served(Splitwise("a"), small, ONE, second)["a"] == (200, 6)


def test_distserve_pulls_and_fills_the_emptiest() -> None:
    link = LinkProfile(latency_s=0.0, bytes_per_s=40_000, kind="modelled")
    four = cluster(machine("a", 0.001, 0.5), n=4, link=link)
    outcome = simulate(four, DistServe(0.5), at_once(2, 100, 5))
    assert [each.answer_tokens for each in outcome.instances] == [1, 1, 4, 4]
    assert [job.exposed_s for job in outcome.jobs] == [pytest.approx(1.0)] * 2
    assert outcome.moved == 1


def test_whole_prompts_and_chunks() -> None:
    def job(at: float, prompt: int) -> Job:
        return Job(Arrival(at=at, prompt=prompt, answer=5))

    first, second, third = job(0, 1500), job(1, 600), job(2, 100)
    whole = WholePrompts(2048)
    assert whole.prompts([third, second, first], 3) == [(first, 1500)]
    assert whole.prompts([second, third], 3) == [(second, 600), (third, 100)]
    assert WholePrompts(8).prompts([first], 0) == [(first, 1500)]
    chunks = Chunks(2048)
    assert chunks.prompts([first, second], 0) == [(first, 1500), (second, 548)]
    chunks.took(1000, 10.0)
    # 10 ms a token: 25 share a pass with others, and the short one goes first
    assert chunks.prompts([first, third], 2) == [(third, 25)]


def test_goodput_of_a_queue() -> None:
    """Prompts of 0.2 s one at a time, nine in ten within 0.5 s: a rate below 5 a second."""
    shape = TraceShape(
        name="equal", rate=1.0,
        prompt=Lengths(mean=20, deviation=0, least=20, most=20, median=20),
        answer=Lengths(mean=1, deviation=0, least=1, most=1, median=1),
    )  # fmt: skip
    own, slo, maker = cluster(machine()), Slo(ttft_s=0.5), Fixed(batch=WholePrompts(1))
    load = Load(shape=shape, slo=slo, requests=600)
    found = goodput(own, maker, load)
    assert 2.0 < found < 5.0
    for guess in (0.01, 100.0):
        other = goodput(own, maker, load, guess=guess)
        assert other == pytest.approx(found, rel=0.04)
    for rate, meets in ((found, True), (1.1 * found, False)):
        assert (simulate(own, maker, load.trace(own, rate)).attained(slo) >= 0.9) == meets
    assert capacity(own.times(3), maker, load) == pytest.approx(15.0)
    assert found / 2.05 < goodput(own, maker, load, limit=found / 2) <= found / 2
    few = Load(shape=shape, slo=Slo(ttft_s=0.19), requests=50)
    assert goodput(own, maker, few) == 0.0
    assert [len(few.trace(own, rate)) for rate in (1.0, 10.0)] == [50, 200]
    assert len(few.trace(own.times(9), 1.0)) == 72


def test_the_best_division_is_found() -> None:
    """Prompts belong where they are quick; of equal devices more than one is for prompts."""
    slow, quick = machine("a", 0.01, 0.01), machine("b", 0.0001, 0.1)
    load = Load(shape=SHAPES["conversation"], slo=Slo(ttft_s=2.0, tpot_s=0.2), requests=60)
    best, rate = best_division(DistServe("a"), cluster(slow, quick), load)
    assert best.prompts == "b"
    assert rate > 0
    equal = cluster(machine("a", 0.001, 0.01), n=4)
    best, _ = best_division(DistServe(0.5), equal, replace(load, shape=SHAPES["coding"]))
    assert best.prompts in (0.5, 0.75)


def test_traces_have_the_published_shape() -> None:
    for shape in SHAPES.values():
        for lengths in (shape.prompt, shape.answer):
            assert lengths.drawn_median == pytest.approx(lengths.median, rel=0.3)
            drawn = lengths.draw(np.random.default_rng(1), 50_000)
            assert np.mean(drawn) == pytest.approx(lengths.mean, rel=0.06)
            assert lengths.least <= min(drawn)
            assert max(drawn) <= lengths.most
    slow, fast = (
        make_trace(SHAPES["coding"], rate, 500, context=4096, seed=4) for rate in (1.0, 10.0)
    )
    assert [(a.prompt, a.answer) for a in slow] == [(a.prompt, a.answer) for a in fast]
    assert [a.at for a in slow] == [pytest.approx(10 * a.at) for a in fast]
    assert slow[-1].at == pytest.approx(500, rel=0.15)
    assert max(a.prompt + a.answer for a in slow) <= 4096
    with pytest.raises(LutraError, match=r"^a trace needs requests at a rate above 0, not 0 at 1 "):
        make_trace(SHAPES["coding"], 1.0, 0, context=4096)


TINY = {**RANDOM_SHAPES["qwen2.5-0.5b"], "num_hidden_layers": 2, "vocab_size": 512}


def test_machines_of_boards_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RANDOM_SHAPES, "tiny", TINY)  # type: ignore[arg-type]
    shaped = Shaped.of("tiny")
    assert len(shaped.model.layers) == 2
    board, gpu = make_machine("kv260", shaped), make_machine("h200", shaped)
    assert board.whole_context
    assert board.kv_bytes == 1000 * (1 << 20) - shaped.weight_bytes
    assert board.profile.kind == gpu.profile.kind == "modelled"
    # the port of the board has 128 bits, and the weights of a layer pass it once a token
    weights = shaped.model.layers[0].gate_proj.stored.n_bytes
    assert board.profile.layer.at(1, 0) > weights / (16 * 187.5e6)
    assert gpu.profile.layer.at(1, 0) < 30e-6
    # half of the integer products that its data sheet has
    macs = 2 * 896 * (896 + 128) + 3 * 896 * 4864
    assert gpu.profile.layer.at(2048, 0) > 2048 * macs / 495e12
    twice = make_machine("kv260", shaped, faster=2.0)
    assert twice.name == "kv260 x 2"
    assert twice.token_s == pytest.approx(board.token_s / 2)


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes machines of simple times."""
    times = {"u55c": (0.002, 0.05), "h200": (0.0005, 0.02)}

    def make(name: str, shaped: object, *, faster: float = 1.0) -> Machine:
        return machine(name, *(each / faster for each in times[name]))

    monkeypatch.setattr(command, "make_machine", make)
    monkeypatch.setattr(Shaped, "of", lambda shape, progress: None)


def test_command(simple: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "found.json", tmp_path / "cards.svg"
    few, enough = (["--requests", n, "--seconds", "5"] for n in ("20", "150"))
    pair = "u55c,h200,bitnet-2b-4t"
    assert command.main([*enough, "--pair", pair, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    for name in (
        "Lutra",
        "u55c alone",
        "h200 alone",
        "Splitwise, prompts on",
        "DistServe, prompts",
    ):
        assert f"| {name}" in printed
    rows = {row["policy"]: row for row in json.loads(path.read_text())[pair]}
    assert rows["Lutra"]["goodput"] > rows["h200 alone"]["goodput"] > rows["u55c alone"]["goodput"]
    arguments = [*few, "--cards", "2,1", "--slo", "ttft=5,tpot=1", "--plot", str(picture)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^\| \d+ \|", printed, re.MULTILINE) == ["| 1 |", "| 2 |"]
    assert "begun again" in printed
    assert picture.read_text().startswith("<?xml")
    # no number of cards meets this SLO
    never = [*few, "--cards", "1", "--slo", "ttft=0.001", "--plot", str(picture)]
    assert command.main(never) == 0
    assert "| 1 | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pair", "u55c,bitnet-2b-4t"], "--pair must be two unlike devices and a shape"),
        (["--pair", "u55c,h100,bitnet-2b-4t"], "a device must be one of kv260"),
        (["--pair", "u55c,h200,bitnet"], "give devices and one of the shapes bitnet-2b-4t"),
        (["--cards", "1,0"], "--cards must be numbers of cards, such as 1,10,1000, not '1,0'"),
        (["--cards", "some"], "--cards must be numbers of cards"),
        (["--plot", "a.svg"], "--plot draws numbers of cards: give --cards, too"),
        (["--slo", "soon"], "an SLO must be ttft=SECONDS"),
        (["--link", "1"], "--link must be LATENCY,BYTES"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
