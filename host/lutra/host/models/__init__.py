"""Model architectures, one file each, and the models that ship with the package."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lutra.host.errors import LutraError
from lutra.host.models.bitnet import BITNET, BitNet, load_bitnet
from lutra.host.models.checkpoint import ConfigFile
from lutra.host.models.llama import LLAMA, Llama, load_llama

__all__ = ["ARCHITECTURES", "Model", "find_model", "load_model", "shipped_models"]

_DATA = Path(__file__).parent / "data"

Model = BitNet | Llama

ARCHITECTURES: Mapping[str, Callable[[Path], Model]] = {BITNET: load_bitnet, LLAMA: load_llama}
"""What reads a checkpoint, by the architecture that its ``config.json`` names."""


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(path.name for path in _DATA.iterdir() if (path / "config.json").exists())


def find_model(name: str | Path) -> Path:
    """Return the folder of a shipped model's name or of a path."""
    path, names = Path(name), shipped_models()
    # a folder that only happens to be called like a shipped model does not hide it
    if path.is_dir() and (str(name) not in names or (path / "config.json").exists()):
        return path
    if str(name) in names:
        return _DATA / str(name)
    raise LutraError(
        f"model {str(name)!r} is neither a folder nor a shipped model ({', '.join(names)}): "
        "give the folder that holds config.json and model.safetensors"
    )


def load_model(folder: Path) -> Model:
    """Read a checkpoint of any supported architecture."""
    file = ConfigFile(folder / "config.json")
    named = file.get("architectures")
    if isinstance(named, list):
        for name, load in ARCHITECTURES.items():
            if named == [name]:
                return load(folder)
    raise LutraError(
        f"{file.path}: architectures {named!r} is not supported; supported are "
        f"{', '.join(ARCHITECTURES)}: give a model of one of these"
    )
