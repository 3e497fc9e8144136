"""The command, from text to checkpoint."""

import pytest

pytest.importorskip("torch")

from lutra_flows.train.__main__ import main
from lutra_flows.train.evaluate import main as evaluate

PARAGRAPH = "Once upon a time there was a miller who had {} sons, and all of them were very lazy.\n"


def test_text_in_checkpoint_out(tmp_path, capsys):
    for name in ("train.txt", "valid.txt"):
        text = "".join(PARAGRAPH.format(i) for i in range(30))
        (tmp_path / name).write_text(f"A BOOK\n{text}")
    out, run = tmp_path / "out", tmp_path / "run"
    common = ["--data", str(tmp_path), "--out", str(out), "--run", str(run)]
    common += ["--batch-size", "1", "--steps", "2", "--threads", "1"]
    main(common)
    first = (out / "model.safetensors").read_bytes()
    main(common)
    assert (out / "model.safetensors").read_bytes() == first
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    evaluate(["--model", str(out), "--text", str(tmp_path / "valid.txt")])
    assert capsys.readouterr().out.startswith("Final estimate: PPL = ")
