"""The agent of boards: what it maps, what it refuses, and that it needs nothing but Python."""

import ast
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.host.boards import BASE, SIZE, Cable, FileBoard, Interpreted, Served
from tests.host.random_model import SHAPES, config_for

from lutra.devices.accelerator import agent
from lutra.devices.accelerator.agent import AgentError, BoardAccelerator, Frames, LinkError
from lutra.devices.accelerator.board import BoardTransport
from lutra.devices.accelerator.board_link import BoardAddress
from lutra.devices.base import DeviceError
from lutra_golden.control import registers
from lutra_golden.control.registers import REGISTERS

CONFIG = config_for(SHAPES["least"])
KEY = bytes(range(32))
SOURCE = Path(agent.__file__)


# -- what it is made of


def test_registers_are_those_of_the_map() -> None:
    for name, offset in agent.REGISTERS.items():
        assert offset == REGISTERS[name].address
    for ranges, forbidden in ((agent.READABLE, "wo"), (agent.WRITABLE, "ro")):
        found = {offset for first, end in ranges for offset in range(first, end, 4)}
        assert found == {
            each.address + 4 * i
            for each in REGISTERS.values()
            if each.access != forbidden
            for i in range(each.count)
        }
    last = max(each.address + 4 * each.count for each in REGISTERS.values())
    assert agent.REGISTER_BYTES == last
    for name in ("IDENT", "CONTROL_ABORT", "STATUS_BUSY", "STATUS_DRAINING"):
        assert getattr(agent, name) == getattr(registers, name)


def test_it_needs_the_standard_library_only() -> None:
    for statement in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(statement, ast.Import):
            assert {each.name for each in statement.names} <= sys.stdlib_module_names
        if isinstance(statement, ast.ImportFrom):
            assert statement.level == 0 and statement.module in sys.stdlib_module_names


def test_it_needs_python_3_8() -> None:
    vermin = pytest.importorskip("vermin")
    found = vermin.detect(SOURCE.read_text())
    assert found[1] is not None and found[1] <= (3, 8)


# -- keys


def test_a_key_is_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert agent.main(["--make-key", str(path)]) == 0
    assert path.stat().st_mode & 0o777 == 0o600 and len(agent.read_key(path)) == 32
    with pytest.raises(AgentError, match=r"^the key .* cannot be written \(File exists\)$"):
        agent.make_key(path)
    path.chmod(0o640)
    with pytest.raises(AgentError, match=r"can be read by others: run `chmod 600 .*/key`$"):
        agent.read_key(path)
    path.chmod(0o600)
    for text in ("", "12", "x" * 64, "00" * 33):
        path.write_text(text)
        with pytest.raises(AgentError, match=r"is not 64 hexadecimal digits: make one with"):
            agent.read_key(path)
    with pytest.raises(AgentError, match=r"cannot be read \(No such file"):
        agent.read_key(tmp_path / "none")


def test_another_address_needs_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.main(["--listen", "0.0.0.0"]) == 1
    assert capsys.readouterr().err == (
        "lutra agent: error: --listen needs a shared key: add --key FILE (see --make-key)\n"
    )


def test_ports_that_cannot_be(
    tree: FileBoard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 70_000):
            assert agent.main(["--root", str(tree.root), "--port", str(port)]) == 1
            line = f"lutra agent: error: 127.0.0.1 port {port} cannot be listened at ("
            assert capsys.readouterr().err.startswith(line)


# -- messages


@pytest.fixture
def served() -> Iterator[Served]:
    with Served(Interpreted(CONFIG), KEY) as served:
        yield served


class Host:
    """A host that says what a test wants it to."""

    def __init__(
        self, port: int, key: bytes | None = KEY, version: object = agent.PROTOCOL
    ) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), 5)
        self.stream = agent.socket_stream(self.connection)
        nonce = self.stream.line(200, time.monotonic() + 5).split()[-1]
        self.send(f"lutra-host {version} 5\n".encode())
        self.frames = Frames(key, f"{nonce} 5".encode(), b"host", b"agent")

    def send(self, data: bytes) -> None:
        self.stream.send(data, 5)

    def ask(self, body: bytes) -> bytes:
        self.send(self.frames.pack(body))
        return self.answer()

    def answer(self) -> bytes:
        return self.frames.receive(self.stream, time.monotonic() + 20)

    def open(self) -> bytes:
        return self.ask(operation("OPEN", agent.NEW_SESSION))

    def refused(self, text: str) -> None:
        """The agent says why it ends the link, and ends it."""
        with pytest.raises(LinkError, match=text):
            self.answer()
        self.close()

    def close(self) -> None:
        self.connection.close()


def operation(name: str, *fields: int | bytes) -> bytes:
    code, form = agent.OPERATIONS[name]
    return bytes([code]) + form.pack(*fields)


def check_alive(served: Served) -> None:
    """The next host is served: in a moment, when the last one is seen to be gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        host = Host(served.port)
        answer = host.open()
        host.close()
        if answer[0] == agent.OK:
            return
        assert answer[1:].startswith(b"held by ")
        time.sleep(0.01)
    raise AssertionError("the accelerator is never given back")


def test_a_link_opens(served: Served) -> None:
    host = Host(served.port)
    answer = host.open()
    assert answer[0] == agent.OK
    session, resumed, size, n = agent.OPENED.unpack_from(answer, 1)
    assert session != agent.NEW_SESSION and (resumed, size, n) == (0, agent.REGISTER_BYTES, 1)
    assert agent.REGION.unpack_from(answer, 1 + agent.OPENED.size) == (BASE, SIZE)
    host.ask(operation("WRITE_MEMORY", BASE, 3) + b"abc")
    assert host.ask(operation("READ_MEMORY", BASE, 3)) == b"\0abc"
    host.close()
    check_alive(served)


def test_a_wrong_key(served: Served) -> None:
    host = Host(served.port, bytes(32))
    host.send(host.frames.pack(operation("OPEN", agent.NEW_SESSION)))
    host.refused("^a message has a wrong tag: the keys differ, or it was changed$")
    assert served.log[-1].endswith(
        ": a message has a wrong tag: the keys differ, or it was changed"
    )
    check_alive(served)


def test_no_key(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent does not wait long for the tag that never comes."""
    monkeypatch.setattr(agent, "_HANDSHAKE_S", 0.5)
    host = Host(served.port, None)
    host.send(host.frames.pack(operation("OPEN", agent.NEW_SESSION)))
    host.refused("^the other end sent nothing in time$")
    check_alive(served)


def test_keys_of_the_two_ends(tmp_path: Path, served: Served) -> None:
    def refusal(port: int, key: Path | None) -> str:
        with pytest.raises(DeviceError) as caught:
            BoardTransport(BoardAddress("127.0.0.1", port), key).open(CONFIG, 1)
        return str(caught.value).split(": ", 1)[1]

    path = tmp_path / "key"
    agent.make_key(path)
    assert refusal(served.port, path) == (
        "a message has a wrong tag: the keys differ, or it was changed"
    )
    assert refusal(served.port, None).startswith("the agent asks for a key: set LUTRA_BOARD_KEY")
    with Served(Interpreted(CONFIG)) as without:
        assert refusal(without.port, path).startswith("the agent has no key: start it with --key")


@pytest.mark.parametrize("version", [0, 2, "x"])
def test_another_version(version: object, served: Served) -> None:
    host = Host(served.port, version=version)
    host.refused(
        f"^the agent speaks version 1 of the protocol, the host {version}: copy the agent of the "
        "host's Lutra to the board$"
    )
    check_alive(served)


def test_an_agent_of_another_version() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"lutra-agent 2\x1b[1m open 00\n")

        thread = threading.Thread(target=serve)
        thread.start()
        address = BoardAddress("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(
            DeviceError, match=r"speaks version 2 \[1m of the protocol, this Lutra "
        ):
            BoardTransport(address).open(CONFIG, 1)
        thread.join()


def test_what_is_no_host(served: Served) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"lutra-host\n", b"x" * 4000, b"\n"):
        connection = socket.create_connection(("127.0.0.1", served.port))
        connection.sendall(data)
        connection.settimeout(5)
        while connection.recv(1000):
            pass
        connection.close()
    check_alive(served)


def test_a_message_that_was_sent_before(served: Served) -> None:
    """On its own link, and on another one."""
    host = Host(served.port)
    first = host.frames.pack(operation("OPEN", agent.NEW_SESSION))
    host.send(first)
    assert host.answer()[0] == agent.OK
    host.send(first)
    host.refused("message 0 came in the place of 1")
    host = Host(served.port)
    host.send(first)
    host.refused("a message has a wrong tag")
    check_alive(served)


@pytest.mark.parametrize("at", [0, 4, 12, 13, 29, 60])
def test_a_message_that_was_changed(at: int, served: Served) -> None:
    """A bit of the length, the number, the operation, its field or the tag."""
    host = Host(served.port)
    message = bytearray(host.frames.pack(operation("OPEN", agent.NEW_SESSION)))
    message[at] ^= 1
    host.send(bytes(message))
    host.refused(r"wrong tag|in the place|in time|bytes came")
    check_alive(served)


def test_a_message_that_is_too_long(served: Served) -> None:
    host = Host(served.port)
    host.send(struct.pack("<IQ", 65, 0))
    host.refused("a message of 65 bytes came, 64 are the most")
    host = Host(served.port)
    host.open()
    host.send(struct.pack("<IQ", agent.BODY_MAX + 1, 1))
    host.refused(f"a message of {agent.BODY_MAX + 1} bytes came, {agent.BODY_MAX} are the most")
    check_alive(served)


@pytest.mark.parametrize(
    "body",
    [
        operation("WRITE_MEMORY", BASE, 5) + b"four",
        operation("READ_MEMORY", BASE, 5)[:-1],
        operation("WRITE_REGISTERS", 0x18, 2) + b"four",
        b"\x0a",
        b"\0",
    ],
)
def test_a_message_that_is_cut_short(body: bytes, served: Served) -> None:
    host = Host(served.port)
    host.open()
    host.send(host.frames.pack(body))
    host.refused(r"^a message ends within an operation$|^a message has the unknown operation \d+$")
    check_alive(served)


def test_the_first_message_opens(served: Served) -> None:
    host = Host(served.port)
    host.send(host.frames.pack(operation("READ_MEMORY", BASE, 1)))
    host.refused("^the first message does not open the accelerator$")
    check_alive(served)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (operation("READ_MEMORY", BASE + SIZE - 3, 4), "4 bytes at 0x43fffd lie outside the agent"),
        (operation("READ_MEMORY", BASE - 1, 4), "4 bytes at 0x3ffff lie outside the agent's mem"),
        (operation("WRITE_MEMORY", BASE + SIZE, 1) + b"x", "1 bytes at 0x440000 lie outside the "),
        (operation("ZERO_MEMORY", (1 << 64) - 1, 2), "2 bytes at 0xffffffffffffffff lie outside"),
        (operation("ZERO_MEMORY", BASE, (1 << 26) + 1), "an operation may have 1 to 67108864 byte"),
        (operation("READ_MEMORY", BASE, 0), "an operation may have 1 to 1052671 bytes, not 0"),
        (operation("READ_MEMORY", BASE, agent.BODY_MAX), "an operation may have 1 to 1052671 byt"),
        (2 * operation("READ_MEMORY", BASE, 1 << 20), "the answer exceeds 1052672 bytes: read les"),
        (operation("READ_REGISTERS", 0x010, 1), "1 registers at 0x10 are not the accelerator's"),
        (operation("READ_REGISTERS", 0x6FC, 2), "2 registers at 0x6fc are not the accelerator's"),
        (operation("READ_REGISTERS", 0x100, 0), "0 registers at 0x100 are not the accelerator's"),
        (operation("READ_REGISTERS", 0x101, 1), "1 registers at 0x101 are not the accelerator's"),
        (operation("WAIT", 0x1000, 1, 0, 1), "1 registers at 0x1000 are not the accelerator's"),
        (operation("WRITE_REGISTERS", 0x000, 1) + bytes(4), "1 registers at 0x0 are not the acc"),
    ],
)  # fmt: skip
def test_what_is_not_its_own(body: bytes, text: str, served: Served) -> None:
    """It is refused, and the link goes on."""
    host = Host(served.port)
    host.open()
    host.ask(operation("ZERO_MEMORY", BASE, 1 << 20))
    answer = host.ask(body)
    assert answer[0] == agent.FAILED and answer[1:].decode().startswith(text)
    assert host.ask(operation("READ_REGISTERS", 0, 1))[1:] == struct.pack("<I", registers.IDENT)
    host.close()


def test_zeros_of_several_pieces(served: Served) -> None:
    host, size = Host(served.port), 3 << 20
    host.open()
    for first in range(0, size, 1 << 20):
        host.ask(operation("WRITE_MEMORY", BASE + first, 1 << 20) + b"x" * (1 << 20))
    assert host.ask(operation("ZERO_MEMORY", BASE + 1, size - 2)) == bytes([agent.OK])
    found = b"".join(
        host.ask(operation("READ_MEMORY", BASE + first, 1 << 20))[1:]
        for first in range(0, size, 1 << 20)
    )
    assert found == b"x" + bytes(size - 2) + b"x"
    host.close()


def test_strangers_do_not_keep_hosts_away(served: Served) -> None:
    """A link that says nothing holds no board."""
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(5)]
    check_alive(served)
    for each in silent:
        each.close()


def test_a_host_that_goes_is_aborted(served: Served) -> None:
    accelerator = served.accelerator
    assert isinstance(accelerator, Interpreted)
    accelerator.frozen.set()
    host = Host(served.port)
    host.open()
    host.ask(operation("WRITE_REGISTERS", 0x030, 1) + struct.pack("<I", BASE // 256))
    host.send(host.frames.pack(operation("WAIT", 0x034, 7, 0, 60_000)))
    before = accelerator.n_aborts
    host.close()
    deadline = time.monotonic() + 10
    while accelerator.n_aborts == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    check_alive(served)


def test_a_link_that_is_tampered_with(tmp_path: Path) -> None:
    """By the driver of boards: one line, and the next link is sound."""
    path = tmp_path / "key"
    agent.make_key(path)
    turned = threading.Event()

    def turn(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if turned.is_set() else data

    with Served(Interpreted(CONFIG), agent.read_key(path)) as served:
        cable = Cable(served.port, turn)
        transport = BoardTransport(BoardAddress("127.0.0.1", cable.port), path)
        transport.open(CONFIG, 1)
        turned.set()
        with pytest.raises(DeviceError, match=r"waiting for IDENT to be read: a message has a wro"):
            transport.read_register("IDENT")
        turned.clear()
        assert transport.read_register("IDENT") == registers.IDENT
        transport.close()
        cable.close()


# -- files


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FileBoard]:
    board = FileBoard(tmp_path / "board", CONFIG)
    yield board
    board.close()


def test_memory_and_registers(tree: FileBoard) -> None:
    found = BoardAccelerator(root=tree.root)
    base, size = FileBoard.ADDRESS, SIZE
    assert found.regions == [(base, size)]
    found.write_register(0x5C, 0x89ABCDEF)
    assert tree.words[0x5C // 4] == found.read_register(0x5C) == 0x89ABCDEF
    sync = tree.root / "sys/class/u-dma-buf/udmabuf0"
    found.write(base + 100, b"hello")
    assert (sync / "sync_for_device").read_text() == "0x0000004000000041"
    assert found.read(base + 100, 5) == b"hello"
    assert (sync / "sync_for_cpu").read_text() == "0x0000004000000041"
    found.read(base + size - 1, 1)
    assert (sync / "sync_for_cpu").read_text() == f"0x{size - 64:08X}00000041"
    began = time.monotonic()
    found.pause(0, 60.0)
    assert time.monotonic() - began < 30
    found.close()
    BoardAccelerator(root=tree.root, uio="uio0", buffers=["udmabuf0"]).close()


def test_one_agent_a_board(tree: FileBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends is waited for."""
    found = BoardAccelerator(root=tree.root)
    with monkeypatch.context() as patch:
        patch.setattr(agent, "_FREE_S", 0.1)
        with pytest.raises(AgentError, match=r"^another agent uses /dev/uio0: end it first$"):
            BoardAccelerator(root=tree.root)
    threading.Timer(0.2, found.close).start()
    BoardAccelerator(root=tree.root).close()


def test_registers_by_dev_mem(tree: FileBoard) -> None:
    at = 0xA000_0000 % (1 << 20) + 4096  # a file as long as the real offset would be large
    (tree.root / "proc/iomem").write_text("00000000-00000fff : System RAM\n00001000-1 : pl\n")
    (tree.root / "dev/mem").write_bytes(
        bytes(at) + struct.pack("<I", registers.IDENT) + bytes(4092)
    )
    found = BoardAccelerator(root=tree.root, registers=at)
    found.write_register(0x10, 2)
    assert (tree.root / "dev/mem").read_bytes()[at + 0x10] == 2
    found.close()
    for address, text in ((0, "is memory of the system, not registers"), (4098, "a multiple of")):
        with pytest.raises(AgentError, match=text):
            BoardAccelerator(root=tree.root, registers=address)


def _no_ident(root: Path) -> None:
    (root / "dev/uio0").write_bytes(bytes(4096))


def _no_uio(root: Path) -> None:
    (root / "sys/class/uio/uio0/name").write_text("axi_gpio")


def _small_map(root: Path) -> None:
    (root / "sys/class/uio/uio0/maps/map0/size").write_text("0x100")


def _no_map(root: Path) -> None:
    (root / "sys/class/uio/uio0/maps/map0/size").unlink()


def _no_device(root: Path) -> None:
    (root / "dev/uio0").unlink()


def _no_buffer(root: Path) -> None:
    (root / "sys/class/u-dma-buf/udmabuf0").rename(root / "gone")


def _odd_buffer(root: Path) -> None:
    (root / "sys/class/u-dma-buf/udmabuf0/phys_addr").write_text("0x123")


def _short_buffer(root: Path) -> None:
    (root / "dev/udmabuf0").write_bytes(bytes(4096))


@pytest.mark.parametrize(
    ("breaks", "text"),
    [
        (
            _no_ident,
            r"^the registers begin with 0x00000000 instead of 0x4152544c: no Lutra acceler",
        ),
        (_no_uio, r"^0 devices in /sys/class/uio are called \*lutra\*, not one: load the bitstrea"),
        (
            _small_map,
            r"^map 0 of uio0 has 256 bytes at offset 0, not 4096 or more: correct the dev",
        ),
        (_no_map, r"/map0/size has no number: is its driver loaded\?$"),
        (
            _no_device,
            r"^/dev/uio0 cannot be opened \(No such file or directory\): run the agent as",
        ),
        (_no_buffer, r"^there is no contiguous memory in /sys/class/u-dma-buf: load u-dma-buf"),
        (_odd_buffer, r"^udmabuf0 has 4194304 bytes at 0x123: its driver is not u-dma-buf$"),
        (_short_buffer, r"^4194304 bytes of udmabuf0 cannot be mapped"),
    ],
)
def test_boards_that_are_not_ready(
    breaks: Callable[[Path], None], text: str, tree: FileBoard
) -> None:
    breaks(tree.root)
    with pytest.raises(AgentError, match=text):
        BoardAccelerator(root=tree.root)


def test_an_interrupt() -> None:
    """A pair of sockets stands for the device: what is written enables, what is read counts."""
    uio, kernel = socket.socketpair()
    wake, host = socket.socketpair()
    kernel.sendall(struct.pack("=I", 7))
    assert agent.await_interrupt(uio.fileno(), wake.fileno(), 30)
    assert kernel.recv(100) == struct.pack("=I", 1)
    assert not agent.await_interrupt(uio.fileno(), wake.fileno(), 0.001)
    host.sendall(b"x")
    began = time.monotonic()
    assert not agent.await_interrupt(uio.fileno(), wake.fileno(), 60)
    assert time.monotonic() - began < 30
    for each in (uio, kernel, wake, host):
        each.close()


# -- bitstreams


def manager(root: Path, state: str = "operating") -> Path:
    folder = root / "sys/class/fpga_manager/fpga0"
    folder.mkdir(parents=True)
    (root / "lib/firmware").mkdir(parents=True)
    (folder / "state").write_text(state + "\n")
    return folder


def bit_file(data: bytes) -> bytes:
    fields = b"".join(
        key + struct.pack(">H", len(text)) + text
        for key, text in ((b"a", b"top;Version=2024.1\0"), (b"b", b"xck26\0"), (b"c", b"1\0"))
    )
    return b"\0\x09" + bytes(9) + b"\0\x01" + fields + b"e" + struct.pack(">I", len(data)) + data


def test_a_bitstream_is_loaded(tmp_path: Path) -> None:
    folder = manager(tmp_path)
    path = tmp_path / "lutra.bit"
    path.write_bytes(bit_file(bytes(range(8))))
    agent.load_bitstream(path, tmp_path)
    firmware = tmp_path / "lib/firmware/lutra.bin"
    assert firmware.read_bytes() == bytes([3, 2, 1, 0, 7, 6, 5, 4])
    assert ((folder / "firmware").read_text(), (folder / "flags").read_text()) == ("lutra.bin", "0")
    path = path.with_suffix(".bin")
    path.write_bytes(b"as it is")
    agent.load_bitstream(path, tmp_path)
    assert firmware.read_bytes() == b"as it is"


def test_a_bitstream_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "lutra.bit"
    with pytest.raises(AgentError, match=r"^the bitstream .* cannot be loaded \(.*No such file"):
        agent.load_bitstream(path, tmp_path)
    manager(tmp_path, "write error")
    for data in (b"", b"\0\x09", bit_file(bytes(8))[:-1], bit_file(bytes(6)), bytes(100)):
        path.write_bytes(data)
        with pytest.raises(AgentError, match=r"is no whole \.bit file: build it again$"):
            agent.load_bitstream(path, tmp_path)
    path.write_bytes(bit_file(bytes(8)))
    with pytest.raises(
        AgentError, match=r"^the FPGA manager is 'write error' after .*: see `dmesg"
    ):
        agent.load_bitstream(path, tmp_path)


def test_a_fabric_that_an_agent_uses_is_not_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents that load nothing share it; one that loads has it alone, and shares it then."""
    folder, path = manager(tmp_path), tmp_path / "lutra.bin"
    path.write_bytes(b"bits")
    monkeypatch.setattr(agent, "_FREE_S", 0.1)

    def refused() -> None:
        with (
            pytest.raises(AgentError, match=r"^another agent uses the fabric: end it first$"),
            agent.held_fabric(path, tmp_path),
        ):
            raise AssertionError("it was loaded")

    with agent.held_fabric(None, tmp_path):
        with agent.held_fabric(None, tmp_path):
            pass
        refused()
    assert not (folder / "firmware").exists()
    with agent.held_fabric(path, tmp_path):
        assert (folder / "firmware").read_text() == "lutra.bin"
        with agent.held_fabric(None, tmp_path):
            pass
        refused()
    shutil.rmtree(folder)
    with agent.held_fabric(None, tmp_path):
        pass
