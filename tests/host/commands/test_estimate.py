"""``lutra estimate``: what it prints, what it refuses, and what it does not need."""

import json
import subprocess
import sys

import pytest

from lutra.commands.cli import main
from lutra.estimate.outline import open_outline
from lutra.estimate.points import model_error
from lutra.estimate.speed import estimate
from lutra_golden.timing.boards import BOARD_PROFILES

Capture = pytest.CaptureFixture[str]

SIZES = ["-p", "64", "-c", "512", "-b", "2"]


def test_json(capsys: Capture) -> None:
    arguments = ["-m", "random:qwen2.5-0.5b", "--config", "u50", "--kv", "4", *SIZES]
    assert main(["estimate", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = open_outline("random:qwen2.5-0.5b", kv_bits=4)
    expected = estimate(model, "u50", prompt=64, context=512, sequences=2)
    assert found["decode_tokens_per_s"] == expected.decode.tokens_per_s
    assert found["prefill_tokens_per_s"] == expected.prefill.tokens_per_s
    assert found["ttft_s"] == expected.ttft_s
    assert found["model_error"] == model_error().worst
    assert found["model_error_points"] == model_error().n_points
    assert found["kind"] == "modelled"
    assert (found["prompt"], found["context"], found["sequences"]) == (64, 512, 2)
    assert found["kv_bytes"] == expected.memory.kv
    for name, phase in (("prefill", expected.prefill), ("decode", expected.decode)):
        each = found[name]
        assert (each["cycles"], each["bytes"]) == (phase.cycles, phase.n_bytes)
        assert sum(part["cycles"] for part in each["operations"]) == phase.cycles
        assert sum(part["bytes"] for part in each["operations"]) == phase.n_bytes
        assert each["bound_by"] == phase.limit[0]


def test_text(capsys: Capture) -> None:
    """Every figure says that it is modelled, and how far the formulas were off."""
    assert main(["estimate", "--config", "kv260"]) == 0
    out = capsys.readouterr().out
    assert "tales in W1.58A8 on kv260, configuration kv260: modelled" in out
    assert "| decode | head | matmul | memory |" in out
    assert "bound by weights on their memory port" in out
    error = model_error()
    assert f"up to {error.worst:.1%} ({error.point}), in {error.n_points} points that" in out
    assert "no board was measured" in out


def test_boards(capsys: Capture) -> None:
    """Each is a row; a board that is too small says what is missing."""
    arguments = ["estimate", "-m", "random:bitnet-2b-4t", "--boards"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ")[0].strip("| ") for line in out.splitlines() if line[:2] == "| "]
    assert rows == ["board", *BOARD_PROFILES]
    assert "kv260: random:bitnet-2b-4t in W1.58A8 needs 1,425 MiB" in out
    assert "error of the cycles against RTL" in out
    assert main([*arguments, "--json"]) == 0
    boards = json.loads(capsys.readouterr().out)["boards"]
    assert boards.keys() == BOARD_PROFILES.keys()
    assert "board kv260 has 1,000 MiB" in boards["kv260"]["refused"]
    assert boards["u50"]["decode_tokens_per_s"] > boards["u50"]["sequences"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-m random:bitnet-2b-4t", "board kv260 has 1,000 MiB: give --config u50"),
        ("-m random:bitnet-2b-4t --config u50 -c 9999", "has 4096: give -p 128 -c 4095"),
        ("--config v80", "argument --config: invalid choice: 'v80'"),
        ("--config u50 --boards", "not allowed with argument"),
        ("-p 0", "argument -p/--n-prompt: must be 1 or more, not 0"),
        ("-b 0", "argument -b/--batch: must be 1 to 1024, not 0"),
        ("-m nowhere", "model 'nowhere' is neither a folder nor a shipped model"),
        ("--engine ternary -m tales-llama -p 16", "engine ternary does not run W8A8"),
        ("--kv 8/4 -p 16", "8/4"),
    ],
)
def test_refusals_are_one_line(arguments: str, message: str, capsys: Capture) -> None:
    assert main(["estimate", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_nothing_heavy_is_imported() -> None:
    """No HDL, no framework, no compiler of kernels: formulas take milliseconds."""
    heavy = "amaranth cocotb lutra_hw matplotlib torch triton"
    code = (
        "import sys; from lutra.commands.cli import main; "
        "code = main(['estimate', '-m', 'random:llama-3-8b', '--boards', '--json']); "
        f"found = [name for name in {heavy.split()} if name in sys.modules]; "
        "sys.exit(code or ', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
