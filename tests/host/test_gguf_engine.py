"""A GGUF file opened, packed, compiled and run, with the vocabulary that it holds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import MODELS, GgufModel, write_gguf

from lutra.commands.cli import main
from lutra.formats.gguf import GgufFile
from lutra.formats.gguf_vocabulary import read_vocabulary
from lutra.llm import LLM
from lutra.packed.file import open_packed
from lutra.text.tokenizer import Tokenizer
from lutra_golden.errors import LutraError

LETTERS = "abcdefgh"


def vocabulary(n: int) -> dict[str, object]:
    """Fields of ``n`` pieces."""
    pieces = ["<unk>", "<s>", "</s>", "\N{LOWER ONE EIGHTH BLOCK}", *LETTERS]
    pieces += [left + right for left in LETTERS for right in LETTERS]
    pieces += [f"<{i}>" for i in range(len(pieces), n)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(n)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (n - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }


def model(name: str) -> GgufModel:
    """A small model with a vocabulary of pieces."""
    return replace(MODELS[name], fields=vocabulary(MODELS[name].vocab_size))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ternary model."""
    path = tmp_path_factory.mktemp("gguf") / "otter.gguf"
    write_gguf(path, model("bitnet"), "TQ2_0")
    return path


def test_the_tokenizer_of_a_file(path: Path) -> None:
    tokenizer, vocabulary = Tokenizer.open(path), read_vocabulary(GgufFile(path).metadata)
    assert (tokenizer.bos, tokenizer.eos) == (1, frozenset({2}))
    assert tokenizer.chat_template == "{{ messages }}"
    ids = vocabulary.tokenizer.encode("abba cab", add_special_tokens=False).ids
    assert tokenizer.encode("abba cab") == [1, *ids]
    assert tokenizer.decode(ids) == "abba cab"


def test_a_vocabulary_is_refused_before_the_model_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "otter.gguf"
    fields: dict[str, object] = {"tokenizer.ggml.model": "bert"}
    write_gguf(path, replace(MODELS["llama"], fields=fields))
    monkeypatch.setattr("lutra.open_model.pack_model", None)  # it is not called
    with pytest.raises(LutraError, match=r"tokenizer\.ggml\.model 'bert' is not supported"):
        LLM(path, "golden")


def test_a_file_runs(path: Path) -> None:
    """Greedy tokens of the integers are those of the float forward pass of the same weights."""
    llm = LLM(path, "golden")
    assert llm.packed.name == "otter"
    assert llm.eos == {2}
    found = llm.generate("abba cab", max_tokens=4)
    tokens = [*llm.tokenizer.encode("abba cab"), *found.tokens]
    assert llm.source is not None
    logits = llm.source.forward(np.array(tokens[:-1]))
    first = len(tokens) - len(found.tokens) - 1
    assert logits[first:].argmax(axis=1).tolist() == found.tokens
    assert found.text == llm.tokenizer.decode(found.tokens)


def test_a_head_that_keeps_the_engine_of_ternary_weights_away_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "otter.gguf"
    write_gguf(path, model("bitnet"), "TQ2_0", outer="Q8_0")
    llm = LLM(path, "interpreted")
    assert llm.device.facts()["engine"] == "lut"
    (note,) = llm.notes
    assert note == (
        "embedding and head keep the codes of the file, which engine lut runs and not ternary: "
        "--head 0 runs the model on engine ternary"
    )
    plain = LLM(path, "interpreted", head_bits=0)
    assert (plain.device.facts()["engine"], plain.notes) == ("ternary", [])
    assert LLM(path, "interpreted", engine="mac", load=False).notes == []
    assert LLM(path, "interpreted", head_bits=8, load=False).notes == []
    assert LLM(path, "golden", load=False).notes == []


def test_codes_of_embedding_and_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the file, where the device runs them, unless something else is asked for."""
    path, out = tmp_path / "otter.gguf", tmp_path / "out"
    write_gguf(path, model("qwen3"), "Q8_0", outer="Q5_0")
    llm = LLM(path, "golden")
    coded = llm.packed.vocabulary
    assert coded is not None and coded.head.stored.bits == 5
    assert llm.source is not None
    values = llm.source.embed_tokens.dequantized()
    np.testing.assert_allclose(
        llm.rounded.embed_tokens.dequantized(), values, atol=2e-4 * np.abs(values).max()
    )
    assert LLM(path, "golden", head_bits=0).packed.vocabulary is None
    assert LLM(path, "golden", format="W4A8").packed.vocabulary is None
    for options, bits in (([], None), (["--head", "8"], 5), (["--head", "4"], 4)):
        assert main(["pack", str(path), "-o", str(out), *options]) == 0
        noted = "--head 8 keeps the codes of the file" in capsys.readouterr().err
        found = open_packed(out).model.vocabulary
        assert (None if found is None else found.embedding.stored.bits) == bits
        assert noted is (bits is None)
