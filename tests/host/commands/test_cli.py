"""The command line: what it prints, its exit codes, and one line for whatever goes wrong."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.host.random_model import Shape, write_model

from lutra.commands import generate
from lutra.commands.cli import main
from lutra.devices.base import Chunk, PassResult
from lutra.devices.choose import DEVICES, most_threads
from lutra.devices.golden import GoldenDevice
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

FULL = Path("/dev/full")
STORY = ["run", "-dev", "golden"]
PROGRAM = ["run", "-dev", "interpreted"]
KEYS = {
    "device",
    "config",
    "engine",
    "format",
    "group",
    "kv_bits",
    "model",
    "text",
    "finish_reason",
    "interrupted",
    "prompt_tokens",
    "computed_tokens",
    "generated_tokens",
    "drafted_tokens",
    "accepted_tokens",
    "prefill_cycles",
    "decode_cycles_per_token",
    "simulated_cycles_per_s",
    "decode_tokens_per_s",
    "bit_exact",
    "fingerprint",
}
Capture = pytest.CaptureFixture[str]
WAIT_S = 600
"""Time after which a command hangs."""


def fails(capsys: Capture, *arguments: str) -> str:
    """Run a command that cannot succeed; return the one line that it says."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    assert lines[0].startswith("error: ")
    assert output.out == ""
    return lines[0].removeprefix("error: ")


def lutra(
    *arguments: str, stdout: IO[str] | int = subprocess.PIPE, encoding: str = "utf-8"
) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "lutra", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )


# -- run


def test_a_story_and_its_table(capsys: Capture) -> None:
    assert main([*STORY, "-p", "Once upon a time", "-n", "3", "--temp", "0", "--check"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("Once upon a time")
    rows = [re.split(r"\s{2,}", line.strip()) for line in output.out.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) > 1}
    assert table["device"] == ["golden"]
    assert not {"configuration", "engine"} & table.keys()
    assert table["model"] == ["tales"]
    assert table["generated tokens"] == ["3"]
    assert table["decode tokens per second"][1] == "measured here"
    assert table["bit-exact with the golden model"] == ["yes"]


def test_a_story_with_a_stop_string_and_biases(capsys: Capture) -> None:
    options = ["-p", "The king", "-n", "24", "--temp", "0", "--json"]
    more = ["--repeat-penalty", "1.3", "--min-p", "0.1", "--logit-bias", "70=-5"]

    def story(*arguments: str) -> dict[str, Any]:
        assert main([*STORY, *options, *arguments]) == 0
        figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return figures

    plain = story()
    assert plain["finish_reason"] == "length"
    stop = plain["text"][8:11]
    found = story("--stop", stop, "--stop", "no such text")
    assert found["finish_reason"] == "stop"
    assert found["text"] == plain["text"][: plain["text"].index(stop)]
    assert found["tokens"] == plain["tokens"][: len(found["tokens"])]
    assert story(*more)["tokens"] != plain["tokens"]
    first = plain["tokens"][0]
    assert first not in story("--logit-bias", f"{first}=-100")["tokens"]


def test_json_is_the_last_line(capsys: Capture) -> None:
    assert main([*STORY, "-p", "The king", "-n", "3", "--json", "--seed", "5"]) == 0
    *story, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures.keys() >= KEYS
    assert "\n".join(story).rstrip("\n") == "The king" + figures["text"].rstrip("\n")
    assert (figures["device"], figures["config"], figures["model"]) == ("golden", None, "tales")
    assert (figures["engine"], figures["format"], figures["group"]) == (None, "W1.58A8", None)
    assert figures["generated_tokens"] == len(figures["tokens"]) == 3
    assert figures["prompt_tokens"] == figures["computed_tokens"] > 1
    assert figures["reused_tokens"] == 0 and not figures["interrupted"]
    assert figures["finish_reason"] == "length"
    assert figures["prefill_cycles"] is figures["decode_cycles_per_token"] is None
    assert figures["bit_exact"] is None
    assert figures["kinds"] == dict.fromkeys(
        ("prefill_tokens_per_s", "decode_tokens_per_s"), "measured"
    )
    assert figures["fingerprint"] is figures["program_fingerprint"] is None
    assert main([*STORY, "-p", "The king", "-n", "3", "--json", "--seed", "5"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["tokens"] == figures["tokens"]


def test_without_a_number_the_story_is_as_long_as_the_context_lets_it(capsys: Capture) -> None:
    prompt = "the " * 250
    assert main([*STORY, "-p", prompt, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["prompt_tokens"] + figures["generated_tokens"] <= 256
    assert figures["generated_tokens"] >= 1


def test_what_a_terminal_can_not_show_is_replaced() -> None:
    command = lutra(*STORY, "-p", "Der König", "-n", "1", encoding="ascii")
    out, err = command.communicate(timeout=WAIT_S)
    assert (command.returncode, err) == (0, "")
    assert out.startswith("Der K?nig")


@pytest.mark.parametrize(
    ("options", "config", "engine", "format", "group"),
    [
        ([], "nano-lut-k32-g32", "lut", "W8A8g32", 64),
        (["--format", "w2a8", "--group", "128"], "nano-lut", "lut", "W2A8", 128),
        (["--format", "W4A16", "--engine", "mixpe"], "nano-mixpe-a16", "mixpe", "W4A16", 64),
    ],
)
def test_engine_format_and_group(
    options: list[str], config: str, engine: str, format: str, group: int, capsys: Capture
) -> None:
    arguments = [*PROGRAM, "-m", "tales-llama", "-p", "The king", "-n", "2", *options]
    assert main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["config"], figures["engine"]) == (config, engine)
    assert (figures["format"], figures["group"]) == (format, group)
    for name in ("fingerprint", "program_fingerprint"):
        assert re.fullmatch("[0-9a-f]{16,}", figures[name])
    assert main(arguments) == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["engine", engine] in rows
    assert ["format", format] in rows


# -- what goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "tpu"], r"argument --engine: invalid choice: 'tpu' .*: see lutra run --help"),
        (["--kv", "5"], r"argument --kv: kv must be 8, 8/4 or 4 bits, not 5: see lutra run --help"),
        (["--group", "48"], r"argument --group: invalid choice: 48 .*: see lutra run --help"),
        (
            ["--format", "W5A8"],
            (
                r"argument --format: format must be one of W1A8, W1\.58A8, .*, not 'W5A8': "
                "see lutra run --help"
            ),
        ),
        (
            ["-m", "tales-llama", "--engine", "ternary"],
            "engine ternary does not run W8A8, only .*: use engine lut, mixpe or mac",
        ),
        (["--format", "W4A8"], r"the weights of tales are ternary .*: use format W1\.58A8, .*"),
        (
            ["-m", "tales-llama", "--format", "W1.58A8"],
            ".* is for ternary weights only: use format .*",
        ),
    ],
)
def test_engines_and_formats_that_can_not_be(
    options: list[str], message: str, capsys: Capture
) -> None:
    assert re.fullmatch(message, fails(capsys, *PROGRAM, *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("-dev golden --config nano", "device golden has no configuration to choose: leave conf"),
        ("-dev auto --config nano", "device auto has no configuration to choose: leave config "),
        ("-dev golden --engine lut", "device golden has no matmul engine to choose: leave engin"),
        ("-dev golden -t 2", "only device cpu has threads, golden has none: leave threads out"),
        ("-dev rtl -t 2", "only device cpu has threads, rtl has none: leave threads out"),
        ("-dev golden --group 64", "the weights of tales are in no groups: leave group out"),
    ],
)
def test_what_would_change_nothing_is_refused(options: str, message: str, capsys: Capture) -> None:
    assert re.match(message, fails(capsys, "run", *options.split()))


def test_an_unknown_model(capsys: Capture) -> None:
    message = fails(capsys, *STORY, "-m", "no-such-model")
    assert message.startswith("model 'no-such-model' is neither a folder nor a shipped model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", Shape(hidden_size=32, intermediate_size=32))


def test_a_truncated_model(folder: Path, capsys: Capture) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = fails(capsys, *STORY, "-m", str(folder))
    assert re.fullmatch(
        rf"{path} is not a whole safetensors file \(.*\): copy or download it again", message
    )


def test_a_model_with_a_missing_tensor(folder: Path, capsys: Capture) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    message = fails(capsys, *STORY, "-m", str(folder))
    assert "has no tensor model.norm.weight" in message


def test_a_model_with_values_that_are_no_numbers(folder: Path, capsys: Capture) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = np.full(32, np.nan, np.float32)
    save_file(tensors, path)
    assert "model.norm.weight holds infinities or NaNs" in fails(capsys, *STORY, "-m", str(folder))


def test_an_unknown_architecture(folder: Path, capsys: Capture) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("BitNetForCausalLM", "GPT2LMHeadModel"))
    message = fails(capsys, *STORY, "-m", str(folder))
    assert "architecture 'GPT2LMHeadModel' is not supported" in message
    assert "supported are BitNetForCausalLM, " in message
    assert message.endswith("Qwen3ForCausalLM: give a model of one of these")


def test_a_tokenizer_of_another_model(tmp_path: Path, capsys: Capture) -> None:
    folder = write_model(tmp_path / "model", Shape(vocab_size=256))
    assert "mixes two models" in fails(capsys, *STORY, "-m", str(folder))


def test_a_prompt_that_is_too_long(capsys: Capture) -> None:
    message = fails(capsys, *STORY, "-p", "king " * 300)
    assert re.fullmatch(
        r"the prompt has \d+ tokens, the context 256: shorten the prompt to at most 255 tokens",
        message,
    )


@pytest.mark.parametrize("name", ["text.txt", "model.safetensors"])
def test_a_file_that_is_no_model(name: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / name
    path.write_text("Once upon a time")
    expected = (
        f"{path} is not a GGUF file: give one, or the folder that holds config.json and "
        "model.safetensors"
    )
    assert fails(capsys, *STORY, "-m", str(path)) == expected
    assert fails(capsys, "pack", str(path), "-o", str(tmp_path / "out")) == expected
    assert fails(capsys, "show", str(path)) == expected


def test_random_weights_can_only_be_measured(capsys: Capture) -> None:
    assert fails(capsys, *STORY, "-m", "random:bitnet-2b-4t") == (
        "model random:bitnet-2b-4t has random weights, which can only be measured: "
        "lutra bench -m random:bitnet-2b-4t"
    )


@pytest.mark.parametrize("n", ["255", "256", "100000"])
def test_more_tokens_than_the_prompt_leaves(n: str, capsys: Capture) -> None:
    assert re.fullmatch(
        rf"{n} tokens cannot be generated: the prompt takes \d of 256 positions: ask for 1 to 25\d",
        fails(capsys, *STORY, "-p", "A king", "-n", n),
    )


def test_a_model_that_the_configuration_is_enlarged_for(tmp_path: Path, capsys: Capture) -> None:
    folder = write_model(tmp_path / "model", Shape())
    assert main([*PROGRAM, "-m", str(folder), "-p", "A", "-n", "2", "--check", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["config"], figures["bit_exact"]) == ("nano-fit", True)


def test_a_model_that_no_configuration_holds(tmp_path: Path, capsys: Capture) -> None:
    folder = write_model(tmp_path / "model", Shape(intermediate_size=72))
    assert fails(capsys, *PROGRAM, "-m", str(folder), "-p", "A") == (
        "no configuration holds model: depth_tile must be one of 64, 32, 16 and divide groups and "
        "depths 64, 64, 72"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND: see lutra --help"),
        (["rnu"], r"argument COMMAND: invalid choice: .*: see lutra --help"),
        (["run", "--no-such"], r"unrecognized arguments: --no-such: see lutra run --help"),
        (["run", "--config", "giant"], r"argument --config: invalid choice: 'giant'"),
        (["run", "--device", "gpu"], r"argument -dev/--device: invalid choice: 'gpu'"),
        (
            [*STORY, "--wave", "x.vcd"],
            "only device rtl writes a waveform: choose it, or leave wave out",
        ),
        (
            ["run", "-dev", "cpu", "--emulate", "kv260"],
            "device cpu drives no kv260: choose device pynq$",
        ),
        (
            ["run", "--bitstream", "x.bit"],
            "only a board loads a bitstream: leave bitstream out$",
        ),
        (["run", "--wave", "x.txt"], r"a waveform file must end in \.vcd or \.fst, not 'x\.txt'"),
        (["run", "--wave-cycles", "0:9"], "--wave-cycles needs --wave FILE"),
        (["run", "--wave-cycles", "9:0"], "argument --wave-cycles: FROM must be below TO, not"),
        (["run", "--wave-cycles", "9"], "argument --wave-cycles: must be FROM:TO in cycles, not"),
        (
            ["run", "--wave", "no/such/x.vcd"],
            "the folder of the waveform no/such/x.vcd does not exist: make it, or give another$",
        ),
        (["run", "--kv", "8/4"], "device rtl caches keys and values with the same number of b"),
        (["bench", "--kv", "8/4"], "device auto caches keys and values with the same number of "),
        ([*STORY, "-p", "K\udcf6nig"], "the text holds bytes that are not UTF-8"),
        ([*STORY, "--logit-bias", "3=101"], "logit_bias of token 3 must be -100 to 100 nats, not"),
        ([*STORY, "--logit-bias", "2048=1"], "logit_bias has token 2048, outside the vocabulary"),
        ([*STORY, "--stop", ""], "a stop string must not be empty: leave it out"),
        (["perplexity"], "the following arguments are required: -f/--file"),
        (["perplexity", "-f", "no-such.txt"], "no-such.txt: No such file or directory: give one"),
        (["perplexity", "-f", "."], r"\.: Is a directory: give a file, not a folder"),
    ],
)
def test_arguments_that_can_not_be(arguments: list[str], message: str, capsys: Capture) -> None:
    assert re.match(message, fails(capsys, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --temp -1", "argument --temp: must be 0 or more, not -1"),
        ("run --temp nan", "argument --temp: must be 0 or more, not nan"),
        ("run --temp warm", "argument --temp: must be a number, not 'warm'"),
        ("run --top-k -1", "argument --top-k: must be 0 or more, not -1"),
        ("run --top-p 0", "argument --top-p: must be above 0 and at most 1, not 0"),
        ("run --min-p 2", "argument --min-p: must be 0 to 1, not 2"),
        ("run --repeat-penalty 0", "argument --repeat-penalty: must be above 0, not 0"),
        (
            "chat --logit-bias the=1",
            (
                "argument --logit-bias: must be TOKEN=VALUE, a token id and a number, such as "
                "42=-5, not 'the=1'"
            ),
        ),
        ("run --seed -1", "argument --seed: must be 0 or more, not -1"),
        ("run -n few", "argument -n/--n-predict: must be a whole number, not 'few'"),
        ("run -n -5", "argument -n/--n-predict: must be 1 or more, not -5"),
        ("run -t 0", f"argument -t/--threads: must be 1 to {most_threads()}, not 0"),
        ("chat -t 10000", f"argument -t/--threads: must be 1 to {most_threads()}, not 10000"),
        ("chat -n 0", "argument -n/--n-predict: must be 1 or more, not 0"),
        ("perplexity -f x --windows 0", "argument --windows: must be 1 or more, not 0"),
        ("bench -p -1", "argument -p/--n-prompt: must be 0 or more, not -1"),
        ("bench -n -1", "argument -n/--n-gen: must be 0 or more, not -1"),
        ("bench -b 0", "argument -b/--batch: must be 1 or more, not 0"),
        ("bench -r 0", "argument -r/--repetitions: must be 1 or more, not 0"),
        ("pack M -o O -c 0", "argument -c/--ctx-size: must be 1 or more, not 0"),
        ("quantize M -o O --calib-windows 0", "argument --calib-windows: must be 1 or more, not 0"),
        ("quantize M -o O --calib-tokens 0", "argument --calib-tokens: must be 2 or more, not 0"),
        ("quantize M -o O --seed -1", "argument --seed: must be 0 or more, not -1"),
        ("quantize M -o O --bits-budget 9", "argument --bits-budget: must be 2 to 8, not 9"),
        ("quantize M -o O --bits-budget nan", "argument --bits-budget: must be 2 to 8, not nan"),
        ("verify M --against N --limit 0", "argument --limit: must be above 0, not 0"),
    ],
)
def test_numbers_that_can_not_be(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The option is named as it is typed, before anything is looked for."""
    monkeypatch.setattr("lutra.llm.find_model", None)
    command = arguments.split()[0]
    assert fails(capsys, *arguments.split()) == f"{message}: see lutra {command} --help"


def test_a_waveform_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A whole story takes gigabytes."""
    asked: list[object] = []

    class Silent:
        context, notes, device = 256, (), None

        def __init__(self, *_args: object, **options: object) -> None:
            asked.append(options["wave_cycles"])

        def encode(self, _prompt: str) -> list[int]:
            return [1]

        def stream(self, *_args: object) -> Iterator[object]:
            yield from ()
            raise LutraError("enough")

        def load(self) -> None:
            pass

    monkeypatch.setattr(generate, "LLM", Silent)
    wave = str(tmp_path / "story.vcd")
    assert main(["run", "--wave", wave]) == 2
    note, _ = capsys.readouterr().err.splitlines()
    assert note == (
        "note: the waveform has clock cycles 0 to 10,000 (about 400 MB as .vcd): "
        "--wave-cycles FROM:TO chooses others"
    )
    assert main(["run", "--wave", wave, "--wave-cycles", "5:90000"]) == 2
    assert capsys.readouterr().err == "error: enough\n"
    assert asked == [(0, 10_000), (5, 90_000)]


@pytest.mark.parametrize("program", ["c++", "perl"])
def test_a_missing_program(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Nothing of what was built before is used, and nothing is left behind."""
    for name in ("cc", "c++", "make", "perl"):
        if name != program:
            (tmp_path / name).symlink_to(sys.executable)
    for name in ("CXX", "VERILATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("amaranth")
    message = fails(capsys, "run", "-n", "1")
    assert "is needed to build the simulator and is not on PATH: install it" in message
    assert not (tmp_path / "cache").exists()


def test_an_error_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    """The whole process, as a shell sees it."""
    command = lutra(*STORY, "-m", str(tmp_path))
    out, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"error: {tmp_path}/config.json does not exist: ")


def test_help_and_version(capsys: Capture) -> None:
    for arguments in (["--help"], ["run", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert capsys.readouterr().out


# -- interruptions

INTERRUPTED_IMPORT = """
import runpy
import signal
import sys

name, *sys.argv[1:] = sys.argv[1:]

class Interrupt:
    def find_spec(self, found, path=None, target=None):
        if found == name:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
runpy.run_module("lutra", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["lutra.commands.cli", "numpy", "rich", "tokenizers"])
def test_ctrl_c_while_modules_are_imported(module: str) -> None:
    """They take most of a second."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module, "run"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


TERMINATED = """
import subprocess
import sys
import time
from pathlib import Path

from lutra import __main__ as entry
from lutra.commands import cli
from lutra_golden.machine import end_group

def compiles():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        print(process.pid, flush=True)
        time.sleep(60)
    finally:
        end_group(process)

cli.main = compiles
sys.exit(entry.main())
"""


def test_sigterm_ends_what_a_command_has_started() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TERMINATED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.terminate()
        assert process.wait(timeout=WAIT_S) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_package_imports_nothing_before_it_is_used() -> None:
    code = "import sys, lutra; assert not {'numpy', 'rich', 'lutra.llm'} & set(sys.modules)"
    names = "LLM, Completion, FinishReason, Logprob, Logprobs, LutraError, Piece, RunStats, "
    names += "SamplingParams, StepProgress"
    code += f"; from lutra import {names}; assert lutra.__version__; lutra.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    error = "AttributeError: module 'lutra' has no attribute 'nothing'"
    assert done.stderr.splitlines()[-1] == error


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Interrupts a pass of the device, and has each one before it take a quarter of a second."""
    now = itertools.count(0.0, 0.25)
    run = GoldenDevice._pass

    def begin(at: int) -> None:
        left = at

        def counted(device: GoldenDevice, chunks: Sequence[Chunk]) -> PassResult:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return run(device, chunks)

        monkeypatch.setattr(GoldenDevice, "_pass", counted)

    monkeypatch.setattr(GoldenDevice, "pass_tokens", 4)
    monkeypatch.setattr(GoldenDevice, "counters", lambda _device: {"run": 0})
    clock = SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr("lutra.serving.sequence.time", clock)
    return begin


def test_ctrl_c_in_prefill(interrupt: Callable[[int], None], capsys: Capture) -> None:
    """The tokens that were computed count, by the time that they took."""
    prompt = ["-p", "Once upon a time there was a king"]
    interrupt(2)
    assert main([*STORY, *prompt, "--json"]) == 130
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["interrupted"] and figures["finish_reason"] is None
    assert (figures["computed_tokens"], figures["generated_tokens"]) == (8, 0)
    assert figures["prompt_tokens"] > 8
    assert figures["prefill_tokens_per_s"] == 8 / 0.5
    assert figures["last_pass_counters"] == {}
    interrupt(0)
    assert main([*STORY, *prompt]) == 130
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert ["prompt tokens computed", "0"] in rows
    assert ["interrupted", "yes"] in rows
    assert next(row for row in rows if row[0] == "prefill tokens per second")[1] == "-"


def test_ctrl_c_in_a_token(interrupt: Callable[[int], None], capsys: Capture) -> None:
    interrupt(4)
    assert main([*STORY, "-p", "A", "--json", "--temp", "0"]) == 130
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["interrupted"] and figures["computed_tokens"] == figures["prompt_tokens"] <= 4
    assert len(figures["tokens"]) == figures["generated_tokens"] == 4
    assert figures["decode_tokens_per_s"] == 4
    # the device was reset
    assert figures["last_pass_counters"] == {}


HELD = """
import os
import sys
import threading
from contextlib import ExitStack

from tests.host.gate import gated

from lutra import __main__ as entry
from lutra.devices.golden import GoldenDevice

load = GoldenDevice._load

def load_held(device, model):
    load(device, model)
    gate = stack.enter_context(gated(device, 9))
    threading.Thread(target=lambda: (os.read(0, 1), gate.open()), daemon=True).start()

GoldenDevice._load = load_held
with ExitStack() as stack:
    sys.exit(entry.main())
"""


def held_story(*arguments: str) -> subprocess.Popen[str]:
    """A greedy story that goes on after eight tokens when its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", HELD, *STORY, "--temp", "0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def test_ctrl_c_ends_a_story_with_its_table() -> None:
    command = held_story("-p", "There was once", "-n", "240")
    assert command.stdout is not None
    begun = command.stdout.read(len("There was once") + 1)
    assert begun.startswith("There was once")
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=WAIT_S)
    assert (command.returncode, err) == (130, "")
    match = re.search(r"generated tokens +(\d+)", out)
    assert match is not None and 0 < int(match[1]) < 9
    assert re.search(r"^interrupted +yes", out, re.MULTILINE)
    assert "prompt tokens" in out
    assert "bit-exact with the golden model" in out


def test_ctrl_c_ends_a_story_with_its_json() -> None:
    command = held_story("-p", "A", "-n", "240", "--json")
    assert command.stdout is not None
    command.stdout.read(2)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=WAIT_S)
    figures = json.loads(out.splitlines()[-1])
    assert figures.keys() >= KEYS and figures["interrupted"]
    assert (command.returncode, err) == (130, "")


def test_a_reader_that_has_gone() -> None:
    command = held_story("-n", "100")
    assert command.stdin is not None
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.read(1)
    command.stdout.close()
    command.stdin.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=WAIT_S) == 1


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", [[*STORY, "-n", "2"], ["--help"], ["run", "--help"]])
def test_a_full_disk(arguments: list[str]) -> None:
    with FULL.open("w") as full:
        command = lutra(*arguments, stdout=full)
        _, err = command.communicate(timeout=WAIT_S)
    assert command.returncode == 2
    assert err == "error: output: No space left on device: free some space\n"


# -- devices that are missing


@pytest.mark.parametrize("command", ["run", "bench", "selftest", "bisect"])
@pytest.mark.parametrize("name", ["xrt", "pynq", "board"])
def test_a_board_that_is_missing_is_said_before_a_model_is_packed(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("lutra.open_model.pack_model", None)
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        board = f"board://127.0.0.1:{silent.getsockname()[1]}"
        device = board if name == "board" else name
        line = fails(capsys, command, "-m", "tales-llama", "-dev", device)
    message = {
        "xrt": "device xrt needs XRT's Python module ",
        "pynq": "device pynq (needs pynq, which is not installed|finds no board): run ",
        "board": rf"device {board}: no agent answers at port \d+ \(Connection refused\): start ",
    }
    assert re.match(message[name], line)


# -- perplexity


def test_perplexity(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "tale.txt"
    path.write_text("Once upon a time there was a king. " * 12, encoding="utf-8")
    assert main(["perplexity", "-f", str(path)]) == 0
    output = capsys.readouterr().out
    assert re.match(r"Final estimate: PPL = \d+\.\d{4} \+/- \d+\.\d{5}\n", output)
    assert re.search(r" tokens; measured on device [a-z]+\n$", output)
    results = []
    for options in (["-dev", "golden"], ["-dev", "auto"], ["--float"]):
        assert main(["perplexity", "-f", str(path), "--json", "--windows", "1", *options]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    integer, fastest, real = results
    assert (integer["device"], real["device"]) == ("golden", "float")
    assert integer["kind"] == real["kind"] == "measured"
    assert fastest["device"] in DEVICES and fastest["ppl"] == integer["ppl"]
    assert integer["tokens"] == real["tokens"] <= 255
    assert integer["ppl"] == pytest.approx(real["ppl"], rel=0.01)


@pytest.mark.parametrize(("n_windows", "says_little"), [(1, True), (2, False)])
def test_a_perplexity_of_few_tokens(
    n_windows: int, says_little: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:  # fmt: skip
    """Their number is remarked on, in a line."""
    monkeypatch.setattr("lutra.commands.perplexity._FEW", 400)
    path = tmp_path / "tale.txt"
    path.write_text("Once upon a time there was a king. " * 80, encoding="utf-8")
    command = ["perplexity", "-f", str(path), "-dev", "golden", "--windows", str(n_windows)]
    assert main(command) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    line = "note: a perplexity of 255 tokens says little: give a text of 400 or more"
    assert notes == [line] * says_little


def test_perplexity_of_formats(tmp_path: Path, capsys: Capture) -> None:
    """Compares the source, its rounded float form, and integers on two engines."""
    path = tmp_path / "tale.txt"
    path.write_text("Once upon a time there was a king. " * 4, encoding="utf-8")
    w2 = ["--format", "W2A8", "--group", "128"]
    found: list[dict[str, object]] = []
    engines = ([*w2, "--engine", name] for name in ("lut", "mac"))
    for options in (["--float"], [*w2, "--float"], *engines):
        command = ["perplexity", "-m", "tales-llama", "-f", str(path), "--json", "--windows", "1"]
        assert main([*command, *options]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    whole, rounded, lut, mac = found
    assert (whole["format"], whole["group"], whole["engine"]) == (None, None, None)
    assert (rounded["format"], rounded["group"], rounded["engine"]) == ("W2A8", 128, None)
    assert (lut["format"], lut["group"], lut["engine"]) == ("W2A8", 128, "lut")
    assert mac["engine"] == "mac"
    assert lut["ppl"] == mac["ppl"] == pytest.approx(rounded["ppl"], rel=0.01)
    assert whole["ppl"] != pytest.approx(rounded["ppl"], rel=0.01)


@pytest.fixture(scope="module")
def otter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model; the checkpoint that it was made of lies beside it."""
    root = tmp_path_factory.mktemp("otter")
    shape = Shape(llama=True, intermediate_size=128)
    source = write_model(root / "source", shape)
    out = root / "packed"
    assert main(["pack", str(source), "-o", str(out), "--format", "w4a8", "--group", "32"]) == 0
    return out


def perplexity_of(capsys: Capture, model: Path, text: Path, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["perplexity", "-m", str(model), "-f", str(text), "--json", *options]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return figures


def test_perplexity_of_a_packed_model(otter: Path, tmp_path: Path, capsys: Capture) -> None:
    """The same integers as when the checkpoint is rounded on the way, and the same in float."""
    text = tmp_path / "tale.txt"
    text.write_text("Once upon a time there was a king. " * 6, encoding="utf-8")
    rounded = ["--format", "w4a8", "--group", "32"]
    for options in ([], ["--float"]):
        packed = perplexity_of(capsys, otter, text, *options)
        source = perplexity_of(capsys, otter.parent / "source", text, *rounded, *options)
        assert packed | {"model": ""} == source | {"model": ""}
        assert (packed["format"], packed["group"]) == ("W4A8", 32)
    integers = perplexity_of(capsys, otter, text, "--losses")
    parts = ["activations", "queries and keys", "values", "head", "all together"]
    assert list(integers["losses"]) == parts
    real = perplexity_of(capsys, otter, text, "--float")
    assert (integers["device"] in DEVICES, real["device"]) == (True, "float")
    assert integers["ppl"] != real["ppl"]
    assert integers["ppl"] == pytest.approx(real["ppl"], rel=0.02)


def test_a_story_of_a_packed_model(otter: Path, capsys: Capture) -> None:
    options = ["-p", "A king", "-n", "3", "--temp", "0", "--json"]
    found: list[dict[str, Any]] = []
    rounded = ["--format", "w4a8", "--group", "32"]
    for model, more in ((otter, []), (otter.parent / "source", rounded)):
        capsys.readouterr()
        assert main([*PROGRAM, "-m", str(model), *options, *more]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    packed, source = found
    assert packed["tokens"] == source["tokens"]
    assert packed["program_fingerprint"] == source["program_fingerprint"]
    assert packed["model"] == source["model"] == "source"


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        (["--format", "W4A8"], "format"),
        (["--group", "32"], "group"),
        (["--kv", "4"], "kv_bits (--kv)"),
    ],
)
def test_a_packed_model_is_not_packed_again(
    option: list[str], argument: str, otter: Path, capsys: Capture
) -> None:
    name = option[0].removeprefix("--")
    assert fails(capsys, *STORY, "-m", str(otter), *option) == (
        f"{otter} is packed already, its {name} cannot be changed: leave {argument} out, or pack "
        "the checkpoint again"
    )


def test_a_cache_of_four_bits(otter: Path, tmp_path: Path, capsys: Capture) -> None:
    """Packed, or rounded on the way: the same integers; near its own floating point."""
    text, out, source = tmp_path / "tale.txt", tmp_path / "four", otter.parent / "source"
    text.write_text("Once upon a time there was a king. " * 6, encoding="utf-8")
    options = ["--format", "w4a8", "--group", "32", "--kv", "4"]
    assert main(["quantize", str(source), "-o", str(out), *options]) == 0
    packed = perplexity_of(capsys, out, text)
    assert packed["kv_bits"] == "4"
    assert packed | {"model": ""} == perplexity_of(capsys, source, text, *options) | {"model": ""}
    real, wide = perplexity_of(capsys, out, text, "--float"), perplexity_of(capsys, otter, text)
    assert wide["kv_bits"] == "8"
    assert len({packed["ppl"], real["ppl"], wide["ppl"]}) == 3
    assert packed["ppl"] == pytest.approx(real["ppl"], rel=0.02)
    assert main(["show", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["key_bits"], shown["value_bits"]) == (4, 4)


def test_a_story_with_a_cache_of_four_bits(capsys: Capture) -> None:
    assert main([*PROGRAM, "-p", "The king", "-n", "2", "--kv", "4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["config"], figures["kv_bits"]) == ("nano-kv4", "4")


def test_perplexity_without_a_first_token(otter: Path, tmp_path: Path, capsys: Capture) -> None:
    """A model whose texts begin with nothing: the first token of a text is given."""
    text, folder = tmp_path / "tale.txt", tmp_path / "model"
    text.write_text("Once upon a time there was a king. " * 6, encoding="utf-8")
    with_first = perplexity_of(capsys, otter, text)
    shutil.copytree(otter, folder)
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    without = perplexity_of(capsys, folder, text)
    n = len(Tokenizer(folder, 0).encode(text.read_text()))
    assert (with_first["tokens"], without["tokens"]) == (n, n - 1)
    assert without["ppl"] != with_first["ppl"]
    windows = perplexity_of(capsys, folder, text, "--windows", "2")
    assert windows["tokens"] == 2 * 31
    text.write_text("O", encoding="utf-8")
    assert fails(capsys, "perplexity", "-m", str(folder), "-f", str(text)) == (
        f"{text} has 1 tokens, and at least 2 are needed to predict one: give a longer text"
    )


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            b"",
            [],
            "{path} has 0 tokens, and at least 1 are needed to predict one: give a longer text",
        ),
        (b"K\xf6nig", [], "{path} is not UTF-8 text: convert it first"),
        (b"king", ["--float", "-dev", "cpu"], "--float runs on no device: leave --device out"),
        (b"king", ["--float", "-t", "2"], "--float runs on no device: leave --threads out"),
    ],
)
def test_texts_that_can_not_be(
    content: bytes, options: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "tale.txt"
    path.write_bytes(content)
    expected = message.format(path=path)
    assert fails(capsys, "perplexity", "-f", str(path), *options) == expected


@pytest.mark.parametrize(
    ("clock_hz", "text"), [(187_498_125, "at 187.5 MHz"), (200_000_000, "at 200 MHz")]
)
def test_a_modelled_speed_names_its_clock(clock_hz: int, text: str, capsys: Capture) -> None:
    figures: dict[str, object] = {}
    for name in FIGURES:
        figures[name] = None
    figures |= {"device": "pynq", "emulated": "kv260", "modelled_decode_tokens_per_s": 8000.0}
    figures |= {"last_pass_counters": {}, "power_w": {}, "kinds": {}}
    generate._print_table(figures | {"target_clock_hz": clock_hz})
    line = f"decode tokens per second {text}"
    assert any(
        each.startswith(line) and "8,000.0" in each for each in capsys.readouterr().out.splitlines()
    )


FIGURES: list[str] = (
    "device plan emulated config engine model format prompt_tokens computed_tokens "
    "generated_tokens prefill_cycles decode_cycles_per_token simulated_cycles_per_s "
    "prefill_tokens_per_s "
    "decode_tokens_per_s modelled_decode_tokens_per_s target_clock_hz interrupted bit_exact "
    "drafted_tokens accepted_tokens predicted_s prediction_error"
).split()


def test_guessed_tokens_are_told(capsys: Capture) -> None:
    """As soon as there are any; of whatever guesses them the story is the same."""
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    figures |= {"device": "cpu", "last_pass_counters": {}, "power_w": {}, "kinds": {}}
    for drafted in (0, 1_234):
        generate._print_table(figures | {"drafted_tokens": drafted, "accepted_tokens": 1_000})
        told = "guessed tokens that were right" in (printed := capsys.readouterr().out)
        assert told == (drafted > 0) == ("1,000 of 1,234" in printed)
    options = ["-p", "The king and the king and the", "-n", "40", "--temp", "0", "--json"]
    stories: list[list[int]] = []
    for way in ("off", "ngram", "tales"):
        assert main([*STORY, *options, "--speculate", way]) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        stories.append(last["tokens"])
        assert last["accepted_tokens"] <= last["drafted_tokens"]
        assert way != "off" or not last["drafted_tokens"]
    assert stories[0] == stories[1] == stories[2]
    assert "no-such" in fails(capsys, *STORY, "--speculate", "no-such")


def test_a_command_imports_no_others_modules() -> None:
    """Importing everything takes a second, which a story's first token would wait for."""
    code = "import sys; from lutra.commands.cli import command_parser; command_parser('run'); "
    code += "print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert "lutra.commands.generate" in found
    others = {"lutra.diagnose", "lutra.deploy", "lutra_flows", "lutra_sim", "lutra.compile"}
    boards = {"lutra.devices.auto", "lutra.devices.accelerator", "lutra.devices.emulated"}
    assert not found & (others | boards | {"jinja2"})
