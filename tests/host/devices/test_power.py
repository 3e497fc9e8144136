"""Power by the sensors of boards: what Linux and XRT show, and means over a run."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from lutra.commands import generate
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.pynq import PynqTransport
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.golden import GoldenDevice
from lutra.devices.power import PowerMeter, Sensed, hwmon_power
from lutra_golden.control.registers import COUNTERS


def sensor(root: Path, number: int, name: str, **files: str) -> None:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


def test_sensors_of_linux(tmp_path: Path) -> None:
    """In microwatts; a label, or the folder, tells two of a name apart."""
    assert hwmon_power(tmp_path) == {}
    sensor(tmp_path, 0, "ina260_u14", power1_input="4375000", curr1_input="875", in1_input="5000")
    sensor(tmp_path, 1, "ams", temp1_input="40000")
    sensor(tmp_path, 2, "rails", power1_input="1000000", power1_label="VCCINT", power2_input="-5")
    sensor(tmp_path, 3, "rails", power2_input="250000")
    sensor(tmp_path, 4, "off", power1_input="")
    assert hwmon_power(tmp_path) == pytest.approx(
        {
            "ina260_u14": 4.375,
            "rails VCCINT": 1.0,
            "rails": -5e-6,
            "rails (hwmon3/power2_input)": 0.25,
        }
    )


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"power_consumption_watts": "22.354", "power_rails": []}', {"card": 22.354}),
        ('{"power_consumption_watts": "N/A"}', {}),
        ("{}", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_power_of_a_card(said: str | None, found: dict[str, float]) -> None:
    """As XRT tells it, in JSON, with numbers as text; an older one has no such key."""
    transport = XrtTransport()
    keys = SimpleNamespace() if said is None else SimpleNamespace(electrical="electrical")
    transport._pyxrt = SimpleNamespace(xrt_info_device=keys)
    transport._device = SimpleNamespace(get_info={"electrical": said}.__getitem__)
    assert transport.power() == found
    assert AcceleratorDevice(transport).power() == found


def test_what_has_no_sensors() -> None:
    """A card that is closed, a simulated board, whatever is no board."""
    assert XrtTransport().power() == {}
    assert PynqTransport(emulated="kv260").power() == {}
    assert AcceleratorDevice(InterpretedTransport()).power() == {}
    with PowerMeter(GoldenDevice()) as meter:
        pass
    assert (meter.watts, meter.n_samples) == ({}, 0)


class Board:
    """Draws a watt more each time that it is asked."""

    def __init__(self, watts: Iterator[float]) -> None:
        self._watts, self.n_asked = watts, 0

    def power(self) -> Mapping[str, float]:
        self.n_asked += 1
        return {"som": next(self._watts), "fan": 0.5}


def test_means_over_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before it does not count, and nothing is read behind it."""
    monkeypatch.setattr("lutra.devices.power._PERIOD_S", 1e-3)
    board = Board(iter([100.0, *map(float, range(1, 100_000))]))
    assert isinstance(board, Sensed)
    with PowerMeter(board) as meter:
        deadline = time.monotonic() + 10
        while meter.n_samples < 3:
            assert time.monotonic() < deadline
            time.sleep(1e-3)
    n = meter.n_samples
    assert board.n_asked == n + 1
    assert meter.watts == pytest.approx({"som": (n + 1) / 2, "fan": 0.5})
    time.sleep(0.01)
    assert board.n_asked == n + 1


def test_rows_of_the_table() -> None:
    counters = {name: 1000 + i for i, name in enumerate(COUNTERS)}
    figures = {
        "last_pass_counters": counters,
        "kinds": {"last_pass_counters": "measured"},
        "power_w": {"ina260_u14": 4.3754},
        "power_samples": 7,
    }
    assert [*generate._hardware_rows(json.loads(json.dumps(figures)))] == [
        ("cycles of the last pass", "1,000", "measured"),
        ("  load unit busy, of it waiting", "1,001, 1,002", "measured"),
        ("  matmul unit busy, of it waiting", "1,003, 1,004", "measured"),
        ("  vector unit busy, of it waiting", "1,005, 1,006", "measured"),
        ("  attention unit busy, of it waiting", "1,007, 1,008", "measured"),
        ("  beats of weights and data read, written", "1,009, 1,010, 1,011", "measured"),
        ("power, ina260_u14", "4.38 W", "measured by the board, 7 samples"),
    ]
    figures |= {"last_pass_counters": {}, "power_w": {}, "kinds": {}}
    assert [*generate._hardware_rows(figures)] == []
