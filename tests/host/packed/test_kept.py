"""Packed models that are kept: found by content, bounded, and whole or not there."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.host.random_model import LLAMAS, write_model

from lutra.commands.cli import main
from lutra.llm import LLM
from lutra.models.decoder import Decoder
from lutra.open_model import open_model
from lutra.packed import kept
from lutra.packed.kept import KeptModels, key_of, wait_until_kept
from lutra.packed.store import LayerSource
from lutra_golden.errors import LutraError
from lutra_golden.model.packed import PackedModel

SETTINGS: dict[str, object] = {"format": None}
Opened = Callable[..., tuple[Callable[[], Decoder] | None, PackedModel]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkpoint, in a world where small ones are kept."""
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "LEAST_BYTES", 1)
    return write_model(tmp_path / "otter", LLAMAS["llama-whole"])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a path; ``packs`` counts how often it was packed."""

    def call(path: Path, format: str | None = None, **options: object) -> object:
        return open_model(path, format, None, options.get("kv"), options.get("context"), None)  # pyright: ignore[reportArgumentType]

    return call  # pyright: ignore[reportReturnType]


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were packed, not found."""
    import lutra.open_model as module

    found, pack = list[str](), module.pack_model

    def counted(model: Decoder, *args: object) -> PackedModel:
        found.append(model.name)
        return pack(model, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "pack_model", counted)
    return found


def same(a: PackedModel, b: PackedModel) -> bool:
    return all(
        np.array_equal(x.linear(name).stored.codes, y.linear(name).stored.codes)
        for x, y in zip(a.layers, b.layers, strict=True)
        for name in ("q_proj", "down_proj")
    ) and np.array_equal(a.head, b.head)


def test_the_second_time_it_is_found(folder: Path, opened: Opened, packs: list[str]) -> None:
    source, first = opened(folder)
    again, second = opened(folder)
    assert packs == ["otter"]
    assert same(first, second)
    assert (first.name, first.format, first.context) == (second.name, second.format, second.context)
    assert source is not None
    assert again is not None
    assert again().config == source().config
    (entry,) = KeptModels().entries()
    assert (entry.name, entry.format) == ("otter", first.format)
    assert entry.n_bytes == sum(each.stat().st_size for each in entry.folder.rglob("*"))
    assert not list(KeptModels().folder.glob(".writing-*"))


def test_every_setting_counts(folder: Path, opened: Opened, packs: list[str]) -> None:
    for options in ({}, {"format": "W6A8"}, {"kv": 4}, {"context": 16}):
        for _ in range(2):
            opened(folder, **options)
    assert len(packs) == len(KeptModels().entries()) == 4


def test_the_content_counts_and_the_place_does_not(
    folder: Path, opened: Opened, packs: list[str]
) -> None:
    opened(folder)
    moved = folder.rename(folder.with_name("beaver"))
    assert opened(moved)[1].name == "beaver"
    copy = Path(shutil.copytree(moved, folder.with_name("copy")))
    assert opened(copy)[1].name == "copy"
    assert packs == ["otter"]
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-4}))
    opened(copy)
    assert packs == ["otter", "copy"]


def test_the_code_counts(folder: Path, opened: Opened, packs: list[str]) -> None:
    opened(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_code", lambda: "another")
        opened(folder)
    assert len(packs) == 2


def test_all_code_that_packs_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file of a package, where it lies, and the versions of Lutra and of its libraries."""
    package = tmp_path / "otters"
    (package / "deep").mkdir(parents=True)
    files = [package / "__init__.py", package / "deep" / "a.py", package / "b.c"]
    for each in files:
        each.write_text("1", encoding="ascii")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kept, "_CODE", ("otters", "lutra.open_model"))

    def code() -> str:
        kept._code.cache_clear()
        return kept._code()

    found = [code()]
    assert code() == found[0]
    for each in files:
        each.write_text("2", encoding="ascii")
        found.append(code())
    files[1].rename(package / "a.py")
    found.append(code())
    versions, version_of = dict[str, str](), kept._version_of
    monkeypatch.setattr(kept, "_version_of", lambda each: versions.get(each) or version_of(each))
    for library in ("lutra", "numpy", "gguf"):
        versions[library] = "9"
        found.append(code())
    assert len(set(found)) == len(found)
    kept._code.cache_clear()
    assert version_of("numpy") == np.__version__
    assert version_of("no-such-otter") is None


def test_no_code_that_packs_is_left_out() -> None:
    """Modules that packing imports, but for those that only spread the work or word an error."""
    line = "import sys, lutra.open_model; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True)
    ours = {each for each in run.stdout.split() if each.startswith("lutra")}
    counted = tuple(f"{each}." for each in kept._CODE)
    left = {each for each in ours if not f"{each}.".startswith(counted)}
    assert left == {"lutra", "lutra.arguments", "lutra.parallel", "lutra.devices"}


def test_files_are_read_once(folder: Path) -> None:
    models = KeptModels()
    key = key_of(folder, SETTINGS, models.seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept.np, "memmap", None)  # whoever reads them fails
        assert key_of(folder, SETTINGS, models.seen) == key
    tensors = folder / "model.safetensors"
    os.utime(tensors, ns=(0, 0))
    assert key_of(folder, SETTINGS, models.seen) == key
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert key_of(folder, SETTINGS, models.seen) != key
    assert key_of(folder, SETTINGS) == key_of(folder, SETTINGS, models.seen)


def test_small_checkpoints_are_not_kept(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "LEAST_BYTES", 1 << 25)
    opened(folder)
    assert not KeptModels().entries()
    assert not KeptModels().folder.exists()


def test_the_least_recently_used_go(folder: Path, opened: Opened, packs: list[str]) -> None:
    opened(folder)
    (first,) = KeptModels().entries()
    limit = int(2.5 * first.n_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTRA_CACHE_GB", str(limit / 1e9))
        opened(folder, context=16)
        os.utime(first.folder, (1, 1))
        opened(folder)  # found, and so used last
        opened(folder, context=17)
        assert len(packs) == 3
        entries = KeptModels().entries()
        assert sum(each.n_bytes for each in entries) <= limit
        assert first.folder in [each.folder for each in entries]
        opened(folder, context=16)
        assert len(packs) == 4
        patch.setenv("LUTRA_CACHE_GB", "0.000001")
        opened(folder, context=18)
        assert len(KeptModels().entries()) == len(entries)  # it does not fit, others stay


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_bounds_that_are_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_CACHE_GB", text)
    with pytest.raises(LutraError, match=rf"^LUTRA_CACHE_GB must be gigabytes, .*, not '{text}'$"):
        KeptModels()


def test_an_entry_that_was_damaged_is_made_again(
    folder: Path, opened: Opened, packs: list[str]
) -> None:
    opened(folder)
    (entry,) = KeptModels().entries()
    tensors = entry.folder / "model.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    opened(folder)
    assert len(packs) == 2
    opened(folder)
    assert len(packs) == 2


def test_what_is_interrupted_leaves_nothing(
    folder: Path, opened: Opened, packs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, model = KeptModels(), opened(folder)[1]
    models.clear()
    models.folder.mkdir()
    with monkeypatch.context() as patch:

        def interrupted(*_: object) -> str:
            raise KeyboardInterrupt

        patch.setattr("lutra.packed.file._fingerprint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            models.keep("key", model)
    assert not models.entries()
    assert not list(models.folder.iterdir())
    # a process that was killed cannot tidy up; the next one does
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = models.folder / f".writing-{process.pid}-abc"
    mine = models.folder / f".writing-{os.getppid()}-abc"
    for each in (left, mine):
        each.mkdir()
    opened(folder)
    wait_until_kept()
    assert not left.exists()
    assert mine.exists()
    assert len(models.entries()) == 1


def test_a_folder_that_cannot_be_written(
    folder: Path, opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "file"))
    assert opened(folder)[1].name == "otter"
    wait_until_kept()
    assert "the packed model is not kept, " in caplog.text


def test_it_is_written_while_the_model_runs(
    folder: Path, opened: Opened, packs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end, write = threading.Event(), threading.Event(), kept.write_packed

    def slow(*args: object) -> str:
        began.set()
        assert may_end.wait(60)
        return write(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(kept, "write_packed", slow)
    _, model = opened(folder)
    assert began.wait(60)
    assert len(list(KeptModels().folder.glob(".writing-*"))) == 1
    threading.Timer(0.2, may_end.set).start()
    assert len(KeptModels().entries()) == 1  # which waits
    assert same(opened(folder)[1], model)
    assert packs == ["otter"]


def test_an_interrupt_gives_up_what_is_written(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, write = threading.Event(), kept.write_packed

    def slow(out: Path, model: PackedModel, store: LayerSource) -> str:
        ready.set()
        assert store._given_up.wait(60)  # pyright: ignore
        return write(out, model, store)

    monkeypatch.setattr(kept, "write_packed", slow)
    opened(folder)
    assert ready.wait(60)
    with monkeypatch.context() as patch:

        def interrupted(_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            wait_until_kept()
    wait_until_kept()
    assert [each.name for each in KeptModels().folder.iterdir()] == ["seen"]


def test_a_process_ends_when_its_model_is_kept(folder: Path) -> None:
    lines = [
        "import sys, time; from pathlib import Path; from lutra.packed import kept",
        "from lutra.open_model import open_model",
        "kept.LEAST_BYTES, write = 1, kept.write_packed",
        "kept.write_packed = lambda *args: (time.sleep(0.3), write(*args))[1]",
        "open_model(Path(sys.argv[1]), *[None] * 5)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(folder)], check=True, timeout=300)
    assert [each.name for each in KeptModels().entries()] == ["otter"]


def test_the_model_runs_as_before(folder: Path, packs: list[str]) -> None:
    tokens = [3, 1, 4, 1, 5]
    first, second = LLM(folder, "golden"), LLM(folder, "golden")
    assert packs == ["otter"]
    for a, b in zip(first.logits(tokens), second.logits(tokens), strict=True):
        np.testing.assert_array_equal(a, b)
    assert second.source is not None
    assert second.source is second.source


def test_the_command(folder: Path, opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    place = KeptModels().folder
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{place}: 0 of 20,000,000,000 bytes (LUTRA_CACHE_GB)\n"
    model = opened(folder)[1]
    assert main(["cache", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["model", "format", "bytes", "used"]
    assert lines[1].split()[:2] == ["otter", model.format]
    assert main(["cache", "list", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["folder"] == str(place)
    assert [each["name"] for each in figures["models"]] == ["otter"]
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 1
    assert not place.exists()
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"{place}: removed 0 packed models, 0 bytes\n"
