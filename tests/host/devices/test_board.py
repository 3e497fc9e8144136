"""A board through its agent: the same bits, few messages, and links that drop."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.host.boards import Cable, FileBoard, Interpreted, Served, board
from tests.host.random_model import SHAPES, config_for
from tests.host.tiles import Compiled, Tiles, driver, golden, on_transport, run_tiles

from lutra.compile.program import Program
from lutra.deploy.link import FarLink
from lutra.devices.accelerator import agent
from lutra.devices.accelerator import board as transport_module
from lutra.devices.accelerator.board import BoardTransport
from lutra.devices.accelerator.board_link import BoardAddress
from lutra.devices.accelerator.device import AcceleratorDevice
from lutra.devices.accelerator.transport import DoorbellTransport
from lutra.devices.base import DeviceError, StepResult
from lutra.devices.choose import choose_device
from lutra_golden.control.registers import REGISTERS
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
AGENT = Path(agent.__file__)
EMULATED = Path(__file__).parent.parent / "emulated_agent.py"
PYTHONS = [
    Path(sys.executable),
    *(
        path
        for path in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python"))
        if int(path.parent.parent.name.split(".")[1]) >= 8
    ),
]


@pytest.fixture(scope="module")
def model(packed: Callable[[str], PackedModel], program: Callable[[str], Program]) -> Compiled:
    return Compiled(packed("least"), program("least"))


@pytest.fixture(scope="module")
def expected(model: Compiled) -> StepResult:
    return run_tiles(golden(model.model), TOKENS)


@pytest.fixture
def served(model: Compiled) -> Iterator[Served]:
    with Served(Interpreted(model.program.config)) as served:
        yield served


@pytest.fixture
def cable(served: Served) -> Iterator[Cable]:
    cable = Cable(served.port)
    yield cable
    cable.close()


def frozen(served: Served) -> threading.Event:
    assert isinstance(served.accelerator, Interpreted)
    return served.accelerator.frozen


def check(tiles: Tiles, expected: StepResult, first: int = 0) -> None:
    """Go on from position ``first``, token by token."""
    for at in range(first, len(TOKENS)):
        result = tiles.run_tile(TOKENS[at : at + 1], at, 0)
        np.testing.assert_array_equal(result.logits, expected.logits[at : at + 1])
        np.testing.assert_array_equal(result.scale, expected.scale[at : at + 1])
        np.testing.assert_array_equal(result.argmax, expected.argmax[at : at + 1])


@pytest.mark.parametrize("sizes", [[], [1] * 10, [3, 1, 2]])
def test_the_same_bits(
    sizes: list[int], served: Served, model: Compiled, expected: StepResult
) -> None:
    tiles = on_transport(model, board(served.port))
    result = run_tiles(tiles, TOKENS, sizes)
    np.testing.assert_array_equal(result.logits, expected.logits)
    np.testing.assert_array_equal(result.argmax, expected.argmax)
    tiles.close()


def test_a_token_is_one_message(served: Served, model: Compiled, expected: StepResult) -> None:
    transport = board(served.port)
    assert isinstance(transport, DoorbellTransport)
    tiles = on_transport(model, transport)
    check(tiles, expected)
    before = transport.n_messages
    check(tiles, expected, 2)
    assert transport.n_messages - before == len(TOKENS) - 2
    tiles.close()


def test_keys_and_values_move(served: Served, model: Compiled, expected: StepResult) -> None:
    tiles, other = on_transport(model, board(served.port)), golden(model.model)
    run_tiles(other, TOKENS[:6])
    tiles.session.restore(other.session.export())
    check(tiles, expected, 6)
    run_tiles(other, TOKENS)
    assert tiles.session.export().to_bytes() == other.session.export().to_bytes()
    tiles.close()


def test_it_is_found_while_it_is_lent(
    served: Served, model: Compiled, expected: StepResult
) -> None:
    """Whoever looks for it takes nothing of it."""
    other = board(served.port)
    other.find()
    tiles = on_transport(model, board(served.port))
    for at in range(0, len(TOKENS), 5):
        other.find()
        check(tiles, expected, at)
    tiles.close()
    assert other.n_messages == 0


def test_it_is_not_found(model: Compiled, tmp_path: Path) -> None:
    with Served(Interpreted(model.program.config)) as served:
        port = served.port
    with pytest.raises(
        DeviceError, match=rf"^device board://127\.0\.0\.1:{port}: no agent answers "
    ):
        board(port).find()
    with pytest.raises(DeviceError, match=r"^device board://127\.0\.0\.1:\d+: .*no-such-key"):
        board(port, tmp_path / "no-such-key").find()


def test_a_model_may_be_loaded_again(served: Served, model: Compiled, expected: StepResult) -> None:
    transport = board(served.port)
    tiles = on_transport(model, transport)
    tiles.close()
    tiles.close()
    with pytest.raises(DeviceError, match=r"no longer has the model \(it is closed\): load it"):
        transport.read_register("STATUS")
    check(on_transport(model, transport), expected)
    transport.close()


# -- links


def test_a_link_that_drops_in_mid_token(
    served: Served, cable: Cable, model: Compiled, expected: StepResult
) -> None:
    tiles = on_transport(model, board(cable.port))
    check(tiles, expected)
    frozen(served).set()
    threading.Timer(0.1, cable.cut).start()
    with pytest.raises(DeviceError, match=r"^device board://127\.0\.0\.1:\d+, waiting for the end"):
        tiles.run_tile(TOKENS[5:6], 5, 0)
    with pytest.raises(DeviceError, match=r"the other end closed the link$"):
        tiles.run_tile(TOKENS[5:6], 5, 0)
    frozen(served).clear()
    cable.mend()
    check(tiles, expected, 5)
    assert tiles.session.length == len(TOKENS)
    tiles.close()


def test_what_was_written_before_a_link_dropped_is_not_lost(
    served: Served, cable: Cable, model: Compiled, expected: StepResult
) -> None:
    tiles, other = on_transport(model, board(cable.port)), golden(model.model)
    run_tiles(tiles, TOKENS[::-1])  # memory holds something else
    run_tiles(other, TOKENS[:6])
    tiles.session.truncate(0)
    tiles.session.restore(other.session.export())  # waits for company
    cable.cut()
    for _ in range(2):
        with pytest.raises(DeviceError):
            tiles.run_tile(TOKENS[6:7], 6, 0)
    cable.mend()
    check(tiles, expected, 6)
    tiles.close()


def test_doorbells_of_a_link_that_dropped_do_not_ring(
    served: Served, cable: Cable, model: Compiled, expected: StepResult
) -> None:
    rung: list[int] = []
    write = served.accelerator.write_register

    def count(offset: int, value: int) -> None:
        rung.extend([value] * (offset == REGISTERS["DOORBELL"].address))
        write(offset, value)

    served.accelerator.write_register = count
    tiles = on_transport(model, board(cable.port))
    check(tiles, expected)
    cable.cut()
    for _ in range(2):
        with pytest.raises(DeviceError):
            tiles.run_tile(TOKENS[5:6], 5, 0)
    cable.mend()
    rung.clear()
    check(tiles, expected, 5)
    assert len(rung) == len(TOKENS) - 5
    tiles.close()


def test_what_was_read_ahead_and_written_since(
    served: Served, model: Compiled, expected: StepResult
) -> None:
    transport = board(served.port)
    tiles = on_transport(model, transport)
    tiles.run_tile(TOKENS[:1], 0, 0)
    address = transport.allocate(4)
    transport.write(address, b"old!")
    assert transport.read(address, 4) == b"old!"
    before = transport.n_messages
    tiles.run_tile(TOKENS[1:2], 1, 0)
    assert transport.n_messages == before + 1
    transport.write(address, b"new!")
    assert transport.read(address, 4) == b"new!"
    check(tiles, expected, 2)
    tiles.close()


def test_a_link_that_drops_without_a_word(
    served: Served, model: Compiled, expected: StepResult
) -> None:
    """The agent still waits for it when the host comes back with the same session."""
    transport = board(served.port)
    tiles = on_transport(model, transport)
    check(tiles, expected)
    held = transport._link
    transport._link = None  # nothing of it reaches the agent
    check(tiles, expected, 4)
    assert held is not None
    held.close()
    tiles.close()


def test_a_board_that_was_lent_to_another(
    served: Served, cable: Cable, model: Compiled, expected: StepResult
) -> None:
    tiles = on_transport(model, board(cable.port))
    check(tiles, expected)
    cable.cut()
    other = on_transport(model, board(served.port))
    cable.mend()
    with pytest.raises(DeviceError):
        tiles.run_tile([1], 0, 0)
    for _ in range(2):
        with pytest.raises(
            DeviceError, match=r"no longer has the model \(it was started again, or lent .* load it"
        ):
            tiles.run_tile([1], 0, 0)
    check(other, expected)
    other.close()
    check(on_transport(model, driver(tiles).transport), expected)
    tiles.close()


def test_an_agent_that_was_started_again(model: Compiled, expected: StepResult) -> None:
    with Served(Interpreted(model.program.config)) as served:
        cable = Cable(served.port)
        transport = board(cable.port)
        tiles = on_transport(model, transport)
        check(tiles, expected)
    cable.cut()
    with Served(Interpreted(model.program.config)) as served:
        cable.target = served.port
        cable.mend()
        with pytest.raises(DeviceError, match="the other end closed the link"):
            tiles.run_tile([1], 0, 0)
        with pytest.raises(DeviceError, match="no longer has the model"):
            tiles.run_tile([1], 0, 0)
        check(on_transport(model, transport), expected)
        transport.close()
    cable.close()


def test_no_agent() -> None:
    with Served(Interpreted(config_for(SHAPES["least"]))) as served:
        port = served.port
    with pytest.raises(DeviceError, match=rf"no agent answers at port {port} \(Connection refused"):
        board(port).open(config_for(SHAPES["least"]), 1)


# -- hosts


def test_a_second_host_is_refused(
    served: Served, model: Compiled, expected: StepResult, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It waits a moment, and says for whom."""
    monkeypatch.setattr(transport_module, "_SAY_S", 0.1)
    monkeypatch.setattr(transport_module, "_FREE_S", 0.4)
    tiles = on_transport(model, board(served.port))
    held = rf"device board://127\.0\.0\.1:{served.port} is held by 127\.0\.0\.1:\d+"
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(DeviceError, match=f"^{held}: wait until it is done, or end it$"),
    ):
        on_transport(model, board(served.port))
    (record,) = caplog.records
    assert re.fullmatch(rf"{held}, which is waited for, 0\.4 s at most", record.getMessage())
    check(tiles, expected)
    tiles.close()


def test_a_second_host_waits_for_one_that_goes(
    served: Served, model: Compiled, expected: StepResult, caplog: pytest.LogCaptureFixture
) -> None:
    """In a moment nobody notices."""
    tiles = on_transport(model, board(served.port))
    threading.Timer(0.2, tiles.close).start()
    with caplog.at_level(logging.WARNING):
        other = on_transport(model, board(served.port))
    assert not caplog.records
    check(other, expected)
    other.close()


def test_a_host_that_closed_has_given_the_board_back(
    served: Served, model: Compiled, expected: StepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the agent takes for it: the next one need not wait."""
    monkeypatch.setattr(transport_module, "_FREE_S", 0.0)
    abort = served.agent.abort

    def slow() -> bool:
        time.sleep(0.2)
        return abort()

    monkeypatch.setattr(served.agent, "abort", slow)
    for _ in range(2):
        tiles = on_transport(model, board(served.port))
        check(tiles, expected)
        tiles.close()


def test_a_host_that_is_killed_frees_the_board(
    served: Served, model: Compiled, expected: StepResult
) -> None:
    code = (
        "import sys, time\n"
        "from tests.host.boards import board\n"
        "from tests.host.random_model import SHAPES, config_for\n"
        "transport = board(int(sys.argv[1]))\n"
        "transport.open(config_for(SHAPES['least']), 1)\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = os.pathsep.join(["host", "sim", "kernels_gpu", "hw", "."])
    root = Path(__file__).parents[3]
    path = os.pathsep.join(str(root / each) for each in path.split(os.pathsep))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(served.port)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        process.send_signal(signal.SIGKILL)
    tiles = on_transport(model, board(served.port))
    check(tiles, expected)
    tiles.close()


def test_an_interrupt_in_mid_token(served: Served, model: Compiled, expected: StepResult) -> None:
    transport = board(served.port)
    tiles = on_transport(model, transport)
    check(tiles, expected)
    frozen(served).set()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        tiles.run_tile(TOKENS[5:6], 5, 0)
    frozen(served).clear()
    before = transport._link
    check(tiles, expected, 5)
    assert transport._link is before
    tiles.close()


def test_a_run_that_does_not_end(served: Served, model: Compiled, expected: StepResult) -> None:
    device = AcceleratorDevice(board(served.port), timeout_s=0.7)
    device.load_program(model.model, model.program)
    tiles = Tiles(device)
    frozen(served).set()
    with pytest.raises(DeviceError, match=r"is not done after 0\.7 s: load IDLE, matmul IDLE"):
        tiles.run_tile(TOKENS[:1], 0, 0)
    frozen(served).clear()
    check(tiles, expected)
    device.close()


def test_another_configuration(served: Served, model: Compiled) -> None:
    other = model.program.config.with_(max_context=64)
    assert other.fingerprint != model.program.config.fingerprint
    with (
        Served(Interpreted(other)) as served,
        pytest.raises(DeviceError, match=r"is built from configuration \w{16}, the program for"),
    ):
        on_transport(model, board(served.port))


def test_a_forked_child_leaves_the_link_alone(
    served: Served, model: Compiled, expected: StepResult
) -> None:
    transport = board(served.port)
    tiles = on_transport(model, transport)
    pid = os.fork()
    if not pid:
        transport.close()
        os._exit(0)
    os.waitpid(pid, 0)
    check(tiles, expected)
    tiles.close()


# -- files, and every Python that is here


@pytest.fixture
def file_board(tmp_path: Path, model: Compiled) -> Iterator[FileBoard]:
    found = FileBoard(tmp_path / "board", model.program.config)
    yield found
    found.close()


def started(python: Path | str, *arguments: object) -> subprocess.Popen[str]:
    command = [str(python), "-I", "-W", "error", str(EMULATED), str(AGENT), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert " listens at 127.0.0.1 port " in line, line
    return int(line.split()[-1])


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.parent.parent.name)
def test_a_tree_of_files(
    python: Path, tmp_path: Path, file_board: FileBoard, model: Compiled, expected: StepResult
) -> None:
    key = tmp_path / "key"
    agent.make_key(key)
    with started(python, "--root", file_board.root, "--port", 0, "--key", key) as process:
        tiles = on_transport(model, board(port_of(process), key))
        check(tiles, expected)
        tiles.close()
        process.terminate()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 0


@pytest.fixture
def ssh(tmp_path: Path, file_board: FileBoard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program called ssh that runs the command here, after a banner."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "ssh"
    path.write_text(
        '#!/bin/sh\necho "Welcome to the board"\nfor last; do :; done\neval "exec $last"\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    command = f"{sys.executable} {EMULATED} {AGENT} --stdio --root {file_board.root}"
    monkeypatch.setenv("LUTRA_BOARD_COMMAND", command)
    yield path


@pytest.mark.usefixtures("ssh")
def test_by_ssh(model: Compiled, expected: StepResult) -> None:
    transport = BoardTransport(BoardAddress.parse("board://me@board"))
    tiles = on_transport(model, transport)
    check(tiles, expected)
    assert transport._link is not None and transport._link._ssh is not None
    process, _ = transport._link._ssh
    process.kill()
    with pytest.raises(DeviceError, match="waiting for the end of a run: the other end closed"):
        tiles.run_tile([1], 0, 0)
    with pytest.raises(DeviceError, match=r"\(its agent ended with the link\): load it again"):
        tiles.run_tile([1], 0, 0)
    check(on_transport(model, transport), expected)
    transport.close()


def test_ssh_that_fails(ssh: Path) -> None:
    ssh.write_text(
        "#!/bin/sh\n"
        'echo "Only for those who may." >&2\n'
        'echo "me@board: Permission denied (publickey)." >&2\n'
        "exit 255\n"
    )
    with pytest.raises(
        DeviceError, match=r"^device board://me@board: me@board: Permission denied \(publickey\)\.$"
    ):
        BoardTransport(BoardAddress.parse("board://me@board")).open(config_for(SHAPES["least"]), 1)


def test_a_board_without_the_agent(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_BOARD_COMMAND", "./no-agent --stdio")
    with pytest.raises(
        DeviceError, match=r": put the agent there with `lutra deploy me@board --agent`$"
    ):
        BoardTransport(BoardAddress.parse("board://me@board")).open(config_for(SHAPES["least"]), 1)


def test_another_client_of_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_SSH", "ssh -p 2222 -F 'my config'")
    command = BoardAddress.parse("board://me@board").ssh
    assert list(command[:6]) == ["ssh", "-p", "2222", "-F", "my config", "-T"]


@pytest.mark.parametrize(
    ("named", "why"),
    [("ssh -F 'my config", "No closing quotation"), (" ", "no program"), ("'' -p 1", "no program")],
)
def test_a_client_of_ssh_that_is_no_command(
    named: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTRA_SSH", named)
    shown = re.escape(repr(named))
    message = rf"^LUTRA_SSH is no command \({why}\): give a client of SSH, not {shown}$"
    with pytest.raises(LutraError, match=message):
        BoardTransport(BoardAddress.parse("board://me@board")).open(config_for(SHAPES["least"]), 1)
    with pytest.raises(LutraError, match=message):
        FarLink("me@board")


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
def test_names_that_no_host_has(host: str) -> None:
    transport = BoardTransport(BoardAddress.parse(f"board://{host}"))
    with pytest.raises(DeviceError, match=rf"^device board://{host}: no agent answers at port 721"):
        transport.open(config_for(SHAPES["least"]), 1)
    transport.close()


def test_commands_of_ssh() -> None:
    options = "ssh -T -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=5"
    whole = " ".join(BoardAddress.parse("board://me@board:7000").ssh)
    assert whole == f"{options} -W 127.0.0.1:7000 -- me@board"
    whole = " ".join(BoardAddress.parse("board://me@board").ssh)
    assert whole == f"{options} -- me@board .lutra/agent --stdio"


@pytest.mark.parametrize(
    "text", ["board://pynq", "board://10.0.0.5:7000", "board://[::1]:7", "board://me@kria"]
)
def test_addresses(text: str) -> None:
    assert str(BoardAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    "://-oX ://a_b! ://-x@a ://a:0 ://a:70000 ://a/b ://@a ://a: ://::1 ://a\n :// ://a@b@c".split(
        " "
    ),
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(LutraError, match=r"^a board is board://host, board://host:port or board:"):
        BoardAddress.parse(f"board{text}")


def test_a_board_by_its_name() -> None:
    device, reasons = choose_device("board://me@pynq", config="nano")
    assert (device.name, reasons) == ("board://me@pynq", [])
    with pytest.raises(LutraError, match=r"^a board is board://host, "):
        choose_device("board://a/b")
    message = r"^device must be auto, .*, rtl, .* board://host or lutra://host, not 'board'$"
    with pytest.raises(LutraError, match=message):
        choose_device("board")
