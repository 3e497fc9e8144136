"""Planning for a model that is loaded: ``LLM(device=[...])``, and profiles that are corrected."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lutra import LLM, SamplingParams
from lutra.commands.cli import main
from lutra.serving.plans.costs import Workload
from lutra.serving.plans.facts import Fact
from lutra.serving.plans.layout import RowShare, Stage, by_rows, whole
from lutra.serving.plans.planner import Planner, workload_within
from lutra.serving.plans.sites import parse_sites
from lutra.serving.plans.store import ProfileStore
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel


def test_an_llm_on_several_devices(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan comes from profiles that are measured when it is loaded, and kept."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    texts, sampling = ["th", "the a", "b"], SamplingParams(temperature=0.7, seed=3)
    folder = model_folder("grouped")
    with LLM(folder, device="golden") as llm:
        expected = [llm.generate(text, 6, sampling).tokens for text in texts]
        plain = llm.generate(texts[0], 2).stats
        assert plain.predicted_s is None and plain.prediction_error is None
        logits = llm.logits([1, 2, 3])[0]
    with LLM(folder, device=["golden", "golden"]) as llm:
        assert llm.device.name == "plan"
        assert [llm.generate(text, 6, sampling).tokens for text in texts] == expected
        assert [each.tokens for each in llm.generate(texts, 6, sampling)] == expected
        np.testing.assert_array_equal(llm.logits([1, 2, 3])[0], logits)
        assert "golden" in str(llm.device.facts()["plan"])
        # a prediction for all passes, alone and with others
        for each in (llm.generate(texts[1], 6, sampling), *llm.generate(texts, 6, sampling)):
            assert each.stats.predicted_s is not None and each.stats.predicted_s > 0
            taken = each.stats.prefill_s + each.stats.decode_s
            error = each.stats.predicted_s / taken - 1
            assert each.stats.prediction_error == pytest.approx(error)
        greedy = llm.generate(texts[1], 6, SamplingParams(temperature=0)).stats
        assert greedy.predicted_s is not None and greedy.predicted_s > 0

        async def together() -> list[list[int]]:
            found = await asyncio.gather(*(llm.generate_async(text, 6, sampling) for text in texts))
            return [each.tokens for each in found]

        assert asyncio.run(together()) == expected
    assert len(list((tmp_path / "profiles").iterdir())) == 1
    with LLM(folder, device=["golden", "golden"], check=True) as llm:
        assert llm.generate(texts[0], 6, sampling).tokens == expected[0]
    with pytest.raises(LutraError, match="kv260 is modelled, and runs nothing"):
        LLM(folder, device=["golden", "kv260"])
    with pytest.raises(LutraError, match="threads is for a device that is given by name"):
        LLM(folder, device=["cpu:1", "golden"], threads=2)


def test_profiles_are_corrected_by_what_passes_took(
    packed: Callable[[str], PackedModel], tmp_path: Path
) -> None:
    """By more than 3 %, as less is noise; those of rows by what a stage of several took, and those
    beside other devices by what they take in their company."""
    model, store = packed("grouped"), ProfileStore(tmp_path)
    sites = parse_sites(["golden", "golden"])
    with Planner.open(model, sites, store=store, budget_s=0.01) as planner:
        before = planner.profiles[0]
        rows = by_rows((RowShare(0, 1), RowShare(1, 1)), 2)[0]

        def fact(stage: Stage, factor: float) -> Fact:
            seconds = factor * planner.costs.stage_s(stage, (4,), (0,))
            return Fact(stage=stage, sizes=(4,), positions=(0,), seconds=seconds)

        for factor, runs in ((1.02, 0), (4.0, 1)):
            planner.correct([fact(whole(0, 2)[0], factor)])
            assert (planner.profiles[0].runs, planner.profiles[1].runs) == (runs, 0)
        kept = store.load(before.fingerprint)
        assert kept is not None and kept.runs == 1
        assert kept.chunk.at(4, 0) == pytest.approx(2.0 * before.chunk.at(4, 0))
        assert kept.decode_s(1, 0) == before.decode_s(1, 0)
        before = planner.profiles[1]
        planner.correct([fact(rows, 4.0)])
        after = planner.profiles[1]
        assert before.half is not None and after.half is not None and after.runs == 1
        assert after.half.at(4, 0) == pytest.approx(2.0 * before.half.at(4, 0))
        assert after.chunk == before.chunk
        # what others at work are known to cost is no reason
        near = {pair: replace(link, crowd=((1, 3.0),)) for pair, link in planner.links.items()}
        planner.links = near
        planner.correct([replace(fact(whole(1, 2)[0], 3.0), beside=(0,))])
        planner.correct([replace(fact(whole(1, 2)[0], 9.0), beside=(7,))])  # that is not here
        assert planner.profiles[1] == after
        assert planner.labels == ["golden", "golden#2"]
        assert workload_within(model) == Workload(prompt=24, answer=8)
        assert workload_within(model, answer=20, requests=2) == Workload(
            prompt=12, answer=20, requests=2
        )
        assert workload_within(model, 16, 16) == Workload(prompt=16, answer=16)
        with pytest.raises(LutraError, match="20 and 16 tokens exceed the context of 32"):
            workload_within(model, 20, 16)


def test_profiles_are_corrected_while_requests_run(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the way each time; the next start has the profile."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    monkeypatch.setattr("lutra.serving.plans.device._LESSON", 8)
    folder, store = model_folder("grouped"), ProfileStore()
    with LLM(folder, device=["golden", "golden"]):
        pass
    [kept] = (tmp_path / "profiles").iterdir()
    wrong = store.load(kept.stem)
    assert wrong is not None
    store.save(wrong.scaled(1000.0))
    with LLM(folder, device=["golden", "golden"]) as llm:
        errors = [llm.generate("th", 7).stats.prediction_error for _ in range(6)]
    assert errors[0] is not None and errors[0] > 100
    assert errors[-1] is not None and errors[-1] < 20
    found = store.load(kept.stem)
    assert found is not None and found.runs > wrong.runs + 1


def test_several_devices_on_the_command_line(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With their plan and its prediction among the figures; what is no device is refused."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    command = ["run", "-m", str(model_folder("grouped")), "-p", "th", "-n", "4", "--temp", "0"]
    texts: list[str] = []
    for device in ("golden", "golden,golden"):
        assert main([*command, "-dev", device, "--json"]) == 0
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        texts.append(figures["text"])
        planned = device != "golden"
        assert (figures["device"] == "plan") == planned == ("golden" in (figures["plan"] or ""))
        assert (figures["predicted_s"] is not None) == planned
        assert (figures["prediction_error"] is not None) == planned
    assert texts[0] == texts[1]
    assert main([*command, "-dev", "golden,golden"]) == 0
    assert "all passes as planned" in capsys.readouterr().out
    for wrong, said in (("golden,tpu", "must be"), ("cpu:0,golden", "threads must be")):
        assert main([*command, "-dev", wrong]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "-dev", "golden,rtl", "--kv", "8/4"]) == 2
    assert "device rtl caches keys and values" in capsys.readouterr().err
