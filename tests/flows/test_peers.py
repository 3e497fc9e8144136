"""The peer that the CPU is measured beside."""

from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from tests.host.gguf_model import MODELS
from tests.host.gguf_model import write_gguf as write_model

from lutra.commands.bench import Row
from lutra.formats.gguf import GgufFile
from lutra.open_model import open_packed_model
from lutra_flows import peers
from lutra_flows.peer_models import PEER_MODELS, write_gguf
from lutra_flows.peers import Comparison, main, table
from lutra_golden.install import install_command
from lutra_golden.model.capabilities import EVERY_PART
from lutra_golden.model.stored import StoredWeights

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def test_the_peers_model_is_whole(tmp_path: Path) -> None:
    """Reads the file with the library that defines the format."""
    path = tmp_path / "peer.gguf"
    write_gguf(path, shape=SHAPE | {"tie_word_embeddings": True})
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 + 2 * 9
    up = tensors["blk.1.ffn_up.weight"]
    assert list(up.shape) == [512, 768] and up.tensor_type.name == "TQ2_0"
    weights = gguf.quants.dequantize(up.data, up.tensor_type)
    scale = np.abs(weights).max()
    assert {-1, 0, 1} == set(np.rint(weights / scale).astype(int).ravel().tolist())
    head = tensors["token_embd.weight"]
    assert head.tensor_type.name == "Q6_K"
    values = gguf.quants.dequantize(head.data, head.tensor_type)
    assert values.shape == (512, 512) and np.isfinite(values).all() and values.std() > 0
    assert GgufFile(path).metadata.text("general.architecture") == "llama"


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("bonsai-8b", {"Q1_0": 7 * 2 + 2}),
        ("ternary-bonsai-8b", {"Q2_0": 7 * 2 + 2}),
        ("qwen2.5-1.5b", {"Q4_K": 7 * 2 - 2, "Q6_K": 1 + 2}),
    ],
)
def test_models_of_released_types(tmp_path: Path, name: str, types: dict[str, int]) -> None:
    """Lutra opens them, with the types and the values that they stand for."""
    path, model = tmp_path / "peer.gguf", PEER_MODELS[name]
    heads = {"head_dim": 128} if model.arch == "qwen3" else {}
    write_gguf(path, model, {**model.config, **SHAPE, **heads})
    tensors = GgufFile(path).tensors
    found = Counter(tensor.kind.name for tensor in tensors.values())
    assert found.pop("F32") and found == types
    packed = open_packed_model(path, capabilities=EVERY_PART)
    assert len(packed.layers) == 2 and packed.vocab_size == 512


def test_multiples_of_scales_are_of_all_sizes(tmp_path: Path) -> None:
    """As quantisers leave them; some kernels take multiples of six bits from Q4_K alone."""
    path, model = tmp_path / "peer.gguf", PEER_MODELS["qwen2.5-1.5b"]
    write_gguf(path, model, {**model.config, **SHAPE})
    layer = open_packed_model(path, capabilities=EVERY_PART).layers[1]
    for linear, shift, offsets in ((layer.q_proj, 6, True), (layer.down_proj, 7, False)):
        assert isinstance(linear.source, StoredWeights)
        levels = linear.source.levels
        assert levels is not None and (levels.shift, levels.offsets) == (shift, offsets)
        assert len(set(levels.scale.flat)) > (1 << shift) // 2


def test_six_bits_where_llama_cpp_has_them() -> None:
    """Layers of 28 whose values and down projections have more bits in a file Q4_K_M."""
    of = PEER_MODELS["qwen2.5-1.5b"].type_of
    more = [i for i in range(28) if of("attn_v", i, 28) == "Q6_K"]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]
    assert [i for i in range(28) if of("ffn_down", i, 28) == "Q6_K"] == more
    assert {of("attn_q", i, 28) for i in range(28)} == {"Q4_K"}


def test_without_the_peer_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(peers, "version", missing)
    assert main(["-t", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: the peer llama.cpp is not installed: run "
        f"`{install_command('peers')}`, which compiles it\n"
    )


def test_a_file_is_run_by_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device runs it; in the place of the peer stand rates that are known."""
    path, n = tmp_path / "otter.gguf", MODELS["llama"].vocab_size
    write_model(path, MODELS["llama"], "Q4_K")
    given: list[tuple[object, ...]] = []

    def rates(*settings: object) -> list[tuple[str, float]]:
        given.append(settings)
        return [("pp4", 8.0 + len(given)), ("tg3", 2.0)]

    monkeypatch.setattr(peers, "_peer_rows", rates)
    monkeypatch.setattr(peers, "version", lambda name: "1.2")
    monkeypatch.setattr(peers, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(peers, "_PIECE", 1 << 18)
    assert main(["-m", str(path), "-t", "1", "-p", "4", "-n", "3", "-r", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and given == [(path, n, 1, 4, 3, 1)] * 2
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
    found = {(row[0], row[1]): row for row in rows if len(row) == 8}
    assert found["llama.cpp 1.2", "pp4"][3:] == ["9.5", "9.0", "10.0", "", ""]
    assert ("lutra cpu", "pp4") in found and ("lutra cpu", "tg3") in found
    assert out.splitlines()[-1].startswith("The machine reads ")


def test_bytes_of_a_token_stand_beside_its_rate(tmp_path: Path) -> None:
    rows = [
        Row(model="otter", device="cpu", test=test, rates=rates)
        for test, rates in (("pp8", (3.0,)), ("tg8", (9.0, 10.0, 14.0)))
    ]
    found = table(Comparison(rows=rows, token_bytes={"cpu": 2_000_000_000}, read=[3e10, 3.25e10]))
    assert found.splitlines()[2:] == [
        "| cpu | pp8 | 3.00 | 3.0 | 3.0 | 3.0 |  |  |",
        "| cpu | tg8 | 11.00 \u00b1 2.65 | 10.0 | 9.0 | 14.0 | 2000 | 20.0 |",
        "",
        "The machine reads 30.0, 32.5 GB/s, in each turn.",
    ]


def test_a_token_reads_one_row_of_an_embedding_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    write_gguf(path, shape=SHAPE | {"tie_word_embeddings": True})
    sizes = {name: tensor.n_bytes for name, tensor in GgufFile(path).tensors.items()}
    matrices = sum(size for name, size in sizes.items() if "norm" not in name)
    assert peers._file_bytes(path) == matrices
    with_head = tmp_path / "head.gguf"
    write_model(with_head, MODELS["llama"], "Q4_K")
    tensors = GgufFile(with_head).tensors
    assert "output.weight" in tensors
    without = sum(t.n_bytes for t in tensors.values() if len(t.shape) > 1)
    assert peers._file_bytes(with_head) == without - tensors["token_embd.weight"].n_bytes
