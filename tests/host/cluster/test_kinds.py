"""Devices that are asked of a cluster, by its resources."""

import pytest

from lutra.cluster.kinds import wanted
from lutra.devices.choose import DeviceOptions
from lutra_golden.errors import LutraError

HAS = {"CPU": 4.0, "GPU": 2.0, "fpga": 1.0}


def test_devices_by_resources() -> None:
    plain = DeviceOptions()
    assert [each.kind for each in wanted(None, HAS, plain)] == ["fpga", "gpu", "gpu"]
    assert [each.name for each in wanted(None, HAS, plain)] == ["fpga", "cuda", "cuda"]
    [only] = wanted(None, {"CPU": 1.0}, plain)
    assert (only.kind, only.name, only.options.threads) == ("cpu", "cpu", 1)
    assert only.resources == {"CPU": 1}
    first, second, third = wanted("2*cpu, fpga:golden", HAS, DeviceOptions(threads=2))
    assert first == second
    assert first.resources == {"CPU": 2}
    assert first.options.threads == 2
    assert (third.resources, third.name, third.options.threads) == ({"fpga": 1}, "golden", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu", "a device of a cluster is fpga, gpu or cpu, with a number"),
        ("x*cpu", "with a number"),
        ("", "a device of a cluster is"),
        ("cpu:auto", "the device of cpu must be cuda, cpu, golden, .*, not 'auto'"),
        ("2*fpga", "2 of the resource fpga are asked for, the cluster has 1: ask for fewer"),
        ("5*cpu", "5 of the resource CPU"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(LutraError, match=message):
        wanted(text, HAS, DeviceOptions())


def test_a_node_without_a_board() -> None:
    [device] = wanted("fpga", HAS, DeviceOptions(config="nano"))
    assert device.options.config == "nano"
    with pytest.raises(LutraError, match="has the resource fpga and no board"):
        _ = device.name_there
