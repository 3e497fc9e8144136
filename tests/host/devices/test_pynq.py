"""The device ``pynq`` where there is no PYNQ or no board, and the lock of a board."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lutra.devices.accelerator.bitstreams import default_bitstream
from lutra.devices.accelerator.lock import BoardLock
from lutra.devices.accelerator.pynq import PynqTransport, describe_board
from lutra.devices.base import DeviceError
from lutra.devices.choose import choose_device
from lutra_golden.core.configs import NANO
from lutra_golden.errors import LutraError
from lutra_golden.install import install_command


def test_without_the_package_one_line_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynq", None)
    message = (
        f"device pynq needs pynq, which is not installed: run `{install_command('pynq')}`; without "
        "a board add --emulate kv260, or take another device"
    )
    for use in (lambda: PynqTransport().open(NANO, 1 << 20), describe_board):
        with pytest.raises(LutraError) as error:
            use()
        assert str(error.value) == message
    # which --emulate does not replace
    with pytest.raises(LutraError) as error:
        choose_device("pynq", emulate="kv260")[0].find()  # type: ignore[union-attr]
    assert str(error.value) == message.replace("; without a board add --emulate kv260", "")


@pytest.mark.pynq
def test_where_there_is_no_board_one_line_says_so() -> None:
    with pytest.raises(LutraError, match=r"^device pynq finds no board: run it as root on a boa"):
        PynqTransport().open(NANO, 1 << 20)


@pytest.mark.parametrize(
    ("variable", "place"), [("LUTRA_CACHE", "bitstreams"), ("LUTRA_BITSTREAMS", ".")]
)
def test_a_missing_bitstream_is_named(
    variable: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by the name of its file, or by the file beside it that a build writes."""
    monkeypatch.delenv("LUTRA_BITSTREAMS", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    folder = tmp_path / place
    with pytest.raises(LutraError) as error:
        default_bitstream(NANO, ".bit")
    assert str(error.value) == (
        f"there is no bitstream of configuration nano (fingerprint {NANO.fingerprint:016x}) in "
        f"{folder}: make one with `lutra build`, and put its .bit file there with those beside it"
    )
    folder.mkdir(exist_ok=True)
    path = folder / "lutra.bit"
    path.touch()
    facts = {"configuration": "nano", "fingerprint": f"{NANO.fingerprint:016x}"}
    path.with_suffix(".json").write_text(json.dumps(facts))
    assert default_bitstream(NANO, ".bit") == path
    named = folder / f"{NANO.fingerprint:016x}.bit"
    named.touch()
    assert default_bitstream(NANO, ".bit") == named


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cpu", {"emulate": "kv260"}, "device cpu drives no kv260: choose device pynq"),
        ("pynq", {"emulate": "kv261"}, "the board must be one of kv260"),
        (
            "pynq",
            {"emulate": "pynq_z2"},
            "board pynq_z2 is driven through its agent: emulate kv260, u50 or u55c$",
        ),
        ("rtl", {"bitstream": Path("x.bit")}, "only a board loads a bitstream: leave bitstream ou"),
        (
            "pynq",
            {"bitstream": Path("x.bit"), "emulate": "kv260"},
            "only a board loads a bitstream: leave bitstream out",
        ),
        ("pynq", {"bitstream": Path("no.bit")}, r"there is no bitstream no\.bit: give one that `"),
        ("xrt", {"bitstream": Path("no.xclbin")}, r"there is no bitstream no\.xclbin: give one"),
        ("pynq", {"bitstream": "a.bit"}, r"bitstream must be a pathlib\.Path, not 'a\.bit'$"),
        ("auto", {"bitstream": "a.bit"}, r"bitstream must be a pathlib\.Path, not 'a\.bit'$"),
        ("pynq", {"threads": 2}, "only device cpu has threads, pynq has none: leave threads out"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(LutraError, match=f"^{message}"):
        choose_device(name, **options)  # pyright: ignore[reportArgumentType]


def test_a_lock_is_one_processs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # of a process that had it before
    (tmp_path / "lutra-a-board-of-tests.lock").write_text("1234567890123456\n")
    message = rf"^device pynq is in use by process {os.getpid()}: wait until it is done, or end it$"
    first, second = BoardLock("a board/of tests"), BoardLock("a board/of tests")
    first.acquire("pynq")
    with pytest.raises(DeviceError, match=message):
        second.acquire("pynq")
    other = BoardLock("another board of tests")
    other.acquire("pynq")
    other.release()
    first.release()
    first.release()
    second.acquire("pynq")
    second.release()


def test_a_lock_that_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "lutra-x.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match=r"^device pynq cannot be locked by .*: remove that file"):
        BoardLock("x").acquire("pynq")


@pytest.mark.pynq
def test_the_package_is_imported_when_the_device_is_opened() -> None:
    program = "import sys, lutra.devices.choose; sys.exit('pynq' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
