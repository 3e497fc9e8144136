"""The simulated device: memory, registers, timing, and that every check of the protocol fires."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("amaranth")

from lutra_golden.control.registers import COUNTERS, IDENT, VERSION
from lutra_golden.core.configs import NANO
from lutra_golden.core.ports import Response
from lutra_golden.timing.memory import IDEAL_MEMORY, NANO_MEMORY, MemoryTiming, random_timing
from lutra_sim.bench.rtl.stand_in import CONFIG, MAX_BEATS, Fault
from lutra_sim.diagnosis import vcd
from lutra_sim.rtl import build
from lutra_sim.rtl.device import RtlError, Simulator, quiet_cycles

pytestmark = pytest.mark.cocotb

Open = Callable[..., Simulator]

SOURCE, WEIGHTS, TARGET = 0x1000, 0x2000, 0x3000
STALLS = MemoryTiming(stall=0.7, seed=5)


def prepare(device: Simulator, beats: int = MAX_BEATS, fault: Fault = Fault.NONE) -> np.ndarray:
    """Fill the memory and set the registers; returns what the device is to read."""
    rng = np.random.default_rng(beats)
    words = rng.integers(0, 1 << 64, (2, beats), np.uint64)
    device.write(SOURCE, words[0])
    device.write(WEIGHTS, words[1])
    for name, value in (
        ("PROGRAM_BASE", SOURCE),
        ("WEIGHT_BASE", WEIGHTS),
        ("LOGITS_BASE", TARGET),
        ("N_TOKENS", beats),
        ("LOGITS_FROM", fault),
    ):
        device.write_register(name, value)
    return words


def check(device: Simulator, words: np.ndarray) -> None:
    """Check that the device wrote what it was given to read."""
    written = np.frombuffer(device.read(TARGET, 8 * words.shape[1]), np.uint64)
    assert (written == ~words[0]).all()
    assert device.read_register("ARGMAX") == int(words[1].astype(object).sum()) & 0xFFFFFFFF


def test_registers(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    assert device.read_register("IDENT") == IDENT
    assert device.read_register("VERSION") == VERSION
    for value in (0, 0xFFFFFFFF, 0x12345678):
        device.write_register("LOGITS_STRIDE", value)
        assert device.read_register("LOGITS_STRIDE") == value
    device.write_register("WEIGHT_BASE", 0x42, 1)
    assert device.read_register("WEIGHT_BASE", 1) == 0x42
    with pytest.raises(ValueError, match=r"^register must be one of IDENT, .*, not 'NOTHING'$"):
        device.read_register("NOTHING")
    with pytest.raises(ValueError, match=r"^index of TOKEN must be in 0\.\.63, not 64$"):
        device.read_register("TOKEN", 64)
    with pytest.raises(ValueError, match=r"^STATUS cannot be written$"):
        device.write_register("STATUS", 0)
    with pytest.raises(ValueError, match=r"^CONTROL cannot be read$"):
        device.read_register("CONTROL")
    with pytest.raises(ValueError, match=r"^N_TOKENS must fit 32 bits, not 4294967296$"):
        device.write_register("N_TOKENS", 1 << 32)


def test_a_refused_register(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    message = r"^register write at 0x10c was answered with response 2, in cycle \d+$"
    with pytest.raises(RtlError, match=message):
        device.write_register("TOKEN", 0, 3)


def test_memory(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    device.write(5, b"otter")
    device.write(10, np.array([[1, 2], [3, 4]], np.int16))
    device.write(0, b"")
    assert device.read(5, 13) == b"otter" + bytes([1, 0, 2, 0, 3, 0, 4, 0])
    device.zero(100, 33)
    assert device.read(100, 33) == bytes(33)
    for address, size, first in ((99, 2, 99), (100, 34, 133), (4, 1, 4)):
        message = rf"^the host reads {size} bytes at {address:#x}, of which {first:#x} was never"
        with pytest.raises(RtlError, match=message):
            device.read(address, size)
    last = device.memory_bytes - 1
    device.write(last, b"x")
    assert device.read(last, 1) == b"x"
    message = rf"^2 bytes at {last:#x} lie outside the memory of {last + 1} bytes$"
    for access in (device.zero, device.read, lambda address, size: device.write(address, b"xx")):
        with pytest.raises(ValueError, match=message):
            access(last, 2)


@pytest.mark.parametrize("beats", [1, 2, 7, MAX_BEATS])
@pytest.mark.parametrize(
    "timing", [IDEAL_MEMORY, NANO_MEMORY, STALLS], ids=["ideal", "nano", "stalls"]
)
def test_run(open_device: Open, beats: int, timing: MemoryTiming) -> None:
    device = open_device(timing)
    words = prepare(device, beats)
    cycles = device.start_and_wait()
    check(device, words)
    counters = device.counters()
    assert list(counters) == list(COUNTERS)
    assert 0 < counters["cycles"] < cycles
    assert device.start_and_wait() > 0


@pytest.mark.parametrize("seed", range(8))
def test_random_timing(open_device: Open, seed: int) -> None:
    timing = random_timing(seed)
    taken = []
    for _ in range(2):
        device = open_device(timing)
        words = prepare(device)
        taken.append(device.start_and_wait())
        check(device, words)
    assert taken[0] == taken[1]


def test_seeds_differ(open_device: Open) -> None:
    taken = set()
    for seed in range(4):
        device = open_device(MemoryTiming(stall=0.5, seed=seed))
        prepare(device)
        taken.add(device.start_and_wait())
    assert len(taken) > 1


def cycles_of(open_device: Open, beats: int = MAX_BEATS, **timing: Any) -> int:
    device = open_device(replace(IDEAL_MEMORY, **timing))
    prepare(device, beats)
    device.start_and_wait()
    return device.counters()["cycles"]


def test_timing(open_device: Open) -> None:
    ideal = cycles_of(open_device)
    assert cycles_of(open_device, read_latency=31) == ideal + 30
    assert cycles_of(open_device, write_latency=18) == ideal + 17
    # 16 beats of weights, and 16 writes after as many reads, at a third of the rate
    assert cycles_of(open_device, rates=((1, 3), (1, 1))) - ideal in range(28, 33)
    assert cycles_of(open_device, rates=((1, 1), (1, 3))) - ideal in range(58, 65)
    assert cycles_of(open_device, rates=((1, 1), (2, 3))) - ideal in range(14, 18)
    # a beat of 8 bytes in three cycles for all of them together: 16 are weights, 32 are not
    pooled = cycles_of(open_device, total_rate=(8, 3))
    assert pooled in range(3 * 48, 3 * 48 + 8)
    assert cycles_of(open_device, total_rate=(16, 1)) == ideal
    # one read is under way at a time
    alone = cycles_of(open_device, max_outstanding=1, read_latency=10)
    assert alone - ideal in range(15 * 10, 15 * 12 + 10)
    gaps = cycles_of(open_device, refresh_interval=20, refresh_cycles=10)
    assert gaps - ideal in range(15, 45)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault.SIZE, "m_axi_0__arsize must be the port's width of 8 bytes, not 4"),
        (Fault.BURST, r"m_axi_0__arburst must be 1 \(INCR\), not 0"),
        (Fault.AR_FALLS, "m_axi_1__arvalid fell before m_axi_1__arready rose"),
        (
            Fault.AR_CHANGES,
            "the payload of m_axi_1__arvalid changed before m_axi_1__arready rose",
        ),
        (Fault.WLAST_EARLY, "m_axi_1__wlast is 1 in beat 15 of 16 of the burst to 0x3000"),
        (Fault.WLAST_MISSING, "m_axi_1__wlast is 0 in beat 16 of 16 of the burst to 0x3000"),
        (Fault.W_CHANGES, "the payload of m_axi_1__wvalid changed before m_axi_1__wready rose"),
        (Fault.W_FALLS, "m_axi_1__wvalid fell before m_axi_1__wready rose"),
        (Fault.R_FALLS, "s_axi__rvalid fell before s_axi__rready rose"),
    ],
)
def test_protocol(open_device: Open, fault: Fault, message: str) -> None:
    device = open_device(STALLS)
    prepare(device, fault=fault)
    with pytest.raises(RtlError, match=rf"^{message}, in cycle \d+$"):
        device.start_and_wait()
    # the first error stands until a reset, and memory can be looked at meanwhile
    with pytest.raises(RtlError, match=message):
        device.write_register("LOGITS_FROM", 0)
    assert len(device.read(SOURCE, 8)) == 8
    device.reset()
    words = prepare(device)
    device.start_and_wait()
    check(device, words)


@pytest.mark.parametrize(
    ("register", "value", "message"),
    [
        ("WEIGHT_BASE", 0x2004, "m_axi_0__araddr 0x2004 is not aligned to a beat of 8 bytes"),
        (
            "WEIGHT_BASE",
            0x2F88,
            r"m_axi_0__araddr 0x2f88: a burst of 16 beats \(128 bytes\) crosses a 4 KB boundary",
        ),
        (
            "WEIGHT_BASE",
            0x10000,
            "m_axi_0__araddr 0x10000: 128 bytes lie outside the memory of 65536 bytes",
        ),
        (
            "LOGITS_BASE",
            0xFFFFFF00,
            "m_axi_1__awaddr 0xffffff00: 128 bytes lie outside the memory of 65536 bytes",
        ),
        (
            "WEIGHT_BASE",
            0x2008,
            "m_axi_0 reads 8 bytes at 0x2080, of which 0x2080 was never written",
        ),
        (
            "PROGRAM_BASE",
            0x1008,
            "m_axi_1 reads 8 bytes at 0x1080, of which 0x1083 was never written",
        ),
    ],
)
def test_addresses(open_device: Open, register: str, value: int, message: str) -> None:
    device = open_device(NANO_MEMORY)
    prepare(device)
    if register == "PROGRAM_BASE":
        device.write(SOURCE + 8 * MAX_BEATS, b"abc")
    device.write_register(register, value)
    with pytest.raises(RtlError, match=rf"^{message}, in cycle \d+$"):
        device.start_and_wait()


def test_race(open_device: Open) -> None:
    device = open_device(NANO_MEMORY)
    prepare(device, fault=Fault.RACES)
    device.write_register("LOGITS_BASE", SOURCE)
    message = (
        r"^m_axi_1__awaddr 0x1000: 128 bytes overlap with m_axi_1__araddr 0x10[0-7][08], which has "
        r"not been answered yet, in cycle \d+$"
    )
    with pytest.raises(RtlError, match=message):
        device.start_and_wait()


def test_bus_error(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    prepare(device, fault=Fault.BUS_ERROR)
    message = r"^after \d+ cycles: the memory answered OKAY to a read of m_axi_1 \(fetch\) at 0x0"
    with pytest.raises(RtlError, match=message):
        device.start_and_wait()


def test_disturbed_transfers(open_device: Open) -> None:
    """A beat that is read with an error is random, a burst that is written with one is lost."""
    device = open_device(IDEAL_MEMORY)
    words = prepare(device)
    device.disturb(1, 3, Response.DECERR)
    device.start_and_wait()
    assert (device.transfers(0), device.transfers(1)) == (MAX_BEATS, MAX_BEATS)
    assert device.transfers(1, writes=True) == 1
    written = np.frombuffer(device.read(TARGET, 8 * MAX_BEATS), np.uint64)
    assert np.flatnonzero(written != ~words[0]).tolist() == [3]
    device.disturb(1, None)
    device.write(TARGET, bytes(8 * MAX_BEATS))
    device.disturb(1, 0, writes=True)
    device.start_and_wait()
    assert device.read(TARGET, 8 * MAX_BEATS) == bytes(8 * MAX_BEATS)
    device.disturb(1, None, writes=True)
    device.start_and_wait()
    check(device, words)
    with pytest.raises(RtlError, match=r"^there is no such port$"):
        device.disturb(0, 0, writes=True)


def test_a_silent_port(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY, watchdog_cycles=1000)
    prepare(device)
    device.disturb(1, 5, None)
    with pytest.raises(RtlError, match=r"^no progress for 1\d\d\d cycles: load WAIT_READ, matmul "):
        device.start_and_wait()
    assert device.transfers(1) == 5


def test_no_answer(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    device.write_register("LOGITS_FROM", Fault.NO_ANSWER)
    message = r"^register read at 0x4 got no answer for 1000 cycles, in cycle \d+$"
    with pytest.raises(RtlError, match=message):
        device.read_register("VERSION")


@pytest.mark.parametrize(
    ("fault", "units"),
    [
        (Fault.HANGS, "load WAIT_READ, matmul WAIT_WEIGHTS"),
        (Fault.HANGS_IDLE, "every unit is idle"),
    ],
)
def test_watchdog(open_device: Open, fault: Fault, units: str) -> None:
    device = open_device(IDEAL_MEMORY, watchdog_cycles=1000)
    prepare(device, fault=fault)
    first = device.cycles
    message = (
        rf"^no progress for 1\d\d\d cycles: {units}; unanswered: 0 m_axi_0 reads, 0 m_axi_1 reads, "
        r"0 m_axi_1 writes, in cycle \d+$"
    )
    with pytest.raises(RtlError, match=message):
        device.start_and_wait()
    assert device.cycles - first in range(1000, 1300)


def test_watchdog_knows_progress(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY, watchdog_cycles=500)
    words = prepare(device, fault=Fault.BUSY_WAIT)
    device.write_register("LOGITS_STRIDE", 5000)
    assert device.start_and_wait() > 5000
    check(device, words)
    device.write_register("LOGITS_FROM", Fault.NONE)
    with pytest.raises(RtlError, match=r"^no progress for \d+ cycles: every unit is idle; "):
        device.start_and_wait()
    device = open_device(IDEAL_MEMORY, watchdog_cycles=0)
    prepare(device)
    device.write_register("LOGITS_STRIDE", 5000)
    assert device.start_and_wait() > 5000


def test_max_cycles(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    prepare(device, fault=Fault.HANGS)
    message = (
        r"^not done after 100 cycles: load WAIT_READ, matmul WAIT_WEIGHTS, vector IDLE, "
        r"attention IDLE, fetch IDLE$"
    )
    with pytest.raises(RtlError, match=message):
        device.start_and_wait(max_cycles=100)


def test_a_limit_of_seconds(open_device: Open) -> None:
    """A run in which nothing happens for ever ends by the clock of this machine, too."""
    device = open_device(IDEAL_MEMORY, watchdog_cycles=0)
    prepare(device, fault=Fault.HANGS)
    device.start()
    with pytest.raises(RtlError, match=r"^not done after \d+ cycles: load WAIT_READ, matmul WAIT_"):
        device.wait(timeout_s=0.05)


def test_wide_ports(open_device: Open) -> None:
    config = NANO.with_(name="wide stand-in", pass_tokens=2)
    device = open_device(random_timing(3), config=config)
    rng = np.random.default_rng(1)
    source = rng.integers(0, 256, (2, 64), np.uint8)
    device.write(SOURCE, source)
    device.write(WEIGHTS, rng.integers(0, 256, (2, 128), np.uint8))
    for name, value in (("PROGRAM_BASE", SOURCE), ("WEIGHT_BASE", WEIGHTS), ("N_TOKENS", 2)):
        device.write_register(name, value)
    device.write_register("LOGITS_BASE", TARGET)
    device.start_and_wait()
    assert device.read(TARGET, 128) == (~source).tobytes()


def test_fingerprint(open_device: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    other = CONFIG.with_(act_tiles=7)
    message = (
        rf"^the simulator's fingerprint is {CONFIG.fingerprint:#018x} and that of the "
        rf"configuration 'stand-in' is {other.fingerprint:#018x}: run `make clean run`"
    )
    generate = build._generate
    monkeypatch.setattr(build, "_generate", lambda config: generate(CONFIG))
    with pytest.raises(RtlError, match=message):
        open_device(IDEAL_MEMORY, config=other)


def test_trace(open_device: Open, tmp_path: Path) -> None:
    path = tmp_path / "run.vcd"
    device = open_device(IDEAL_MEMORY, trace_path=path, trace_cycles=(30, 60))
    prepare(device)
    device.start_and_wait()
    device.close()
    text = path.read_text()
    assert "m_axi_0__araddr" in text
    times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
    period = 10**12 // CONFIG.clock_hz
    assert (times[0], times[-1]) == (30 * period, 59 * period + period // 2)
    with pytest.raises(
        ValueError, match=r"^trace_path must end in \.vcd or \.fst, not 'run\.txt'$"
    ):
        open_device(trace_path=tmp_path / "run.txt")
    # a folder is not made: its name may be misspelt
    path = tmp_path / "traces" / "run.vcd"
    with pytest.raises(RtlError, match=rf"^cannot write the trace {path}$"):
        open_device(trace_path=path)
    assert not path.parent.exists()


def test_trace_of_a_failure(open_device: Open, tmp_path: Path) -> None:
    path = tmp_path / "run.vcd"
    device = open_device(IDEAL_MEMORY, trace_path=path)
    prepare(device, fault=Fault.SIZE)
    with pytest.raises(RtlError, match=r"arsize"):
        device.start_and_wait()
    period = 10**12 // CONFIG.clock_hz
    last = [line for line in path.read_text().splitlines() if line.startswith("#")][-1]
    assert device.cycles - int(last[1:]) // period in range(1, 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("cycles", [10, 100_000])
def test_trace_on_a_full_disk(cycles: int, open_device: Open, tmp_path: Path) -> None:
    """Seen at the end, or as soon as a buffer is full."""
    path = tmp_path / "run.vcd"
    path.symlink_to("/dev/full")
    message = rf"^the trace {path} cannot be written \(.*No space left on device\): free some space"
    with (
        pytest.raises(RtlError, match=message),
        open_device(IDEAL_MEMORY, trace_path=path, trace_cycles=(0, cycles)) as device,
    ):
        for _ in range(cycles // 10):
            device.read_register("IDENT")


def test_closed(open_device: Open) -> None:
    device = open_device(IDEAL_MEMORY)
    with device:
        device.zero(0, 8)
    device.close()
    with pytest.raises(RtlError, match=r"^the device is closed$"):
        device.read(0, 8)


def test_parameters() -> None:
    with pytest.raises(ValueError, match=r"^memory_bytes must be positive, not 0$"):
        Simulator(CONFIG, 0)
    with pytest.raises(ValueError, match=r"^watchdog_cycles must not be negative, not -1$"):
        Simulator(CONFIG, 1, watchdog_cycles=-1)


def test_a_doorbell_is_the_address_of_a_line(open_device: Open) -> None:
    message = "^address must be a multiple of 256, not 0x80$"
    with pytest.raises(ValueError, match=message):
        open_device().ring(0x80)


def test_trace_that_begins_later(open_device: Open, tmp_path: Path) -> None:
    """Of the signals of some instances, from the cycle in which it is asked for."""
    device = open_device(IDEAL_MEMORY, traceable=True)
    prepare(device)
    first = device.cycles
    path = tmp_path / "run.vcd"
    device.trace(path, scopes=["accelerator"])
    device.start_and_wait()
    device.end_trace()
    last = device.cycles
    device.read_register("IDENT")
    wires = ["accelerator.irq", "accelerator.m_axi_0__araddr"]
    seen = [(cycle, *values) for cycle, values in vcd.cycles_of(path, wires, device.clock_ps)]
    assert [cycle for cycle, *_ in seen] == list(range(first, last))
    irqs = [irq for _, irq, _ in seen]
    assert irqs.index("1") > 10
    assert {int(address, 2) for _, _, address in seen} == {WEIGHTS}
    other = "accelerator.registers.irq"
    with pytest.raises(ValueError, match=rf"^the trace has no wire {other}$"):
        list(vcd.cycles_of(path, [other], device.clock_ps))
    device.trace(path)
    device.read_register("IDENT")
    device.end_trace()
    assert list(vcd.cycles_of(path, [other], device.clock_ps))
    device.close()
    other = open_device(IDEAL_MEMORY)
    with pytest.raises(RtlError, match=r"^this simulator was built without tracing$"):
        other.trace(path)


def test_a_pass_of_many_tokens_may_be_quiet_for_longer() -> None:
    """Gates of 32 tokens and 13,824 rows are 83,000 cycles of the vector unit alone."""
    few = quiet_cycles(NANO)
    assert 20_000 < few < 25_000
    many = NANO.with_(pass_tokens=32, act_tiles=96)
    assert quiet_cycles(many) == 20_000 + 4 * 32 * 864
    assert quiet_cycles(many) > 3 * 32 * 864
