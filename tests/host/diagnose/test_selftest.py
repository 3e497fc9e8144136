"""The self-test of an accelerator: every test passes, and each finds its fault."""

import pytest
from tests.host.diagnose.faulty import FAULTS, FaultyTransport
from tests.host.tiles import Compiled, compiled
from tests.system.small_architectures import config_of_engine, make

from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.interpreted import InterpretedTransport
from lutra.devices.accelerator.transport import Transport
from lutra.diagnose.selftest import Check, selftest
from lutra_golden.control.descriptor import HEADER_BYTES, Descriptor, Kind
from lutra_golden.control.registers import IDENT

NAMES = [
    "identity and fingerprint",
    "registers",
    "memory",
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


@pytest.mark.parametrize(
    ("fault", "unit"),
    [
        ("matmul", "matmul engine"),
        ("norm", "vector unit"),
        ("residual", "vector unit"),
        ("attention", "the vector unit or attention unit is wrong"),
        ("load", "load unit"),
    ],
)
def test_names_the_unit(fault: str, unit: str, bitnet: Compiled) -> None:
    last = run(bitnet, FaultyTransport(FAULTS[fault]))[-1]
    assert last.name == "units"
    assert last.problem is not None
    assert unit in last.problem


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
