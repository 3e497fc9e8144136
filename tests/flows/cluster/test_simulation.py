"""The simulation against times found by hand, by the planner's costs and by queueing theory."""

from dataclasses import replace

import numpy as np
import pytest
from tests.flows.cluster.machines import (
    FREE,
    N_LAYERS,
    Fixed,
    at_once,
    cluster,
    machine,
    profile,
)
from tests.host.random_model import Shape, load, write_model

from lutra.quantize.pack import pack_model
from lutra.serving.plans.costs import Costs, Workload
from lutra.serving.plans.layout import Plan
from lutra.serving.plans.measure import kv_bytes_of
from lutra.serving.plans.profile import LinkProfile
from lutra_flows.cluster.batching import WholePrompts
from lutra_flows.cluster.cluster import Failure, simulate
from lutra_flows.cluster.events import Clock
from lutra_flows.cluster.machine import Kv, Machine
from lutra_flows.cluster.trace import Arrival
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel


def test_one_request_alone() -> None:
    outcome = simulate(cluster(machine()), Fixed(), at_once(1, prompt=100, answer=5))
    [job] = outcome.jobs
    assert (job.ttft_s, job.tpot_s) == (pytest.approx(1.0), pytest.approx(0.5))
    assert outcome.seconds == pytest.approx(3.0)
    assert outcome.busy == {"a": pytest.approx(1.0)}
    assert outcome.tokens_per_s == pytest.approx(5 / 3)


def test_a_prompt_joins_at_the_end_of_a_pass() -> None:
    """It comes in the middle of the second pass, and is computed in the third with a token of the
    other request; then both share passes."""
    trace = [Arrival(at=0.0, prompt=10, answer=20), Arrival(at=0.9, prompt=10, answer=3)]
    outcome = simulate(cluster(machine()), Fixed(), trace)
    first, second = outcome.jobs
    assert first.first == pytest.approx(0.1)
    # passes end at 0.6 and 1.1; eleven tokens that have a prompt among them take 0.11 s
    assert second.first == pytest.approx(1.21)
    assert second.last == pytest.approx(2.21)
    # 17 more after three passes
    assert first.last == pytest.approx(1.21 + 16 * 0.5)
    assert first.worst_gap_s == pytest.approx(0.5)


def test_chunks_where_others_wait() -> None:
    """A token of a prompt takes 10 ms, so that 25 of them share a pass with another's token."""
    trace = [Arrival(at=0.0, prompt=20, answer=20), Arrival(at=0.3, prompt=60, answer=2)]
    outcome = simulate(cluster(machine()), Fixed(), trace)
    # passes of 0.5 s to 0.7 s, then 26, 26 and 11 tokens
    assert outcome.jobs[1].first == pytest.approx(0.7 + 0.26 + 0.26 + 0.11)
    assert outcome.jobs[0].worst_gap_s == pytest.approx(0.5)


def test_layers_are_sent_while_the_prompt_goes_on() -> None:
    link = LinkProfile(latency_s=0.0, bytes_per_s=100 * 100 / 0.02, kind="modelled")
    pair = cluster(machine("a", 0.001, 0.5), machine("b", 0.02, 0.1), link=link)
    outcome = simulate(pair, Fixed(there=1), at_once(1, prompt=100, answer=11))
    [job] = outcome.jobs
    # a layer takes 0.025 s, its transfer 0.02
    assert job.ttft_s == pytest.approx(0.1)
    assert job.exposed_s == pytest.approx(0.02)
    assert outcome.seconds == pytest.approx(0.1 + 0.02 + 10 * 0.1)
    assert outcome.sent_bytes == 100 * 400
    assert outcome.moved == 1
    assert outcome.sending == pytest.approx(0.08 / outcome.seconds)
    slow = replace(pair, link=replace(link, bytes_per_s=100 * 100 / 0.1))
    # the first layer goes at 0.025, and 0.4 s for all of them
    outcome = simulate(slow, Fixed(there=1), at_once(1, prompt=100, answer=11))
    assert outcome.jobs[0].exposed_s == pytest.approx(0.025 + 0.4 - 0.1)


def test_pulled_keys_and_values_come_after_the_prompt() -> None:
    link = LinkProfile(latency_s=0.01, bytes_per_s=40_000, kind="modelled")
    pair = cluster(machine("a", 0.001, 0.5), machine("b", 0.02, 0.1), link=link)
    outcome = simulate(pair, Fixed(there=1, pulls=True), at_once(1, prompt=100, answer=11))
    assert outcome.jobs[0].exposed_s == pytest.approx(0.01 + 1.0)


def test_transfers_take_turns() -> None:
    """Two devices for prompts send to one, whose port is the limit."""
    link = LinkProfile(latency_s=0.0, bytes_per_s=10_000, kind="modelled")
    three = cluster(machine("a", 0.001), machine("b", 0.001), machine("c"), link=link)

    class Both(Fixed):
        def place(self, job: object) -> None:
            self.here = 1 - self.here
            super().place(job)  # type: ignore[arg-type]

    outcome = simulate(three, Both(there=2, pulls=True), at_once(2, prompt=100, answer=2))
    assert [job.exposed_s for job in outcome.jobs] == [pytest.approx(4.0), pytest.approx(8.0)]


def test_requests_wait_for_memory() -> None:
    """There is room for one context, so that the second prompt begins when the first one ends."""
    whole = machine(kv_bytes=400_000, whole_context=True)
    outcome = simulate(cluster(whole), Fixed(), at_once(2, prompt=10, answer=3))
    assert [job.first for job in outcome.jobs] == [pytest.approx(0.1), pytest.approx(1.2)]
    pages = machine(kv_bytes=400_000)
    outcome = simulate(cluster(pages), Fixed(), at_once(2, prompt=10, answer=3))
    assert [job.first for job in outcome.jobs] == [pytest.approx(0.2)] * 2
    with pytest.raises(LutraError, match=r"^a has no memory for a text of 1000 tokens beside"):
        machine(kv_bytes=399_999)


@pytest.mark.parametrize("pulls", [False, True])
def test_an_answer_waits_for_memory_elsewhere(pulls: bool) -> None:
    """Keys and values stay until there is some; nothing is lost, and all memory is free at last."""
    small = machine("b", 0.01, 0.5, kv_bytes=400_000, whole_context=True)
    pair = cluster(machine("a", 0.01, 0.5), small)
    outcome = simulate(pair, Fixed(there=1, pulls=pulls), at_once(3, prompt=10, answer=3))
    lasts = [job.last for job in outcome.jobs]
    assert lasts == [
        pytest.approx(1.1),
        pytest.approx(2.1 + 0.1 * (not pulls)),
        pytest.approx(3.1 + 0.2 * (not pulls)),
    ]
    assert all(each.used_bytes == 0 for each in outcome.instances)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    shape = Shape(num_hidden_layers=N_LAYERS, vocab_size=301, max_position_embeddings=1024)
    return pack_model(load(write_model(tmp_path_factory.mktemp("models") / "long", shape)))


@pytest.mark.parametrize("requests", [1, 2, 3])
@pytest.mark.parametrize(
    ("there", "bytes_per_s"), [(0, 1e30), (1, 1e30), (1, 3e5)], ids=["whole", "split", "exposed"]
)
def test_agrees_with_the_costs_of_plans(
    model: PackedModel, there: int, bytes_per_s: float, requests: int
) -> None:
    """Requests that come at once take what :class:`~lutra.serving.plans.costs.Costs` has."""
    profiles = {0: profile(0.004, 0.03, 0.002), 1: profile(0.02, 0.01, 0.003)}
    link = LinkProfile(latency_s=1e-4, bytes_per_s=bytes_per_s, kind="modelled")
    plan = Plan(Plan.on(0, N_LAYERS).prefill, Plan.on(there, N_LAYERS).decode)
    costs = Costs(model, profiles, {(0, 1): link})
    kv = Kv(token_bytes=kv_bytes_of(model, 1, N_LAYERS), context=1024)
    pair = cluster(
        *(
            Machine(name=f"{i}", profile=each, kv=kv, kv_bytes=1e12, whole_context=False)
            for i, each in profiles.items()
        ),
        link=link,
    )
    for prompt, answer in ((100, 40), (70, 1), (1, 9), (300, 200)):
        workload = Workload(prompt=prompt, answer=answer, requests=requests)
        expected = costs.of([plan], workload)
        outcome = simulate(pair, Fixed(there=there), at_once(requests, prompt, answer))
        jobs = outcome.jobs
        assert np.mean([job.ttft_s for job in jobs]) == pytest.approx(expected.ttft_s, rel=1e-9)
        assert np.mean([job.tpot_s for job in jobs]) == pytest.approx(expected.tpot_s, rel=1e-9)
        assert outcome.seconds == pytest.approx(expected.seconds, rel=1e-9)
        if answer > 1:
            exposed = [job.exposed_s for job in jobs]
            assert exposed == [pytest.approx(expected.exposed_s, abs=1e-12)] * requests


def test_waits_as_queueing_theory_has_it() -> None:
    """Poisson arrivals and equal prompts, one at a time: M/D/1 waits rho / (2 (1 - rho)) services
    on average (Pollaczek and Khinchine)."""
    service, rho, n = 0.2, 0.7, 20_000
    gaps = np.random.default_rng(7).exponential(service / rho, n)
    trace = [Arrival(at=at, prompt=20, answer=1) for at in np.cumsum(gaps).tolist()]
    outcome = simulate(cluster(machine()), Fixed(batch=WholePrompts(1)), trace)
    waited = np.mean([job.ttft_s for job in outcome.jobs]) - service
    assert waited == pytest.approx(service * rho / (2 * (1 - rho)), rel=0.05)
    assert outcome.busy["a"] == pytest.approx(rho, rel=0.02)


def test_a_lost_device_loses_no_request() -> None:
    """The answer goes on elsewhere from its last token, whose text is computed again."""
    pair = cluster(machine("a"), machine("b", 0.02, 0.25))
    trace = at_once(1, prompt=50, answer=6)
    outcome = simulate(pair, Fixed(), trace, [Failure(kind="a", at=1.6)])
    [job] = outcome.jobs
    # tokens at 0.5, 1.0 and 1.5; then a prompt of 53, and two more
    assert (job.first, job.attempt, job.made) == (pytest.approx(0.5), 1, 6)
    assert job.last == pytest.approx(1.6 + 53 * 0.02 + 2 * 0.25)
    assert job.worst_gap_s == pytest.approx(0.1 + 53 * 0.02)
    with pytest.raises(LutraError, match=r"^no c can be lost: one device at least must be left$"):
        simulate(pair, Fixed(), trace, [Failure(kind="c", at=1.6)])


def test_a_lost_target_takes_its_requests_along() -> None:
    """Those that wait, that are computed, that are sent, and that are answered there."""
    link = LinkProfile(latency_s=0.0, bytes_per_s=4000, kind="modelled")
    trio = cluster(machine("a"), machine("b"), machine("c"), link=link)
    trace = at_once(4, prompt=10, answer=9)
    for at in (0.05, 0.15, 0.35, 1.2, 2.7, 4.1):
        outcome = simulate(trio, Fixed(there=1), trace, [Failure(kind="b", at=at)])
        assert all(job.is_over for job in outcome.jobs)
        assert any(job.attempt for job in outcome.jobs)
        assert all(each.used_bytes == 0 for each in outcome.instances if not each.is_dead)


def test_time_does_not_go_back() -> None:
    clock, seen = Clock(), list[str]()
    clock.at(2.0, lambda: seen.append("last"))
    clock.at(1.0, lambda: clock.at(1.0, lambda: seen.append("then")))
    clock.at(1.0, lambda: seen.append("first"))
    clock.at(1.5, lambda: seen.append("never")).cancel()
    clock.run()
    assert (seen, clock.now) == (["first", "then", "last"], 2.0)
    with pytest.raises(ValueError, match=r"^time 1\.0 has passed: it is 2\.0$"):
        clock.at(1.0, lambda: None)


def test_nothing_is_lost_or_made_up() -> None:
    """Every token of prompts and answers is computed once, whatever goes where."""
    rng = np.random.default_rng(3)
    trace = [
        Arrival(at=float(at), prompt=int(p), answer=int(a))
        for at, p, a in zip(
            np.cumsum(rng.exponential(0.3, 200)), rng.integers(1, 300, 200),
            rng.integers(1, 60, 200), strict=True,
        )
    ]  # fmt: skip
    pair = cluster(
        machine("a", 0.001, 0.02), machine("b", 0.002, 0.03), link=replace(FREE, latency_s=1e-3)
    )
    for there in (0, 1):
        outcome = simulate(pair, Fixed(there=there), trace)
        assert sum(each.prompt_tokens for each in outcome.instances) == sum(r.prompt for r in trace)
        assert sum(each.answer_tokens for each in outcome.instances) == sum(r.answer for r in trace)
        assert [job.made for job in outcome.jobs] == [r.answer for r in trace]
        assert max(outcome.busy.values()) <= 1
        assert all(each.queued_tokens == 0 for each in outcome.instances)
        assert all(each.used_bytes == 0 for each in outcome.instances)
