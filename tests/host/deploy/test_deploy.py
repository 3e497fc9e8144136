"""``lutra deploy`` against an SSH server on loopback: everything copied, installed and tested."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("asyncssh")

from tests.host.boards import FileBoard
from tests.host.deploy.ssh_server import CLIENTS, TARGET, SshServer
from tests.host.deploy.test_checks import build
from tests.host.deploy.test_link import contents

from lutra.commands.cli import main
from lutra.compile.program import Program
from lutra.deploy.deployment import Deployment, Done
from lutra.deploy.far import ROOT
from lutra.deploy.link import DeployError, FarLink
from lutra.deploy.overlay import find_overlay
from lutra.deploy.sets import FileSet, Upload
from lutra_golden.machine import cache_root
from lutra_golden.model.packed import PackedModel

EMULATED_AGENT = Path(__file__).parents[1] / "emulated_agent.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A server whose user has the programs of this machine, but none of this Python's settings."""
    folder = tmp_path_factory.mktemp("ssh")
    home, files = folder / "home of me", folder / "keys"
    home.mkdir()
    files.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LUTRA_SSH"))}
    # a simulator that was built for other tests is built
    environment["LUTRA_CACHE"] = str(cache_root())
    programs = folder / "bin"
    programs.mkdir()
    (programs / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    (programs / "sudo").chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent), environment["PATH"]]
    environment["PATH"] = os.pathsep.join(path)
    made = SshServer(home, files, environment)
    yield made
    made.close()


def use(name: str, server: SshServer, monkeypatch: pytest.MonkeyPatch, **options: str) -> None:
    if name == "ssh" and shutil.which("ssh") is None:
        pytest.skip("no OpenSSH client on PATH")
    monkeypatch.setenv("LUTRA_SSH", server.client(name, **options))


@pytest.mark.parametrize("client", CLIENTS)
def test_files(client: str, server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use(client, server, monkeypatch)
    big = {"big": os.urandom(3_000_000)}
    files = FileSet(title="model", link=f"models/{client}", files=contents(1) | big)
    with FarLink(TARGET) as link:
        Upload.compare(link, files).send(link, lambda what, share: None)
        assert Upload.compare(link, files).missing == []
    folder = server.home / ROOT / "models" / client
    for name, data in files.files.items():
        assert (folder / name).read_bytes() == data


@pytest.mark.parametrize("client", CLIENTS)
def test_a_key_that_the_board_does_not_know(
    client: str, server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(client, server, monkeypatch, key="host")
    with pytest.raises(DeployError) as error:
        FarLink(TARGET)
    text = str(error.value)
    assert f"{TARGET}: Permission denied" in text
    assert text.endswith(f"let the board know your key: `ssh-copy-id {TARGET}`")


def test_a_board_whose_key_nobody_confirmed(
    server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("ssh", server, monkeypatch, known_hosts="none")
    with pytest.raises(DeployError, match=r"\(Host key verification failed\.\): run `ssh me@127"):
        FarLink(TARGET)


def deploy(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Done]:
    """Run the command; its steps by name."""
    code = main(["deploy", TARGET, "--python", sys.executable, "--json", *arguments])
    output = capsys.readouterr()
    assert code == 0, output.err
    found = json.loads(output.out.splitlines()[-1])
    assert found["target"] == TARGET
    return {step["name"]: Done(**step) for step in found["steps"]}


def test_what_is_there_is_not_copied_again(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use("asyncssh", server, monkeypatch)
    steps = deploy(capsys, "--emulate", "u55c", "--no-test")
    assert list(steps) == ["board", "package", "program", "install", "next"]
    assert not any("there already" in step.text for step in steps.values())
    steps = deploy(capsys, "--emulate", "u55c", "--no-test")
    assert [name for name in steps if "there already" in steps[name].text] == [
        "package",
        "program",
        "install",
    ]


@pytest.mark.rtl
@pytest.mark.slow
def test_the_whole(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copy the package, install it, test an emulated card with it, and have it tell a story."""
    use("asyncssh", server, monkeypatch)
    steps = deploy(capsys, "--emulate", "u55c")
    assert list(steps) == ["board", "package", "program", "install", "self-test", "next"]
    assert steps["self-test"].text == (
        "ok: identity and fingerprint, memory, memory addresses, memory, as the accelerator reads "
        "it, units, one token"
    )
    command = steps["next"].text
    assert command.startswith(f"ssh {TARGET} ")
    client = [*shlex.split(os.environ["LUTRA_SSH"]), *shlex.split(command)[1:]]
    client[-1] += " -n 2 --temp 0 --json"
    done = subprocess.run(client, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["device"], told["emulated"], told["bit_exact"]) == ("xrt", "u55c", True)
    assert told["generated_tokens"] == 2


def test_a_self_test_that_finds_a_fault(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """The far side has another Lutra, which says so."""
    use("asyncssh", server, monkeypatch)
    checks = [
        {"name": "registers", "problem": None, "seconds": 0, "left_out": "no access"},
        {"name": "memory", "problem": "pattern random: byte 5", "seconds": 0, "left_out": None},
    ]
    answer = shlex.quote(json.dumps({"checks": checks}))
    for text, code, said in (
        (f"echo hello; echo {answer}; exit 1", 1, "WRONG: memory: pattern random: byte 5 ("),
        (
            "echo 'error: no card' >&2; exit 2",
            2,
            f"the self-test on {TARGET} could not run: no c",
        ),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("lutra.deploy.deployment._LAUNCHER", f"#!/bin/sh\n{text}\n")
            wheel = _wheel_that_needs("numpy", tmp_path)
            patch.setattr("lutra.deploy.deployment.own_wheel", lambda wheel=wheel: wheel)
            patch.setattr(Deployment, "_install", lambda *_: Done("install", "nothing", 0.0))
            assert main(["deploy", TARGET, "--python", sys.executable, "--emulate", "u55c"]) == code
        output = capsys.readouterr()
        assert said in output.out + output.err
        assert "next" not in output.out


def test_an_installation_that_fails(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """The environment from before stays."""
    use("asyncssh", server, monkeypatch)
    (tmp_path / "none-1.0-py3-none-any.whl").write_bytes(b"no archive")
    missing = "lutra-no-such-package==9.9"
    monkeypatch.setattr(
        "lutra.deploy.deployment.own_wheel", lambda: _wheel_that_needs(missing, tmp_path)
    )
    before = os.path.realpath(server.home / ROOT / "venv")
    arguments = ["deploy", TARGET, "--python", sys.executable, "--emulate", "u55c"]
    assert main([*arguments, "--wheels", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {TARGET}: pip could not install Lutra: ERROR: No matching dis")
    assert os.path.realpath(server.home / ROOT / "venv") == before


def test_an_agent(
    server: SshServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    packed: Callable[[str], PackedModel],
    program: Callable[[str], Program],
) -> None:
    """It is copied, finds files in the place of a board's, and runs the self-test's programs."""
    use("asyncssh", server, monkeypatch)
    model, tree = packed("least"), tmp_path / "tree"
    board = FileBoard(tree, program("least").config)
    compatible = tree / "proc/device-tree/compatible"
    compatible.parent.mkdir()
    compatible.write_text("xlnx,zynq-7000\0")
    found = find_overlay(build(tmp_path, "pynq_z2"), None)
    overlay = replace(found, config=program("least").config)
    command = [sys.executable, EMULATED_AGENT, f"{ROOT}/lutra_agent.py", "--stdio", "--root", tree]
    monkeypatch.setenv("LUTRA_BOARD_COMMAND", shlex.join(map(str, command)))
    deployment = Deployment(target=TARGET, overlay=overlay, agent=True, tree=str(tree))
    steps = {step.name: step for step in deployment.steps(model, progress=lambda what, share: None)}
    board.close()
    assert list(steps) == ["board", "overlay", "agent", "program", "self-test", "next"]
    assert "it does not say that it is TUL PYNQ-Z2" in steps["board"].text
    assert steps["self-test"].ok and "units, one token" in steps["self-test"].text
    assert steps["next"].text.startswith(f"lutra run -dev board://{TARGET} --config ")
    launcher = (server.home / ROOT / "agent").read_text()
    assert '/overlay/lutra.bit" --registers 0x40000000 "$@"' in launcher
    with FarLink(TARGET) as link:
        key = [f"{ROOT}/agent", "--make-key", "board.key"]
        assert link.ask("run", {"command": key, "limit_s": 60}) == 0
    assert (server.home / "board.key").stat().st_mode & 0o777 == 0o600


def _wheel_that_needs(requirement: str, folder: Path) -> tuple[str, bytes]:
    """A wheel that nothing can be installed with."""
    import zipfile

    path = folder / "lutra_fpga-0.0.1-py3-none-any.whl"
    info = "lutra_fpga-0.0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: lutra-fpga\nVersion: 0.0.1\n"
            f"Requires-Dist: {requirement}\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.name, path.read_bytes()
