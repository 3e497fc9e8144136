"""Activity of units by an accelerator's counters."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, TimeoutError

import pytest

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.activity import Activity, UnitActivity, is_simulated
from lutra.devices.choose import choose_device
from lutra.devices.golden import GoldenDevice
from lutra_golden.control.registers import COUNTERS
from lutra_golden.model.packed import PackedModel


def test_counters_by_unit() -> None:
    found = Activity.of({name: 10 * i for i, name in enumerate(COUNTERS)})
    assert found is not None and found.cycles == 0
    assert found.units[1] == UnitActivity(unit="matmul", busy=30, waiting=40)
    assert [each.unit for each in found.units] == ["load", "matmul", "vector", "attention"]
    assert found.beats == {"weight_read": 90, "data_read": 100, "data_write": 110}
    assert Activity.of({}) is None


class Emulated(GoldenDevice):
    """A device that says it is emulated."""

    def facts(self) -> Mapping[str, str | int]:
        return {"emulated": "kv260"}


def test_whose_clock_it_is() -> None:
    device = GoldenDevice()
    assert not is_simulated(device)
    device.name = "rtl"
    assert is_simulated(device) and is_simulated(Emulated())


def test_counters_are_not_read_in_the_middle_of_a_run(
    packed: Callable[[str], PackedModel],
) -> None:
    """By another thread, while the one of the run has the accelerator."""
    device, _ = choose_device("interpreted")
    assert isinstance(device, AcceleratorDevice)
    device.load(packed("grouped"))
    with ThreadPoolExecutor(1) as pool:
        with device.process.adopt():
            reading = pool.submit(device.counters)
            with pytest.raises(TimeoutError):
                reading.result(0.2)
        assert reading.result(60) == {}
    device.close()
