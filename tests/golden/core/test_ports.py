"""Memory ports: what is refused, what follows."""

import re
from dataclasses import replace
from typing import Any

import pytest

from lutra_golden.core.ports import (
    PORT_WIDTHS,
    PORTS_MAX,
    PortParams,
    Purpose,
    check_ports,
    striped_ports,
    two_ports,
)

WIDTHS = "width of a port must be one of 32, 64, 128, 256, 512, 1024"
PURPOSES = "purposes of a port must be one or more of fetch, load, attention, weights, write"


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"width": 16},
            ValueError,
            f"{WIDTHS}, not 16",
        ),
        (
            {"width": 96},
            ValueError,
            f"{WIDTHS}, not 96",
        ),
        ({"width": "64"}, TypeError, "width must be an integer, not '64'"),
        ({"max_outstanding": 0}, ValueError, "max_outstanding must be positive, not 0"),
        ({"burst_bytes": 96}, ValueError, "burst_bytes must be a power of two in 8..2048, not 96"),
        ({"burst_bytes": 4}, ValueError, "burst_bytes must be a power of two in 8..2048, not 4"),
        (
            {"burst_bytes": 4096},
            ValueError,
            "burst_bytes must be a power of two in 8..2048, not 4096",
        ),
        (
            {"width": 512, "burst_bytes": 8192},
            ValueError,
            "burst_bytes must be a power of two in 64..4096, not 8192",
        ),
        (
            {"purposes": ()},
            ValueError,
            f"{PURPOSES}, not ()",
        ),
        (
            {"purposes": ("reads",)},
            ValueError,
            f"{PURPOSES}, not ('reads',)",
        ),
        (
            {"purposes": (Purpose.WEIGHTS, Purpose.FETCH, Purpose.WEIGHTS)},
            ValueError,
            "purposes of a port must be different, not weights, fetch, weights",
        ),
    ],
)
def test_illegal_values_are_refused(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    fields: dict[str, Any] = {"width": 64, "purposes": (Purpose.WEIGHTS,)}
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        PortParams(**fields | changes)


def test_each_purpose_has_one_port() -> None:
    one = PortParams(width=32, purposes=tuple(Purpose))
    check_ports((one,))
    check_ports(tuple(PortParams(width=64, purposes=(purpose,)) for purpose in Purpose))
    with pytest.raises(ValueError, match=r"^ports must have one for fetch, not 2$"):
        check_ports((one, one))
    with pytest.raises(ValueError, match=r"^ports must have one for fetch, not 0$"):
        check_ports(())


def test_only_weights_are_striped() -> None:
    for n in (1, 2, 4, 32):
        ports = striped_ports(n, 64, max_outstanding=2)
        check_ports(ports)
        assert len(ports) == n and all(Purpose.WEIGHTS in port.purposes for port in ports)
        most = max(len(port.purposes) for port in ports)
        assert most == 1 + -(-(len(Purpose) - 1) // n)
        assert {(port.width, port.burst_beats, port.max_outstanding) for port in ports} == {
            (64, 128, 2)
        }
    with pytest.raises(
        ValueError, match=r"^ports must have a power of two up to 32 for weights, not 3$"
    ):
        check_ports(striped_ports(3, 64))
    with pytest.raises(ValueError, match=f"^ports must be at most {PORTS_MAX}, not 33$"):
        check_ports(striped_ports(33, 64))
    with pytest.raises(ValueError, match=r"^ports must have one for load, not 2$"):
        check_ports((*striped_ports(2, 64), PortParams(width=64, purposes=(Purpose.LOAD,))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 128}, "ports for weights must have the same width, not 128, 64"),
        (
            {"burst_bytes": 512},
            "ports for weights must have the same burst_bytes, not 512, 1024",
        ),
        (
            {"max_outstanding": 1},
            "ports for weights must have the same max_outstanding, not 1, 8",
        ),
    ],
)
def test_lanes_are_alike(changes: dict[str, Any], message: str) -> None:
    first, second = striped_ports(2, 64)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_ports((replace(first, **changes), second))


@pytest.mark.parametrize("width", PORT_WIDTHS)
def test_bursts(width: int) -> None:
    weights, data = two_ports(weights=width, data=width)
    assert weights.n_bytes == width // 8
    assert weights.burst_beats * weights.n_bytes == weights.burst_bytes == 1024
    assert weights.reads == (Purpose.WEIGHTS,)
    assert not weights.writes
    assert data.reads == (Purpose.FETCH, Purpose.LOAD, Purpose.ATTENTION)
    assert data.writes
