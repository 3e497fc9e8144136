"""Commands in docs/boards.md: each is parsed by the program that it calls."""

import re
import shlex

import pytest
from tests.pyproject import ROOT

from lutra.commands.cli import command_parser

PAGE = (ROOT / "docs/boards.md").read_text(encoding="utf-8")
LUTRA = (".venv/bin/lutra", "lutra", ".lutra/lutra")
OTHERS = {
    # of programs that are not ours, as their own pages have them
    "ssh-copy-id ubuntu@BOARD",
    "ssh-copy-id root@BOARD",
    "ssh-copy-id USER@BOARD",
    "modprobe u-dma-buf udmabuf0=0x4000000",
    "git clone https://github.com/Xilinx/Kria-PYNQ",
    "cd Kria-PYNQ",
    "sudo bash install.sh -b KV260",
    ". /opt/xilinx/xrt/setup.sh; export LUTRA_BITSTREAMS=build-u55c/deploy",
}


def commands() -> list[str]:
    """Commands of the page: of its steps, its lines of code, and those of ours in its text."""
    steps = re.findall(r"^\| \d\. [^|]* \| `([^`]+)` \|", PAGE, re.MULTILINE)
    lines = re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)
    spans = re.findall(r"`((?:\.venv/bin/)?lutra [a-z]+ [^`]+)`", PAGE)
    return list(dict.fromkeys([*steps, *lines, *spans]))


def check(command: str) -> int:
    """Parse a command, or those that a login runs; the number of those that are ours."""
    words = shlex.split(command)
    if words[0] == "ssh":
        options = 2 if words[1] == "-t" else 1
        return sum(map(check, " ".join(words[options + 1 :]).split(" && ")))
    if words[0] == "sudo" and words[1] in LUTRA:
        del words[0]
    if words[0] not in LUTRA:
        assert command in OTHERS
        return 0
    # the page's names for what the reader has
    words = ["kv260" if word == "NAME" else word for word in words]
    assert callable(command_parser().parse_args(words[1:]).command)
    return 1


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_page(command: str) -> None:
    check(command)


def test_the_way_to_text_is_short_and_ours() -> None:
    for board, end in (("KV260", "PYNQ-Z2"), ("PYNQ-Z2", "U55C"), ("U55C", "What has run")):
        section = PAGE[PAGE.index(f"## {board}") : PAGE.index(f"## {end}")]
        steps = re.findall(r"^\| \d\. [^|]* \| `([^`]+)` \| [^|]+ \|$", section, re.MULTILINE)
        assert 3 <= len(steps) <= 5
        assert sum(map(check, steps)) >= 3
