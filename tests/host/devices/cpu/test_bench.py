"""The benchmark measures every format; what it measures is not looked at."""

import json
import shutil

import pytest

if shutil.which("cc") is None:
    pytest.skip("no C compiler", allow_module_level=True)

from lutra.devices.cpu.bench import main, measure
from lutra.devices.cpu.library import target_names
from lutra_golden.arith.quantize import ActivationGroups


def test_every_format_has_a_row() -> None:
    formats = ["w1.58", "w1", "w1.58g", "w2", "w3", "w4", "w6", "w8", "head"]
    targets = [name for name, available in target_names().items() if available]
    rows = measure(targets, formats, (32, 256), [1, 6], 2, 1, cold_bytes=1 << 16)
    assert [(row["format"], row["tokens"], row["target"]) for row in rows] == [
        (name, m, target) for name in formats for m in (1, 6) for target in targets
    ]
    assert all(0 < row["best_us"] <= row["us"] and row["read_gb_s"] > 0 for row in rows)
    assert {row["kind"] for row in rows} == {"measured"}


def test_activations_in_groups_and_wide_scales() -> None:
    targets = [name for name, available in target_names().items() if available]
    rows = measure(
        targets, ["w1", "w1.58g"], (32, 256), [1], 1, 1, cold_bytes=1 << 14, scale_bits=16,
        groups=ActivationGroups(),
    )  # fmt: skip
    assert len(rows) == 2 * len(targets)
    # codes and scales of two bytes, which all that is read of a matrix
    bits, trits = rows[0], rows[-1]
    assert bits["gb_s"] * bits["us"] == pytest.approx(32 * (256 / 8 + 2 * 2) / 1e3)
    assert trits["gb_s"] * trits["us"] == pytest.approx(32 * (256 / 4 + 2 * 2) / 1e3)


@pytest.mark.slow
def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rows", "16", "--depth", "128", "-M", "2", "-t", "1", "-r", "1"]
    arguments += ["--formats", "w4", "--targets", "scalar"]
    main(arguments)
    out = capsys.readouterr().out
    assert "16 x 128, 1 threads, measured: medians, and bests" in out
    assert "| w4 | scalar | 2 |" in out
    main([*arguments, "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["format"] == "w4"
