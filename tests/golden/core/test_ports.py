"""Memory ports: what is refused, what follows."""

import re
from typing import Any

import pytest

from lutra_golden.core.ports import PORT_WIDTHS, PortParams, Purpose, check_ports, two_ports

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
    with pytest.raises(ValueError, match=r"^ports must be at most 32, not 33$"):
        check_ports((one,) * 33)
    with pytest.raises(ValueError, match=r"^ports must have one for fetch, not 0$"):
        check_ports(())


@pytest.mark.parametrize("width", PORT_WIDTHS)
def test_bursts(width: int) -> None:
    weights, data = two_ports(weights=width, data=width)
    assert weights.n_bytes == width // 8
    assert weights.burst_beats * weights.n_bytes == weights.burst_bytes == 1024
    assert weights.reads == (Purpose.WEIGHTS,)
    assert not weights.writes
    assert data.reads == (Purpose.FETCH, Purpose.LOAD, Purpose.ATTENTION)
    assert data.writes
