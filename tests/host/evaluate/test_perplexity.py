"""Perplexity: known values, windows, and the integer path against floating point."""

import itertools
import json
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.host.random_model import load

from lutra import LLM
from lutra.commands.cli import main
from lutra.evaluate.perplexity import perplexity, text_windows
from lutra.models import find_model
from lutra_golden.errors import LutraError

Float = NDArray[np.float64]
TALE = Path(__file__).parents[1] / "data/tale.txt"


@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 14, 15])
def test_every_token_is_predicted_once(n: int) -> None:
    tokens = list(range(1, n + 1))
    windows = text_windows(tokens, window=8, bos=0)
    assert [token for window in windows for token in window[1:]] == tokens
    assert all(window[0] == 0 and 2 <= len(window) <= 8 for window in windows)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16])
def test_without_a_first_token_all_but_one_are_predicted(n: int) -> None:
    tokens = list(range(1, n + 1))
    windows = text_windows(tokens, window=8, bos=None)
    assert [token for window in windows for token in window[1:]] == tokens[1:]
    assert all(2 <= len(window) <= 8 for window in windows)


def test_who_knows_nothing_is_as_perplexed_as_there_are_tokens() -> None:
    windows = [[0, 1, 2], [0, 3]]
    result = perplexity(lambda window: [np.full((len(window), 50), 7.0)], windows, 10)
    assert result.ppl == pytest.approx(50)
    assert result.stderr == pytest.approx(0, abs=1e-6)
    assert result.tokens == 3
    assert result.bits_per_character == pytest.approx(3 * math.log2(50) / 10)


def test_known_probabilities() -> None:
    def logits(window: list[int]) -> list[Float]:
        """Probability 1/2 for token 1, 1/4 for 2 and 3; in logits beyond float64's exponent."""
        return [np.log([[1e-300, 0.5, 0.25, 0.25]]) + 1000 for _ in window]

    result = perplexity(logits, [[0, 1, 2], [0, 1]], 4)
    assert result.ppl == pytest.approx(2 ** ((1 + 2 + 1) / 3))
    assert result.bits_per_character == pytest.approx(1.0)
    deviation = math.log(2) * np.std([1, 2, 1])
    assert result.stderr == pytest.approx(result.ppl * deviation / math.sqrt(2))


def test_parts_are_evaluated_one_by_one() -> None:
    """To the last bit what they are together; one is gone before the next one comes."""
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, 300, n).tolist() for n in (12, 2, 30)]
    whole = [rng.normal(0, 4, (len(window) - 1, 300)) for window in windows]

    def in_parts(sizes: Iterator[int]) -> Callable[[list[int]], Iterator[Float]]:
        left = iter(whole)

        def logits(window: list[int]) -> Iterator[Float]:
            rows, held = next(left), list[weakref.ref[Float]]()
            assert len(rows) == len(window)
            while len(rows):
                n = next(sizes)
                assert sum(each() is not None for each in held) <= 1
                part, rows = rows[:n].copy(), rows[n:]
                held.append(weakref.ref(part))
                yield part

        return logits

    expected = perplexity(in_parts(itertools.repeat(100)), windows, 10)
    assert perplexity(in_parts(itertools.cycle([1, 5, 3])), windows, 10) == expected


def test_the_command_keeps_no_logits_of_a_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are the same to the last digit whatever is in memory at a time."""

    def figures(*more: str) -> dict[str, Any]:
        line = ["perplexity", "-f", str(TALE), "--windows", "2", "--json", *more]
        assert main(line) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    integer, real = figures("-dev", "golden"), figures("--float")
    monkeypatch.setattr(LLM, "logits", None)
    monkeypatch.setattr("lutra.commands.perplexity._ROWS", 7)
    monkeypatch.setattr("lutra.devices.golden.GoldenDevice.pass_tokens", 50)
    assert figures("-dev", "golden") == integer
    found = figures("--float")
    # products of matrices may differ in the last bit
    assert found.pop("ppl") == pytest.approx(real.pop("ppl"), rel=1e-12)
    assert {name: found[name] for name in ("tokens", "format")} == {
        name: real[name] for name in ("tokens", "format")
    }


def test_the_last_token_of_a_window_is_not_fed() -> None:
    fed: list[list[int]] = []

    def logits(window: list[int]) -> list[Float]:
        fed.append(window)
        return [np.zeros((len(window), 9))]

    perplexity(logits, [[0, 1, 2], [0, 3]], 1)
    assert fed == [[0, 1], [0]]


def test_progress_is_reported() -> None:
    seen: list[tuple[str, float]] = []
    perplexity(
        lambda window: [np.zeros((len(window), 9))],
        [[0, 1]] * 4,
        1,
        lambda stage, share: seen.append((stage, share)),
    )
    assert seen == [("evaluating", i / 4) for i in range(4)]


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(
        LutraError, match=r"^the text is too short to predict anything: give a longer one$"
    ):
        perplexity(lambda _: [np.zeros((1, 1))], [], 0)


def test_the_integer_path_is_as_good_as_floating_point() -> None:
    """Within 0.1 % on a text of the shipped model's kind, 6,500 characters long."""
    folder = find_model("tales")
    source, llm = load(folder), LLM(folder, "cpu")
    text = TALE.read_text(encoding="utf-8")
    tokens = llm.tokenizer.encode(text, add_bos=False)
    windows = text_windows(tokens, window=llm.context, bos=source.config.bos_token_id)

    def integer(window: list[int]) -> list[Float]:
        values, scale = llm.logits(window)
        return [values * scale[:, None]]

    real = perplexity(lambda window: [source.forward(np.array(window))], windows, len(text))
    found = perplexity(integer, windows, len(text))
    assert real.tokens == found.tokens == len(tokens) > 1500
    assert abs(found.ppl / real.ppl - 1) < 1e-3


@pytest.mark.parametrize("options", [{"format": "W2A8", "group": 128}, {"format": "W4A16"}])
def test_a_quantised_llama_is_as_good_as_its_rounded_weights_in_float(
    options: dict[str, Any],
) -> None:
    llm = LLM("tales-llama", "cpu", **options)
    text = TALE.read_text(encoding="utf-8")
    tokens = llm.tokenizer.encode(text, add_bos=False)
    windows = text_windows(tokens, window=llm.context, bos=llm.packed.bos)
    source, rounded = llm.source, llm.rounded
    assert source is not None

    def integer(window: list[int]) -> list[Float]:
        values, scale = llm.logits(window)
        return [values * scale[:, None]]

    whole = perplexity(lambda window: [source.forward(np.array(window))], windows, len(text))
    real = perplexity(lambda window: [rounded.forward(np.array(window))], windows, len(text))
    found = perplexity(integer, windows, len(text))
    # what is lost is lost by rounding the weights, not by computing in integers
    assert real.ppl > whole.ppl
    assert abs(found.ppl / real.ppl - 1) < 1.5e-3
