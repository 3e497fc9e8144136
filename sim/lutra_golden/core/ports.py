"""Memory ports of the accelerator: their widths, bursts, and what each is for."""

from dataclasses import dataclass
from enum import IntEnum

from lutra_golden.axi.stripe import LANES_MAX
from lutra_golden.params import check_positive
from lutra_golden.strings import StringEnum

__all__ = [
    "ADDRESS_WIDTH",
    "BEATS_MAX",
    "BOUNDARY_BYTES",
    "BURST_INCR",
    "PORTS_MAX",
    "PORT_WIDTHS",
    "PortParams",
    "Purpose",
    "Response",
    "Top",
    "check_ports",
    "port_name",
    "striped_ports",
    "two_ports",
]

ADDRESS_WIDTH = 40
"""Bits of a byte address in the accelerator's memory."""
PORT_WIDTHS = (32, 64, 128, 256, 512, 1024)
"""Bits that a beat of a port may have, as AXI4 has it."""
PORTS_MAX = 32
"""Memory ports of the largest configuration."""
BOUNDARY_BYTES = 4096
"""No burst crosses a multiple of this (AXI4 specification, A3.4.1)."""
BEATS_MAX = 256
"""Beats of the longest burst that AXI4 has."""
BURST_INCR = 1
"""``arburst`` and ``awburst`` of bursts whose addresses rise, the only ones there are."""


class Response(IntEnum):
    """``rresp`` and ``bresp`` of AXI4 that a memory gives."""

    OKAY = 0
    SLVERR = 2
    DECERR = 3


class Top(StringEnum):
    """Top-level module, by what starts its runs."""

    ACCELERATOR = "accelerator"
    """Registers on ``s_axi``, and an interrupt."""
    XRT = "xrt"
    """A kernel of XRT, which starts descriptors by ``ap_ctrl_chain``."""


class Purpose(StringEnum):
    """Traffic that a port carries, in the order of its ids there."""

    FETCH = "fetch"
    """Instructions."""
    LOAD = "load"
    """Parameters, rotary tables and embeddings."""
    ATTENTION = "attention"
    """Keys, values and their scales."""
    WEIGHTS = "weights"
    """Weight words of the matmul engine; the only ones that several ports may carry together."""
    WRITE = "write"
    """All that is written: keys, values, their scales, logits."""


@dataclass(frozen=True, kw_only=True)
class PortParams:
    """One AXI4 master, ``m_axi_<number>``.

    Parameters
    ----------
    width : bits of a beat, see :data:`PORT_WIDTHS`.
    purposes : transfers that use the port, one or more; every purpose has one port, but for weights
        that are striped over several.
    max_outstanding : bursts in flight of a long stream.
    burst_bytes : bytes of the longest burst, a power of two.
    """

    width: int
    purposes: tuple[Purpose, ...]
    max_outstanding: int = 8
    burst_bytes: int = 1024

    def __post_init__(self) -> None:
        check_positive(self, "width", "max_outstanding", "burst_bytes")
        if self.width not in PORT_WIDTHS:
            raise ValueError(
                f"width of a port must be one of {', '.join(map(str, PORT_WIDTHS))}, "
                f"not {self.width}"
            )
        if not self.purposes or not set(self.purposes) <= set(Purpose):
            raise ValueError(
                f"purposes of a port must be one or more of {', '.join(Purpose)}, "
                f"not {self.purposes!r}"
            )
        if len(set(self.purposes)) != len(self.purposes):
            raise ValueError(
                f"purposes of a port must be different, not {', '.join(self.purposes)}"
            )
        maximum = min(BOUNDARY_BYTES, BEATS_MAX * self.width // 8)
        n = self.burst_bytes
        if n & (n - 1) or not self.width // 8 <= n <= maximum:
            raise ValueError(
                f"burst_bytes must be a power of two in {self.width // 8}..{maximum}, not {n}"
            )

    @property
    def n_bytes(self) -> int:
        """Bytes of a beat."""
        return self.width // 8

    @property
    def burst_beats(self) -> int:
        """Beats of the longest burst."""
        return self.burst_bytes // self.n_bytes

    @property
    def ahead_beats(self) -> int:
        """Beats of weights, or of keys and values, that are asked for ahead of their use."""
        return (self.max_outstanding + 1) * self.burst_beats

    @property
    def reads(self) -> tuple[Purpose, ...]:
        """Purposes that read through this port, in the order of ``arid``."""
        return tuple(each for each in Purpose if each in self.purposes and each != Purpose.WRITE)

    @property
    def writes(self) -> bool:
        """True if the port has write channels."""
        return Purpose.WRITE in self.purposes


def port_name(number: int) -> str:
    """Name of a port in the RTL, and wherever one is named."""
    return f"m_axi_{number}"


def check_ports(ports: tuple[PortParams, ...]) -> None:
    """Refuse a list of ports that does not serve each purpose once, but for striped weights.

    Those go through a power of two of ports that are equal in all but their purposes.
    """
    if len(ports) > PORTS_MAX:
        raise ValueError(f"ports must be at most {PORTS_MAX}, not {len(ports)}")
    for purpose in Purpose:
        users = [port for port in ports if purpose in port.purposes]
        n = len(users)
        if n == 1:
            continue
        if not n or purpose is not Purpose.WEIGHTS:
            raise ValueError(f"ports must have one for {purpose}, not {n}")
        if n & (n - 1) or n > LANES_MAX:
            raise ValueError(
                f"ports must have a power of two up to {LANES_MAX} for {purpose}, not {n}"
            )
        for name in ("width", "burst_bytes", "max_outstanding"):
            values = [getattr(port, name) for port in users]
            if len(set(values)) > 1:
                raise ValueError(
                    f"ports for {purpose} must have the same {name}, not "
                    f"{', '.join(map(str, values))}"
                )


def two_ports(
    weights: int, data: int, *, max_outstanding: int = 8, burst_bytes: int = 1024
) -> tuple[PortParams, PortParams]:
    """A port for weights, and one for everything else, of these widths."""
    rest = tuple(each for each in Purpose if each != Purpose.WEIGHTS)
    first, second = (
        PortParams(
            width=width,
            purposes=purposes,
            max_outstanding=max_outstanding,
            burst_bytes=min(burst_bytes, BEATS_MAX * width // 8),
        )
        for width, purposes in ((weights, (Purpose.WEIGHTS,)), (data, rest))
    )
    return first, second


def striped_ports(
    n: int, width: int, *, max_outstanding: int = 8, burst_bytes: int = 1024
) -> tuple[PortParams, ...]:
    """``n`` ports of one width: weights over all of them, everything else divided between them.

    All that is not weights makes its port later than the others, so no port should have it all.
    """
    rest = [each for each in Purpose if each != Purpose.WEIGHTS]
    ends = [number * len(rest) // n for number in range(n + 1)]
    return tuple(
        PortParams(
            width=width,
            purposes=(Purpose.WEIGHTS, *rest[ends[number] : ends[number + 1]]),
            max_outstanding=max_outstanding,
            burst_bytes=min(burst_bytes, BEATS_MAX * width // 8),
        )
        for number in range(n)
    )
