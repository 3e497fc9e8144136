"""``lutra bench``: what is run, and what is printed of it."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lutra.commands.bench import Row, bench
from lutra.commands.cli import main
from lutra.devices.base import BaseDevice, Chunk, PassResult
from lutra.devices.sessions import BaseSession
from lutra.open_model import open_packed_model
from lutra.serving import placement
from lutra_golden.errors import LutraError
from lutra_golden.model.cache import LayerKv
from lutra_golden.model.packed import PackedModel


class RecorderSession(BaseSession):
    """Holds nothing."""

    def _read(self, layer: int, n: int) -> LayerKv:
        raise AssertionError("keys and values are not read")

    def _write(self, layer: int, kv: LayerKv) -> None:
        raise AssertionError("keys and values are not written")

    def _release(self) -> None:
        pass


class Recorder(BaseDevice[RecorderSession]):
    """A device that keeps what it was asked for."""

    name, pass_tokens = "recorder", 48

    def __init__(self, interrupted_at: int = -1) -> None:
        super().__init__()
        self._interrupted_at = interrupted_at
        self.passes: list[tuple[int, int, int]] = []

    def _load(self, model: PackedModel) -> None:
        pass

    def _unload(self) -> None:
        pass

    def _session(self, model: PackedModel) -> RecorderSession:
        return RecorderSession(self, len(model.layers))

    def _session_bytes(self, model: PackedModel) -> int:
        return 0

    def _pass(self, chunks: Sequence[Chunk]) -> PassResult:
        if len(self.passes) == self._interrupted_at:
            raise KeyboardInterrupt
        for chunk in chunks:
            self.passes.append((len(chunk.tokens), chunk.position, chunk.logits_from))
        return PassResult()


def test_prefill_and_decode_are_what_llama_bench_runs() -> None:
    device, model = Recorder(), open_packed_model("tales")
    rows = bench(model, device, n_prompt=100, n_gen=3, repetitions=2)
    assert device.model is model
    prefill, decode = [(48, 0, 48), (48, 48, 48), (4, 96, 3)], [(1, i, 0) for i in range(3)]
    # a run of each that does not count comes first
    assert device.passes == 3 * prefill + 3 * decode
    assert [(row.test, len(row.rates)) for row in rows] == [("pp100", 2), ("tg3", 2)]


def test_a_batch_is_decoded_in_shared_passes() -> None:
    device, model = Recorder(), open_packed_model("tales")
    rows = bench(model, device, n_prompt=4, n_gen=2, batch=3, repetitions=1)
    one, three = [(1, i, 0) for i in range(2)], [(1, i, 0) for i in range(2) for _ in range(3)]
    assert device.passes == 2 * [(4, 0, 3)] + 2 * one + 2 * three
    assert [(row.label, row.test, row.batch) for row in rows] == [
        ("pp4", "pp4", 1),
        ("tg2", "tg2", 1),
        ("tg2 x 3", "tg2", 3),
    ]


def test_tokens_of_a_batch_are_counted_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("bench -dev golden -p 0 -n 2 -b 3 -r 1 -o json".split()) == 0
    one, three = json.loads(capsys.readouterr().out)
    assert (one["test"], one["batch"]) == ("tg2", 1)
    assert (three["test"], three["batch"]) == ("tg2", 3)
    assert three["t_s"] > 0


def test_mean_and_deviation() -> None:
    row = Row(model="m", device="d", test="tg1", rates=(1.0, 2.0, 6.0))
    assert row.t_s == 3 and row.std == pytest.approx(7**0.5)
    assert row.figures == "3.00 \N{PLUS-MINUS SIGN} 2.65"
    one = Row(model="m", device="d", test="tg1", rates=(5.0,))
    assert (one.t_s, one.std, one.figures) == (5, None, "5.00")
    none = replace(one, rates=())
    assert (none.t_s, none.std, none.figures) == (None, None, "-")


def test_a_test_of_no_tokens_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("bench -dev golden -p 0 -n 2 -r 1".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | format | device | test | t/s, measured |"
    assert re.fullmatch(r"\| tales \| W1.58A8 \| golden \| tg2 \| [0-9.]+ \|", lines[2])
    assert len(lines) == 3


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("bench -dev golden -p 9 -n 1 -r 2 -o json".split()) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["device"], row["test"]) for row in rows] == [
        ("tales", "golden", "pp9"),
        ("tales", "golden", "tg1"),
    ]
    for row in rows:
        assert row["t_s"] == pytest.approx(sum(row["samples"]) / 2, rel=1e-2)
        assert row["kind"] == "measured"
        assert row["std"] is not None and not row["interrupted"]
    # as every other command has it
    assert main("bench -dev golden -p 9 -n 0 -r 1 --json".split()) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["test"], row["std"]) == ("pp9", None)


@pytest.mark.parametrize(
    ("passes", "tests"),
    [
        (0, [("pp9", 0)]),
        (3, [("pp9", 2)]),
        (4, [("pp9", 3), ("tg2", 0)]),
        (9, [("pp9", 3), ("tg2", 1)]),
    ],
)
def test_ctrl_c_leaves_what_was_measured(
    passes: int,
    tests: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whole repetitions count; the test that was cut off says so."""
    monkeypatch.setattr(placement, "make_device", lambda *_: Recorder(passes))
    arguments = "bench -dev golden -p 9 -n 2 -r 3".split()
    assert main([*arguments, "--json"]) == 130
    output = capsys.readouterr()
    rows = json.loads(output.out)
    assert [(row["test"], len(row["samples"])) for row in rows] == tests
    assert [row["interrupted"] for row in rows] == [False] * (len(rows) - 1) + [True]
    assert (rows[-1]["t_s"] is None) == (tests[-1][1] == 0)
    assert main(arguments) == 130
    *_, last = capsys.readouterr().out.splitlines()
    assert last.endswith(f", interrupted after {tests[-1][1]} |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-p 0 -n 0", "-p 0 and -n 0 leave nothing to measure: give one of them more"),
        ("-p 257", "257 tokens do not fit the context of 256: lower -p or -n"),
        ("-p 8 -t 2", "only device cpu has threads, golden has none: leave threads out"),
    ],
)
def test_refusals(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["bench", "-dev", "golden", *arguments.split()])
    assert code == 2 and message in capsys.readouterr().err


def test_random_models_are_for_measuring_only() -> None:
    with pytest.raises(LutraError, match="a random model must be one of"):
        open_packed_model("random:nothing")
