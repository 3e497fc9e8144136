"""The self-test of an accelerator: every test passes, and each finds its fault.

On the interpreter, on a card that is emulated with an interpreted kernel, and through an agent.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.host.boards import Interpreted, Served, board
from tests.host.devices.test_xrt import InterpretedKernel
from tests.host.diagnose.faulty import FAULTS, Fault, FaultyTransport
from tests.host.tiles import Compiled, compiled
from tests.system.small_architectures import config_of_engine, make
from tests.system.test_groups import config_of
from tests.system.test_vocabulary import MAKERS as VOCABULARIES

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.transport import Transport
from lutra.devices.accelerator.xrt import XrtTransport
from lutra.devices.emulated.card import EmulatedCard
from lutra.diagnose.prefixes import operations_of
from lutra.diagnose.selftest import Check, selftest
from lutra_golden.control.descriptor import HEADER_BYTES, Descriptor, Kind
from lutra_golden.control.interpreter import Interpreter
from lutra_golden.control.isa import FLAG_LOGITS, Instruction, Opcode
from lutra_golden.control.registers import IDENT
from lutra_golden.core.config import AcceleratorConfig
from lutra_golden.timing.boards import find_profile

NAMES = [
    "identity and fingerprint",
    "registers",
    "memory",
    "memory addresses",
    "memory, as the accelerator reads it",
    "units",
    "one token",
]


@pytest.fixture(scope="module")
def bitnet(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    model = make(tmp_path_factory.mktemp("models"))("bitnet")
    return compiled(model, config_of_engine("ternary"))


def run(found: Compiled, transport: Transport) -> list[Check]:
    return list(selftest(AcceleratorDevice(transport, found.program.config), found.model))


def test_everything_is_right(bitnet: Compiled) -> None:
    checks = run(bitnet, InterpretedTransport())
    assert [check.name for check in checks] == NAMES
    assert [check.problem for check in checks] == [None] * len(NAMES)


def test_a_vocabulary_in_codes_is_right(tmp_path: Path) -> None:
    model = VOCABULARIES["untied"](tmp_path / "model")
    checks = run(compiled(model, config_of("mixpe", model)), InterpretedTransport())
    assert [(check.name, check.problem) for check in checks] == [(name, None) for name in NAMES]


class Counting(InterpretedTransport):
    """Counts the runs."""

    n_runs = 0

    def ring(self, address: int) -> None:
        super().ring(address)
        self.n_runs += 1


def test_it_is_short(bitnet: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run for each instruction whose result can be stored, and of the vocabulary a part."""
    monkeypatch.setattr("lutra.diagnose.selftest._ROWS", 64)
    transport, model = Counting(), bitnet.model
    device = AcceleratorDevice(transport, bitnet.program.config)
    problems, found = list[str | None](), bitnet.program
    for check in selftest(device, model):
        problems.append(check.problem)
        found = device.program if check.name == "units" else found
    assert problems == [None] * len(NAMES)
    assert found.vocab_size == 64 < model.vocab_size
    assert (found.n_layers, found.config) == (1, bitnet.program.config)
    shown = (Opcode.EMBED, Opcode.LMMA, Opcode.ROPEQ, Opcode.RESADD, Opcode.LOGITS)
    n_shown = sum(each.opcode in shown for each in operations_of(found))
    # beside them a checksum, and a token
    assert transport.n_runs == n_shown + 2


class Card:
    """A card of XRT, whose kernel has a fault, or is built from another configuration."""

    def __init__(self, fault: Fault | None = None, other: AcceleratorConfig | None = None) -> None:
        self._fault, self._other = fault, other
        self.kernels: list[InterpretedKernel] = []
        self.card = EmulatedCard(find_profile("u55c"), kernels=self._kernel)

    def _kernel(self, config: AcceleratorConfig) -> InterpretedKernel:
        kernel = InterpretedKernel(config, self._other)
        if self._fault is not None:
            plant(kernel.interpreter, self._fault)
        self.kernels.append(kernel)
        return kernel

    def transport(self) -> XrtTransport:
        """A driver of it."""
        return XrtTransport(xclbin=self.card.image, module=self.card.module, emulated="u55c")


def plant(interpreter: Interpreter, fault: Fault) -> None:
    interpreter.on_instruction = lambda i: fault(interpreter, i)


@contextmanager
def through_an_agent(config: AcceleratorConfig, fault: Fault | None = None) -> Iterator[Transport]:
    """A board whose agent is reached by loopback."""
    accelerator = Interpreted(config)
    if fault is not None:
        plant(accelerator.transport.interpreter, fault)
    with Served(accelerator) as served:
        yield board(served.port)


def test_a_card_is_right(bitnet: Compiled) -> None:
    """Registers are out of its driver's reach, which is said."""
    checks = run(bitnet, Card().transport())
    assert [check.name for check in checks] == NAMES
    assert [check.problem for check in checks] == [None] * len(NAMES)
    left_out = {check.name: check.left_out for check in checks if check.left_out}
    assert left_out == {"registers": "device xrt gives no access to registers"}


def test_a_board_with_an_agent_is_right(bitnet: Compiled) -> None:
    with through_an_agent(bitnet.program.config) as transport:
        checks = run(bitnet, transport)
    assert [check.name for check in checks] == NAMES
    assert [check.problem or check.left_out for check in checks] == [None] * len(NAMES)


UNITS = [
    ("matmul", "matmul engine"),
    ("norm", "vector unit"),
    ("residual", "vector unit"),
    ("attention", "the vector unit or attention unit is wrong"),
    ("load", "load unit"),
]


@pytest.mark.parametrize(("fault", "unit"), UNITS)
def test_names_the_unit_of_a_card(fault: str, unit: str, bitnet: Compiled) -> None:
    last = run(bitnet, Card(FAULTS[fault]).transport())[-1]
    assert last.name == "units"
    assert last.problem is not None and unit in last.problem


@pytest.mark.parametrize(("fault", "unit"), UNITS[:1])
def test_names_the_unit_through_an_agent(fault: str, unit: str, bitnet: Compiled) -> None:
    with through_an_agent(bitnet.program.config, FAULTS[fault]) as transport:
        last = run(bitnet, transport)[-1]
    assert last.name == "units"
    assert last.problem is not None and unit in last.problem


def test_a_card_of_another_configuration(bitnet: Compiled) -> None:
    config = bitnet.program.config
    other = config.with_(name="other", pass_tokens=config.pass_tokens // 2)
    [check] = run(bitnet, Card(other=other).transport())
    assert check.name == "identity and fingerprint"
    assert check.problem is not None
    wrong = f"device xrt is built from configuration {other.fingerprint:016x}, the program for "
    assert check.problem.startswith(wrong)


def test_a_card_that_hangs(bitnet: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutra.devices.accelerator.xrt._DRAIN_S", 0.2)
    card = Card()
    checks = selftest(
        AcceleratorDevice(card.transport(), bitnet.program.config, timeout_s=0.2), bitnet.model
    )
    seen: list[Check] = []
    for check in checks:
        seen.append(check)
        if check.name == "memory addresses":
            card.kernels[-1].stalled = True
    assert seen[-1].name == "memory, as the accelerator reads it"
    assert seen[-1].problem is not None
    assert seen[-1].problem.startswith("a run of device xrt does not end: run `xbutil reset -d ")


class LostAddress(InterpretedTransport):
    """A line of the address is not connected."""

    LINE = 1 << 24

    def write(self, address: int, data: bytes) -> None:
        super().write(address & ~self.LINE, data)

    def read(self, address: int, n_bytes: int) -> bytes:
        return super().read(address & ~self.LINE, n_bytes)


@pytest.mark.parametrize(("fault", "unit"), UNITS)
def test_names_the_unit(fault: str, unit: str, bitnet: Compiled) -> None:
    last = run(bitnet, FaultyTransport(FAULTS[fault]))[-1]
    assert last.name == "units"
    assert last.problem is not None
    assert unit in last.problem


def test_names_the_unit_of_the_logits(bitnet: Compiled) -> None:
    """Everything before them is right, and so are accumulators that are stored to be compared."""

    def fault(interpreter: Interpreter, i: Instruction) -> None:
        if i.opcode is Opcode.LOGITS and i.flags & FLAG_LOGITS:
            at = interpreter.registers["LOGITS_BASE"] + 4 * i.args["row_first"]
            at += interpreter.registers["LOGITS_FROM"] * interpreter.registers["LOGITS_STRIDE"]
            interpreter.memory.store(at, interpreter.memory.read(at, 1) ^ np.uint8(1))

    last = run(bitnet, FaultyTransport(fault))[-1]
    assert last.name == "units"
    assert last.problem is not None
    assert re.match(r"the vector unit is wrong: instruction \d+ \(LOGITS\): ", last.problem)


class StuckBit(InterpretedTransport):
    """A register of which a bit is always set."""

    def read_register(self, name: str, index: int = 0) -> int:
        return super().read_register(name, index) | (16 if name == "LOGITS_STRIDE" else 0)


class NoAccelerator(InterpretedTransport):
    """Something else answers."""

    def read_register(self, name: str, index: int = 0) -> int:
        return IDENT ^ 1 if name == "IDENT" else super().read_register(name, index)


class ShortMemory(InterpretedTransport):
    """Addresses lose a bit, so that two places of memory are one."""

    def write(self, address: int, data: bytes) -> None:
        half = len(data) // 2
        if address % 4096 or half != 32768:
            super().write(address, data)
            return
        super().write(address, data[half:] + data[half:])


class WrongSum(InterpretedTransport):
    """The accelerator reads a byte of random data wrong."""

    def ring(self, address: int) -> None:
        descriptor = Descriptor.decode(self.read(address, HEADER_BYTES))
        if descriptor.kind == Kind.CHECKSUM:
            at = descriptor.program_base + 5
            self.write(at, bytes([self.read(at, 1)[0] ^ 1]))
        super().ring(address)


@pytest.mark.parametrize(
    ("transport", "name", "problem"),
    [
        (StuckBit, "registers", "register LOGITS_STRIDE[0] reads"),
        (NoAccelerator, "identity and fingerprint", "it is no Lutra accelerator"),
        (ShortMemory, "memory", "pattern each word its address: byte"),
        (LostAddress, "memory addresses", "not its address: addresses of the memory are wrong"),
        (WrongSum, "memory, as the accelerator reads it", "the reads of the sequencer"),
    ],
)
def test_finds_faults_in_front_of_the_units(
    transport: type[InterpretedTransport], name: str, problem: str, bitnet: Compiled
) -> None:
    last = run(bitnet, transport())[-1]
    assert last.name == name
    assert last.problem is not None
    assert problem in last.problem
