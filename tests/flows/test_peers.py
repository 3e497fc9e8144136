"""The peer that the CPU is measured beside."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from lutra.formats.gguf import GgufFile
from lutra_flows import peers
from lutra_flows.peers import main, write_gguf
from lutra_golden.install import install_command

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
    write_gguf(path, SHAPE)
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
