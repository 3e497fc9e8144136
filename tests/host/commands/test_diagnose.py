"""``lutra bisect`` and ``lutra selftest``."""

import json

import pytest
from tests.host.diagnose.faulty import FAULTS, FaultyTransport

from lutra.commands.cli import main
from lutra.devices.accelerator import interpreted

BISECT = ["bisect", "-dev", "interpreted", "-p", "Once", "-n", "1"]


def with_fault(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every device ``interpreted`` has a fault; the diagnosis' own interpreter has none."""
    monkeypatch.setattr(interpreted, "InterpretedTransport", lambda: FaultyTransport(FAULTS[name]))


def test_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(BISECT) == 0
    assert capsys.readouterr().out.startswith("device interpreted gives the same as golden in ")


def test_difference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_fault(monkeypatch, "load")
    assert main([*BISECT, "--json"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["opcode"], found["unit"]) == ("EMBED", "load unit")
    assert (found["layer"], found["instruction"], found["token"]) == ("embedding", 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-dev", "golden"], "device golden is not compared with golden: give one"),
        (["--emulate", "kv260"], "device rtl drives no kv260: choose device pynq"),
        (["--bitstream", "lutra.bit"], "only a board loads a bitstream: leave bitstream out"),
        (["-t", "2"], "only device cpu has threads, rtl has none: leave threads out"),
        (["--wave", "wave.txt"], "the waveform file must end in .vcd, not 'wave.txt'"),
        (["--wave", "no/where.vcd"], "the folder of the waveform no/where.vcd does not exist"),
        (["-dev", "interpreted", "-n", "99999"], "99999 tokens cannot be generated: the prompt"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bisect", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_selftest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_fault(monkeypatch, "load")
    assert main(["selftest", "-dev", "interpreted"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines][:3] == [
        "identity and fingerprint",
        "registers",
        "memory",
    ]
    assert "WRONG: the load unit is wrong: instruction 0 (EMBED)" in lines[-1]
