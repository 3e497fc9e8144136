"""Checks of a Zynq board, for the device ``pynq``, and of what the board's agent needs."""

from collections.abc import Iterator

from lutra.devices.hardware import zynq_board, zynq_family, zynq_title
from lutra.doctor.machine import Finding, Machine, Reporter
from lutra.doctor.shared import bitstreams, dotted, permissions
from lutra_golden.core.boards import BOARDS
from lutra_golden.install import install_command

__all__ = ["zynq_checks"]

_PYNQ, _AGENT = Reporter("pynq"), Reporter("board")
_OLDEST, _END = (3, 0, 1), (4, 1)  # of PYNQ, the last one excluded
_WITHOUT_7000 = (4,)  # of PYNQ, from which on it has no Zynq-7000
_PYTHON_END = (3, 13)  # before which PYNQ's packages end
_CMA_LEAST, _CMA_USUAL = 64 << 20, 512 << 20
_CLOCKS = ("pl0_ref", "fclk0")  # of the fabric, in the kernel's list
_CLOCK_ERROR = 0.01
_IMAGE = "boot PYNQ's image for this board"
_MORE_CMA = "add cma=1000M to the kernel's command line, and `sudo reboot`"


def zynq_checks(machine: Machine) -> Iterator[Finding]:
    """Board, kernel, drivers, memory, permissions, clock, PYNQ, bitstreams."""
    family = zynq_family(machine.root)
    if family is None:
        text = "this machine is no Zynq board, /proc/device-tree names none"
        yield _PYNQ.error("board", text, "simulate one: `lutra run -dev pynq --emulate kv260`")
        yield from _packages(machine, None)
        return
    yield from _board(machine)
    yield _kernel(machine, family)
    yield from _drivers(machine, family)
    yield _memory(machine)
    files = [machine.path("dev/mem"), *machine.all("dev/uio*"), *machine.all("dev/dri/renderD*")]
    yield from permissions(machine, files, "become root: `sudo -i`", _PYNQ)
    yield from _clock(machine)
    yield from _packages(machine, family)
    yield from bitstreams("pynq")


def _board(machine: Machine) -> Iterator[Finding]:
    """The board, and the entry of the device tree by which PYNQ knows it."""
    name, title = zynq_board(machine.root), zynq_title(machine.root)
    if name is None:
        text = f"{title} is none that Lutra has a configuration for"
        yield _PYNQ.warning("board", text, "see `lutra build --help`")
    else:
        yield _PYNQ.good("board", f"{BOARDS[name].title} ({title})")
    known = machine.text("proc/device-tree/chosen/pynq_board")
    if known is None:
        text = "no chosen/pynq_board, by which PYNQ knows a board; Kria-PYNQ adds it"
        mend = f"`sudo bash install.sh -b {(name or 'BOARD').upper()}`"
        yield _PYNQ.error("device tree", text, mend)
    else:
        yield _PYNQ.good("device tree", f"chosen/pynq_board is {known}")


def _kernel(machine: Machine, family: str) -> Finding:
    release = machine.text("proc/sys/kernel/osrelease") or "unknown"
    if "xilinx" in release:
        return _PYNQ.good("kernel", release)
    mend = "`sudo apt install linux-image-xilinx-zynqmp`" if family == "zynqmp" else _IMAGE
    text = f"{release} is no kernel of AMD's, drivers may be missing"
    return _PYNQ.warning("kernel", text, mend)


def _drivers(machine: Machine, family: str) -> Iterator[Finding]:
    if machine.has_driver("zocl", "zocl-drm"):
        yield _PYNQ.good("driver zocl", "loaded")
    else:
        text = "not loaded: there is no memory for buffers"
        yield _PYNQ.error("driver zocl", text, "`sudo modprobe zocl`")
    state = machine.text("sys/class/fpga_manager/fpga0/state")
    if state is None:
        text = "the kernel has none: no bitstream can be loaded"
        yield _PYNQ.error("FPGA manager", text, _IMAGE)
    elif "error" in state:
        text = f"the last bitstream could not be loaded ({state})"
        yield _PYNQ.warning("FPGA manager", text, "load another: `lutra run -dev auto`")
    else:
        yield _PYNQ.good("FPGA manager", state)
    found = [path.name for path in machine.all("sys/class/uio/uio*")]
    if found:
        yield _PYNQ.good("driver uio", ", ".join(found))
    else:
        text = "no UIO device: without interrupts, registers are read to see the end of a run"
        mend = "`sudo modprobe uio_pdrv_genirq of_id=generic-uio`"
        yield _PYNQ.warning("driver uio", text, mend)
    buffers = machine.all("sys/class/u-dma-buf/*/size")
    if buffers:
        n_bytes = sum(int(path.read_text(encoding="ascii")) for path in buffers)
        yield _AGENT.good("driver u-dma-buf", f"{_mib(n_bytes)} for the agent")
    elif family == "zynq-7000":
        mend = "`sudo modprobe u-dma-buf udmabuf0=0x8000000`"
        yield _AGENT.warning("driver u-dma-buf", "not loaded: the agent has no memory", mend)


def _memory(machine: Machine) -> Finding:
    """Contiguous memory, which the kernel sets aside when it starts."""
    lines = (machine.text("proc/meminfo") or "").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if ":" in line}
    total, free = sizes.get("CmaTotal", 0), sizes.get("CmaFree", 0)
    if not total:
        return _PYNQ.error("CMA memory", "the kernel sets none aside", _MORE_CMA)
    text = f"{_mib(free)} of {_mib(total)} are free"
    if free < _CMA_LEAST:
        return _PYNQ.error("CMA memory", text, f"end the program that has it, or {_MORE_CMA}")
    if total < _CMA_USUAL:
        return _PYNQ.warning("CMA memory", f"{text}, which limits models", _MORE_CMA)
    return _PYNQ.good("CMA memory", text)


def _clock(machine: Machine) -> Iterator[Finding]:
    """The clock of the fabric, where this user may see it: PYNQ sets it, an agent does not."""
    name = zynq_board(machine.root)
    rates = [machine.text(f"sys/kernel/debug/clk/{clock}/clk_rate") for clock in _CLOCKS]
    rate = next((float(each) for each in rates if each), None)
    if rate is None or name is None:
        return
    config = BOARDS[name].config
    text = f"the fabric runs at {rate / 1e6:.1f} MHz"
    if abs(rate - config.clock_hz) <= _CLOCK_ERROR * config.clock_hz:
        yield _PYNQ.good("clock", text)
        return
    text = f"{text}, configuration {config.name} is built for {config.clock_hz / 1e6:.1f}"
    yield _PYNQ.warning("clock", text, "PYNQ sets it with the bitstream: `lutra run -dev auto`")


def _packages(machine: Machine, family: str | None) -> Iterator[Finding]:
    """PYNQ, the generation of NumPy that it was compiled for, and XRT's environment."""
    install, version = f"`{install_command('pynq')}`", machine.package("pynq")
    if version is None and machine.python >= _PYTHON_END:
        text = f"not installed, and it ends before Python {dotted(_PYTHON_END)}"
        yield _PYNQ.error("PYNQ", text, "install Lutra in an older one: `python3.12 -m venv .venv`")
        return
    if version is None:
        yield _PYNQ.error("PYNQ", "not installed", install)
        return
    text = f"PYNQ {dotted(version)}"
    if not _OLDEST <= version < _END:
        text = f"{text} is none of {dotted(_OLDEST)} up to, not including, {dotted(_END)}"
        yield _PYNQ.error("PYNQ", text, install)
    elif family == "zynq-7000" and version >= _WITHOUT_7000:
        mend = "`python -m pip install --upgrade 'pynq<4'`"
        yield _PYNQ.error("PYNQ", f"{text} does not know Zynq-7000 any more", mend)
    else:
        yield _PYNQ.good("PYNQ", text)
    numpy = machine.package("numpy")
    if numpy is None or numpy >= (2,):
        text = "not installed" if numpy is None else f"NumPy {dotted(numpy)}"
        mend = "`python -m pip install --upgrade 'numpy<2'`"
        yield _PYNQ.error("NumPy", f"{text}: PYNQ needs one below 2", mend)
    else:
        yield _PYNQ.good("NumPy", f"NumPy {dotted(numpy)}")
    if family is not None:
        yield _environment(machine)


def _environment(machine: Machine) -> Finding:
    """PYNQ looks for boards only where this variable is set."""
    folder = machine.environment.get("XILINX_XRT")
    if not folder:
        text = "XILINX_XRT is not set, without which PYNQ looks for no board"
        return _PYNQ.error("XRT", text, "`source /etc/profile.d/xrt_setup.sh`")
    return _PYNQ.good("XRT", f"in {folder}")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes >> 20:,} MiB"
