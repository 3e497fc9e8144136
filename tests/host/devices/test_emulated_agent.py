"""The agent without a board: the lines of docs/agent.md, as they stand there."""

import os
import re
import shlex
import socket
import subprocess
import sys

from tests.pyproject import ROOT

from lutra.devices.accelerator.agent import PORT
from lutra.devices.emulated.agent import InterpretedAccelerator
from lutra_golden.core.configs import NANO


def lines(port: int) -> list[list[str]]:
    """Commands of the page's section, by this Python, with a port that is free."""
    text = (ROOT / "docs/agent.md").read_text(encoding="utf-8")
    section = text[text.index("## Without a board") : text.index("## On a board")]
    found = re.findall(r"^    (\S.*)$", section, re.MULTILINE)
    assert all(str(PORT) in line for line in found)
    commands = [shlex.split(line.replace(str(PORT), str(port))) for line in found]
    for command in commands:
        if command[0] == ".venv/bin/lutra":
            command[:1] = [".venv/bin/python", "-m", "lutra"]
        assert command[0] == ".venv/bin/python"
        command[0] = sys.executable
    return commands


def test_the_lines_of_the_page() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    agent, *hosts = lines(port)
    environment = os.environ | {"COLUMNS": "100"}
    with subprocess.Popen(agent, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            assert f"listens at 127.0.0.1 port {port}" in process.stderr.readline()
            assert len(hosts) == 2
            story, tests = (
                subprocess.run(host, capture_output=True, text=True, env=environment, check=False)
                for host in hosts
            )
        finally:
            process.terminate()
    assert story.returncode == 0, story.stderr
    assert story.stdout.startswith("Once upon a time there was a king")
    assert re.search(r"generated tokens +8", story.stdout)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert [line.split("  ")[-1] for line in tests.stdout.splitlines()] == ["ok"] * 7


def test_a_run_is_busy_until_it_is_over() -> None:
    accelerator = InterpretedAccelerator(NANO, 1 << 20)
    assert accelerator.regions == ((0x4_0000, 1 << 20),)
    assert accelerator.read_register(0x014) == 0
    accelerator.write_register(0x010, 1)
    assert accelerator.read_register(0x014) & 1
    accelerator.write_register(0x010, 2)
    assert not accelerator.read_register(0x014) & 1
    accelerator.close()
