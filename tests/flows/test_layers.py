"""Figures of whole layers: from counters of one and of two, and a small run on the RTL."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.system.small_architectures import config_of_engine, make

from lutra_flows import layers
from lutra_flows.layers import figures, main, points, simulate
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import two_ports
from lutra_golden.errors import LutraError

CONFIG = NANO.with_(ports=two_ports(weights=512, data=256))


def _counters(cycles: int, weights: int, data: int) -> dict[str, int]:
    return {"cycles": cycles, "weight_read_beats": weights, "data_read_beats": data}


def test_figures_of_the_whole_model() -> None:
    """Of ten layers: one as it is, nine more, and passes of a prompt on a line."""
    todo = points([16, 100], 8, 32)
    assert [point.position for point in todo] == [15, 99, 15, 15, 0, 24]
    one = {point.name: _counters(1000, 500, 100) for point in todo}
    two = {point.name: _counters(1300, 700, 140) for point in todo}
    one["token without head"] = _counters(400, 200, 40)
    two["last pass"] = _counters(1500, 700, 140)
    found = {each.name: each for each in figures(CONFIG, one, two, todo, 10, 32, 1e6)}
    assert list(found) == ["token @16", "token @100", "8 sequences @16", "prompt of 32"]
    token = found["token @16"]
    assert (token.layer_cycles, token.model_cycles) == (300, 1000 + 9 * 300)
    assert token.tokens_per_s == pytest.approx(1e6 / 3700)
    assert token.bytes_per_cycle == pytest.approx((200 * 64 + 40 * 32) / 300)
    assert found["8 sequences @16"].tokens_per_s == pytest.approx(8e6 / 3700)
    prompt = found["prompt of 32"]
    # four passes, and the head once
    assert prompt.layer_cycles == 4 * (300 + 500) // 2
    assert prompt.model_cycles == 4 * (3700 + 5500) // 2 + 600
    assert prompt.tokens_per_s == pytest.approx(32e6 / prompt.model_cycles)


@pytest.mark.rtl
def test_passes_on_the_rtl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are compared; more takes more."""
    model = make(tmp_path)("bitnet")
    config = config_of_engine("lookup")
    todo = points([4], config.pass_tokens, 2 * config.pass_tokens)
    found = simulate(replace(model, layers=model.layers[:1]), config, todo)
    assert found.keys() == {point.name for point in todo}
    cycles = {name: counters["cycles"] for name, counters in found.items()}
    assert cycles["token without head"] < cycles["token @4"] < cycles["4 sequences @4"]

    def wrong(device: Any, point: Any) -> Any:
        return [replace(result, logits=result.logits + 1) for result in right(device, point)]

    def run(device: Any, point: Any) -> Any:
        return (wrong if device.name == "golden" else right)(device, point)

    right = layers._run
    monkeypatch.setattr(layers, "_run", run)
    with pytest.raises(LutraError, match=r"^token @4: logits differ from "):
        simulate(replace(model, layers=model.layers[:1]), config, todo[:1])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model in the place of a real shape, which has 30 layers."""
    model = make(tmp_path)("bitnet")

    def packed(name: str, context: int, n_layers: int) -> Any:
        assert (name, context) == ("random:bitnet-2b-4t", 256)
        return replace(model, context=context, layers=model.layers[:n_layers])

    monkeypatch.setattr(layers, "random_packed", packed)


def test_prints_what_was_found(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The simulation is another test's."""

    def passes(model: Any, config: Any, todo: Any, _progress: Any) -> dict[str, dict[str, int]]:
        assert config.engine == "lookup"
        assert (config.matmul.step_rows, config.pass_tokens) == (32, 16)
        assert [port.width for port in config.ports] == [256, 512]
        assert abs(model.head).max() <= 8
        return {point.name: _counters(1000 * len(model.layers), 9, 9) for point in todo}

    monkeypatch.setattr(layers, "simulate", passes)
    asked = ["--engine", "lookup", "--tile", "8,32,48", "--head", "4", "--context", "16", "64"]
    asked += ["--pass", "16", "--ports", "256", "512"]
    assert main([*asked, "--clock", "3e5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found][-1] == "prompt of 128"
    assert found[0]["model_cycles"] == 30_000
    assert found[0]["tokens_per_s"] == pytest.approx(3e5 / 30_000)
    assert main(asked) == 0
    assert "| token @16 | 1,000 | 30,000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "132"], "--n-prompt must be a multiple of a pass of 8, two or more, not 132"),
        (["--pass", "128"], "pass_tokens must be at most 64"),
        (["--engine", "lut", "--tile", "1,8,16"], "--tile is for engines ternary and lookup"),
        (["--engine", "lookup", "--tile", "8,8,24"], "step_rows of the lookup engine must be"),
    ],
)
def test_refusals(
    options: list[str], message: str, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--context", "16", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_shape_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "random:gpt"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
