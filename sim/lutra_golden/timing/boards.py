"""Boards as a driver meets them: addresses, memory for buffers, clock, memory behind the ports."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lutra_golden.core.boards import BOARDS
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.errors import LutraError
from lutra_golden.params import check_positive
from lutra_golden.timing.memory import MemoryTiming

__all__ = ["AGENT", "BOARD_PROFILES", "BoardProfile", "board_timing", "find_profile"]

AGENT = "board"
"""The runtime of a board that an agent on it lends to another machine."""


@dataclass(frozen=True, kw_only=True)
class BoardProfile:
    """A board that can be emulated.

    Parameters
    ----------
    part : FPGA as Vivado names it.
    runtime : device that drives the board, ``pynq`` or ``xrt``, or :data:`AGENT`.
    config : configuration that it carries.
    port_width : bits of each memory port of the board.
    n_ports : memory ports that an accelerator may use.
    memory_bytes_per_s : what the memory gives to all ports together.
    buffer_base, buffer_bytes : where buffers of the accelerator lie, and how many bytes they may
        have together: what the system sets aside for them, or all of the memory.
    clock_hz : clock of the accelerator that the board's clock generator gives; the configuration's
        is what it is built for, which it does not exceed.
    read_latency, write_latency : clock cycles to the first data, and to the answer to a write.
    registers_base, intc_base : addresses of the accelerator's registers and of its interrupt
        controller; 0 where the runtime chooses them.
    """

    name: str
    part: str
    runtime: str
    config: str
    port_width: int
    n_ports: int
    memory_bytes_per_s: int
    buffer_base: int
    buffer_bytes: int
    clock_hz: int
    read_latency: int
    write_latency: int
    registers_base: int = 0
    intc_base: int = 0

    def __post_init__(self) -> None:
        check_positive(
            self, "port_width", "n_ports", "memory_bytes_per_s", "buffer_bytes", "clock_hz",
            "read_latency", "write_latency",
        )  # fmt: skip


_MIB = 1 << 20
_UNIT = 1000  # bytes per second that figures of a memory's speed are whole in

_KV260 = BoardProfile(
    name="kv260",
    part=BOARDS["kv260"].part,
    runtime="pynq",
    config=BOARDS["kv260"].config.name,
    port_width=128,
    n_ports=6,
    # measured through four of its ports at 250 MHz, which is all that these can carry
    memory_bytes_per_s=16_000_000_000,
    # Ubuntu for Kria sets 1,000 MB aside below 2 GB
    buffer_base=1024 * _MIB,
    buffer_bytes=1000 * _MIB,
    # the I/O PLL of 1.5 GHz by 8, which cannot give 200 MHz
    clock_hz=187_498_125,
    read_latency=60,
    write_latency=30,
    registers_base=BOARDS["kv260"].registers_base or 0,
    intc_base=BOARDS["kv260"].intc_base or 0,
)
"""Kria KV260: Zynq UltraScale+, DDR4 behind high-performance ports of 128 bits."""

_U55C = BoardProfile(
    name="u55c",
    part=BOARDS["u55c"].part,
    runtime="xrt",
    config=BOARDS["u55c"].config.name,
    port_width=512,
    n_ports=32,
    # UG1393: 32 pseudo-channels of 14.375 GB/s
    memory_bytes_per_s=460_000_000_000,
    buffer_base=0,
    # two stacks of HBM
    buffer_bytes=16 << 30,
    clock_hz=200_000_000,
    read_latency=70,
    write_latency=35,
)
"""Alveo U55C: HBM2 behind ports that XRT's tools widen to 512 bits."""

_U50 = replace(
    _U55C,
    name="u50",
    part=BOARDS["u50"].part,
    config=BOARDS["u50"].config.name,
    memory_bytes_per_s=316_000_000_000,
    buffer_bytes=8 << 30,
)
"""Alveo U50: half of the U55C's HBM2."""

_PYNQ_Z2 = BoardProfile(
    name="pynq_z2",
    part=BOARDS["pynq_z2"].part,
    runtime=AGENT,
    config=BOARDS["pynq_z2"].config.name,
    port_width=64,
    n_ports=4,
    # DDR3 of 16 bits at 1,050 Mb/s
    memory_bytes_per_s=2_100_000_000,
    # PYNQ's image sets 128 MB of its 512 MB aside
    buffer_base=256 * _MIB,
    buffer_bytes=128 * _MIB,
    clock_hz=100_000_000,
    read_latency=32,
    write_latency=16,
    registers_base=BOARDS["pynq_z2"].registers_base or 0,
    intc_base=BOARDS["pynq_z2"].intc_base or 0,
)
"""TUL PYNQ-Z2: Zynq-7020, DDR3 behind high-performance ports of 64 bits."""

BOARD_PROFILES: Mapping[str, BoardProfile] = {
    board.name: board for board in (_KV260, _U50, _U55C, _PYNQ_Z2)
}
"""Boards that can be emulated, by name."""


def find_profile(name: str) -> BoardProfile:
    """The board of this name; LutraError names those that there are."""
    board = BOARD_PROFILES.get(name)
    if board is None:
        raise LutraError(f"the board must be one of {', '.join(BOARD_PROFILES)}, not {name!r}")
    return board


def board_timing(board: BoardProfile, config: AcceleratorConfig, seed: int = 0) -> MemoryTiming:
    """Memory of ``board`` behind the ports of ``config``, each of which goes to one of its own.

    A beat that is wider than the board's port takes as many cycles as it has of its words. What all
    ports move together is at most what the memory gives, less its refresh: that of DDR4 is every
    7.8 us for 350 ns.
    """
    if len(config.ports) > board.n_ports:
        raise LutraError(
            f"configuration {config.name} has {len(config.ports)} memory ports, board "
            f"{board.name} {board.n_ports}: use a configuration with fewer"
        )
    return MemoryTiming(
        rates=tuple((1, max(1, port.width // board.port_width)) for port in config.ports),
        total_rate=(board.memory_bytes_per_s // _UNIT, board.clock_hz // _UNIT),
        read_latency=board.read_latency,
        write_latency=board.write_latency,
        latency_jitter=board.read_latency // 4,
        refresh_interval=board.clock_hz * 78 // 10**7,
        refresh_cycles=board.clock_hz * 35 // 10**8,
        seed=seed,
    )
