"""The link of ``lutra deploy``: sets of files that arrive whole or not at all, and what is refused.

The other side is a home folder of this machine, behind a program in the place of ``ssh``.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.host.deploy.test_checks import build
from tests.host.devices.test_board import PYTHONS

from lutra.deploy import far
from lutra.deploy.deployment import Deployment
from lutra.deploy.link import DeployError, FarLink, check_target
from lutra.deploy.overlay import find_overlay
from lutra.deploy.sets import FileSet, Upload
from lutra.devices.accelerator.bitstreams import (
    FOLDER_VARIABLE,
    default_bitstream,
    default_bitstreams,
)
from lutra.devices.accelerator.hwh import hwh
from lutra_golden.errors import LutraError
from lutra_golden.timing.boards import find_profile

LOCAL_SSH = Path(__file__).with_name("local_ssh.py")
NAMES = ['it\'s "a" $(touch x) `y` \\ z.txt', "-o.txt", "a b/é 文.bin", "new\nline", "empty"]


class Far:
    """The other side: its home, and the client that reaches it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.programs = folder / "home", folder / "bin"
        self.home.mkdir()
        self.programs.mkdir()
        self.root = self.home / far.ROOT
        self._monkeypatch = monkeypatch
        self.use_python(sys.executable)
        self.limit(0)

    def use_python(self, path: str) -> None:
        """Have this Python there."""
        self.program("python3", f'exec {shlex.quote(path)} "$@"')

    def program(self, name: str, text: str) -> None:
        """Have a program there."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def limit(self, n_bytes: int) -> None:
        """Have links end after as many bytes; 0 is never."""
        command = [sys.executable, LOCAL_SSH, self.home, self.programs, n_bytes]
        self._monkeypatch.setenv("LUTRA_SSH", shlex.join(map(str, command)))

    def send(self, files: FileSet) -> list[str]:
        """Upload a set; names of the files that had to be copied."""
        with FarLink("me@board") as link:
            upload = Upload.compare(link, files)
            upload.send(link, lambda what, share: None)
            return upload.missing

    def read(self, link: str) -> dict[str, bytes]:
        """Files of the set that a link leads to."""
        folder = self.root / link
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    return Far(tmp_path, monkeypatch)


def contents(n: int) -> dict[str, Path | bytes]:
    """Files with names that a shell would take apart."""
    return {name: f"{n} {name}".encode() * 9 * i for i, name in enumerate(NAMES[::-1])}


def a_set(files: dict[str, Path | bytes], **options: object) -> FileSet:
    return FileSet(title="model", link="models/one's", files=files, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: path.parent.parent.name)
def test_names_and_bytes_arrive_as_they_are(python: Path, other: Far) -> None:
    other.use_python(str(python))
    assert sorted(other.send(a_set(contents(1)))) == sorted(NAMES)
    assert other.read("models/one's") == contents(1)
    assert not (other.home / "x").exists()
    assert other.send(a_set(contents(1))) == []


@pytest.mark.parametrize(("board", "suffix"), [("kv260", ".bit"), ("u55c", ".xclbin")])
def test_a_bitstream_that_was_deployed_is_found_without_its_name(
    board: str, suffix: str, other: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``auto``, too, which looks in the same place; whoever starts Lutra, from wherever."""
    folder = build(tmp_path, board)
    overlay = find_overlay(folder, None)
    if suffix == ".bit":
        text = hwh(find_profile(board), overlay.config)
        (folder / "deploy/lutra.hwh").write_text(text)
    deployment = Deployment(target="me@board", overlay=overlay)
    for files in deployment._sets([], ("lutra.whl", b"no archive")):
        other.send(files)
    python = other.root / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "${FOLDER_VARIABLE}"\n')
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    launcher = os.path.relpath(other.root / "lutra", tmp_path)
    said = subprocess.check_output([launcher, "run"], cwd=tmp_path, env=environment, text=True)
    monkeypatch.setenv(FOLDER_VARIABLE, said.splitlines()[-1])
    [found] = default_bitstreams(suffix)
    assert (found.config, found.fingerprint) == (board, overlay.config.fingerprint)
    assert default_bitstream(overlay.config, suffix) == found.path
    assert found.path.read_text() == f"{board} {suffix}"
    assert "--bitstream" not in deployment.arguments()


def test_only_what_changed_is_copied(other: Far) -> None:
    other.send(a_set(contents(1)))
    changed = contents(1) | {NAMES[0]: b"another", "more": b"one more"}
    del changed["empty"]
    assert sorted(other.send(a_set(changed))) == sorted([NAMES[0], "more"])
    assert other.read("models/one's") == changed
    # what was there before is gone, and what another link leads to is not
    other.send(FileSet(title="model", link="models/two", files={"b": b"2"}))
    assert other.read("models/one's") == changed
    assert len(list((other.root / "store").iterdir())) == 2


def test_a_file_that_was_spoilt_there_is_copied_again(other: Far) -> None:
    other.send(a_set(contents(1)))
    (other.root / "models/one's" / NAMES[0]).write_bytes(b"spoilt")
    assert other.send(a_set(contents(1))) == [NAMES[0]]
    assert other.read("models/one's") == contents(1)


def test_a_link_that_drops_leaves_what_was_there(other: Far, tmp_path: Path) -> None:
    """And the next run copies what is not there yet."""
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 4096)
    old, new = contents(1), contents(2) | {"z-big": big}
    other.send(a_set(old))
    other.limit(len(Path(far.__file__).read_bytes()) + 200_000)
    with pytest.raises(DeployError) as error:
        other.send(a_set(new))
    assert str(error.value) == (
        "the link to me@board ended while copying (Connection to the board closed by remote host."
        "): run the same command again, which goes on where this one ended"
    )
    assert other.read("models/one's") == old
    other.limit(0)
    assert other.send(a_set(new)) == ["z-big"]
    assert other.read("models/one's") == {**contents(2), "z-big": big.read_bytes()}
    assert sorted(path.name for path in other.root.iterdir()) == ["lock", "models", "store"]
    assert len(list((other.root / "store").iterdir())) == 1


def test_programs_and_single_files(other: Far) -> None:
    files: dict[str, Path | bytes] = {"hello": b"#!/bin/sh\necho hello $1\nexit 3\n"}
    other.send(FileSet(title="program", link="say", files=files, target="hello", executable=True))
    said: list[tuple[str, str]] = []
    with FarLink("me@board") as link:
        command = [".lutra/say", "a b"]
        fields = {"command": command, "limit_s": 9}
        assert link.ask("run", fields, note=lambda *n: said.append(n)) == 3
        assert said == [("out", "hello a b")]
        with pytest.raises(DeployError, match=r"^me@board: no-such cannot be run \(No such file"):
            link.ask("run", {"command": ["no-such"], "limit_s": 9})


def test_a_program_ends_with_the_link(other: Far) -> None:
    with FarLink("me@board") as link:
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
        started: list[int] = []

        def hear(_stream: str, line: str) -> None:
            started.append(int(line))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            link.ask("run", {"command": [sys.executable, "-c", code], "limit_s": 90}, note=hear)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{started[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{started[0]}").exists()


def test_a_program_that_goes_on_for_ever(other: Far) -> None:
    with FarLink("me@board") as link:
        with pytest.raises(DeployError, match=r"^me@board: sleep is not done after 0.5 s$"):
            other.program("sleep", "exec /bin/sleep 100")
            link.ask("run", {"command": ["sleep", "100"], "limit_s": 0.5})


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({"name": "missing", "kind": "a", "digest": "b", "files": [["../x", 1, "", 0]]}, "'../x'"),
        ({"name": "missing", "kind": "a/..", "digest": "b", "files": []}, "a/..-b is no name of"),
        ({"name": "put", "kind": "a", "digest": "b", "file": ["/x", 1, "", 0]}, "'/x' is no path"),
        (
            {"name": "commit", "kind": "a", "digest": "b", "files": [["c", 1, "d", 0]], "link": "l",
             "target": ""},
            "c of l is not whole on the disk",
        ),
        ({"name": "alone"}, "alone is no request: use one version of Lutra"),
        ({"name": "run", "command": []}, "missing 1 required positional argument"),
    ],
)  # fmt: skip
def test_the_other_side_keeps_to_its_folder(
    request_: dict[str, object], problem: str, other: Far
) -> None:
    with FarLink("me@board") as link, pytest.raises(DeployError) as error:
        link.ask(str(request_.pop("name")), request_)
    assert problem in str(error.value)


def test_bytes_that_changed_on_the_way(other: Far) -> None:
    own = {"kind": "a", "digest": "b"}
    with FarLink("me@board") as link:
        with pytest.raises(DeployError, match=r"^me@board: c arrived with another checksum$"):
            link.ask("put", {**own, "file": ["c", 4, "0" * 64, 0o644]}, [b"1234"])
    assert not list((other.root / "store").rglob("c"))


def test_a_file_that_is_in_the_way(other: Far) -> None:
    (other.root / "models/one's").mkdir(parents=True)
    with pytest.raises(DeployError, match="models/one's is not of `lutra deploy`: move it away"):
        other.send(a_set({"a": b"1"}))


def test_two_deployments_at_once(other: Far) -> None:
    with FarLink("me@board") as link:
        link.ask("missing", {"kind": "a", "digest": "b", "files": []})
        with pytest.raises(DeployError, match="another `lutra deploy` is at work here"):
            other.send(a_set({"a": b"1"}))


def test_a_file_that_became_shorter(other: Far, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with FarLink("me@board") as link:
        upload = Upload.compare(link, a_set({"a": path}))
        path.write_bytes(b"12")
        with pytest.raises(DeployError, match="became shorter while it was copied: run this agai"):
            upload.send(link, lambda what, share: None)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Host key verification failed.", "run `ssh me@board` once, compare the key and accept it"),
        ("me@board: Permission denied (publickey).", "know your key: `ssh-copy-id me@board`"),
        ("ssh: Could not resolve hostname board: Name or service not known", "give the address"),
        ("ssh: connect to host board port 22: Connection refused", "start the SSH server of the"),
    ],
)
def test_what_ssh_says(
    said: str, advice: str, other: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ssh"
    path.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 255\n")
    path.chmod(0o755)
    monkeypatch.setenv("LUTRA_SSH", str(path))
    with pytest.raises(DeployError) as error:
        FarLink("me@board")
    text = str(error.value)
    assert text.startswith("the link to me@board ended while ")
    assert f"({said}): " in text and advice in text and "\n" not in text


def test_no_client_and_no_python(
    other: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other.programs / "python3").unlink()
    with pytest.raises(DeployError, match=r"^me@board has no python3 \(.*\): install Python 3.8"):
        FarLink("me@board")
    other.program("python3", "echo 'Python 3.8 or later is needed' >&2; exit 1")
    with pytest.raises(DeployError, match=r"is needed\): install it on the board$"):
        FarLink("me@board")
    other.program("python3", "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done")
    with pytest.raises(DeployError, match="answers with something else than Lutra: see `ssh -v`"):
        FarLink("me@board")
    monkeypatch.setenv("LUTRA_SSH", str(tmp_path / "no-such-program"))
    with pytest.raises(DeployError, match=r"no-such-program cannot be started \(No such file"):
        FarLink("me@board")


@pytest.mark.parametrize("target", ["-oProxyCommand=x", "a b", "", "me@", "me@-x", "a;b", "a@b@c"])
def test_targets_that_ssh_would_take_for_something_else(target: str) -> None:
    with pytest.raises(LutraError, match=r"^the board is USER@HOST as for ssh, not"):
        check_target(target)


def test_facts(other: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    for name, text in (
        ("proc/device-tree/model", "ZynqMP SMK-K26 Rev1\0"),
        ("proc/device-tree/chosen/pynq_board", "KV260\0"),
        ("proc/device-tree/compatible", "xlnx,zynqmp-sk-kv260\0xlnx,zynqmp\0"),
        ("sys/class/u-dma-buf/udmabuf0/size", "1"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    other.program("sudo", "exit 0")
    with FarLink("me@board") as link:
        facts = link.ask("probe", {"python": None, "tree": str(tree)})
    assert facts["names"] == ["ZynqMP SMK-K26 Rev1", "KV260"]
    assert facts["compatible"] == ["xlnx,zynqmp-sk-kv260", "xlnx,zynqmp"]
    assert facts["sudo"] and facts["buffers"] == ["udmabuf0"]
    assert facts["python"]["version"] == list(sys.version_info[:3])
    assert facts["python"]["packages"]["numpy"] and facts["free_bytes"] > 0
    json.dumps(facts)
    with FarLink("me@board") as link:
        with pytest.raises(DeployError, match=r"^me@board: /no/python cannot be run \(No such f"):
            link.ask("probe", {"python": "/no/python", "tree": str(tree)})
