"""Model architectures, one file each, and the models that ship with the package."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from lutra.arguments import check_kind
from lutra.checkpoints import Checkpoint, open_checkpoint
from lutra.checkpoints.hub import download, is_id
from lutra.formats.gguf import is_gguf
from lutra.formats.gguf_split import model_name
from lutra.models.bitnet import BITNET, BITNET_LARGE, read_bitnet
from lutra.models.decoder import Decoder
from lutra.models.llama import LLAMA, read_llama
from lutra.models.mistral import MISTRAL, read_mistral
from lutra.models.qwen import QWEN2, QWEN3, read_qwen2, read_qwen3
from lutra_golden.errors import LutraError

__all__ = ["ARCHITECTURES", "RANDOM", "find_model", "load_model", "name_of", "shipped_models"]

RANDOM = "random:"
"""Prefix of the names of models with random weights."""
_DATA = Path(__file__).parent / "data"

ARCHITECTURES: Mapping[str, Callable[[Checkpoint, str], Decoder]] = {
    BITNET: read_bitnet,
    BITNET_LARGE: read_bitnet,
    LLAMA: read_llama,
    MISTRAL: read_mistral,
    QWEN2: read_qwen2,
    QWEN3: read_qwen3,
}
"""Readers of a checkpoint, by the architecture that its ``config.json`` names."""


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.name for path in _DATA.iterdir() if (path / "config.json").exists())


def find_model(name: str | Path) -> Path:
    """Return the folder of a shipped model's name, a path (a folder or a GGUF file), or the folder
    that an id of the Hugging Face Hub (``owner/model``) is downloaded to."""
    if not isinstance(name, str):
        kind = type(name).__name__
        check_kind(name, os.PathLike, f"model must be a name or a path, not {kind}")
    path, names = Path(name), shipped_models()
    # a folder or file that only happens to be called like a shipped model does not hide it
    if path.is_dir() and (str(name) not in names or (path / "config.json").exists()):
        return path
    if path.is_file() and str(name) not in names:
        if is_gguf(path):
            return path
        raise LutraError(
            f"{path} is not a GGUF file: give one, or the folder that holds config.json and "
            "model.safetensors"
        )
    if str(name) in names:
        return _DATA / str(name)
    if isinstance(name, str) and is_id(name):
        return download(name)
    if str(name).startswith(RANDOM):
        raise LutraError(
            f"model {name} has random weights, which can only be measured: lutra bench -m {name}"
        )
    raise LutraError(
        f"model {str(name)!r} is neither a folder nor a shipped model ({', '.join(names)}): "
        "give the folder that holds config.json and model.safetensors, a GGUF file, or an id "
        "of the Hugging Face Hub (owner/model)"
    )


def load_model(path: Path) -> Decoder:
    """Open a checkpoint of any supported architecture; layers are read when they are needed."""
    checkpoint = open_checkpoint(path)
    architecture = checkpoint.config.architecture
    if architecture not in ARCHITECTURES:
        raise LutraError(
            f"{checkpoint.config.path}: architecture {architecture!r} is not supported; supported "
            f"are {', '.join(ARCHITECTURES)}: give a model of one of these"
        )
    return ARCHITECTURES[architecture](checkpoint, name_of(path))


def name_of(path: Path) -> str:
    """The name of the model in a folder or a file."""
    return model_name(path) if path.is_file() else path.name
