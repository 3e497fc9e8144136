"""``lutra lend`` as a command: from its first line to its end."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lutra.commands.cli import main
from lutra.commands.options import check_kv
from lutra.devices.remote.device import RemoteDevice
from lutra_golden.errors import LutraError


def test_a_device_is_lent_until_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "device.key"
    assert main(["lend", "--make-key", str(key)]) == 0
    command = [sys.executable, "-m", "lutra", "lend", "-dev", "golden", "--port", "0"]
    with subprocess.Popen([*command, "--key", str(key)], stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            found = re.fullmatch(
                r"lending golden: (lutra://127.0.0.1:\d+)\n", run.stdout.readline()
            )
            assert found is not None
            monkeypatch.setenv("LUTRA_DEVICE_KEY", str(key))
            with RemoteDevice(found[1]) as device:
                device.find()
            run.send_signal(signal.SIGTERM)
            assert run.wait(60) == 0
        finally:
            run.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--listen", "0.0.0.0"], "--listen needs a shared key: add --key FILE"),
        (["--key", "nowhere.key"], "the key nowhere.key cannot be read"),
        (["--listen", "no.such.host.invalid", "--key", "KEY"], "cannot be listened at"),
    ],
)
def test_refusals(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "device.key"
    assert main(["lend", "--make-key", str(key)]) == 0
    given = [str(key) if each == "KEY" else each for each in options]
    assert main(["lend", "-dev", "golden", *given]) == 2
    assert message in capsys.readouterr().err


def test_what_a_device_elsewhere_caches_is_not_known_here() -> None:
    check_kv("8/4", "lutra://host", falls_back=False)
    check_kv("8/4", ["cpu:1", "lutra://host:1"], falls_back=False)
    with pytest.raises(LutraError, match="device rtl caches"):
        check_kv("8/4", ["lutra://host", "rtl"], falls_back=False)
