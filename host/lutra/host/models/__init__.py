"""Model architectures, one file each, and the models that ship with the package."""

from pathlib import Path

from lutra.host.errors import LutraError

__all__ = ["find_model", "shipped_models"]

_DATA = Path(__file__).parent / "data"


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
